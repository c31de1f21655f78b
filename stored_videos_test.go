package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/caddyserver/caddy/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

const (
	privateVideo = `{"uid":"v","requireSignedURLs":true}`
	publicVideo  = `{"uid":"v","requireSignedURLs":false}`
)

// wantVideo holds what a state says of the video "v": private, public, unset,
// or that it cannot tell.
func wantVideo(t *testing.T, s *state, want string) {
	t.Helper()
	if got := videoIs(s.videos.get(t.Context(), "v")); got != want {
		t.Errorf("the video is %s, want %s", got, want)
	}
}

func videoIs(video *storedVideo, err error) string {
	switch {
	case errors.Is(err, store.ErrDamaged):
		return "damaged"
	case errors.Is(err, store.ErrUnavailable):
		return "unavailable"
	case err != nil:
		return err.Error()
	case video == nil:
		return "unset"
	case video.requireSignedURLs == nil:
		return "default"
	case *video.requireSignedURLs:
		return "private"
	}
	return "public"
}

// The first use of a cold video costs one read, whatever the number of viewers,
// and what there is none of is remembered as well.
func TestVideoIsReadOnce(t *testing.T) {
	for data, want := range map[string]string{privateVideo: "private", "": "unset", "broken": "damaged"} {
		t.Run(want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				if data != "" {
					f.plant(videoNamed("v"), data)
				}
				n := f.node()
				s := newTestState(t, n)
				n.intercept(on("get", "v", func(context.Context, string, store.Name) error {
					<-time.After(100 * time.Millisecond)
					return nil
				}), nil)
				var wg sync.WaitGroup
				for i := range 200 {
					wg.Go(func() {
						// Some come while it is read, some just when it has been, and some later.
						<-time.After(time.Duration(min(i, 100)+i/190) * time.Millisecond)
						wantVideo(t, s, want)
					})
				}
				wg.Wait()
				if got := n.count("get"); got != 1 {
					t.Errorf("%d reads, want 1", got)
				}
			})
		})
	}
}

// Videos do not wait for each other.
func TestSlowVideoHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		n := f.node()
		s := newTestState(t, n)
		n.intercept(on("get", "slow", hang), nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			if got := videoIs(s.videos.get(t.Context(), "slow")); got != "unavailable" {
				t.Errorf("a video that cannot be read is %s", got)
			}
		})
		synctest.Wait()
		start := time.Now()
		wantVideo(t, s, "public")
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the other video took %s", waited)
		}
		wg.Wait()
	})
}

// A viewer who leaves takes nobody's answer away, and does not wait for it.
func TestViewerLeavesWhileAVideoIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		n := f.node()
		s := newTestState(t, n)
		proceed := make(chan struct{})
		n.intercept(on("get", "v", func(ctx context.Context, _ string, _ store.Name) error {
			<-proceed
			return ctx.Err()
		}), nil)
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.videos.get(ctx, "v"); !errors.Is(err, context.Canceled) {
				t.Errorf("get = %v for a viewer who has left", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { wantVideo(t, s, "public") })
		synctest.Wait()
		leave()
		synctest.Wait()
		close(proceed)
		wg.Wait()
	})
}

// A video is changed, here or elsewhere, while it is being read. What was read
// is what it was, so it is read again: a video that has just been made private
// must not stay public until it changes once more.
func TestVideoChangesWhileItIsRead(t *testing.T) {
	for what, change := range map[string]func(*state, *fleet){
		"another node's change": func(s *state, f *fleet) {
			f.write(videoNamed("v"), privateVideo)
			s.sync(s.ctx)
		},
		"this node's change": func(s *state, f *fleet) {
			f.plant(videoNamed("v"), privateVideo)
			s.videos.drop("v")
		},
		"everything may have changed": func(s *state, f *fleet) {
			f.plant(videoNamed("v"), privateVideo)
			f.restore(f.backup())
			s.sync(s.ctx)
		},
		"everything is forgotten": func(s *state, f *fleet) {
			f.plant(videoNamed("v"), privateVideo)
			s.videos.forget()
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(videoNamed("v"), publicVideo)
				n := f.node()
				s := newTestState(t, n)
				rounds := 0
				n.intercept(nil, on("get", "v", func(context.Context, string, store.Name) error {
					if rounds++; rounds == 1 {
						change(s, f) // when it has been read, and not yet been published
					}
					return nil
				}))
				_, _ = s.videos.get(t.Context(), "v")
				synctest.Wait()
				wantVideo(t, s, "private")
				if rounds != 2 {
					t.Errorf("the video was read %d times, want twice", rounds)
				}
				reads := n.count("get")
				wantVideo(t, s, "private")
				if n.count("get") != reads {
					t.Error("the video is read for each viewer")
				}
			})
		})
	}
}

// A video that changes each time that it is read: no viewer is answered with what
// it was before the change that the viewer could know of.
func TestVideoChangesAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		n := f.node()
		s := newTestState(t, n)
		rounds := 0
		n.intercept(nil, on("get", "v", func(context.Context, string, store.Name) error {
			if rounds++; rounds < 5 {
				f.plant(videoNamed("v"), privateVideo)
				s.videos.drop("v")
			}
			return nil
		}))
		wantVideo(t, s, "public") // asked for before the first change
		for range 6 {
			wantVideo(t, s, "private")
		}
		if rounds != 5 {
			t.Errorf("the video was read %d times, want 5", rounds)
		}
	})
}

// A change that fails to be read, after one that was read too early: nobody is
// answered with what is known to be out of date.
func TestChangedVideoCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		n := f.node()
		s := newTestState(t, n)
		wantVideo(t, s, "public")
		f.write(videoNamed("v"), privateVideo)
		n.intercept(on("get", "v", down), nil)
		s.sync(t.Context())
		wantVideo(t, s, "unavailable")
		n.intercept(nil, nil)
		wantVideo(t, s, "private")

		// The same with a reading under way.
		s.videos.drop("v")
		f.plant(videoNamed("v"), publicVideo)
		n.intercept(nil, on("get", "v", func(context.Context, string, store.Name) error {
			f.write(videoNamed("v"), privateVideo)
			s.videos.drop("v")
			n.intercept(on("get", "v", down), nil)
			return nil
		}))
		wantVideo(t, s, "public") // asked for before the change
		wantVideo(t, s, "unavailable")
		n.intercept(nil, nil)
		wantVideo(t, s, "private")
	})
}

// S6: where everything may have changed and the store then fails, what was
// known serves. What was never known does not.
func TestKnownVideoServesWithoutTheStore(t *testing.T) {
	for what, fails := range map[string]step{"fails": down, "hangs": hang} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(videoNamed("v"), publicVideo)
				n := f.node()
				s := newTestState(t, n)
				wantVideo(t, s, "public")
				s.videos.suspectAll()
				n.intercept(fails, nil)
				for range 2 {
					start := time.Now()
					wantVideo(t, s, "public")
					if waited := time.Since(start); waited > readTimeout {
						t.Errorf("a viewer waited for %s", waited)
					}
					if got := videoIs(s.videos.get(t.Context(), "unknown")); got != "unavailable" {
						t.Errorf("a video that was never known is %s", got)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), syncTimeout)
				defer cancel()
				s.sync(ctx) // from now on the store counts as away
				reads := n.count("get")
				start := time.Now()
				wantVideo(t, s, "public")
				if got := videoIs(s.videos.get(t.Context(), "unknown")); got != "unavailable" || n.count("get") != reads || time.Since(start) != 0 {
					t.Errorf("a video that was never known is %s after %s and %d reads, want unavailable at once", got, time.Since(start), n.count("get")-reads)
				}
				f.plant(videoNamed("v"), privateVideo)
				n.intercept(nil, nil)
				s.sync(t.Context())
				wantVideo(t, s, "private")
			})
		})
	}
}

// What is read again as a precaution makes nobody wait: what is known serves
// until it has been read, once however many ask, also if that fails or hangs.
func TestRefreshedVideoServesMeanwhile(t *testing.T) {
	for what, fails := range map[string]step{"the store is slow": nil, "it fails at first": down, "it hangs at first": hang} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(videoNamed("v"), publicVideo)
				n := f.node()
				s := newTestState(t, n)
				wantVideo(t, s, "public")
				f.plant(videoNamed("v"), privateVideo)
				s.videos.refreshAll()
				reads := n.count("get")
				proceed := make(chan struct{})
				n.intercept(on("get", "v", func(ctx context.Context, operation string, name store.Name) error {
					if fails != nil {
						return fails(ctx, operation, name)
					}
					<-proceed
					return nil
				}), nil)
				start := time.Now()
				for range 10 {
					wantVideo(t, s, "public")
				}
				if waited := time.Since(start); waited != 0 {
					t.Errorf("viewers waited for %s", waited)
				}
				synctest.Wait()
				if got := n.count("get") - reads; fails == nil && got != 1 {
					t.Errorf("%d reads for ten viewers, want 1", got)
				}
				close(proceed)
				<-time.After(readTimeout)
				if n.intercept(nil, nil); fails != nil {
					synctest.Wait()
					wantVideo(t, s, "public") // has it read again
				}
				synctest.Wait()
				wantVideo(t, s, "private")
				reads = n.count("get")
				wantVideo(t, s, "private")
				if n.count("get") != reads {
					t.Error("the video is read for each viewer")
				}
			})
		})
	}
}

// A precaution does not make up for a change that is known: what is out of date
// serves nobody, though a refresh of it is under way.
func TestRefreshedVideoThatHasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		n := f.node()
		s := newTestState(t, n)
		wantVideo(t, s, "public")
		s.videos.refreshAll()
		proceed := make(chan struct{})
		n.intercept(nil, on("get", "v", func(context.Context, string, store.Name) error {
			n.intercept(nil, nil)
			<-proceed // with what it was
			return nil
		}))
		wantVideo(t, s, "public")
		synctest.Wait()
		f.write(videoNamed("v"), privateVideo)
		s.sync(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { wantVideo(t, s, "private") })
		synctest.Wait()
		close(proceed)
		wg.Wait()
		s.videos.refreshAll()
		s.videos.suspectAll() // and then something is known to be missed
		f.plant(videoNamed("v"), publicVideo)
		wantVideo(t, s, "public")
	})
}

// S4: what is under a video's name and is not its settings closes this video,
// and does not open it where videos are public by default.
func TestDamagedVideoIsClosed(t *testing.T) {
	for what, data := range map[string]string{
		"damaged":                      "",
		"null":                         "null",
		"no object":                    `["v"]`,
		"empty":                        "{}",
		"of another video":             `{"uid":"w","requireSignedURLs":false}`,
		"of a video of other case":     `{"uid":"V","requireSignedURLs":false}`,
		"requireSignedURLs is text":    `{"uid":"v","requireSignedURLs":"false"}`,
		"requireSignedURLs is a 0":     `{"uid":"v","requireSignedURLs":0}`,
		"allowedOrigins is text":       `{"uid":"v","allowedOrigins":"example.com"}`,
		"allowedOrigins with a number": `{"uid":"v","allowedOrigins":[1]}`,
		"an origin that is none":       `{"uid":"v","allowedOrigins":["https://example.com"]}`,
		"an empty origin":              `{"uid":"v","allowedOrigins":[""]}`,
		"created is no date":           `{"uid":"v","created":"x"}`,
		"descriptive is a list":        `{"uid":"v","descriptive":[]}`,
	} {
		t.Run(what, func(t *testing.T) {
			f := newFleet()
			f.plant(videoNamed("w"), `{"uid":"w"}`)
			if data == "" {
				f.damage(videoNamed("v"))
			} else {
				f.plant(videoNamed("v"), data)
			}
			s := newTestState(t, f.node())
			before := storeErrors(t, "decode")
			wantVideo(t, s, "damaged")
			if storeErrors(t, "decode") != before+1 {
				t.Error("the damage is not counted, or more than once")
			}
			// Where videos are public by default, this one is not.
			app := &App{state: s, defaults: settings{requireSignedURLs: false}}
			got, err := app.settings(t.Context(), "v")
			if reasonOf(t, err) != reasonStateUnavailable || got != (settings{}) {
				t.Errorf("settings = %+v, %v, want a refusal", got, err)
			}
			if got, err := app.settings(t.Context(), "w"); err != nil || got.requireSignedURLs {
				t.Errorf("the settings of another video = %+v, %v", got, err)
			}
			f.write(videoNamed("v"), publicVideo) // mended
			s.sync(t.Context())
			wantVideo(t, s, "public")
		})
	}
}

// The same through a gate, and for the video of a token.
func TestGateOfADamagedVideo(t *testing.T) {
	f := newFleet()
	f.damage(videoNamed("demo"))
	f.plant(videoNamed("open"), `{"uid":"open","allowedOrigins":[]}`)
	s := newTestState(t, f.node())
	g := newGate(t, &App{VideoSettings: VideoSettings{RequireSignedURLs: new(false)}}, new(Gate))
	useState(t, g.app, s)
	for _, target := range []string{"/demo/x.ts", "/" + plainToken() + "/x.ts"} {
		r := requestFor(t, target, nil)
		wantRefusal(t, r, ask(t, g, r), "state_unavailable")
	}
	for _, target := range []string{"/open/x.ts", "/unset/x.ts"} {
		r := requestFor(t, target, nil)
		if a := ask(t, g, r); !a.allowed() {
			t.Errorf("%s = %d %s, want it allowed", target, a.status, a.reason)
		}
	}
}

// useState gives an app another state for the length of a test.
func useState(t *testing.T, app *App, s *state) {
	t.Helper()
	before := app.state
	use := func(s *state) { app.state, app.keys.stored, app.keys.away = s, &s.keys, &s.away }
	use(s)
	t.Cleanup(func() { use(before) })
}

// Settings of the config win over those of the store, also where that is
// damaged or away.
func TestConfigWinsOverTheStore(t *testing.T) {
	f := newFleet()
	f.plant(videoNamed("v"), publicVideo)
	n := f.node()
	s := newTestState(t, n)
	app := &App{state: s, videos: map[string]settings{"v": {requireSignedURLs: true}}}
	check := func(what string) {
		t.Helper()
		if got, err := app.settings(t.Context(), "v"); err != nil || !got.requireSignedURLs {
			t.Errorf("%s: settings = %+v, %v, want those of the config", what, got, err)
		}
	}
	check("set otherwise by the API")
	f.damage(videoNamed("v"))
	s.sync(t.Context())
	check("damaged")
	n.intercept(down, nil)
	s.sync(t.Context())
	check("away")
	if n.count("get") != 0 {
		t.Error("a video of the config is read from the store")
	}
}

func TestSettingsOverDefaults(t *testing.T) {
	site, other := must(weborigin.Compile([]string{"example.com"})), must(weborigin.Compile([]string{"example.org"}))
	private := settings{requireSignedURLs: true, origins: originPolicy{allowed: site, allowMissing: true}}
	public := settings{}
	for _, tc := range []struct {
		name     string
		video    *storedVideo
		defaults settings
		want     settings
	}{
		{"nothing is set", nil, private, private},
		{"nothing is set, public by default", nil, public, public},
		{"nothing that decides is set", &storedVideo{}, private, private},
		{"made public", &storedVideo{requireSignedURLs: new(false)}, private, settings{requireSignedURLs: false, origins: private.origins}},
		{"made private", &storedVideo{requireSignedURLs: new(true)}, public, settings{requireSignedURLs: true, origins: originPolicy{}}},
		{"private as it is", &storedVideo{requireSignedURLs: new(true)}, private, private},
		{"other origins", &storedVideo{originsSet: true, allowed: other}, private, settings{requireSignedURLs: true, origins: originPolicy{other, true}}},
		{"any origin", &storedVideo{originsSet: true}, private, settings{requireSignedURLs: true, origins: originPolicy{nil, true}}},
		{"origins where there were none", &storedVideo{originsSet: true, allowed: other}, public, settings{requireSignedURLs: false, origins: originPolicy{other, false}}},
		{"all of it", &storedVideo{new(false), true, other}, private, settings{requireSignedURLs: false, origins: originPolicy{other, true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tc.defaults
			if got := tc.video.over(tc.defaults); got != tc.want {
				t.Errorf("over(%+v) = %+v, want %+v", tc.defaults, got, tc.want)
			}
			if tc.defaults != before {
				t.Error("the defaults are changed")
			}
		})
	}
}

// A document says whether origins were set: an empty list lifts a default, a
// missing one keeps it.
func TestVideoDocuments(t *testing.T) {
	s := &state{}
	for data, want := range map[string]struct {
		originsSet bool
		patterns   int
		private    *bool
	}{
		`{"uid":"v"}`:                                           {false, 0, nil},
		`{"uid":"v","allowedOrigins":null}`:                     {false, 0, nil},
		`{"uid":"v","allowedOrigins":[]}`:                       {true, 0, nil},
		`{"uid":"v","allowedOrigins":["a.b","*.c.d"]}`:          {true, 2, nil},
		`{"uid":"v","requireSignedURLs":null}`:                  {false, 0, nil},
		`{"uid":"v","requireSignedURLs":true,"later":"member"}`: {false, 0, new(true)},
	} {
		record := s.compileVideo(store.Object{Name: videoNamed("v"), Data: []byte(data)})
		if record.damage != nil {
			t.Errorf("%s: %v", data, record.damage)
			continue
		}
		video := record.video
		patterns := 0
		if video.allowed != nil {
			patterns = len(video.allowed.Patterns())
		}
		private := video.requireSignedURLs
		if video.originsSet != want.originsSet || patterns != want.patterns || (private == nil) != (want.private == nil) || private != nil && *private != *want.private {
			t.Errorf("%s is %+v", data, video)
		}
	}
	if record := s.compileVideo(store.Object{Name: videoNamed("v")}); record.video != nil || record.damage != nil {
		t.Errorf("a video without a document is %v, %v", record.video, record.damage)
	}
}

// There may be more videos than there is memory for their settings. Those that
// are given up are read again when somebody asks for them.
func TestVideosAreKeptWithinABound(t *testing.T) {
	f := newFleet()
	const videos, bound = 3000, 1 << 20
	patterns := strings.Repeat(`"www.example.com",`, weborigin.MaxPatterns-1) + `"*.example.org"`
	for i := range videos {
		id := fmt.Sprint("v", i)
		f.plant(videoNamed(id), fmt.Sprintf(`{"uid":%q,"requireSignedURLs":true,"allowedOrigins":[%s]}`, id, patterns))
	}
	s := newTestState(t, f.node())
	s.videos.cache.SetMaximum(bound)
	for range 2 {
		for i := range videos {
			if got := videoIs(s.videos.get(t.Context(), fmt.Sprint("v", i))); got != "private" {
				t.Fatalf("the video %d is %s", i, got)
			}
		}
	}
	s.videos.cache.CleanUp()
	kept, weight := s.videos.cache.EstimatedSize(), s.videos.cache.WeightedSize()
	if most := bound / (len(patterns) + weborigin.MaxPatterns*32); weight > bound || kept > most || kept == 0 {
		t.Errorf("the settings of %d videos are kept, which count for %d bytes; want at most %d and %d", kept, weight, most, bound)
	}
	// In the bound there is room for 100,000 videos with a few origins.
	typical := store.Object{Name: videoNamed("0123456789abcdef0123456789abcdef"), Data: []byte(
		`{"uid":"0123456789abcdef0123456789abcdef","requireSignedURLs":true,"allowedOrigins":["example.com","*.example.org"]}`)}
	if record := s.compileVideo(typical); record.damage != nil || record.weight*100_000 > maxVideoBytes {
		t.Errorf("100,000 videos count for %d bytes, want at most %d", record.weight*100_000, maxVideoBytes)
	}
}

// An attacker asks for videos at addresses as long as can be, to have them kept
// with the id that is a part of them. Only the id is weighed, so only it is kept.
func TestLongPathIsNotKeptWithTheVideo(t *testing.T) {
	s := newTestState(t, newFleet().node())
	path := strings.Repeat("0123456789abcdef", 1024)
	if _, err := s.videos.get(t.Context(), path[:32]); err != nil {
		t.Fatal(err)
	}
	for id := range s.videos.cache.Keys() {
		if unsafe.StringData(id) == unsafe.StringData(path) {
			t.Error("the cache keeps the whole path in memory")
		}
	}
}

// A change of this node is in force with its answer, costs the first viewer
// nothing, and is known if the store goes away then.
func TestSettledVideoIsKnown(t *testing.T) {
	f := newFleet()
	f.plant(videoNamed("v"), publicVideo)
	n := f.node()
	s := newTestState(t, n)
	wantVideo(t, s, "public")
	f.plant(videoNamed("v"), privateVideo)
	s.settled(t.Context(), "v")
	n.intercept(down, nil)
	wantVideo(t, s, "private")
	s.sync(t.Context())
	wantVideo(t, s, "private")
}

// Reads, changes and losses of everything at the same time: no viewer is ever
// answered with what was out of date before he asked.
func TestVideosUnderConcurrentChanges(t *testing.T) {
	f := newFleet()
	f.plant(videoNamed("v"), publicVideo)
	s := newTestState(t, f.node())
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			s.videos.suspectAll()
			_, _ = s.videos.get(ctx, "v")
		}
	})
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = s.videos.get(ctx, "v")
			}
		})
	}
	for i := range 300 {
		data, want := publicVideo, "public"
		if i%2 == 0 {
			data, want = privateVideo, "private"
		}
		f.plant(videoNamed("v"), data)
		s.videos.drop("v")
		if got := videoIs(s.videos.get(t.Context(), "v")); got != want {
			t.Fatalf("after change %d the video is %s, want %s", i, got, want)
		}
	}
	stop()
	wg.Wait()
}

// An id that is no name is asked of no store, whoever lets it come this far.
func TestVideoIDsThatAreNoNames(t *testing.T) {
	n := newFleet().node()
	s := newTestState(t, n)
	for _, id := range []string{"..", "", "a/b", strings.Repeat("a", 65)} {
		if _, err := s.videos.get(t.Context(), id); !errors.Is(err, store.ErrName) {
			t.Errorf("get(%q) = %v, want ErrName", id, err)
		}
	}
	if n.count("get") != 0 {
		t.Error("the store was asked")
	}
	app := &App{state: s}
	if _, err := app.settings(t.Context(), ".."); reasonOf(t, err) != reasonStateUnavailable {
		t.Errorf("settings = %v, want a refusal", err)
	}
}

// Settings of the control API are laid over those for all, and a gate goes by
// what it knows of them while the store is away.
func TestGateReadsSettingsOfTheStore(t *testing.T) {
	f := newFleet()
	f.plant(videoNamed("open"), `{"uid":"open","requireSignedURLs":false}`)
	f.plant(videoNamed("site"), `{"uid":"site","requireSignedURLs":false,"allowedOrigins":["example.com"]}`)
	f.plant(videoNamed("anywhere"), `{"uid":"anywhere","requireSignedURLs":false,"allowedOrigins":[]}`)
	n := f.node()
	s := newTestState(t, n)
	g := newGate(t, &App{VideoSettings: VideoSettings{AllowedOrigins: []string{"default.example"}}, Leeway: new(caddy.Duration)}, new(Gate))
	useState(t, g.app, s)
	for _, tc := range []struct{ target, origin, want string }{
		{"/open/x.ts", "https://default.example", ""},
		{"/open/x.ts", "https://example.com", "origin_not_allowed"},
		{"/site/x.ts", "https://example.com", ""},
		{"/site/x.ts", "https://default.example", "origin_not_allowed"},
		{"/anywhere/x.ts", "https://evil.example", ""},
		{"/unset/x.ts", "https://default.example", "token_required"},
	} {
		r := requestFor(t, tc.target, with("Origin", tc.origin))
		switch a := ask(t, g, r); {
		case tc.want != "":
			wantRefusal(t, r, a, tc.want)
		case !a.allowed():
			t.Errorf("%s from %s = %d %s, want it allowed", tc.target, tc.origin, a.status, a.reason)
		}
	}
	n.intercept(down, nil)
	s.sync(t.Context())
	for target, want := range map[string]string{"/open/x.ts": "", "/new/x.ts": "state_unavailable", "/" + signedFor("new2") + "/x.ts": "state_unavailable"} {
		r := requestFor(t, target, with("Origin", "https://default.example"))
		switch a := ask(t, g, r); {
		case want != "":
			wantRefusal(t, r, a, want)
		case !a.allowed():
			t.Errorf("%s while the store is away = %d %s, want it allowed", target, a.status, a.reason)
		}
	}
}
