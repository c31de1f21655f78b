package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// fleet is a store in memory that the states of a test share, each through a
// node of its own.
type fleet struct{ *storetest.Fleet }

type (
	node = storetest.Node
	step = storetest.Step
)

const damaged = storetest.Damaged

var down, hang, on = storetest.Down, storetest.Hang, storetest.On

func newFleet() *fleet { return &fleet{storetest.NewFleet()} }

// object returns the name and the data for a word like "a live", "b revoked", "c damaged",
// "v private" or "v public".
func object(words string) (store.Name, string) {
	id, is, _ := strings.Cut(words, " ")
	switch is {
	case "live":
		return keyNamed(id), liveKey(id)
	case "revoked":
		return keyNamed(id), revokedKey(id)
	case "damaged":
		return keyNamed(id), damaged
	case "private", "public":
		return videoNamed(id), fmt.Sprintf(`{"uid":%q,"requireSignedURLs":%t}`, id, is == "private")
	}
	panic("no object: " + words)
}

func (f *fleet) plantAll(objects ...string) {
	for _, words := range objects {
		f.Plant(object(words))
	}
}

func (f *fleet) writeAll(objects ...string) {
	for _, words := range objects {
		f.Write(object(words))
	}
}

// fleetWith returns a store with objects, and one node of it.
func fleetWith(t *testing.T, objects ...string) (*fleet, *node, *testState) {
	t.Helper()
	f := newFleet()
	f.plantAll(objects...)
	n := f.Join()
	return f, n, newTestState(t, n)
}

// bubble runs a subtest that owns the clock.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// testTime is the time of clocks that a test sets.
var testTime = time.Date(2027, 1, 15, 8, 0, 0, 0, time.UTC)

// testState is a State whose clock and error counters belong to the test.
type testState struct {
	*State
	mu     sync.Mutex
	failed map[string]int
	clock  *time.Time // nil for the real one
}

// newTestState opens a State that nobody follows: the test calls Sync.
func newTestState(t *testing.T, n *node) *testState {
	t.Helper()
	s := &testState{failed: make(map[string]int)}
	s.State = New(Config{
		Store:  n,
		Logger: zap.NewNop,
		CountError: func(operation string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed[operation]++
		},
		Now: func() time.Time {
			if s.clock != nil {
				return *s.clock
			}
			return time.Now()
		},
	})
	s.newKey = func() (*token.SigningKey, error) { return keyOf(rand.Text()), nil }
	t.Cleanup(s.Close)
	return s
}

// setTime sets the clock, as if the State had read everything just then.
func (s *testState) setTime() (clock *time.Time) {
	now := testTime
	s.clock = &now
	s.since, s.rereadAt, s.revocations.readAllAt = now, now, now
	return s.clock
}

// errors returns how many operations of a kind have failed.
func (s *testState) errors(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed[operation]
}

func keyNamed(id string) store.Name { return mustName(store.Keys, id) }

func videoNamed(id string) store.Name { return mustName(store.Videos, id) }

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

var testKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })

// keyOf is testKey under another id: making keys is slow.
func keyOf(id string) *token.SigningKey {
	return must(token.ParseSigningKey([]byte(testKey().PEM()), id))
}

// keyDoc is the document of a key that verifies.
func keyDoc(id string, change func(*keyDocument)) string {
	doc := keyDocument{ID: id, Created: testTime, JWK: must(keyOf(id).Public().JWK())}
	change(&doc)
	return string(must(json.Marshal(doc)))
}

func liveKey(id string) string { return keyDoc(id, func(*keyDocument) {}) }

func revokedKey(id string) string {
	return keyDoc(id, func(doc *keyDocument) { doc.JWK, doc.Revoked = nil, testTime.Add(time.Minute) })
}

// wantKeys checks what a State knows about keys: "a live", revoked, damaged, none, or
// unknown.
func wantKeys(t *testing.T, s *testState, keys ...string) {
	t.Helper()
	for _, words := range keys {
		id, want, _ := strings.Cut(words, " ")
		key, known := s.Key(id)
		got := "none"
		switch {
		case !known:
			got = "unknown"
		case key.Revoked:
			got = "revoked"
		case key.Damage != nil:
			got = "damaged"
		case key.Public != nil && key.Public.ID() == id:
			got = "live"
		}
		if got != want {
			t.Errorf("the key %q is %s, want %s", id, got, want)
		}
	}
}

func wantKeysAfterSync(t *testing.T, s *testState, keys ...string) {
	t.Helper()
	s.Sync(t.Context())
	wantKeys(t, s, keys...)
}

// wantWaited checks that a wait was not longer than allowed.
func wantWaited(t *testing.T, what string, start time.Time, most time.Duration) {
	t.Helper()
	if waited := time.Since(start); waited > most {
		t.Errorf("%s took %s, want at most %s", what, waited, most)
	}
}

// wantVideo checks what a State says about the video "v": private, public, unset,
// default, damaged or unavailable.
func wantVideo(t *testing.T, s *testState, want string) {
	t.Helper()
	wantVideoOf(t, s, "v", want)
}

func wantVideoOf(t *testing.T, s *testState, id, want string) {
	t.Helper()
	if got := videoIs(s.Video(t.Context(), id)); got != want {
		t.Errorf("the video %q is %s, want %s", id, got, want)
	}
}

func videoIs(video *Video, err error) string {
	switch {
	case errors.Is(err, ErrDamaged):
		return "damaged"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	case err != nil:
		return err.Error()
	case !video.HasSettings():
		return "unset"
	case video.RequireSignedURLs == nil:
		return "default"
	case *video.RequireSignedURLs:
		return "private"
	}
	return "public"
}
