package signedplayback

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// playlistOf makes a playlist of so many bytes, that is rewritten quickly.
func playlistOf(size int) string {
	body := "#EXTM3U\n#EXTINF:2,\nhttps://origin.example.com/demo/video/1.ts\n#"
	return body + strings.Repeat("x", size-len(body))
}

// dribble answers with a manifest in pieces over a time, with its length or not.
func dribble(body string, over time.Duration, tellLength bool) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		const pieces = 64
		if tellLength {
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

// D9 The attack: with one valid token, many viewers ask for a large manifest of a
// slow origin at once. What is held for all of them stays within
// the bound, each gets the manifest or is told after a bounded wait, and who asks
// for a manifest of a usual size meanwhile does not wait, but for those that have
// yet to show that they are larger.
func TestManifestStormIsBounded(t *testing.T) {
	const viewers, size, over, limit, bound = 200, 2 << 20, time.Second, 512 << 20, 128 << 20
	large, usual := playlistOf(size), playlistOf(100<<10)
	for _, tellLength := range []bool{true, false} {
		t.Run("length told "+strconv.FormatBool(tellLength), func(t *testing.T) {
			g := newGate(t, new(App), &Gate{ManifestHosts: []string{"origin.example.com"}})
			memory := newManifestMemory(limit)
			g.app.manifests = memory
			synctest.Test(t, func(t *testing.T) {
				var all sync.WaitGroup
				var mu sync.Mutex
				got := make(map[string]int)
				for range viewers {
					all.Go(func() {
						began := time.Now()
						err := g.ServeHTTP(discarding(), requestFor(t, "/"+plainToken()+"/a.m3u8", nil), dribble(large, over, tellLength))
						if waited := time.Since(began); waited > maxManifestWait+over {
							t.Errorf("a viewer has waited for %s", waited)
						}
						mu.Lock()
						defer mu.Unlock()
						switch why, refused := errors.AsType[*refusal](err); {
						case err == nil:
							got["whole"]++
						case refused && why.reason == reasonManifestInvalid && errors.Is(err, errManifestMemory):
							got["refused"]++
						default:
							t.Errorf("got %v", err)
						}
					})
				}
				all.Go(func() {
					for range 30 {
						if held := memory.bytes.Load(); held > bound {
							t.Errorf("%d bytes are reserved", held)
						}
						began := time.Now()
						if err := g.ServeHTTP(discarding(), requestFor(t, "/"+plainToken()+"/a.m3u8", nil), dribble(usual, 0, tellLength)); err != nil {
							t.Errorf("a manifest of usual size: %v", err)
						}
						if waited := time.Since(began); waited > 0 && tellLength || waited >= over {
							t.Errorf("a manifest of usual size has waited for %s", waited)
						}
						<-time.After(over / 3)
					}
				})
				all.Wait()
				t.Log(got)
				// As many at a time as there is room for, for as long as they wait.
				factor := int64(manifestFactor * size)
				if !tellLength {
					factor = manifestFactor * manifest.MaxSize
				}
				if least := int(bound / 2 / factor * int64(maxManifestWait/over)); got["whole"] < least || got["refused"] == 0 {
					t.Errorf("got %v, want at least %d whole ones, and some refused", got, least)
				}
				if held := memory.bytes.Load(); held != 0 {
					t.Errorf("%d bytes stay reserved", held)
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

// Manifests that grow beyond what they were thought to need must not wait for
// each other: each would hold what another needs, until all are refused.
func TestGrowingManifestsDoNotBlockEachOther(t *testing.T) {
	for _, tc := range []struct {
		name  string
		sizes []int
	}{
		{"from the lowest class to the highest", []int{100 << 10, 900 << 10, 7 << 20}},
		{"from one class to the next", []int{100 << 10, 900 << 10}},
		{"past a class", []int{100 << 10, 7 << 20}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := newManifestMemory(math.MaxInt64)
				var all sync.WaitGroup
				for range 30 {
					all.Go(func() {
						share := memory.newShare(0, false)
						defer share.release()
						for _, size := range tc.sizes {
							if err := share.grow(t.Context(), size); err != nil {
								t.Errorf("%d bytes: %v", size, err)
								return
							}
							<-time.After(10 * time.Millisecond)
						}
					})
				}
				all.Wait()
				if held := memory.bytes.Load(); held != 0 {
					t.Errorf("%d bytes stay reserved", held)
				}
			})
		})
	}
}

// What is reserved is at least what is held and what that may become, and never
// more than the class has, or it would be waited for in vain.
func TestManifestsReserveWhatTheyTake(t *testing.T) {
	const most = manifest.MaxSize
	for _, tc := range []struct {
		name         string
		length, size int
		compressed   bool
		want         int64
	}{
		{"usual, length told", 20_000, 20_000, false, 0},
		{"usual, length not told", 0, freeManifestSize, false, 0},
		{"a little more", 0, freeManifestSize + 1, false, 3 * 256 << 10},
		{"a little more, length told", freeManifestSize + 1, 1, false, 3 * (freeManifestSize + 1)},
		{"middle-sized", 0, 256<<10 + 1, false, 3 << 20},
		{"large", 0, 1<<20 + 1, false, 3 * most},
		{"large, length told", 5_000_000, 1, false, 15_000_000},
		{"M9 compressed: it may become anything", 50, 1, true, 4 * most},
		{"M9 compressed and large", 0, most, true, 4 * most},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memory := newManifestMemory(1) // the least
			share := memory.newShare(tc.length, tc.compressed)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // nothing may wait
			if err := share.grow(ctx, tc.size); err != nil || memory.bytes.Load() != tc.want || share.room < tc.size {
				t.Errorf("grow = %v with %d bytes reserved and room for %d, want %d bytes", err, memory.bytes.Load(), share.room, tc.want)
			}
			share.release()
			share.release()
			if held := memory.bytes.Load(); held != 0 {
				t.Errorf("%d bytes stay reserved", held)
			}
		})
	}
}

// Where a manifest ends otherwise than by being sent, its memory is there for
// others again. A leak would end in none being held at all.
func TestMemoryOfManifestsIsGivenBack(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	memory := newManifestMemory(math.MaxInt64)
	g.app.manifests = memory
	large := playlistOf(2 << 20)
	begin := func(then func() error) caddyhttp.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = io.WriteString(w, large)
			if memory.bytes.Load() == 0 {
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
			if _, err := io.WriteString(w, large); !errors.Is(err, errManifestLength) {
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
			if held := memory.bytes.Load(); held != 0 {
				t.Errorf("%d bytes stay reserved", held)
			}
		})
	}
}

// Whoever asks for a large manifest and does not read it must not hold the
// memory for as long as he likes. A usual one may take its time.
func TestLargeManifestsMustBeRead(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	synctest.Test(t, func(t *testing.T) {
		for size, want := range map[int]time.Time{20_000: {}, 2 << 20: time.Now().Add(manifestTimeout)} {
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

// A viewer who leaves the queue makes place, and no process is too small for the
// largest manifest.
func TestWaitForManifestMemoryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newManifestMemory(1)
		first, second := memory.newShare(0, true), memory.newShare(0, true)
		if err := first.grow(t.Context(), manifest.MaxSize); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, leave)
		began := time.Now()
		if err := second.grow(ctx, manifest.MaxSize); !errors.Is(err, context.Canceled) || time.Since(began) != time.Second {
			t.Errorf("a viewer who leaves got %v after %s", err, time.Since(began))
		}
		began, second = time.Now(), memory.newShare(0, true)
		if err := second.grow(t.Context(), manifest.MaxSize); !errors.Is(err, errManifestMemory) || time.Since(began) != maxManifestWait {
			t.Errorf("a viewer who stays got %v after %s", err, time.Since(began))
		}
		second = memory.newShare(0, true)
		time.AfterFunc(time.Second, first.release)
		if err := second.grow(t.Context(), manifest.MaxSize); err != nil {
			t.Errorf("a viewer whose turn comes got %v", err)
		}
	})
}
