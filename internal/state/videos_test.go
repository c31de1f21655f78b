package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// The first use of a video costs one read for any number of viewers. A missing or damaged
// object is remembered, too.
func TestVideoIsReadOnce(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{`{"uid":"v","requireSignedURLs":true}`: "private", "": "unset", "broken": "damaged"} {
		bubble(t, want, func(t *testing.T) {
			f := newFleet()
			f.Write(videoNamed("v"), data)
			n := f.Join()
			s := newTestState(t, n)
			n.Intercept(on("get", "v", func(context.Context, string, store.Name) error {
				<-time.After(100 * time.Millisecond)
				return nil
			}), nil)
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					// Some come during the read, some just after it, and some later.
					<-time.After(time.Duration(min(i, 100)+i/190) * time.Millisecond)
					wantVideo(t, s, want)
				})
			}
			wg.Wait()
			if got := n.Count("get"); got != 1 {
				t.Errorf("%d reads, want 1", got)
			}
		})
	}
}

// Videos do not wait for each other. A viewer who cancels does not wait for the read, which
// continues for other viewers.
func TestSlowVideo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, n, s := fleetWith(t, "v public")
		proceed := make(chan struct{})
		n.Intercept(func(ctx context.Context, operation string, name store.Name) error {
			if name.ID() == "slow" {
				return hang(ctx, operation, name)
			}
			<-proceed
			return ctx.Err()
		}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { wantVideoOf(t, s, "slow", "unavailable") })
		wg.Go(func() {
			if _, err := s.Video(ctx, "v"); !errors.Is(err, context.Canceled) {
				t.Errorf("Video = %v for a viewer who has cancelled", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { wantVideo(t, s, "public") })
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(proceed)
		start := time.Now()
		wantVideo(t, s, "public")
		wantWaited(t, "the other video", start, 0)
		wg.Wait()
	})
}

// A video changes while it is read, here or elsewhere. What was read is out of date, so the
// cache does not keep it: a video that has just become private must not stay public until
// the next change.
func TestVideoChangesWhileItIsRead(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*testState, *fleet){
		"another node's change": func(s *testState, f *fleet) {
			f.writeAll("v private")
			s.Sync(s.ctx)
		},
		"this node's change": func(s *testState, f *fleet) {
			f.plantAll("v private")
			s.videos.drop("v")
		},
		"everything is forgotten": func(s *testState, f *fleet) {
			f.plantAll("v private")
			s.videos.forget()
		},
	} {
		bubble(t, what, func(t *testing.T) {
			f, n, s := fleetWith(t, "v public")
			proceed := make(chan struct{})
			n.Intercept(nil, on("get", "v", func(context.Context, string, store.Name) error {
				n.Intercept(nil, nil)
				change(s, f) // after the reading, and before it is published
				<-proceed
				return nil
			}))
			var wg sync.WaitGroup
			wg.Go(func() { wantVideo(t, s, "public") }) // began before the change
			synctest.Wait()
			wantVideo(t, s, "private") // joins no reading that began before
			close(proceed)
			wg.Wait()
			reads := n.Count("get")
			wantVideo(t, s, "private")
			if reads != 2 || n.Count("get") != reads {
				t.Errorf("the video was read %d times, want twice", n.Count("get"))
			}
		})
	}
}

// S6: if a video may have changed and the store fails, the known settings stay in force, and
// no viewer waits longer than one read. An unknown video is refused, and so is a video that
// this node itself has changed.
func TestKnownVideoServesWithoutTheStore(t *testing.T) {
	t.Parallel()
	for what, fails := range map[string]step{"fails": down, "hangs": hang} {
		bubble(t, what, func(t *testing.T) {
			f, n, s := fleetWith(t, "v public", "own public")
			wantVideo(t, s, "public")
			wantVideoOf(t, s, "own", "public")
			s.videos.markStale()
			s.videos.drop("own")
			n.Intercept(fails, nil)
			for range 2 {
				start := time.Now()
				wantVideo(t, s, "public")
				wantWaited(t, "a viewer", start, callTimeout)
				wantVideoOf(t, s, "unknown", "unavailable")
				wantVideoOf(t, s, "own", "unavailable")
			}
			ctx, cancel := context.WithTimeout(t.Context(), syncTimeout)
			defer cancel()
			s.Sync(ctx) // from now on the store counts as unavailable
			reads, start := n.Count("get"), time.Now()
			wantVideo(t, s, "public")
			wantVideoOf(t, s, "unknown", "unavailable")
			if n.Count("get") != reads || time.Since(start) != 0 {
				t.Errorf("%d reads of a store that is unavailable, in %s", n.Count("get")-reads, time.Since(start))
			}
			f.writeAll("v private")
			n.Intercept(nil, nil)
			s.Sync(t.Context())
			wantVideo(t, s, "private")
		})
	}
}

// No viewer waits for a video that is read again as a precaution: the known settings stay in
// force until the read ends, also if it fails or hangs, and any number of viewers cost one
// read. An announced change takes precedence.
func TestRefreshedVideoServesMeanwhile(t *testing.T) {
	t.Parallel()
	for what, fails := range map[string]step{"the store is slow": nil, "it fails at first": down, "it hangs at first": hang} {
		bubble(t, what, func(t *testing.T) {
			f, n, s := fleetWith(t, "v public")
			wantVideo(t, s, "public")
			f.plantAll("v private")
			s.videos.refresh()
			reads := n.Count("get")
			proceed := make(chan struct{})
			n.Intercept(on("get", "v", func(ctx context.Context, operation string, name store.Name) error {
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
			wantWaited(t, "viewers", start, 0)
			synctest.Wait()
			if got := n.Count("get") - reads; fails == nil && got != 1 {
				t.Errorf("%d reads for ten viewers, want 1", got)
			}
			close(proceed)
			<-time.After(callTimeout)
			if n.Intercept(nil, nil); fails != nil {
				synctest.Wait()
				wantVideo(t, s, "public") // this call starts another read
			}
			synctest.Wait()
			wantVideo(t, s, "private")
			reads = n.Count("get")
			wantVideo(t, s, "private")
			if n.Count("get") != reads {
				t.Error("the video is read for each viewer")
			}
			s.videos.refresh()
			f.writeAll("v public")
			s.Sync(t.Context())
			wantVideo(t, s, "public")
		})
	}
}

// S4: an object under a video's name that is not its settings makes this video, and no
// other, unavailable. An empty list of origins replaces the default; a missing list does
// not.
func TestVideoDocuments(t *testing.T) {
	t.Parallel()
	list := func(patterns ...string) *weborigin.List { return must(weborigin.Compile(patterns)) }
	wanted := map[string]*Video{
		`{"uid":"v"}`: {}, `{"uid":"v","allowedOrigins":null}`: {}, `{"uid":"v","requireSignedURLs":null}`: {},
		`{"uid":"v","allowedOrigins":[]}`:                                          {OriginsSet: true},
		`{"uid":"v","allowedOrigins":["a.b","*.c.d"]}`:                             {OriginsSet: true, AllowedOrigins: list("a.b", "*.c.d")},
		`{"uid":"v","availableFrom":"2030-01-02T03:04:05Z","availableUntil":null}`: {AvailableFrom: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)},
		`{"uid":"v","accessRules":[]}`:                                             {AccessRules: accessrules.List{}},
		`{"uid":"v","accessRules":[{"type":"ip.src","ip":["::1"],"action":"block"}]}`: {
			AccessRules: must(accessrules.Compile([]byte(`[{"type":"ip.src","ip":["::1"],"action":"block"}]`))),
		},
		`{"uid":"v","requireSignedURLs":true,"later":"member"}`: {RequireSignedURLs: new(true)},
	}
	for _, data := range []string{
		damaged, "null", `["v"]`, "{}", `{"uid":"w","requireSignedURLs":false}`, `{"uid":"V","requireSignedURLs":false}`, `{"uid":"v","requireSignedURLs":"false"}`,
		`{"uid":"v","requireSignedURLs":0}`, `{"uid":"v","allowedOrigins":"example.com"}`, `{"uid":"v","allowedOrigins":[1]}`, `{"uid":"v","created":"x"}`,
		`{"uid":"v","allowedOrigins":["https://example.com"]}`, `{"uid":"v","allowedOrigins":[""]}`, `{"uid":"v","descriptive":[]}`,
		`{"uid":"v","availableUntil":"tomorrow"}`, `{"uid":"v","availableFrom":1}`, `{"uid":"v","accessRules":{}}`, `{"uid":"v","accessRules":[null]}`, `{"uid":"v","accessRules":[{"type":"ip.of.tomorrow","action":"block"}]}`,
	} {
		wanted[data] = nil
	}
	for data, want := range wanted {
		f := newFleet()
		f.Plant(videoNamed("w"), `{"uid":"w"}`)
		f.Plant(videoNamed("v"), data)
		s := newTestState(t, f.Join())
		for range 2 {
			got, err := s.Video(t.Context(), "v")
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(weborigin.List{}, weborigin.Pattern{}, accessrules.Rule{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || errors.Is(err, ErrDamaged) != (want == nil) {
				t.Errorf("%s is %+v, %v (-want +got):\n%s", data, got, err, diff)
			}
		}
		if failed := s.errors("decode"); (failed == 1) != (want == nil) || failed > 1 {
			t.Errorf("%s: %d damaged objects are counted", data, failed)
		}
		wantVideoOf(t, s, "w", "default")
		f.writeAll("v public") // repaired
		s.Sync(t.Context())
		wantVideo(t, s, "public")
	}
}

// If there are more videos than memory for their settings, the cache evicts some. They are
// read again when a viewer asks for them.
func TestVideosAreKeptWithinABound(t *testing.T) {
	t.Parallel()
	f := newFleet()
	const videos, bound = 2000, 1 << 20
	patterns := strings.Repeat(`"www.example.com",`, weborigin.MaxPatterns-1) + `"*.example.org"`
	for i := range videos {
		id := fmt.Sprint("v", i)
		f.Plant(videoNamed(id), fmt.Sprintf(`{"uid":%q,"requireSignedURLs":true,"allowedOrigins":[%s]}`, id, patterns))
	}
	s := newTestState(t, f.Join())
	s.videos.cache.SetMaximum(bound)
	for range 2 {
		for i := range videos {
			wantVideoOf(t, s, fmt.Sprint("v", i), "private")
		}
	}
	s.videos.cache.CleanUp()
	kept, weight := s.videos.cache.EstimatedSize(), s.videos.cache.WeightedSize()
	if most := bound / (len(patterns) + weborigin.MaxPatterns*32); weight > bound || kept > most || kept == 0 {
		t.Errorf("the settings of %d videos are kept, which count for %d bytes; want at most %d and %d", kept, weight, most, bound)
	}
	for limit, want := range map[int64]uint64{
		math.MaxInt64: maxVideoMemory, // none
		512 << 20:     maxVideoMemory, 256 << 20: 32 << 20, 1 << 20: 1 << 20, 0: 1 << 20,
	} {
		if got := videoMemory(limit); got != want {
			t.Errorf("a memory limit of %d bytes leaves %d for settings of videos, want %d", limit, got, want)
		}
	}
	// The largest bound has room for 100,000 videos with a few origins.
	typical := store.Object{Name: videoNamed("0123456789abcdef0123456789abcdef"), Data: []byte(
		`{"uid":"0123456789abcdef0123456789abcdef","requireSignedURLs":true,"allowedOrigins":["example.com","*.example.org"]}`)}
	if record := s.compileVideo(typical); record.damage != nil || record.weight*100_000 > maxVideoMemory {
		t.Errorf("100,000 videos count for %d bytes, want at most %d", record.weight*100_000, maxVideoMemory)
	}
}

// The attack: requests with very long paths. The cache counts the bytes of the id, so it
// must not keep the path that contains the id in memory.
func TestLongPathIsNotKeptWithTheVideo(t *testing.T) {
	t.Parallel()
	_, _, s := fleetWith(t)
	path := strings.Repeat("0123456789abcdef", 1024)
	if _, err := s.Video(t.Context(), path[:32]); err != nil {
		t.Fatal(err)
	}
	for id := range s.videos.cache.Keys() {
		if unsafe.StringData(id) == unsafe.StringData(path) {
			t.Error("the cache keeps the whole path in memory")
		}
	}
}

// An edit is in force on this node when it returns, and also known if the store becomes
// unavailable then. It sees the edit of another node, and does not change a damaged
// object.
func TestEditingVideos(t *testing.T) {
	t.Parallel()
	f := newFleet()
	f.Plant(videoNamed("v"), `{"uid":"v","created":"2020-01-01T00:00:00Z","requireSignedURLs":true,"descriptive":{"creator":"x"}}`)
	n := f.Join()
	s := newTestState(t, n)
	clock := s.setTime()
	wantVideo(t, s, "private")
	f.Plant(videoNamed("v"), strings.Replace(f.Data(videoNamed("v")), `"x"`, `"y"`, 1)) // by another node
	got, err := s.EditVideo(t.Context(), "v", func(doc *VideoDocument) error {
		doc.RequireSignedURLs = new(false)
		return nil
	})
	want := &VideoDocument{
		UID: "v", Created: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), Modified: *clock,
		RequireSignedURLs: new(false), Descriptive: map[string]json.RawMessage{"creator": json.RawMessage(`"y"`)},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("EditVideo = %v (-want +got):\n%s", err, diff)
	}
	stored, err := s.VideoDocument(t.Context(), "v")
	if diff := cmp.Diff(want, stored); err != nil || diff != "" {
		t.Errorf("VideoDocument = %v (-want +got):\n%s", err, diff)
	}
	n.Intercept(down, nil)
	wantVideo(t, s, "public")
	s.Sync(t.Context())
	wantVideo(t, s, "public")
	n.Intercept(nil, nil)
	s.Sync(t.Context())

	if got, err := s.EditVideo(t.Context(), "new", func(*VideoDocument) error { return nil }); err != nil || !got.Created.Equal(*clock) || got.UID != "new" {
		t.Errorf("EditVideo of a new video = %+v, %v", got, err)
	}
	if deleted, damaged, err := s.DeleteVideo(t.Context(), "v"); err != nil || damaged || *deleted.RequireSignedURLs {
		t.Errorf("DeleteVideo = %+v, %t, %v", deleted, damaged, err)
	}
	wantVideo(t, s, "unset")
	f.Write(videoNamed("v"), damaged)
	if doc, err := s.EditVideo(t.Context(), "v", func(*VideoDocument) error { return nil }); !errors.Is(err, ErrDamaged) || doc != nil {
		t.Errorf("EditVideo of a damaged video = %v, %v", doc, err)
	}
	if _, err := s.VideoDocument(t.Context(), "v"); !errors.Is(err, ErrDamaged) {
		t.Errorf("VideoDocument of a damaged video: %v", err)
	}
	found := make(map[string]bool)
	for doc, err := range s.VideoDocuments(t.Context()) {
		found[doc.UID] = errors.Is(err, ErrDamaged)
	}
	if diff := cmp.Diff(map[string]bool{"new": false, "v": true}, found); diff != "" {
		t.Errorf("VideoDocuments, damaged or not (-want +got):\n%s", diff)
	}
	if deleted, damaged, err := s.DeleteVideo(t.Context(), "v"); err != nil || !damaged || deleted != nil {
		t.Errorf("DeleteVideo of a damaged video = %+v, %t, %v", deleted, damaged, err)
	}
	wantVideo(t, s, "unset")
}

// Reads and changes at the same time: no viewer gets settings that were out of date before
// the request.
func TestVideosUnderConcurrentChanges(t *testing.T) {
	t.Parallel()
	f, _, s := fleetWith(t, "v public")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if i == 0 {
					s.videos.markStale()
				}
				_, _ = s.Video(ctx, "v")
			}
		})
	}
	for i := range 300 {
		want := []string{"private", "public"}[i%2]
		f.plantAll("v " + want)
		s.videos.drop("v")
		wantVideo(t, s, want)
	}
	stop()
	wg.Wait()
}

// The date of a purge grows, whatever the clock says, and outlives the settings: otherwise their
// removal would bring back what caches had before the purge.
func TestPurges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _, s := fleetWith(t)
		clock := s.setTime()
		var last int64
		purgedLater := func(what string) {
			t.Helper()
			video, err := s.Video(t.Context(), "v")
			if err != nil || video == nil || video.Purged < last {
				t.Fatalf("%s: %+v, %v; the last purge was %d", what, video, err, last)
			}
			last = video.Purged
			documents := 0
			for range s.VideoDocuments(t.Context()) {
				documents++
			}
			doc, err := s.VideoDocument(t.Context(), "v")
			if err != nil || (doc != nil) != video.HasSettings() || (documents == 1) != video.HasSettings() {
				t.Errorf("%s: settings %t, document %+v, %d listed, %v", what, video.HasSettings(), doc, documents, err)
			}
		}
		purge := func() {
			t.Helper()
			if at, err := s.PurgeVideo(t.Context(), "v"); err != nil || at.UnixMilli() <= last {
				t.Errorf("PurgeVideo = %v, %v; the last was %d", at, err, last)
			}
		}
		remove := func() { must(struct{}{}, errorOf2(s.DeleteVideo(t.Context(), "v"))) }
		for _, step := range []struct {
			what string
			do   func()
		}{
			{"without settings", purge},
			{"again, by a clock that was put back", func() { *clock = clock.Add(-time.Hour); purge() }},
			{"settings", func() {
				doc := must(s.EditVideo(t.Context(), "v", func(d *VideoDocument) error { d.RequireSignedURLs = new(bool); return nil }))
				if doc.Created.IsZero() {
					t.Error("the settings have no date")
				}
			}},
			{"with settings", purge},
			{"settings removed", remove},
			{"nothing removed", remove},
			{"a damaged object removed", func() {
				*clock = clock.Add(2 * time.Hour)
				f.Write(videoNamed("v"), damaged)
				if _, err := s.PurgeVideo(t.Context(), "v"); !errors.Is(err, ErrDamaged) {
					t.Errorf("PurgeVideo of a damaged object = %v", err)
				}
				remove()
			}},
		} {
			step.do()
			purgedLater(step.what)
		}
	})
}

func errorOf2[A, B any](_ A, _ B, err error) error { return err }
