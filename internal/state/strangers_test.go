package state

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

var errNotAdmitted = errors.New("the network's budget is spent")

func limited(context.Context, string, store.Name) error { return store.ErrLimited }

// The attack: strangers ask for videos without a token, so that viewers wait behind
// them, or get the settings of an earlier time. A stranger is admitted before the
// store is asked, waits with other strangers only, and is never served settings that
// may have changed. A video that is known to have settings is not a stranger's: nobody
// can invent it.
func TestStrangersLookups(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		known   string // what is in the store before the first look
		changed string // and afterwards
		refused bool   // whether strangers are admitted
		store   step   // for lookups of strangers
		want    string // of a stranger
		asked   string // who asked the store: "", get or stranger
	}{
		{name: "an unknown video", changed: "v public", want: "public", asked: "stranger"},
		{name: "an unknown video, not admitted", changed: "v public", refused: true, want: "not admitted"},
		{name: "an unknown video, the queue full", changed: "v public", store: limited, want: "limited", asked: "stranger"},
		{name: "an unknown video, the store hangs", changed: "v public", store: down, want: "unavailable", asked: "stranger"},
		{name: "a known video", known: "v public", refused: true, store: limited, want: "public"},
		{name: "a known video that has changed", known: "v public", changed: "v private", refused: true, store: limited, want: "private", asked: "get"},
		{name: "a video known to have none", known: "other public", refused: true, store: limited, want: "unset"},
		{name: "one that has some now, others not admitted", known: "other public", changed: "v private", refused: true, want: "private", asked: "stranger"},
		{name: "one that has some now", known: "other public", changed: "v private", want: "private", asked: "stranger"},
		{name: "one that has some now, the queue full", known: "other public", changed: "v private", store: limited, want: "limited", asked: "stranger"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f, n, s := fleetWith(t)
			if tc.known != "" {
				f.plantAll(tc.known)
				_ = videoIs(s.Video(t.Context(), "v"))
			}
			if tc.changed != "" {
				f.writeAll(tc.changed)
				s.Sync(t.Context())
			}
			if tc.store != nil {
				n.Intercept(on("stranger", "v", tc.store), nil)
			}
			gets, failures := n.Count("get"), s.errors("get")
			video, err := s.VideoForStranger(t.Context(), "v", func() error {
				if tc.refused {
					return errNotAdmitted
				}
				return nil
			})
			got := videoIs(video, err)
			switch {
			case errors.Is(err, errNotAdmitted):
				got = "not admitted"
			case errors.Is(err, ErrLimited):
				got = "limited"
			}
			if got != tc.want {
				t.Errorf("a stranger gets %s, want %s", got, tc.want)
			}
			asked := map[string]int{"get": n.Count("get") - gets, "stranger": n.Count("stranger")}
			want := map[string]int{"get": 0, "stranger": 0}
			if tc.asked != "" {
				want[tc.asked]++
			}
			if fmt.Sprint(asked) != fmt.Sprint(want) {
				t.Errorf("the store was asked %v, want %v", asked, want)
			}
			if counted := s.errors("get") - failures; counted > 0 != (tc.want == "unavailable") {
				t.Errorf("%d errors of the store are counted", counted)
			}
			if tc.changed == "v private" {
				wantVideo(t, s, "private") // a viewer with a token is never limited
			}
		})
	}
}

// A viewer with a token does not join a stranger's lookup of the same video.
func TestViewersDoNotWaitForStrangers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, n, s := fleetWith(t, "v private")
		n.Intercept(on("stranger", "v", hang), nil)
		go func() {
			_, _ = s.VideoForStranger(t.Context(), "v", func() error { return nil })
		}()
		synctest.Wait()
		if n.Count("stranger") != 1 {
			t.Fatal("no stranger is waiting")
		}
		wantVideo(t, s, "private")
		n.Intercept(nil, nil)
	})
}

// The attack: strangers ask for so many videos that those which viewers watch are
// pushed out of the memory for settings.
func TestStrangersPushNoVideoOut(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t, "v private")
	s.videos.cache.SetMaximum(1 << 20)
	for range 3 {
		wantVideo(t, s, "private")
	}
	for i := range 20_000 {
		_, _ = s.VideoForStranger(t.Context(), fmt.Sprint("stranger-", i), func() error { return nil })
		if i%1000 == 0 {
			wantVideo(t, s, "private")
		}
	}
	reads := n.Count("get")
	wantVideo(t, s, "private")
	s.videos.cache.CleanUp()
	if n.Count("get") != reads || s.videos.cache.WeightedSize() > 1<<20 {
		t.Errorf("the video is read again (%d reads), or %d bytes are kept", n.Count("get")-reads, s.videos.cache.WeightedSize())
	}
}

// The attack: a flood keeps the processors busy, so each call of the store takes long.
// A store that answers is not unavailable, and one that is silent is soon.
func TestSlowStoreIsNotUnavailable(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		strangers step
		available bool
	}{
		"it answers strangers":      {nil, true},
		"it is silent":              {hang, false},
		"strangers are turned away": {limited, false},
	} {
		bubble(t, name, func(t *testing.T) {
			_, n, s := fleetWith(t, "v private")
			n.Intercept(func(ctx context.Context, operation string, name store.Name) error {
				if operation == "stranger" {
					if tc.strangers == nil {
						return nil
					}
					return tc.strangers(ctx, operation, name)
				}
				select {
				case <-time.After(2 * callTimeout):
					return nil
				case <-ctx.Done():
					return store.ErrUnavailable
				}
			}, nil)
			go func() {
				for i := range 20 {
					<-time.After(callTimeout / 4)
					_, _ = s.VideoForStranger(t.Context(), fmt.Sprint("stranger-", i), func() error { return nil })
				}
			}()
			if s.Sync(t.Context()); s.Unavailable() == tc.available {
				t.Errorf("the store counts as unavailable: %t", !tc.available)
			}
			if err := s.Revoke(t.Context(), "k"); (err == nil) != tc.available {
				t.Errorf("a revocation: %v", err)
			}
			n.Intercept(nil, nil)
			<-time.After(time.Minute)
		})
	}
}
