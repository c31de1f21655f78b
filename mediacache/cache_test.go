package mediacache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// server is a cache in front of an origin, behind a real HTTP server.
type server struct {
	*httptest.Server
	cache    *Cache
	config   Config
	requests atomic.Int64
	clock    atomic.Int64 // of the cache, in seconds
	seen     sync.Map     // how often each URI was asked for at the origin
}

func newServer(t *testing.T, origin http.HandlerFunc, configure ...func(*Config)) *server {
	t.Helper()
	s := &server{config: Config{Memory: 8 << 20, MaxObject: 4 << 20, SegmentTTL: time.Hour, ManifestTTL: time.Second, ErrorTTL: 500 * time.Millisecond}}
	for _, change := range configure {
		change(&s.config)
	}
	s.cache = New(s.config.Memory)
	s.cache.now = func() time.Time { return time.Unix(1_800_000_000+s.clock.Load(), 0) }
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		n, _ := s.seen.LoadOrStore(r.URL.RequestURI(), new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		w.Header()["Date"] = nil // the cache's clock is another one
		origin(w, r)
	}))
	t.Cleanup(upstream.Close)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.cache.Serve(w, r, &s.config, forwardTo(upstream)); err != nil && r.Context().Err() == nil {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// forwardTo is a small proxy, which breaks responses off as Caddy's does.
func forwardTo(upstream *httptest.Server) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, upstream.URL+r.URL.RequestURI(), nil)
		if err != nil {
			return err
		}
		out.Header = r.Header
		response, err := upstream.Client().Transport.RoundTrip(out)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		maps.Copy(w.Header(), response.Header)
		w.WriteHeader(response.StatusCode)
		buffer := make([]byte, 32<<10)
		for {
			n, err := response.Body.Read(buffer)
			if _, err := w.Write(buffer[:n]); err != nil {
				return nil
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	}
}

type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (s *server) get(t *testing.T, path string, fields ...string) answer {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	response, err := s.Client().Transport.RoundTrip(r)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{status: response.StatusCode, header: response.Header, body: body, err: err}
}

// patience is so many milliseconds: a busy machine does in them what takes one on others.
const patience = 120_000

// idle waits until no fill is under way.
func (s *server) idle(t *testing.T) {
	t.Helper()
	for range patience {
		s.cache.index.mu.RLock()
		busy := false
		for _, e := range s.cache.index.entries {
			busy = busy || e.fill != nil
		}
		s.cache.index.mu.RUnlock()
		if !busy {
			return
		}
		<-time.After(time.Millisecond)
	}
	t.Fatal("a fill does not end")
}

// checkMemory compares the budget with what the objects in the index take.
func (s *server) checkMemory(t *testing.T) {
	t.Helper()
	s.idle(t)
	s.cache.index.mu.Lock()
	defer s.cache.index.mu.Unlock()
	var want int64
	for _, e := range s.cache.index.entries {
		if e.object != nil {
			want += e.object.size()
		}
	}
	if got := s.cache.memory.used.Load(); got != want || got > s.config.Memory {
		t.Errorf("the budget has %d bytes in use, the objects take %d of at most %d", got, want, s.config.Memory)
	}
}

func status(a answer) string { return a.header.Get("Cache-Status") }

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func TestOneRequestForManyViewers(t *testing.T) {
	t.Parallel()
	want := randomBytes(1, 300<<10)
	release := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "video/mp2t")
		w.Write(want[:100])
		w.(http.Flusher).Flush()
		<-release
		w.Write(want[100:])
	})
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if a := s.get(t, "/demo/s0.ts"); !bytes.Equal(a.body, want) {
				t.Errorf("status %d, %d bytes, error %v", a.status, len(a.body), a.err)
			}
		})
	}
	close(release)
	group.Wait()
	s.idle(t)
	if a := s.get(t, "/demo/s0.ts?CMCD=a"); !bytes.Equal(a.body, want) || status(a) != "signed-playback; hit" {
		t.Errorf("a later request: %q", status(a))
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("the origin was asked %d times", n)
	}
	s.checkMemory(t)
}

func TestFollowersGetTheFirstBytesAtOnce(t *testing.T) {
	t.Parallel()
	step := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "video/mp4")
		for i := range 3 {
			fmt.Fprintf(w, "part %d.", i)
			w.(http.Flusher).Flush()
			<-step
		}
	})
	var bodies [2]io.Reader
	for i := range bodies {
		response, err := s.Client().Get(s.URL + "/live.m4s")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		bodies[i] = response.Body
	}
	for i := range 3 {
		for _, body := range bodies {
			got := make([]byte, len("part 0."))
			if _, err := io.ReadFull(body, got); err != nil || string(got) != fmt.Sprintf("part %d.", i) {
				t.Fatalf("%q, %v", got, err)
			}
		}
		step <- struct{}{}
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("the origin was asked %d times", n)
	}
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
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = nil
				for line := range strings.Lines(row.header) {
					name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
					w.Header().Add(name, value)
				}
				w.WriteHeader(max(row.status, 200))
				io.WriteString(w, "body")
			})
			s.get(t, row.path)
			s.idle(t)
			s.clock.Store(row.after)
			a := s.get(t, row.path)
			if _, got, _ := strings.Cut(status(a), "; "); got != row.want || string(a.body) != "body" {
				t.Errorf("got %q with body %q, want %q", got, a.body, row.want)
			}
			s.checkMemory(t)
		})
	}
}

func TestOriginIsToldNothingOfViewers(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	s := newServer(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	s.get(t, "/s.ts", "Cookie", "a=b", "X-Forwarded-Host", "evil", "Accept-Language", "de", "Range", "bytes=1-2", "If-None-Match", `"x"`, "Cache-Control", "no-cache")
	want := http.Header{"User-Agent": {"signed-playback"}, "Accept-Encoding": {"identity"}}
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Error(diff)
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	whole := []byte("0123456789")
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Type", "video/mp4")
		w.Write(whole)
	})
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
		a := s.get(t, "/v.mp4", fields...)
		if a.status != row.status || string(a.body) != row.body || a.header.Get("Content-Range") != row.span {
			t.Errorf("%v: %d %q %q", fields, a.status, a.body, a.header.Get("Content-Range"))
		}
	}
	a := s.get(t, "/v.mp4", "Range", "bytes=0-1,8-9")
	if a.status != 206 || strings.Count(string(a.body), "Content-Range: bytes ") != 2 {
		t.Errorf("two ranges: %d %q", a.status, a.body)
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("the origin was asked %d times", n)
	}
}

func TestLargeObjectsAreKeptInSlices(t *testing.T) {
	t.Parallel()
	whole := randomBytes(2, 5<<20+17)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "v.mp4", time.Time{}, bytes.NewReader(whole))
	}, func(c *Config) { c.MaxObject = 2 << 20 })
	for _, row := range []struct{ field, want string }{
		{"", "whole"}, {"bytes=3145700-3145800", ""}, {"bytes=-100", ""}, {"bytes=5242870-", ""}, {"", "whole"},
	} {
		a := s.get(t, "/v.mp4", "Range", row.field)
		want, _ := parseRange(row.field, int64(len(whole)))
		part := whole
		if len(want) == 1 {
			part = whole[want[0].first : want[0].last+1]
		}
		if !bytes.Equal(a.body, part) {
			t.Errorf("%q: status %d, %d bytes of %d, %v", row.field, a.status, len(a.body), len(part), a.err)
		}
	}
	if n := s.requests.Load(); n != 1+6 {
		t.Errorf("the origin was asked %d times, want once for the whole and for each of 6 slices", n)
	}
	s.checkMemory(t)
}

// The attack of time: the slices of a large file that has changed are still fresh.
func TestLargeObjectsThatChange(t *testing.T) {
	t.Parallel()
	var version atomic.Uint64
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		v := version.Load()
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, v))
		w.Header().Set("Cache-Control", "max-age=10")
		http.ServeContent(w, r, "v.mp4", time.Time{}, bytes.NewReader(randomBytes(v, 3<<20)))
	}, func(c *Config) { c.MaxObject = 1 << 20 })
	get := func(at int64, field string) answer {
		s.clock.Store(at)
		return s.get(t, "/v.mp4", "Range", field)
	}
	get(0, "bytes=0-9")
	get(8, "bytes=1048576-1048579") // is fresh until 18
	version.Add(1)
	want := randomBytes(1, 3<<20)
	if a := get(12, ""); !bytes.Equal(a.body, want) {
		t.Errorf("status %d, %d bytes, %v: not the new version", a.status, len(a.body), a.err)
	}
	version.Add(1)
	if a := get(13, "bytes=2097152-"); !bytes.Equal(a.body, want[2<<20:]) {
		t.Errorf("status %d, %d bytes, %v: not the version that is fresh", a.status, len(a.body), a.err)
	}
	s.cache.forget(&s.config, key{host: strings.TrimPrefix(s.URL, "http://"), path: "/v.mp4", slice: 3})
	// The answer breaks off, and the client may ask again by itself.
	if a := get(14, "bytes=2097152-"); a.err == nil && !bytes.Equal(a.body, randomBytes(2, 3<<20)[2<<20:]) {
		t.Errorf("got %d bytes of a version that does not exist any more", len(a.body))
	}
	if a := get(15, ""); !bytes.Equal(a.body, randomBytes(2, 3<<20)) {
		t.Errorf("status %d, %d bytes, %v: not the newest version", a.status, len(a.body), a.err)
	}
	s.checkMemory(t)
}

func TestBrokenBodiesAreNotKept(t *testing.T) {
	t.Parallel()
	want := randomBytes(3, 200<<10)
	var times atomic.Int64
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(want)))
		if times.Add(1) == 1 {
			w.Write(want[:1000])
			panic(http.ErrAbortHandler)
		}
		w.Write(want)
	})
	if a := s.get(t, "/s.ts"); a.err == nil && len(a.body) == len(want) {
		t.Error("the first answer is complete")
	}
	s.idle(t)
	if a := s.get(t, "/s.ts"); !bytes.Equal(a.body, want) {
		t.Errorf("%d bytes, %v", len(a.body), a.err)
	}
	s.checkMemory(t)
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		w.Write(randomBytes(uint64(n), 10<<10+n%100<<10))
	}, func(c *Config) { c.Memory = 2 << 20 })
	for n := range 300 {
		a := s.get(t, fmt.Sprintf("/s.ts?n=%d", n))
		if !bytes.Equal(a.body, randomBytes(uint64(n), 10<<10+n%100<<10)) {
			t.Fatalf("%d: wrong bytes", n)
		}
		if used := s.cache.memory.used.Load(); used > s.config.Memory {
			t.Fatalf("%d bytes in use", used)
		}
	}
	s.checkMemory(t)
}

func TestEndlessBodiesStreamThrough(t *testing.T) {
	t.Parallel()
	want := randomBytes(4, 12<<20)
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		for part := want; len(part) > 0; part = part[min(len(part), 50<<10):] {
			w.Write(part[:min(len(part), 50<<10)])
			w.(http.Flusher).Flush()
		}
	}, func(c *Config) { c.MaxObject = 1 << 20 })
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if a := s.get(t, "/live.ts"); !bytes.Equal(a.body, want) {
				t.Errorf("%d bytes, %v", len(a.body), a.err)
			}
		})
	}
	group.Wait()
	s.idle(t)
	s.checkMemory(t)
	if used := s.cache.memory.used.Load(); used != 0 {
		t.Errorf("%d bytes are kept", used)
	}
}

func TestRevalidation(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Cache-Control", "max-age=10")
		if r.Header.Get("If-None-Match") == `"v1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, "body")
	})
	for i, want := range []string{"fwd=uri-miss", "hit", "fwd=stale; fwd-status=304", "hit"} {
		s.clock.Store([]int64{0, 5, 20, 25}[i])
		a := s.get(t, "/s.ts")
		s.idle(t)
		if _, got, _ := strings.Cut(status(a), "; "); got != want || string(a.body) != "body" {
			t.Errorf("request %d: %q %q, want %q", i, got, a.body, want)
		}
	}
	if a := s.get(t, "/s.ts", "If-None-Match", `"v1"`); a.status != http.StatusNotModified {
		t.Errorf("status %d for a viewer who has it", a.status)
	}
	s.checkMemory(t)
}

func TestStale(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Cache-Control", "max-age=10, stale-if-error=100")
		io.WriteString(w, "body")
	})
	for _, path := range []string{"/s.ts", "/v.m3u8"} {
		s.get(t, path)
	}
	s.idle(t)
	broken.Store(true)
	s.clock.Store(50)
	if a := s.get(t, "/s.ts"); string(a.body) != "body" || status(a) != "signed-playback; hit; detail=stale" {
		t.Errorf("a segment while the origin fails: %d %q", a.status, status(a))
	}
	if a := s.get(t, "/v.m3u8"); a.status != http.StatusServiceUnavailable {
		t.Errorf("a manifest while the origin fails: %d", a.status)
	}
	s.clock.Store(200)
	if a := s.get(t, "/s.ts"); a.status != http.StatusServiceUnavailable {
		t.Errorf("a segment that is too stale: %d", a.status)
	}
	s.checkMemory(t)
}
