package mediacache

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// scene is a cache without sockets, whose origin is a handler.
type scene struct {
	*Cache
	config  Config
	clock   atomic.Int64 // nanoseconds since sceneStart
	origin  Handler
	running atomic.Int64 // requests to the origin, without a disk that answers some of them
	mu      sync.Mutex
	asked   []*http.Request
}

var sceneStart = time.Unix(1_800_000_000, 0)

func newScene(origin Handler, configure ...func(*Config)) *scene {
	s := &scene{origin: origin}
	s.config = Config{Memory: 8 << 20, MaxObject: 4 << 20, SegmentTTL: time.Hour, ManifestTTL: time.Second, ErrorTTL: 500 * time.Millisecond, Context: func(*http.Request) context.Context {
		if s.config.Disk == nil {
			s.running.Add(1)
		}
		return context.WithValue(context.Background(), ofCache{}, true)
	}}
	for _, change := range configure {
		change(&s.config)
	}
	s.Cache = New(s.config.Memory)
	s.now = func() time.Time { return sceneStart.Add(time.Duration(s.clock.Load())) }
	return s
}

func (s *scene) advance(d time.Duration) { s.clock.Add(int64(d)) }

// ofCache is the context key of requests of the cache, as opposed to those that go past it.
type ofCache struct{}

// ask makes a request and waits until the origin's handler has returned. Fields are
// names and values of the request's header in turn.
func (s *scene) ask(method, target string, fields ...string) (*httptest.ResponseRecorder, error) {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	err := s.serve(w, r)
	return w, err
}

func (s *scene) serve(w http.ResponseWriter, r *http.Request) error {
	defer s.untilIdle()
	return s.visit(w, r)
}

// visit makes a request, like others at the same time.
func (s *scene) visit(w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("broken off: %v", p)
		}
	}()
	_, err = s.Serve(w, r, &s.config, func(w http.ResponseWriter, r *http.Request) error {
		if r.Context().Value(ofCache{}) != nil && s.config.Disk == nil {
			defer s.running.Add(-1)
		}
		s.mu.Lock()
		s.asked = append(s.asked, r)
		s.mu.Unlock()
		return s.origin(w, r)
	})
	return err
}

func (s *scene) untilIdle() {
	for {
		s.index.mu.RLock()
		busy := s.running.Load() > 0
		for _, e := range s.index.entries {
			busy = busy || e.fill != nil
		}
		s.index.mu.RUnlock()
		if !busy {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// checkMemory compares the budget with what the objects in the index take.
func (s *scene) checkMemory(t *testing.T) {
	t.Helper()
	s.untilIdle()
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	var want int64
	for _, e := range s.index.entries {
		if e.object != nil {
			want += e.object.size()
		}
	}
	if got := s.memory.used.Load(); got != want || got > s.config.Memory {
		t.Errorf("the budget has %d bytes in use, the objects take %d of at most %d", got, want, s.config.Memory)
	}
}

func status(w *httptest.ResponseRecorder) string { return w.Header().Get("Cache-Status") }

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// large answers ranges of a file as http.ServeContent does.
func large(file []byte) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "v.mp4", time.Time{}, bytes.NewReader(file))
		return nil
	}
}

// Viewers who come while an object arrives get each part as soon as it is there, and the origin
// is asked once.
func TestOneRequestForManyViewers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		step := make(chan struct{})
		s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
			for i := range 3 {
				fmt.Fprintf(w, "part %d.", i)
				<-step
			}
			return nil
		})
		var viewers []*httptest.ResponseRecorder
		want := ""
		for _, part := range []string{"part 0.", "part 1.", "part 2.", ""} {
			for range 20 {
				w := httptest.NewRecorder()
				viewers = append(viewers, w)
				go s.visit(w, httptest.NewRequest("GET", "/demo/s0.ts?CMCD=a", nil))
			}
			synctest.Wait()
			want += part
			for _, w := range viewers {
				if w.Body.String() != want || part != "" && !w.Flushed {
					t.Errorf("%q after %q, flushed %t", w.Body, want, w.Flushed)
				}
			}
			if part != "" {
				step <- struct{}{}
				synctest.Wait()
			}
		}
		if status(viewers[len(viewers)-1]) != memoryHit || len(s.asked) != 1 {
			t.Errorf("%q, and the origin was asked %d times", status(viewers[len(viewers)-1]), len(s.asked))
		}
		s.checkMemory(t)
	})
}

func TestWhatIsKept(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, path, header string
		status             int
		after              int64 // seconds
		want               string
	}{
		{name: "a segment without a word from the origin", path: "/s.ts", after: 3000, want: "hit"},
		{name: "a segment after its TTL", path: "/s.ts", after: 3601, want: "fwd=uri-miss"},
		{name: "a manifest within its TTL", path: "/v.m3u8", want: "hit"},
		{name: "a manifest by its type alone, after its TTL", path: "/live", header: "Content-Type: video/x-mpegURL", after: 2, want: "fwd=uri-miss"},
		{name: "a manifest after its TTL", path: "/v.m3u8", after: 2, want: "fwd=uri-miss"},
		{name: "a page", path: "/page", header: "Content-Type: text/html", want: "fwd=uri-miss"},
		{name: "a page with max-age", path: "/page", header: "Content-Type: text/html\nCache-Control: max-age=10", after: 9, want: "hit"},
		{name: "s-maxage counts more than max-age", path: "/s.ts", header: "Cache-Control: max-age=100, s-maxage=10", after: 11, want: "fwd=uri-miss"},
		{name: "no-store", path: "/s.ts", header: "Cache-Control: no-store", want: "fwd=bypass"},
		{name: "private", path: "/s.ts", header: "Cache-Control: private", want: "fwd=bypass"},
		{name: "Vary on the encoding", path: "/s.ts", header: "Vary: accept-encoding", want: "hit"},
		{name: "Vary on anything else", path: "/s.ts", header: "Vary: Origin", want: "fwd=bypass"},
		{name: "Vary on everything", path: "/s.ts", header: "Vary: *", want: "fwd=bypass"},
		{name: "compressed", path: "/s.ts", header: "Content-Encoding: br", want: "fwd=bypass"},
		{name: "Expires with two spaces", path: "/s.ts", header: "Expires: Thu, 18  Aug  2050 02:01:18 GMT", want: "fwd=uri-miss"},
		{name: "Expires with one digit of the hour", path: "/s.ts", header: "Expires: Thu, 18 Aug 2050 2:01:18 GMT", want: "fwd=uri-miss"},
		{name: "Expires of RFC 850", path: "/page.ts", header: "Expires: Sunday, 06-Nov-33 08:49:37 GMT", after: 3700, want: "hit"},
		{name: "a list of Age", path: "/s.ts", header: "Cache-Control: max-age=3600\nAge: 7200, 0", want: "fwd=uri-miss"},
		{name: "Expires in the past", path: "/s.ts", header: "Expires: 0", want: "fwd=uri-miss"},
		{name: "Age of an upstream cache", path: "/s.ts", header: "Cache-Control: max-age=10\nAge: 8", after: 3, want: "fwd=uri-miss"},
		{name: "two max-age", path: "/s.ts", header: "Cache-Control: max-age=10, max-age=20", want: "fwd=uri-miss"},
		{name: "a huge max-age", path: "/s.ts", header: "Cache-Control: max-age=99999999999999999999", after: 1 << 20, want: "hit"},
		{name: "404", path: "/s.ts", status: 404, want: "hit"},
		{name: "404 after its TTL", path: "/s.ts", status: 404, after: 1, want: "fwd=uri-miss"},
		{name: "500", path: "/s.ts", status: 500, want: "fwd=uri-miss"},
		{name: "a redirect without a word", path: "/s.ts", status: 302, header: "Location: /x", want: "fwd=uri-miss"},
		{name: "a redirect with max-age", path: "/s.ts", status: 302, header: "Location: /x\nCache-Control: max-age=5", want: "hit"},
	} {
		s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
			for line := range strings.Lines(row.header) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				w.Header().Add(name, value)
			}
			w.WriteHeader(max(row.status, 200))
			_, err := io.WriteString(w, "body")
			return err
		})
		_, _ = s.ask("GET", row.path)
		s.advance(time.Duration(row.after) * time.Second)
		w, err := s.ask("GET", row.path)
		if _, got, _ := strings.Cut(status(w), "; "); got != row.want || w.Body.String() != "body" || err != nil {
			t.Errorf("%s: %q with body %q, want %q, error %v", row.name, got, w.Body, row.want, err)
		}
		s.checkMemory(t)
	}
}

func TestOriginIsToldNothingOfViewers(t *testing.T) {
	t.Parallel()
	s := newScene(large(nil))
	_, _ = s.ask("GET", "/s.ts", "Cookie", "a=b", "X-Forwarded-Host", "evil", "Accept-Language", "de", "Range", "bytes=1-2", "If-None-Match", `"x"`, "Cache-Control", "no-cache")
	want := http.Header{"User-Agent": {"signed-playback"}, "Accept-Encoding": {"identity"}}
	if diff := cmp.Diff(want, s.asked[0].Header); diff != "" {
		t.Error(diff)
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	whole := []byte("0123456789")
	s := newScene(large(whole))
	for _, row := range []struct {
		field, ifRange string
		status         int
		body, span     string
	}{
		{field: "bytes=0-0", status: 206, body: "0", span: "bytes 0-0/10"},
		{field: "bytes=2-4", status: 206, body: "234", span: "bytes 2-4/10"},
		{field: "bytes=7-", status: 206, body: "789", span: "bytes 7-9/10"},
		{field: "bytes=-3", status: 206, body: "789", span: "bytes 7-9/10"},
		{field: "bytes=-30", status: 206, body: "0123456789", span: "bytes 0-9/10"},
		{field: "bytes=5-500", status: 206, body: "56789", span: "bytes 5-9/10"},
		{field: "Bytes=5-500", status: 206, body: "56789", span: "bytes 5-9/10"},
		{field: "bytes=9-99999999999999999999999", status: 206, body: "9", span: "bytes 9-9/10"},
		{field: "bytes=10-", status: 416, span: "bytes */10"},
		{field: "bytes=-0", status: 416, span: "bytes */10"},
		{field: "bytes=4-2", status: 200, body: string(whole)},
		{field: "bytes=a-b", status: 200, body: string(whole)},
		{field: "bytes=", status: 200, body: string(whole)},
		{field: "chunks=0-1", status: 200, body: string(whole)},
		{field: "bytes=0-9,0-9", status: 200, body: string(whole)},
		{field: "bytes=2-4", ifRange: `"v1"`, status: 206, body: "234", span: "bytes 2-4/10"},
		{field: "bytes=2-4", ifRange: `"v2"`, status: 200, body: string(whole)},
		{field: "bytes=2-4", ifRange: `W/"v1"`, status: 200, body: string(whole)},
	} {
		fields := []string{"Range", row.field}
		if row.ifRange != "" {
			fields = append(fields, "If-Range", row.ifRange)
		}
		w, _ := s.ask("GET", "/v.mp4", fields...)
		if w.Code != row.status || w.Body.String() != row.body || w.Header().Get("Content-Range") != row.span {
			t.Errorf("%v: %d %q %q", fields, w.Code, w.Body, w.Header().Get("Content-Range"))
		}
	}
	w, _ := s.ask("GET", "/v.mp4", "Range", "bytes=0-1,8-9")
	if w.Code != 206 || strings.Count(w.Body.String(), "Content-Range: bytes ") != 2 {
		t.Errorf("two ranges: %d %q", w.Code, w.Body)
	}
	if len(s.asked) != 1 {
		t.Errorf("the origin was asked %d times", len(s.asked))
	}
}

func TestLargeObjectsAreKeptInSlices(t *testing.T) {
	t.Parallel()
	whole := randomBytes(2, 5<<20+17)
	s := newScene(large(whole), func(c *Config) { c.MaxObject = 2 << 20 })
	for field, want := range map[string][]byte{"": whole, "bytes=3145700-3145800": whole[3145700:3145801], "bytes=-100": whole[len(whole)-100:], "bytes=5242870-": whole[5242870:]} {
		for range 2 {
			if w, err := s.ask("GET", "/v.mp4", "Range", field); err != nil || !bytes.Equal(w.Body.Bytes(), want) {
				t.Errorf("%q: status %d, %d bytes of %d, %v", field, w.Code, w.Body.Len(), len(want), err)
			}
		}
	}
	if len(s.asked) != 1+6 {
		t.Errorf("the origin was asked %d times, want once for the whole and for each of 6 slices", len(s.asked))
	}
	s.checkMemory(t)
}

// The attack of time: the slices of a large file that has changed are still fresh.
func TestLargeObjectsThatChange(t *testing.T) {
	t.Parallel()
	version, versions := 0, [][]byte{randomBytes(0, 3<<20), randomBytes(1, 3<<20), randomBytes(2, 3<<20)}
	s := newScene(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, version))
		w.Header().Set("Cache-Control", "max-age=10")
		http.ServeContent(w, r, "v.mp4", time.Time{}, bytes.NewReader(versions[version]))
		return nil
	}, func(c *Config) { c.MaxObject = 1 << 20 })
	want := func(seconds int64, field string, want []byte) {
		t.Helper()
		s.clock.Store(seconds * int64(time.Second))
		w, err := s.ask("GET", "/v.mp4", "Range", field)
		if (err != nil) != (want == nil) || want != nil && !bytes.Equal(w.Body.Bytes(), want) {
			t.Errorf("%d: status %d, %d bytes, %v", seconds, w.Code, w.Body.Len(), err)
		}
	}
	want(0, "bytes=0-9", versions[0][:10])
	want(8, "bytes=1048576-1048579", versions[0][1<<20:1<<20+4]) // is fresh until 18
	version = 1
	want(12, "", versions[1])
	version = 2
	want(13, "bytes=2097152-", versions[1][2<<20:]) // is fresh
	s.forget(&s.config, key{host: "example.com", path: "/v.mp4", slice: 3})
	want(14, "bytes=2097152-", nil) // a version that does not exist any more: breaks off
	want(15, "", versions[2])
	s.checkMemory(t)
}

func TestEndlessBodiesStreamThrough(t *testing.T) {
	t.Parallel()
	want := randomBytes(4, 4<<20)
	s := newScene(func(w http.ResponseWriter, _ *http.Request) error {
		for part := want; len(part) > 0; part = part[min(len(part), 50<<10):] {
			if _, err := w.Write(part[:min(len(part), 50<<10)]); err != nil {
				return err
			}
		}
		return nil
	}, func(c *Config) { c.MaxObject = 1 << 20 })
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if w, err := s.ask("GET", "/live.ts"); err != nil || !bytes.Equal(w.Body.Bytes(), want) {
				t.Errorf("%d bytes, %v", w.Body.Len(), err)
			}
		})
	}
	group.Wait()
	s.checkMemory(t)
	if used := s.memory.used.Load(); used != 0 {
		t.Errorf("%d bytes are kept", used)
	}
}
