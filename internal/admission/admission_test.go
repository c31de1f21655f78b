package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/webhook"
)

var testNow = time.Unix(1_800_000_000, 0)

// asking is a Client and what became of its questions.
type asking struct {
	*Client
	mu      sync.Mutex
	results []Result
}

func clientOf(t testing.TB, key []byte, backEnd http.HandlerFunc) *asking {
	t.Helper()
	server := httptest.NewServer(backEnd)
	t.Cleanup(server.Close)
	return clientAt(t, server.URL+"/s3cret?t=s3cret", key)
}

func clientAt(t testing.TB, address string, key []byte) *asking {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	a := new(asking)
	a.Client = New(Config{URL: u, Key: key, Now: func() time.Time { return testNow }, Asked: func(r Result, _ time.Duration) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.results = append(a.results, r)
	}})
	t.Cleanup(a.Close)
	return a
}

// outcome is what a test wants of an answer.
type outcome struct {
	result Result
	terms  sessions.Terms
}

// modelOf says by a plain reading of the docs what an answer means.
func modelOf(status int, body string) outcome {
	if status != http.StatusOK {
		return outcome{result: map[bool]Result{true: Denied, false: Status}[status == http.StatusForbidden]}
	}
	var a map[string]any
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	if len(body) > maxAnswer || !utf8.ValidString(body) || d.Decode(&a) != nil || d.More() || strings.Contains(body, `\u0061`) {
		return outcome{result: Invalid}
	}
	allow, decided := a["allow"].(bool)
	if decided && !allow {
		return outcome{result: Denied}
	}
	delete(a, "allow")
	var terms sessions.Terms
	for name, value := range a {
		number, _ := value.(json.Number)
		n, err := strconv.ParseInt(string(number), 10, 64)
		switch {
		case name != "climit" && name != "until" || value != nil && (err != nil || n < 1):
			return outcome{result: Invalid}
		case value == nil:
		case name == "climit":
			terms.Limit = int(n)
		default:
			terms.Until = time.Unix(n, 0)
		}
	}
	switch {
	case !decided:
		return outcome{result: Invalid}
	case !terms.Until.IsZero() && !testNow.Before(terms.Until):
		return outcome{result: Denied}
	}
	return outcome{Allowed, terms}
}

// TestAnswers crosses statuses with bodies, and compares what the client makes of them with the
// model.
func TestAnswers(t *testing.T) {
	t.Parallel()
	past, future := testNow.Unix(), testNow.Unix()+1
	bodies := []string{"", "null", "true", "[]", "{}", "{", "<html>", `{"allow":true}{}`, `{"allow":true} x`, "\xff", `{"allow":tru`, `{"allow":true` + strings.Repeat(" ", maxAnswer) + "}"}
	for _, allow := range []string{"true", "false", `"true"`, "1", "null", "{}"} {
		for _, climit := range []string{"", "null", "1", "2147483647", "0", "-1", "1.0", "1e3", `"3"`, "true", "01"} {
			for _, until := range []string{"", "null", fmt.Sprint(past), fmt.Sprint(future), "1", "0", "-5", "1800000001.5", `"1800000001"`, "[]"} {
				body := `{"allow":` + allow
				if climit != "" {
					body += `,"climit":` + climit
				}
				if until != "" {
					body += ` , "until" : ` + until
				}
				bodies = append(bodies, body+"}")
			}
		}
	}
	for _, unknown := range []string{`"plan":"gold"`, `"Allow":false`, `"cLimit":1`, `"until ":1`, `"\u0061llow":false`, `"deep":[[[[[[[[[1]]]]]]]]]`} {
		bodies = append(bodies, `{"allow":true,`+unknown+`}`, `{"allow":false,`+unknown+`}`)
	}
	var status atomic.Int64
	var body atomic.Value
	client := clientOf(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(int(status.Load()))
		if status.Load() != http.StatusNoContent {
			_, _ = io.WriteString(w, body.Load().(string))
		}
	})
	for _, code := range []int{200, 201, 202, 204, 301, 307, 400, 401, 403, 404, 429, 500, 503} {
		for i, text := range bodies {
			if code != 200 && i%97 != 0 {
				continue // the body means nothing
			}
			status.Store(int64(code))
			body.Store(text)
			client.results = nil
			terms, err := client.Ask(t.Context(), Question{})
			got := outcome{client.results[0], terms}
			want := modelOf(code, text)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("%d %.60q (-want +got):\n%s", code, text, diff)
			}
			wantErr := map[Result]error{Allowed: nil, Denied: ErrDenied}
			if expected, known := wantErr[want.result]; known && !errors.Is(err, expected) || !known && !errors.Is(err, ErrUnavailable) {
				t.Errorf("%d %.60q: %v", code, text, err)
			}
		}
	}
}

// awaitClient waits until the client has given up. The server notices once the body is read.
func awaitClient(r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// TestFaultsOfTheBackEnd has one row for each way not to answer, none of which may let a session
// begin, take longer than a second or show the URL.
func TestFaultsOfTheBackEnd(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		elsewhere.Add(1)
		_, _ = io.WriteString(w, `{"allow":true}`)
	}))
	t.Cleanup(other.Close)
	flush := func(w http.ResponseWriter, text string) {
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
	}
	for _, tc := range []struct {
		name string
		want Result
		do   http.HandlerFunc
	}{
		{"no answer", TimedOut, func(_ http.ResponseWriter, r *http.Request) { awaitClient(r) }},
		{"a slow body", TimedOut, func(w http.ResponseWriter, r *http.Request) { flush(w, `{"allow":true`); awaitClient(r) }},
		{"a slow body after an answer", TimedOut, func(w http.ResponseWriter, r *http.Request) { flush(w, `{"allow":true}`); awaitClient(r) }},
		{"a huge body", Invalid, func(w http.ResponseWriter, _ *http.Request) {
			for range 1 << 10 {
				flush(w, strings.Repeat(" ", 64<<10))
			}
			flush(w, `{"allow":true}`)
		}},
		{"a compressed body", Invalid, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			flush(w, "\x1f\x8b\x08")
		}},
		{"a body that breaks off", Failed, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			flush(w, `{"allow":true}`)
			panic(http.ErrAbortHandler)
		}},
		{"a broken connection", Failed, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"huge headers", Failed, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Much", strings.Repeat("x", 128<<10))
			flush(w, `{"allow":true}`)
		}},
		{"a redirect", Status, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}},
		{"another protocol", Status, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusSwitchingProtocols) }},
	} {
		client := clientOf(t, nil, tc.do)
		terms, err := client.Ask(t.Context(), Question{})
		if !errors.Is(err, ErrUnavailable) || terms != (sessions.Terms{}) || strings.Contains(err.Error(), "s3cret") || client.results[0] != tc.want {
			t.Errorf("%s: %v, %v, %q, want %q", tc.name, terms, err, client.results, tc.want)
		}
	}
	refused := clientAt(t, "http://127.0.0.1:1/s3cret", nil)
	if _, err := refused.Ask(t.Context(), Question{}); !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "s3cret") || refused.results[0] != Failed {
		t.Errorf("nobody listens: %v, %q", err, refused.results)
	}
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

// The question has what the docs say and nothing else, and its signature is that of an event.
func TestQuestion(t *testing.T) {
	t.Parallel()
	key := []byte("key")
	q := Question{ID: "4f1c", UID: "anna", JTI: "j", Video: "film", Country: "CH", Network: "192.0.2.0/24", UserAgent: "VLC"}
	client := clientOf(t, key, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		const want = `{"event":"session.admission","id":"4f1c","uid":"anna","jti":"j","video":"film","country":"CH","network":"192.0.2.0/24","userAgent":"VLC","time":"2027-01-15T08:00:00Z"}`
		signature := r.Header.Get(webhook.SignatureHeader)
		seconds, _, _ := strings.Cut(strings.TrimPrefix(signature, "time="), ",")
		at, _ := strconv.ParseInt(seconds, 10, 64)
		if string(body) != want || signature != webhook.Sign(key, time.Unix(at, 0), body) || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %q %s", r.Method, r.Header, body)
		}
		_, _ = io.WriteString(w, `{"allow":true}`)
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a viewer who has gone does not make the back end look broken
	if _, err := client.Ask(ctx, q); err != nil {
		t.Error(err)
	}
}

// A back end that answers nothing is asked no more questions at a time than the bound, however many sessions begin.
func TestFloodOfQuestions(t *testing.T) {
	t.Parallel()
	client := clientOf(t, nil, func(_ http.ResponseWriter, r *http.Request) { awaitClient(r) })
	var all sync.WaitGroup
	for range maxAsked + maxWaiting + 100 {
		all.Go(func() {
			if _, err := client.Ask(t.Context(), Question{}); !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(slices.DeleteFunc(client.results, func(r Result) bool { return r != Limited })); n < 100 {
		t.Errorf("%d questions are not asked", n)
	}
}

// What counts as an answer is JSON that any reader reads alike, and never permits more than it
// says.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{`{"allow":true,"climit":2,"until":1800000001}`, `{"allow":false}`, `{"allow":true,"allow":false}`, `{"allow":true,"climit":null}`, `{"until":9007199254740991,"allow":true}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		allow, terms, err := parse(body)
		if err != nil {
			if allow && terms != (sessions.Terms{}) {
				t.Errorf("%q: an error, and terms %v", body, terms)
			}
			return
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(body, &members) != nil {
			t.Fatalf("%q is no JSON object", body)
		}
		if string(members["allow"]) != strconv.FormatBool(allow) {
			t.Errorf("%q is read as %t", body, allow)
		}
		if !allow {
			return
		}
		delete(members, "allow")
		for name, got := range map[string]int64{"climit": int64(terms.Limit), "until": max(0, terms.Until.Unix())} {
			if text := string(members[name]); got == 0 && text != "" && text != "null" || got != 0 && text != strconv.FormatInt(got, 10) {
				t.Errorf("%q: %s is read as %d", body, name, got)
			}
			delete(members, name)
		}
		if len(members) > 0 {
			t.Errorf("%q has more members", body)
		}
	})
}
