package signedplayback

import (
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// playlistOf returns a playlist of so many bytes.
func playlistOf(size int) string {
	body := "#EXTM3U\n#EXTINF:2,\nhttps://origin.example.com/demo/video/1.ts\n#"
	return body + strings.Repeat("x", size-len(body))
}

// dribble answers with a manifest in pieces, spread over a time.
func dribble(body string, over time.Duration, withLength bool) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		const pieces = 64
		if withLength {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		for piece := 0; piece < len(body); piece += len(body)/pieces + 1 {
			<-time.After(over / pieces)
			if _, err := io.WriteString(w, body[piece:min(len(body), piece+len(body)/pieces+1)]); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
		return nil
	})
}

// Attack D9: with one token, many clients ask for a large manifest of a slow origin
// at once. The memory for all of them stays within its bound. Each client gets the
// manifest, or an error after a bounded wait.
func TestManifestStormIsBounded(t *testing.T) {
	t.Parallel()
	const clients, size, over, limit, bound = 200, 512 << 10, time.Second, 192 << 20, 48 << 20
	large := playlistOf(size)
	for _, withLength := range []bool{true, false} {
		t.Run("with Content-Length "+strconv.FormatBool(withLength), func(t *testing.T) {
			g := newGate(t, new(App), &Gate{ManifestHosts: []string{"origin.example.com"}})
			memory := newManifestMemory(limit)
			g.app.manifests = memory
			synctest.Test(t, func(t *testing.T) {
				var all sync.WaitGroup
				var whole, refused atomic.Int64
				for range clients {
					all.Go(func() {
						start := time.Now()
						err := g.ServeHTTP(discarding(), requestFor(t, "/"+plainToken()+"/a.m3u8", nil), dribble(large, over, withLength))
						if waited := time.Since(start); waited > manifestbody.MaxWait+over {
							t.Errorf("a client waited for %s", waited)
						}
						if reserved := memory.Reserved(); reserved > bound {
							t.Errorf("%d bytes are reserved", reserved)
						}
						switch {
						case err == nil:
							whole.Add(1)
						case errors.Is(err, manifestbody.ErrMemory):
							refused.Add(1)
						default:
							t.Errorf("got %v", err)
						}
					})
				}
				all.Wait()
				// So many have room at a time, for as long as the others wait.
				each := int64((1 + manifest.MaxGrowth) * size)
				if !withLength {
					each = (1 + manifest.MaxGrowth) * manifest.MaxSize
				}
				if least := min(clients, bound/each*int64(manifestbody.MaxWait/over)); whole.Load() < least {
					t.Errorf("%d clients got the manifest and %d did not, want at least %d", whole.Load(), refused.Load(), least)
				}
				if reserved := memory.Reserved(); reserved != 0 {
					t.Errorf("%d bytes stay reserved", reserved)
				}
			})
		})
	}
}

// discarding is a writer of a viewer who does not look.
func discarding() http.ResponseWriter { return &discardingWriter{header: make(http.Header)} }

type discardingWriter struct {
	header   http.Header
	deadline time.Time
}

func (w *discardingWriter) Header() http.Header                 { return w.header }
func (*discardingWriter) WriteHeader(int)                       {}
func (*discardingWriter) Write(p []byte) (int, error)           { return len(p), nil }
func (w *discardingWriter) SetWriteDeadline(at time.Time) error { w.deadline = at; return nil }
func (*discardingWriter) ReadFrom(r io.Reader) (int64, error)   { return io.Copy(io.Discard, r) }

// However a manifest ends, it gives its memory back. After a leak, no manifest
// would have room in the end.
func TestMemoryOfManifestsIsGivenBack(t *testing.T) {
	t.Parallel()
	g := newGate(t, new(App), new(Gate))
	memory := newManifestMemory(math.MaxInt64)
	g.app.manifests = memory
	large := playlistOf(2 << 20)
	begin := func(then func() error) caddyhttp.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = io.WriteString(w, large)
			if memory.Reserved() == 0 {
				t.Error("nothing is reserved for a large manifest")
			}
			return then()
		}
	}
	errHandler := errors.New("a handler's error")
	for _, tc := range []struct {
		name   string
		origin caddyhttp.HandlerFunc
	}{
		{"sent", begin(func() error { return nil })},
		{"broken off", begin(func() error { panic(http.ErrAbortHandler) })},
		{"an error", begin(func() error { return errHandler })},
		{"a panic", begin(func() error { panic("a handler's bug") })},
		{"too large", func(w http.ResponseWriter, _ *http.Request) error {
			for range 5 {
				_, _ = io.WriteString(w, large)
			}
			return nil
		}},
		{"longer than told", func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Length", "100000")
			if _, err := io.WriteString(w, large); !errors.Is(err, manifestbody.ErrLength) {
				t.Errorf("got %v", err)
			}
			return nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			func() {
				defer func() { _ = recover() }()
				_ = g.ServeHTTP(httptest.NewRecorder(), requestFor(t, "/"+plainToken()+"/a.m3u8", nil), tc.origin)
			}()
			if reserved := memory.Reserved(); reserved != 0 {
				t.Errorf("%d bytes stay reserved", reserved)
			}
		})
	}
}

// Attack: a client asks for large manifests and does not read them, so that they
// keep their memory. A small one may take its time.
func TestLargeManifestsMustBeRead(t *testing.T) {
	t.Parallel()
	g := newGate(t, new(App), new(Gate))
	synctest.Test(t, func(t *testing.T) {
		for size, want := range map[int]time.Time{20_000: {}, 2 << 20: time.Now().Add(manifestbody.Timeout)} {
			w := new(discardingWriter)
			w.header = make(http.Header)
			if err := g.ServeHTTP(w, requestFor(t, "/"+plainToken()+"/a.m3u8", nil), dribble(playlistOf(size), 0, true)); err != nil {
				t.Fatal(err)
			}
			if !w.deadline.Equal(want) {
				t.Errorf("%d bytes must be read until %v, want %v", size, w.deadline, want)
			}
		}
	})
}
