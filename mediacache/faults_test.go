package mediacache

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSlicesThatFindNoRoomStreamThrough(t *testing.T) {
	t.Parallel()
	file := randomBytes(5, 3<<20+100)
	s := newScene(large(file), func(c *Config) { c.Memory, c.MaxObject = 1<<20, 1<<19 })
	for field, want := range map[string][]byte{"": file, "bytes=1048570-2097160": file[1048570:2097161], "bytes=-10": file[len(file)-10:]} {
		if w, err := s.ask("GET", "/v.mp4", "Range", field); err != nil || !bytes.Equal(w.Body.Bytes(), want) {
			t.Errorf("%q: status %d, %d bytes of %d, %v", field, w.Code, w.Body.Len(), len(want), err)
		}
	}
}

// The time that the origin took to answer is a part of the age (RFC 9111 section 4.2.3).
func TestAgeOfSlowAnswers(t *testing.T) {
	t.Parallel()
	var s *scene
	s = newScene(func(w http.ResponseWriter, _ *http.Request) error {
		s.advance(5 * time.Second)
		w.Header().Set("Age", "10")
		w.Header().Set("Cache-Control", "max-age=60")
		_, err := io.WriteString(w, "body")
		return err
	})
	_, _ = s.ask("GET", "/s.ts")
	if w, err := s.ask("GET", "/s.ts"); err != nil || w.Header().Get("Age") != "15" {
		t.Errorf("Age %q after 10 and 5 seconds, error %v", w.Header().Get("Age"), err)
	}
}

// A slice is never refreshed as a whole object is: its length is not that of the object.
func TestStaleSlices(t *testing.T) {
	t.Parallel()
	file := randomBytes(10, 3<<20)
	s := newScene(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=1000")
		return large(file)(w, r)
	})
	s.config.MaxObject = 1 << 20
	for range 3 {
		if w, err := s.ask("GET", "/v.mp4"); err != nil || !bytes.Equal(w.Body.Bytes(), file) {
			t.Errorf("status %d, %d bytes, %v", w.Code, w.Body.Len(), err)
		}
		s.advance(15 * time.Second)
	}
	for _, r := range s.asked {
		if asked := r.Header.Get("Range"); !slices.Contains([]string{"", "bytes=0-1048575", "bytes=1048576-2097151", "bytes=2097152-3145727"}, asked) {
			t.Errorf("the origin is asked for %q", asked)
		}
	}
}

// The attack of a file that changes between two looks: the handler has checked the whole, and the
// slices have other bytes with the same validators.
func TestCheckedObjectsAreNotSliced(t *testing.T) {
	t.Parallel()
	checked, other := randomBytes(8, 3<<20), randomBytes(9, 3<<20)
	s := newScene(func(w http.ResponseWriter, r *http.Request) error {
		if r.Header.Get("Range") != "" {
			return large(other)(w, r)
		}
		w.Header().Set("X-Checked", "1")
		return large(checked)(w, r)
	})
	s.config.MaxObject, s.config.MemoryOnly = 1<<20, "X-Checked"
	for range 2 {
		if w, err := s.ask("GET", "/a.vtt"); err != nil || !bytes.Equal(w.Body.Bytes(), checked) {
			t.Errorf("status %d, %d bytes that nobody has checked, %v", w.Code, w.Body.Len(), err)
		}
	}
}

// The attack of a confused origin: it answers 304 where it was asked for a slice.
func TestUnaskedStatuses(t *testing.T) {
	t.Parallel()
	file := randomBytes(6, 5<<20)
	for _, status := range []int{304, 200, 416, 500, 204} {
		confused := true
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			if r.Header.Get("Range") != "" && confused {
				w.Header().Set("ETag", `"v1"`)
				w.WriteHeader(status)
				return nil
			}
			return large(file)(w, r)
		})
		if w, err := s.ask("GET", "/v.mp4"); err == nil {
			t.Errorf("%d: got %d bytes for a complete answer", status, w.Body.Len())
		}
		confused = false
		if w, err := s.ask("GET", "/v.mp4"); err != nil || !bytes.Equal(w.Body.Bytes(), file) {
			t.Errorf("%d: afterwards %d bytes, %v", status, w.Body.Len(), err)
		}
	}
}

// Handlers before the cache may change the fields of a response in place.
func TestFieldsAreNotSharedByViewers(t *testing.T) {
	t.Parallel()
	s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("X-Origin", "a")
		_, err := io.WriteString(w, "body")
		return err
	})
	for range 3 {
		w, err := s.ask("GET", "/s.ts")
		if got := w.Header()["X-Origin"]; err != nil || len(got) != 1 || got[0] != "a" {
			t.Fatalf("%q, %v", got, err)
		}
		w.Header()["X-Origin"][0] = "the first viewer's"
	}
}

func TestStaleWhenTheOriginDoesNotAnswer(t *testing.T) {
	t.Parallel()
	down, gone := errors.New("connection refused"), errors.New("404")
	for _, row := range []struct {
		failure error
		panics  bool
		want    string
	}{{failure: down, want: "body"}, {failure: gone}, {panics: true, want: "body"}} {
		broken := false
		s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
			if broken && row.panics {
				panic(http.ErrAbortHandler)
			}
			if broken {
				return row.failure
			}
			w.Header().Set("Cache-Control", "max-age=10, stale-if-error=100")
			_, err := io.WriteString(w, "body")
			return err
		})
		s.config.OriginFailed = func(err error) bool { return !errors.Is(err, gone) }
		_, _ = s.ask("GET", "/s.ts")
		broken = true
		s.advance(50 * time.Second)
		if w, err := s.ask("GET", "/s.ts"); w.Body.String() != row.want || (row.want == "") != (err != nil) {
			t.Errorf("%v: %q, %v", row, w.Body, err)
		}
		s.advance(150 * time.Second)
		if w, err := s.ask("GET", "/s.ts"); err == nil {
			t.Errorf("%v: %q when it is too stale", row, w.Body)
		}
	}
}

// A 304 may say that nobody else may get the object, and carry a cookie.
func TestConfirmations(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		field, value string
		objects      int
	}{
		{"X-New", "1", 1},
		{"Set-Cookie", "session=of-the-first-viewer", 1},
		{"Cache-Control", "private, max-age=10", 0},
		{"Cache-Control", "no-store", 0},
		{"Vary", "Cookie", 0},
	} {
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("Cache-Control", "max-age=10")
			w.Header().Set("ETag", `"v1"`)
			if r.Header.Get("If-None-Match") != "" {
				w.Header().Set(row.field, row.value)
				w.WriteHeader(http.StatusNotModified)
				return nil
			}
			_, err := io.WriteString(w, "body")
			return err
		})
		_, _ = s.ask("GET", "/s.ts")
		s.advance(20 * time.Second)
		w, err := s.ask("GET", "/s.ts")
		if err != nil || w.Body.String() != "body" || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("%s: %s: %q, %v, %v", row.field, row.value, w.Body, w.Header(), err)
		}
		if n, _ := s.Usage(); n != row.objects {
			t.Errorf("%s: %s: %d objects are kept", row.field, row.value, n)
		}
	}
}

// What the origin is told follows from the key, however a viewer spells the request.
func TestRequestsToTheOriginFollowFromTheKey(t *testing.T) {
	t.Parallel()
	s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.WriteString(w, "body")
		return err
	})
	for _, target := range []string{"/a%2Fb%20c.ts", "/a%2Fb%20c.ts?", "/a%2Fb%20c.ts?CMCD=a", "http://example.com/a%2Fb%20c.ts", "http://EXAMPLE.com/a%2Fb%20c.ts"} {
		r := httptest.NewRequest("GET", target, nil)
		r.URL.ForceQuery = strings.HasSuffix(target, "?")
		r.TLS = &tls.ConnectionState{ServerName: "viewer", HandshakeComplete: true}
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
		r.Method = map[bool]string{true: "HEAD", false: "GET"}[strings.Contains(target, "CMCD")]
		s.Cache = New(s.config.Memory)
		if err := s.serve(httptest.NewRecorder(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range s.asked {
		got := fmt.Sprintf("%s %s %s %s %s %q %q", r.Method, r.Host, r.RequestURI, r.URL, r.Proto, r.TLS.ServerName, r.RemoteAddr)
		if want := `GET example.com /a%2Fb%20c.ts /a%2Fb%20c.ts HTTP/1.1 "" ""`; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// The attack of a redirect loop: a server gets HTTP and HTTPS, and the origin, which learns which
// of them, redirects to HTTPS. Viewers who are there already do not get the redirect.
func TestTheSchemeMakesAnotherObject(t *testing.T) {
	t.Parallel()
	s := newScene(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Cache-Control", "max-age=60")
		if r.TLS == nil {
			http.Redirect(w, r, "https://example.com/s.ts", http.StatusMovedPermanently)
		}
		_, err := io.WriteString(w, "body")
		return err
	})
	for range 2 {
		for target, want := range map[string]int{"http://example.com/s.ts": 301, "https://example.com/s.ts": 200} {
			if w, err := s.ask("GET", target); err != nil || w.Code != want {
				t.Errorf("%s: status %d, want %d, error %v", target, w.Code, want, err)
			}
		}
	}
	if len(s.asked) != 2 {
		t.Errorf("%d requests to the origin, want 2", len(s.asked))
	}
}

// A viewer who needs less than a whole object that is for them alone gets no more, from
// an endless one too.
func TestAnswersForOneViewer(t *testing.T) {
	t.Parallel()
	file := randomBytes(7, 3<<20)
	s := newScene(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Cache-Control", "no-store")
		if r.URL.Path == "/file" {
			return large(file)(w, r)
		}
		for r.Method == http.MethodGet {
			if _, err := w.Write(file); err != nil {
				return err
			}
		}
		return nil
	})
	if w, err := s.ask("GET", "/file", "Range", "bytes=5-9", "If-Range", `"v1"`); err != nil || w.Code != 206 || !bytes.Equal(w.Body.Bytes(), file[5:10]) {
		t.Errorf("a range: status %d, %d bytes, %v", w.Code, w.Body.Len(), err)
	}
	// An answer without a body must not announce one, or clients wait for it.
	for field, want := range map[string]int{"If-Match": 412, "If-None-Match": 304} {
		w, err := s.ask("GET", "/file", field, map[int]string{412: `"v2"`, 304: `"v1"`}[want])
		if err != nil || w.Code != want || w.Body.Len() > 0 || w.Header().Get("Content-Length") != "" {
			t.Errorf("%s: status %d, %d bytes, %v, %v", field, w.Code, w.Body.Len(), w.Header(), err)
		}
	}
	if w, err := s.ask("HEAD", "/endless"); err != nil || w.Code != 200 || w.Body.Len() > 0 {
		t.Errorf("HEAD: status %d, %d bytes, %v", w.Code, w.Body.Len(), err)
	}
}

// stalled is a viewer who does not read until it is closed.
type stalled struct {
	http.ResponseWriter
	closed chan struct{}
}

func (v stalled) Write([]byte) (int, error) {
	<-v.closed
	return 0, io.ErrClosedPipe
}

// The attack: a viewer who does not read keeps the origin's handler waiting, and with it the memory
// of a manifest. The deadline that the handler sets ends the wait.
func TestWritesWaitForViewersUntilADeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ended time.Duration
		s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
			start := time.Now()
			w.Header().Set("Cache-Control", "private")
			_ = http.NewResponseController(w).SetWriteDeadline(start.Add(time.Minute))
			_, err := w.Write(make([]byte, 1<<20))
			ended = time.Since(start)
			return err
		})
		viewer := stalled{httptest.NewRecorder(), make(chan struct{})}
		go s.visit(viewer, httptest.NewRequest("GET", "/v.m3u8", nil))
		<-time.After(2 * time.Minute) // of the bubble's clock
		synctest.Wait()
		if ended != time.Minute {
			t.Errorf("the handler waits for %s, want a minute; 0s is longer than two", ended)
		}
		close(viewer.closed)
	})
}

// A viewer who has all bytes of a response that is for them alone does not end the request to
// the origin, whose connection may be used again.
func TestTheOriginEndsWhatItHasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, control := range []string{"", "private"} {
			var failure error
			s := newScene(func(w http.ResponseWriter, r *http.Request) error {
				w.Header().Set("Cache-Control", control)
				w.Header().Set("Content-Length", "4")
				_, _ = io.WriteString(w, "body")
				<-time.After(time.Second) // of the bubble's clock
				failure = r.Context().Err()
				return nil
			})
			if w, err := s.ask("GET", "/s.ts"); err != nil || w.Body.String() != "body" || failure != nil {
				t.Errorf("%q: %q, %v, at the origin: %v", control, w.Body, err, failure)
			}
		}
	})
}

func TestBrokenBodiesAreNotKept(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body   string
		panics bool
	}{"too long": {body: "body, and more"}, "too short": {body: "bo"}, "broken off": {body: "bo", panics: true}} {
		s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, tc.body)
			if tc.panics {
				panic(http.ErrAbortHandler)
			}
			return nil
		})
		if w, err := s.ask("GET", "/s.ts"); err == nil && len(tc.body) < 4 {
			t.Errorf("%s: %q for a complete answer", name, w.Body)
		}
		if n, used := s.Usage(); n != 0 || used != 0 {
			t.Errorf("%s: it is kept", name)
		}
	}
}

func TestUnsafeMethodsInvalidate(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		method  string
		status  int
		objects int
	}{{"POST", 200, 0}, {"PUT", 204, 0}, {"DELETE", 303, 0}, {"M-SEARCH", 200, 0}, {"POST", 405, 1}, {"DELETE", 500, 1}, {"OPTIONS", 200, 1}, {"TRACE", 200, 1}} {
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(map[bool]int{true: 200, false: row.status}[r.Method == "GET"])
			return nil
		})
		_, _ = s.ask("GET", "/s.ts?v=1")
		_, _ = s.ask(row.method, "/s.ts?v=1")
		if n, _ := s.Usage(); n != row.objects {
			t.Errorf("%v: %d objects", row, n)
		}
	}
}

// A viewer may leave before the handler of the origin has returned.
func TestHeadersAreEnough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		late := make(chan struct{})
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			err := large(make([]byte, 5<<20))(w, r)
			<-late
			return err
		})
		go s.visit(httptest.NewRecorder(), httptest.NewRequest("HEAD", "/v.mp4", nil))
		synctest.Wait()
		close(late)
		synctest.Wait()
		if n, _ := s.Usage(); n != 1 {
			t.Errorf("%d objects after a HEAD", n)
		}
	})
}

// The attack of an origin that stalls: a fill that goes on without viewers ends anyway.
func TestStalledFillsAreGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stalled := true
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, "bo")
			if stalled {
				<-r.Context().Done()
				return r.Context().Err()
			}
			_, err := io.WriteString(w, "dy")
			return err
		})
		ctx, leave := context.WithCancel(t.Context())
		go s.serve(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/s.ts", nil))
		synctest.Wait()
		leave()
		<-time.After(restAfter + time.Second) // of the bubble's clock
		synctest.Wait()
		stalled = false
		if w, err := s.ask("GET", "/s.ts"); err != nil || w.Body.String() != "body" {
			t.Errorf("%q, %v", w.Body, err)
		}
	})
}

// The same where no viewer has ever waited: the fill that refreshes a stale object.
func TestStalledRefreshesAreGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		requests, ended := 0, 0
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			if requests++; requests > 1 {
				<-r.Context().Done()
				ended++
				return r.Context().Err()
			}
			w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=1000")
			_, err := io.WriteString(w, "body")
			return err
		})
		ask := func() {
			w := httptest.NewRecorder()
			if err := s.visit(w, httptest.NewRequest("GET", "/s.ts", nil)); err != nil || w.Body.String() != "body" {
				t.Errorf("%q, %v", w.Body, err)
			}
			synctest.Wait()
		}
		ask()
		s.advance(2 * time.Second)
		ask()
		ask()
		<-time.After(refreshWithin + time.Second) // of the bubble's clock
		synctest.Wait()
		if requests != 2 || ended != 1 {
			t.Errorf("%d requests, %d of 1 stalled ones ended", requests, ended)
		}
	})
}

// The attack of ranges in descending order on a body that is not kept: the response breaks off.
func TestReadersOfPassedBytes(t *testing.T) {
	t.Parallel()
	b := newBody(&memory{max: 1 << 20}, nil)
	b.doNotKeep()
	rd := b.read()
	rd.next(4 * windowedChunk) // the first range
	if err := b.write(t.Context(), make([]byte, 5*windowedChunk), 5*windowedChunk, 0); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{0, windowedChunk, 3*windowedChunk - 1} {
		if data, _, err := rd.next(offset); !errors.Is(err, errPassed) {
			t.Errorf("offset %d: %d bytes, error %v", offset, len(data), err)
		}
	}
	if data, _, err := rd.next(3 * windowedChunk); err != nil || len(data) != windowedChunk {
		t.Errorf("%d bytes, error %v", len(data), err)
	}
}

// The attack of slow readers on a body that is not kept: dropping one of them must not
// change the bytes of others in the same chunk.
func TestDroppedReadersChangeNoBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &memory{max: 1 << 20}
		b := newBody(m, nil)
		b.doNotKeep()
		want := randomBytes(8, 4*windowedChunk)
		asleep, slow, fast := b.read(), b.read(), b.read()
		var got, first []byte
		go b.write(t.Context(), want, int64(len(want)), 0)
		go func() {
			for n := 0; n < len(want); {
				data, changed, err := fast.next(int64(n))
				if err != nil {
					return
				}
				if changed != nil {
					<-changed
				}
				n += len(data)
			}
			fast.close()
		}()
		synctest.Wait()
		first, _, _ = asleep.next(0)
		_, _, _ = slow.next(100)
		<-time.After(slowAfter + time.Second) // of the bubble's clock: asleep is dropped
		if _, _, err := asleep.next(0); !errors.Is(err, errSlowViewer) {
			t.Errorf("the slowest reader: %v", err)
		}
		for n := int64(100); n < int64(len(want)); {
			data, changed, err := slow.next(n)
			if err != nil {
				t.Fatal(err)
			}
			if changed != nil {
				<-changed
			}
			got = append(got, data...)
			n += int64(len(data))
		}
		slow.close()
		asleep.close()
		if !bytes.Equal(got, want[100:]) || !bytes.Equal(first, want[:len(first)]) {
			t.Error("wrong bytes")
		}
		if b.join() != nil {
			t.Error("a reader joins a body whose first bytes are gone")
		}
	})
}

// A viewer who waits for a confirmation needs the old body, which the index may have
// dropped meanwhile.
func TestOldBodiesAreThereUntilTheirReadersLeave(t *testing.T) {
	t.Parallel()
	m := &memory{max: 1 << 20}
	old := newBody(m, nil)
	old.reserve(10)
	_ = old.write(t.Context(), []byte("0123456789"), 10, 0)
	b := newBody(m, &object{body: old})
	viewer := b.read()
	old.drop() // by the index
	b.drop()   // by the fill
	rd := old.read()
	if data, _, err := rd.next(0); string(data) != "0123456789" {
		t.Errorf("%q, %v", data, err)
	}
	rd.close()
	viewer.close()
	if used := m.used.Load(); used != 0 {
		t.Errorf("%d bytes are in use", used)
	}
}

// The attack of slow readers on the index: what they read cannot be freed, so it stays.
func TestSlowReadersDoNotEmptyTheCache(t *testing.T) {
	t.Parallel()
	s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
		_, err := w.Write(make([]byte, 100<<10))
		return err
	}, func(c *Config) { c.Memory = 1 << 20 })
	_, _ = s.ask("GET", "/watched.ts")
	rd := s.index.entries[key{host: "example.com", path: "/watched.ts"}].object.body.read()
	for n := range 100 {
		_, _ = s.ask("GET", fmt.Sprintf("/%d.ts", n))
	}
	if w, _ := s.ask("GET", "/watched.ts"); w.Header().Get("Cache-Status") != "signed-playback; hit" {
		t.Error(w.Header())
	}
	rd.close()
}

// The attack of invented names, and a scan of old titles.
func TestWatchedObjectsSurviveAScan(t *testing.T) {
	t.Parallel()
	s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
		_, err := w.Write(make([]byte, 10<<10))
		return err
	}, func(c *Config) { c.Memory = 1 << 20 })
	for n := range 500 {
		for watched := range 20 {
			if n%10 == 0 {
				_, _ = s.ask("GET", fmt.Sprintf("/watched%d.ts", watched))
			}
		}
		_, _ = s.ask("GET", fmt.Sprintf("/%d.ts", n))
	}
	if n := len(s.asked); n > 500+2*20 {
		t.Errorf("the origin was asked %d times for 500 names and 20 watched objects", n)
	}
	if got, want := s.memory.used.Load(), s.config.Memory; got > want {
		t.Errorf("%d bytes in use, of %d", got, want)
	}
}

func TestPreconditions(t *testing.T) {
	t.Parallel()
	for etag, want := range map[string]map[string]int{
		"": {
			"If-Match: *": 200, `If-Match: "x"`: 412, `If-Match: ""`: 412, "If-Match: ": 412, `If-Match: W/"x"`: 412,
			"If-None-Match: *": 304, `If-None-Match: "x"`: 200, `If-None-Match: ""`: 200, "If-None-Match: ": 200, `If-None-Match: W/"x"`: 200,
		},
		`"x"`: {
			"If-Match: *": 200, `If-Match: "x"`: 200, `If-Match: ""`: 412, "If-Match: ": 412, `If-Match: W/"x"`: 412,
			"If-None-Match: *": 304, `If-None-Match: "x"`: 304, `If-None-Match: ""`: 200, "If-None-Match: ": 200, `If-None-Match: W/"x"`: 304,
		},
	} {
		s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("ETag", etag)
			_, err := io.WriteString(w, "body")
			return err
		})
		got := map[string]int{}
		for row := range want {
			field, value, _ := strings.Cut(row, ": ")
			w, _ := s.ask("GET", "/s.ts", field, value)
			got[row] = w.Code
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", etag, diff)
		}
	}
}

// The first viewer may leave at any moment; those who came meanwhile get the whole body.
func TestTheFirstViewerLeavesAtAnyMoment(t *testing.T) {
	t.Parallel()
	for _, control := range []string{"", "no-store", "no-cache"} {
		for moment := range 5 {
			synctest.Test(t, func(t *testing.T) {
				step := make(chan struct{})
				s := newScene(func(w http.ResponseWriter, r *http.Request) error {
					w.Header().Set("Cache-Control", control)
					for i := range 4 {
						select {
						case <-step:
						case <-r.Context().Done():
							return r.Context().Err()
						}
						if _, err := fmt.Fprintf(w, "part %d.", i); err != nil {
							return err
						}
					}
					return nil
				})
				ctx, leave := context.WithCancel(t.Context())
				first, second := httptest.NewRecorder(), httptest.NewRecorder()
				var group sync.WaitGroup
				group.Go(func() { _ = s.visit(first, httptest.NewRequestWithContext(ctx, "GET", "/s.ts", nil)) })
				synctest.Wait()
				group.Go(func() {
					if err := s.visit(second, httptest.NewRequestWithContext(t.Context(), "GET", "/s.ts", nil)); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
				for range moment {
					step <- struct{}{}
					synctest.Wait()
				}
				leave()
				synctest.Wait()
				close(step)
				group.Wait()
				synctest.Wait()
				if got := second.Body.String(); got != "part 0.part 1.part 2.part 3." {
					t.Errorf("%q, moment %d: the second viewer got %q", control, moment, got)
				}
				if _, used := s.Usage(); control != "" && used != 0 {
					t.Errorf("%q, moment %d: %d bytes are in use", control, moment, used)
				}
			})
		}
	}
}

// A viewer may have read the end of a body before the fill has put it into the index.
func TestACompleteBodyIsNotAbandoned(t *testing.T) {
	t.Parallel()
	f := &fill{ready: make(chan struct{}), ended: make(chan struct{}), body: newBody(&memory{max: 1 << 20}, nil)}
	f.settle(shared, &object{length: -1, body: f.body})
	if f.isNearlyDone() {
		t.Error("a body of unknown length is nearly done before its end")
	}
	f.body.end(nil)
	if !f.isNearlyDone() {
		t.Error("a complete body is abandoned")
	}
}

// Bytes are gathered only if all have arrived: a viewer at the live edge gets each as soon
// as the origin sends it. What is gathered is sent, however the answer ends.
func TestOnlyCompleteBodiesAreGathered(t *testing.T) {
	t.Parallel()
	file := randomBytes(9, 3<<20)
	s := newScene(large(file))
	s.config.MaxObject = 1 << 20
	whole := newScene(func(w http.ResponseWriter, r *http.Request) error {
		return large(file[:40<<10])(w, r)
	})
	var begun, sent int
	var failure error
	gather := func(*http.Request) func() error {
		begun++
		return func() error { sent++; return failure }
	}
	s.config.Gather, whole.config.Gather = gather, gather
	for i, row := range []struct {
		scene        *scene
		method, part string
		fails        bool
		want         int // -1: while it arrives, or just after
	}{
		{scene: whole, method: "GET", want: -1},
		{scene: whole, method: "GET", want: 1},
		{scene: whole, method: "HEAD"},
		{scene: whole, method: "GET", part: "bytes=0-99"},
		{scene: whole, method: "GET", part: "bytes=99-", want: 1},
		{scene: whole, method: "GET", part: "bytes=0-20000,21000-40000", want: 2},
		{scene: whole, method: "GET", fails: true, want: 1},
		{scene: s, method: "GET", want: -1},
		{scene: s, method: "GET", want: 3}, // slices
	} {
		begun, sent, failure = 0, 0, nil
		if row.fails {
			failure = errors.New("the client is gone")
		}
		_, err := row.scene.ask(row.method, "/v.mp4", "Range", row.part)
		if row.want >= 0 && begun != row.want || sent != begun || (err != nil) != row.fails {
			t.Errorf("row %d: gathered %d times, sent %d times, want %d; %v", i, begun, sent, row.want, err)
		}
	}
}

// The origin takes 200 ms for a response, and 50 viewers come in each round. Where responses turn
// out to be for one viewer alone, viewers wait for each other once, and then no more. No
// viewer gets the response of another one.
func TestViewersDoNotWaitForPrivateResponses(t *testing.T) {
	t.Parallel()
	const answer, round = 200 * time.Millisecond, 50
	for name, private := range map[string]string{"private": "Cache-Control: private", "no-store": "Cache-Control: no-store", "varies": "Vary: Origin"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int64
				var isShared atomic.Bool
				s := newScene(func(w http.ResponseWriter, r *http.Request) error {
					n := asked.Add(1)
					w.Header().Set("Content-Type", "video/mp4")
					if field, value, _ := strings.Cut(private, ": "); !isShared.Load() {
						w.Header().Set(field, value)
					}
					<-time.After(answer) // of the bubble's clock
					_, err := fmt.Fprint(w, n)
					return err
				})
				s.now = time.Now
				wantRound := func(what string, requests int64, latest time.Duration, method, byteRange string) {
					t.Helper()
					asked.Store(0)
					var viewers sync.WaitGroup
					var bodies sync.Map
					for i := range round {
						viewers.Go(func() {
							<-time.After(time.Duration(i) * time.Millisecond)
							came := time.Now()
							w, r := httptest.NewRecorder(), httptest.NewRequest(method, "/s.mp4", nil)
							if byteRange != "" {
								r.Header.Set("Range", byteRange)
							}
							err := s.visit(w, r)
							if took := time.Since(came); err != nil || took > latest {
								t.Errorf("%s: viewer %d has waited %s, %v", what, i, took, err)
							}
							if other, found := bodies.Swap(w.Body.String(), i); found && !isShared.Load() && method == "GET" {
								t.Errorf("%s: viewers %d and %v got the same response", what, i, other)
							}
						})
					}
					viewers.Wait()
					if got := asked.Load(); got != requests {
						t.Errorf("%s: the origin was asked %d times, want %d", what, got, requests)
					}
				}
				wantRound("first", round, 2*answer, "GET", "")
				wantRound("then", round, answer, "GET", "")
				wantRound("ranges", round, answer, "GET", "bytes=0-9")
				wantRound("HEAD", round, answer, "HEAD", "")
				isShared.Store(true)
				wantRound("shared from now on", round, answer, "GET", "")
				wantRound("kept", 0, 0, "GET", "")
				isShared.Store(false)
				s.forget(&s.config, keyOf(httptest.NewRequest("GET", "/s.mp4", nil), &s.config))
				<-time.After(unsharedFor)
				wantRound("much later", round, 2*answer, "GET", "")
				isShared.Store(true)
				<-time.After(unsharedFor)
				wantRound("shared after a pause", 1, answer, "GET", "bytes=0-0")
			})
		})
	}
}
