package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// authorized is the header line of the API's owner.
const authorized = "Authorization: Bearer " + apiSecret

// ofAccount is the path of a resource of the API.
func ofAccount(resource string) string { return "/client/v4/accounts/" + account + "/" + resource }

// onAPI is the gateway as rawFrom and others see it that ask its site, with the
// API's site in that place.
func (g *gateway) onAPI() *gateway { return &gateway{addr: g.api} }

// apiRequest is a call of the API with nothing but what it is given.
func (g *gateway) apiRequest(method, target, body string, header ...string) string {
	header = append([]string{"Host: " + g.api, fmt.Sprintf("Content-Length: %d", len(body))}, header...)
	return rawRequest(method, target, header...) + body
}

// wantAPIError checks that a call is refused with a status, and with a message
// that contains a text.
func wantAPIError(t testing.TB, res *apiResponse, status int, message string) {
	t.Helper()
	if res.StatusCode != status {
		t.Errorf("got %d: %.300s; want %d", res.StatusCode, res.body, status)
	}
	if len(res.Errors) != 1 || !strings.Contains(res.Errors[0].Message, message) || string(res.Result) != "null" {
		t.Errorf("got %.300s; want one error that says %q, and no result", res.body, message)
	}
}

// tree returns the content of every file below a folder by its path, and every
// folder.
func tree(t testing.TB, root string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			files[path] = "a folder"
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// wantSameTree checks that no file below a folder has come, gone or changed.
func wantSameTree(t testing.TB, root string, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, tree(t, root)); diff != "" {
		t.Errorf("the files below %s (-before +after):\n%s", filepath.Base(root), diff)
	}
}

// wantNothingMade checks that there are neither keys nor settings of videos.
func (g *gateway) wantNothingMade(t testing.TB) {
	t.Helper()
	for _, list := range []string{"stream/keys", "stream"} {
		if res := g.mustCall(t, http.MethodGet, list, "", nil); string(res.Result) != "[]" {
			t.Errorf("%s lists %s", list, res.Result)
		}
	}
}

// Nobody gets in without a credential that is configured, as it is configured
// and where it belongs, and what is answered to those who try tells them nothing
// about what they have got wrong or what there is behind it.
func TestHostileAPICredentials(t *testing.T) {
	o := startOrigin(t, nil)
	const email, key, otherEmail, otherKey = "owner@example.com", "c2547eb745079dac9320b638f5e225cf483cc5cfdda41", "second@example.com", "the-key-of-the-second"
	g := start(t, o, config{
		global: "servers {\nprotocols h1 h2c\n}",
		api: withAPI + " another-secret-of-the-tests\nauth_key " + email + " " + key +
			"\nauth_key " + otherEmail + " " + otherKey,
	})
	g.mustCall(t, http.MethodPost, "stream/demo", `{"requireSignedURLs":true}`, nil)

	want := g.onAPI().raw(t, g.apiRequest(http.MethodGet, ofAccount("stream/keys"), ""))
	wantAPIError(t, readAPIResponse(t, want), http.StatusUnauthorized, "authentication error")
	if got := want.Header.Get("WWW-Authenticate"); got != "Bearer" {
		t.Errorf("WWW-Authenticate is %q", got)
	}
	wantSame := func(t *testing.T, res *response) {
		t.Helper()
		if res.StatusCode != want.StatusCode || string(res.body) != string(want.body) {
			t.Errorf("got %d %s, want %d %s as for a call without any credential", res.StatusCode, res.body, want.StatusCode, want.body)
		}
		for _, header := range []http.Header{res.Header, want.Header} {
			header.Del("Date")
		}
		if diff := cmp.Diff(want.Header, res.Header); diff != "" {
			t.Errorf("headers (-without a credential +here):\n%s", diff)
		}
	}
	for i, row := range []struct {
		name   string
		header []string
	}{
		{"no bearer", []string{"Authorization: Bearer"}},
		{"an empty bearer", []string{"Authorization: Bearer "}},
		{"an empty header", []string{"Authorization:"}},
		{"a wrong bearer", []string{"Authorization: Bearer wrong"}},
		{"a prefix", []string{authorized[:len(authorized)-1]}},
		{"one byte more", []string{authorized + "x"}},
		{"another case", []string{"Authorization: Bearer " + strings.ToUpper(apiSecret)}},
		{"a space in front", []string{"Authorization: Bearer  " + apiSecret}},
		{"a tab in front", []string{"Authorization: Bearer\t" + apiSecret}},
		{"a no-break space behind", []string{authorized + "\u00a0"}},
		{"percent-encoded", []string{"Authorization: Bearer %61" + apiSecret[1:]}},
		{"quoted", []string{`Authorization: Bearer "` + apiSecret + `"`}},
		{"without a scheme", []string{"Authorization: " + apiSecret}},
		{"bearer", []string{"Authorization: bearer " + apiSecret}},
		{"BEARER", []string{"Authorization: BEARER " + apiSecret}},
		{"Token", []string{"Authorization: Token " + apiSecret}},
		{"Basic", []string{"Authorization: Basic " + apiSecret}},
		{"Basic with a pair", []string{"Authorization: Basic b3duZXJAZXhhbXBsZS5jb206YTNjMjU0N2Vi"}},
		{"two, the right one first", []string{authorized, "Authorization: Bearer wrong"}},
		{"two, the right one last", []string{"Authorization: Bearer wrong", authorized}},
		{"two that are right", []string{authorized, authorized}},
		{"a list", []string{authorized + ", Bearer wrong"}},
		{"both secrets in one", []string{authorized + " another-secret-of-the-tests"}},
		{"Proxy-Authorization", []string{"Proxy-Authorization: Bearer " + apiSecret}},
		{"a cookie", []string{"Cookie: Authorization=Bearer " + apiSecret + "; token=" + apiSecret}},
		{"an underscore for a hyphen", []string{"X_Auth_Email: " + email, "X_Auth_Key: " + key}},
		{"a wrong key", []string{"X-Auth-Email: " + email, "X-Auth-Key: wrong"}},
		{"an empty key", []string{"X-Auth-Email: " + email, "X-Auth-Key:"}},
		{"a prefix of the key", []string{"X-Auth-Email: " + email, "X-Auth-Key: " + key[:len(key)-1]}},
		{"the key of somebody else", []string{"X-Auth-Email: " + email, "X-Auth-Key: " + otherKey}},
		{"another email", []string{"X-Auth-Email: somebody@example.com", "X-Auth-Key: " + key}},
		{"email and key swapped", []string{"X-Auth-Email: " + key, "X-Auth-Key: " + email}},
		{"the boundary moved", []string{"X-Auth-Email: " + email + key[:1], "X-Auth-Key: " + key[1:]}},
		{"the key alone", []string{"X-Auth-Key: " + key}},
		{"the email alone", []string{"X-Auth-Email: " + email}},
		{"two keys, the right one first", []string{"X-Auth-Email: " + email, "X-Auth-Key: " + key, "X-Auth-Key: wrong"}},
		{"two keys, the right one last", []string{"X-Auth-Email: " + email, "X-Auth-Key: wrong", "X-Auth-Key: " + key}},
		{"two emails", []string{"X-Auth-Email: " + email, "X-Auth-Email: " + otherEmail, "X-Auth-Key: " + key}},
		{"the key as a bearer", []string{"X-Auth-Email: " + email, "Authorization: Bearer " + key}},
		{"the bearer as a key", []string{"X-Auth-Email: " + email, "X-Auth-Key: " + apiSecret}},
		{"the bearer as a service key", []string{"X-Auth-User-Service-Key: " + apiSecret}},
	} {
		t.Run("A1 "+row.name, func(t *testing.T) {
			from := fmt.Sprintf("127.0.1.%d", i+1) // so that no row makes the next one wait
			for _, call := range [][2]string{
				{http.MethodGet, ofAccount("stream/keys")},
				{http.MethodPost, ofAccount("stream/keys")},
				{http.MethodDelete, ofAccount("stream/demo")},
				{http.MethodGet, "/client/v4/nowhere"},
			} {
				wantSame(t, g.onAPI().rawFrom(t, from, g.apiRequest(call[0], call[1], "", row.header...)))
			}
		})
	}
	t.Run("A1 in the query", func(t *testing.T) {
		for _, name := range []string{"token", "access_token", "bearer_token", "Authorization", "api_key"} {
			target := ofAccount("stream/keys?" + name + "=" + apiSecret + "&X-Auth-Email=" + email + "&X-Auth-Key=" + key)
			wantSame(t, g.onAPI().rawFrom(t, "127.0.2.1", g.apiRequest(http.MethodGet, target, "")))
		}
	})
	t.Run("A1 in the body", func(t *testing.T) {
		body := `{"token":"` + apiSecret + `","bearer_token":"` + apiSecret + `"}`
		wantSame(t, g.onAPI().rawFrom(t, "127.0.2.2", g.apiRequest(http.MethodPost, ofAccount("stream/keys"), body)))
	})
	t.Run("A1 in a trailer", func(t *testing.T) {
		request := rawRequest(http.MethodPost, ofAccount("stream/keys"), "Host: "+g.api, "Transfer-Encoding: chunked", "Trailer: Authorization") +
			"0\r\n" + authorized + "\r\n\r\n"
		res := g.onAPI().rawFrom(t, "127.0.2.3", request)
		if res.StatusCode != want.StatusCode && res.StatusCode != http.StatusBadRequest {
			t.Errorf("got %d: %s", res.StatusCode, res.body)
		}
	})
	t.Run("A1 a space behind, in HTTP/2", func(t *testing.T) { // HTTP/1.1 takes it for optional white space
		for value, wanted := range map[string]int{"Bearer " + apiSecret: http.StatusOK, "Bearer " + apiSecret + " ": http.StatusUnauthorized} {
			conn, err := net.Dial("tcp", g.api)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			res := http2On(t, conn, []string{
				":method", "GET", ":scheme", "http", ":authority", g.api, ":path", ofAccount("stream/keys"), "authorization", value,
			})
			if res == nil || res.StatusCode != wanted {
				t.Errorf("%q: got %v, want %d", value[len(value)-3:], res, wanted)
			}
		}
	})
	for name, header := range map[string][]string{
		"one secret":               {authorized},
		"the other secret":         {"Authorization: Bearer another-secret-of-the-tests"},
		"white space around":       {"Authorization: \t Bearer " + apiSecret + " \t"}, // RFC 9110 section 5.5: it is none of the value
		"a lower-case header name": {"authorization: Bearer " + apiSecret},
		"one pair":                 {"X-Auth-Email: " + email, "X-Auth-Key: " + key},
		"the other pair":           {"x-auth-email: " + otherEmail, "x-auth-key: " + otherKey},
		"a secret and a pair":      {authorized, "X-Auth-Email: " + email, "X-Auth-Key: " + key},
		"a pair, a wrong secret":   {"Authorization: Bearer wrong", "X-Auth-Email: " + email, "X-Auth-Key: " + key},
		"a secret, a wrong pair":   {authorized, "X-Auth-Email: " + email, "X-Auth-Key: wrong"},
	} {
		t.Run("A1 "+name+" gets in", func(t *testing.T) {
			res := readAPIResponse(t, g.onAPI().raw(t, g.apiRequest(http.MethodGet, ofAccount("stream/keys"), "", header...)))
			if res.StatusCode != http.StatusOK || string(res.Result) != "[]" {
				t.Errorf("got %d: %s; want no keys", res.StatusCode, res.body)
			}
		})
	}
	var left []struct {
		UID string `json:"uid"`
	}
	if g.mustCall(t, http.MethodGet, "stream", "", &left); len(left) != 1 || left[0].UID != "demo" {
		t.Errorf("of the settings of one video there is %v left", left)
	}
}

// Whoever guesses credentials gets few tries, whatever address he says that he
// has and however many connections he makes; nobody else notices it, least of
// all the viewers.
func TestHostileAPIBruteForce(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	const guesser, neighbour, connections, guesses, burst = "127.0.0.1", "127.0.0.2", 8, 40, 60
	viewers := seat(t, []*gateway{g}, map[string]string{"a viewer at the address of the guesser": segment(mint(t, "demo", nil))})

	begun := time.Now()
	var mu sync.Mutex
	statuses := make(map[int]int)
	var guessing sync.WaitGroup
	for connection := range connections {
		guessing.Go(func() {
			conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(guesser)}}).Dial("tcp", g.api)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(startTimeout))
			reader := bufio.NewReader(conn)
			for i := range guesses {
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer guess-%d-%d\r\nX-Forwarded-For: 203.0.113.%d\r\n\r\n",
					ofAccount("stream/keys"), g.api, connection, i, i)
				res, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if retry := res.Header.Get("Retry-After"); (res.StatusCode == http.StatusTooManyRequests) != (retry != "") {
					t.Errorf("status %d with Retry-After %q", res.StatusCode, retry)
				}
				mu.Lock()
				statuses[res.StatusCode]++
				mu.Unlock()
			}
		})
	}
	guessing.Wait()
	listened := statuses[http.StatusUnauthorized]
	most := burst + int(time.Since(begun).Seconds()) + 1
	if refused := statuses[http.StatusTooManyRequests]; listened < burst || listened > most || listened+refused != connections*guesses {
		t.Errorf("A3 %d guesses got %v; want %d to %d times 401 and then 429", connections*guesses, statuses, burst, most)
	}
	res := g.onAPI().rawFrom(t, neighbour, g.apiRequest(http.MethodGet, ofAccount("stream/keys"), ""))
	wantAPIError(t, readAPIResponse(t, res), http.StatusUnauthorized, "authentication error")
	viewers.leave(t)
	if got := strings.Count(g.log.String(), "again and again"); got != 1 {
		t.Errorf("A3 the log warns %d times of one guesser", got)
	}
}

// Whoever shares an address with somebody who guesses is answered all the same:
// he may have a key to revoke.
func TestHostileAPIGuesserBesideOwner(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	attempt := 0
	eventually(t, "202 calls are made in less time than the limit takes to hear one more", func() bool {
		attempt++
		begun := time.Now()
		answers := g.guess(t, fmt.Sprintf("127.0.4.%d", attempt), 200)
		if time.Since(begun) >= time.Second {
			return false
		}
		for i, want := range map[int]int{59: http.StatusUnauthorized, 60: http.StatusTooManyRequests, 199: http.StatusTooManyRequests, 200: http.StatusOK, 201: http.StatusTooManyRequests} {
			if got := answers[i]; got.StatusCode != want {
				t.Errorf("A3 call %d got %d %s, want %d", i+1, got.StatusCode, got.body, want)
			}
		}
		return true
	})
}

// guess sends, in one go, so many calls with wrong credentials, one with the
// right one and one with a wrong one again.
func (g *gateway) guess(t testing.TB, from string, wrongs int) (answers []*response) {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", g.api)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	wrong := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer wrong\r\n\r\n", ofAccount("stream/keys"), g.api)
	right := strings.Replace(wrong, "Bearer wrong", "Bearer "+apiSecret, 1)
	go func() { _, _ = io.WriteString(conn, strings.Repeat(wrong, wrongs)+right+wrong) }()
	reader := bufio.NewReader(conn)
	for range wrongs + 2 {
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, readResponse(t, res))
	}
	return answers
}

// Where the API is not, its paths are those of a video like any other, and
// where it is, the gate never sees them.
func TestHostileAPIPathsOfGate(t *testing.T) {
	o := startOrigin(t, nil)
	both := freeAddr(t)
	g := start(t, o, config{
		apiAddr: both,
		sites:   site(both, "signed_playback_api {\n"+withAPI+"\n}\nsigned_playback\nreverse_proxy "+o.addr()),
	})

	t.Run("A11 on a playback site", func(t *testing.T) {
		for _, resource := range []string{"stream/keys", "stream", "stream/demo"} {
			o.wantRefused(t, g.get(t, ofAccount(resource), authorized), http.StatusUnauthorized, "token_required")
		}
		header := []string{authorized, "Host: " + g.addr, "Content-Length: 2"}
		o.wantRefused(t, g.raw(t, rawRequest(http.MethodPost, ofAccount("stream/keys"), header...)+"{}"), http.StatusMethodNotAllowed, "method_not_allowed")
		o.wantRefused(t, g.raw(t, rawRequest(http.MethodDelete, ofAccount("stream/keys/"+keyID), header...)+"{}"), http.StatusMethodNotAllowed, "method_not_allowed")
		o.wantPassed(t, g.get(t, "/"+mint(t, "demo", nil)+"/video/1.ts"), "/demo/video/1.ts")
	})
	t.Run("A11 in the same site as the gate", func(t *testing.T) {
		onBoth := &gateway{addr: both}
		key := g.createKey(t)
		minted := g.mintToken(t, "demo", "")
		o.wantPassed(t, onBoth.get(t, "/"+minted+"/video/1.ts"), "/demo/video/1.ts")
		o.wantRefused(t, onBoth.get(t, "/demo/video/1.ts"), http.StatusUnauthorized, "token_required")
		for _, path := range []string{"/client", "/client/v4x", "/client/v40/accounts", "/client/v3/accounts", "/CLIENT/v4/accounts", "/x/client/v4/accounts"} {
			o.wantRefused(t, onBoth.get(t, path, authorized), http.StatusUnauthorized, "token_required")
		}
		for _, target := range []string{"//client/v4/accounts", "/x/../client/v4/accounts", "/./client/v4/accounts"} {
			o.wantRefused(t, onBoth.raw(t, rawGet(target, authorized)), http.StatusBadRequest, "path_invalid")
		}
		for _, target := range []string{
			"/client/v4", "/client/v4/", "/client/v4/accounts", ofAccount("../keys"), ofAccount("stream/../stream/keys"),
			"/client/v4/../" + minted, "/client%2fv4/accounts/" + account + "/stream/keys", "/%63lient/v4/accounts/" + account + "/stream/keys",
			strings.ReplaceAll(ofAccount("stream/keys"), "/stream/", "//stream/"), ofAccount("stream//keys"), ofAccount("stream%2fkeys"),
		} {
			res := readAPIResponse(t, onBoth.raw(t, rawGet(target, authorized)))
			if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusBadRequest || res.reason() != "" {
				t.Errorf("%s: got %d %q, want an answer of the API", target, res.StatusCode, res.reason())
			}
			res = readAPIResponse(t, onBoth.raw(t, rawGet(target)))
			wantAPIError(t, res, http.StatusUnauthorized, "authentication error")
		}
		o.wantUntouched(t)
		g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	})
}

// A page in the browser of somebody who can reach the API gets nothing out of
// it: no answer allows another site to read it, none lets a request come that
// has to be asked for first, and a name of the page's own that leads here is not
// the API's.
func TestHostileAPIFromBrowser(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	page := "Origin: https://evil.example.com"
	preflight := []string{page, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"}
	for _, row := range []struct {
		name, method, target, body string
		header                     []string
		status                     int
	}{
		{"a preflight", http.MethodOptions, ofAccount("stream/keys"), "", preflight, http.StatusUnauthorized},
		{"a preflight of a route that is none", http.MethodOptions, "/client/v4", "", preflight, http.StatusUnauthorized},
		{"a preflight to a private network", http.MethodOptions, ofAccount("stream/keys"), "", append(preflight, "Access-Control-Request-Private-Network: true"), http.StatusUnauthorized},
		{"a preflight with the credential", http.MethodOptions, ofAccount("stream/keys"), "", append(preflight, authorized), http.StatusNotFound},
		{"a form", http.MethodPost, ofAccount("stream/keys"), "{}", []string{page, "Content-Type: text/plain"}, http.StatusUnauthorized},
		{"a form from nowhere", http.MethodPost, ofAccount("stream/keys"), "{}", []string{"Origin: null", "Content-Type: text/plain"}, http.StatusUnauthorized},
		{"reading", http.MethodGet, ofAccount("stream/keys"), "", []string{page}, http.StatusUnauthorized},
		{"reading with the credential", http.MethodGet, ofAccount("stream/keys"), "", []string{page, authorized}, http.StatusOK},
		{"a video with the credential", http.MethodGet, ofAccount("stream/demo"), "", []string{page, authorized}, http.StatusOK},
		{"a bad request", http.MethodPost, ofAccount("stream/demo"), "[]", []string{page, authorized}, http.StatusBadRequest},
		{"nowhere", http.MethodGet, "/client/v4/nowhere", "", []string{page, authorized}, http.StatusNotFound},
	} {
		t.Run("A11 "+row.name, func(t *testing.T) {
			res := readAPIResponse(t, g.onAPI().raw(t, g.apiRequest(row.method, row.target, row.body, row.header...)))
			if res.StatusCode != row.status {
				t.Errorf("got %d: %s; want %d", res.StatusCode, res.body, row.status)
			}
			for name, values := range res.Header {
				if strings.HasPrefix(name, "Access-Control-") || name == "Set-Cookie" || name == "Allow" {
					t.Errorf("%s: %q", name, values)
				}
			}
			for name, want := range map[string]string{
				"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			} {
				if got := res.Header.Values(name); !slices.Equal(got, []string{want}) {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
	t.Run("A11 a name that leads here", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(g.api)
		for _, host := range []string{"evil.example.com", "evil.example.com:" + port, "localhost:" + port, "127.0.0.1.evil.example.com:" + port} {
			res := g.onAPI().raw(t, rawRequest(http.MethodGet, ofAccount("stream/keys"), "Host: "+host, authorized))
			if bytes.Contains(res.body, []byte("success")) || len(res.Header.Values("Access-Control-Allow-Origin")) != 0 {
				t.Errorf("%s: got %d %s", host, res.StatusCode, res.body)
			}
		}
	})
	g.wantNothingMade(t)
}

// With an account configured, no call reaches anything under the name of
// another; without one, any name does that can be one.
func TestHostileAPIAccount(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI + "\naccount " + account})
	g.mustCall(t, http.MethodPost, "stream/demo", `{"requireSignedURLs":false}`, nil)
	files := g.storage("signed_playback")
	before := tree(t, files)
	for _, other := range []string{"other", strings.ToUpper(account), account + "0", account[:31], account + "%20", "*", "-", account + "/" + account} {
		for _, call := range [][3]string{
			{http.MethodGet, "stream/keys"},
			{http.MethodPost, "stream/keys"},
			{http.MethodPost, "stream/keys/rotate"},
			{http.MethodDelete, "stream/keys/" + keyID},
			{http.MethodGet, "stream"},
			{http.MethodGet, "stream/demo"},
			{http.MethodPost, "stream/demo", `{"requireSignedURLs":true}`},
			{http.MethodDelete, "stream/demo"},
			{http.MethodPost, "stream/demo/token"},
		} {
			t.Run(fmt.Sprintf("A11 %s %s of %s", call[0], call[1], other), func(t *testing.T) {
				target := "/client/v4/accounts/" + other + "/" + call[1]
				res := g.onAPI().raw(t, g.apiRequest(call[0], target, call[2], authorized))
				wantAPIError(t, readAPIResponse(t, res), http.StatusNotFound, "could not route")
			})
		}
	}
	wantSameTree(t, files, before)
	var video struct {
		RequireSignedURLs bool `json:"requireSignedURLs"`
	}
	if g.mustCall(t, http.MethodGet, "stream/demo", "", &video); video.RequireSignedURLs {
		t.Error("a call for another account has changed the video")
	}
	var answer json.RawMessage
	g.mustCall(t, http.MethodPost, "stream/demo/token", "", &answer)
}
