package state

import (
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

const extended = "0123456789abcdef0123456789abcdef"

// An extension holds on all nodes, after a restart, and while the store is away; another
// session's object, or a damaged one, extends nothing.
func TestExtensions(t *testing.T) {
	t.Parallel()
	f, n, a := fleetWith(t)
	b := newTestState(t, f.Join())
	want := func(what string, s *testState, until int64) {
		t.Helper()
		if got := s.ExtendedUntil(t.Context(), extended); until == 0 && !got.IsZero() || until != 0 && got.Unix() != until {
			t.Errorf("%s: extended until %s, want %d", what, got, until)
		}
	}
	want("before", a, 0)
	want("before", b, 0)
	later := a.now().Add(time.Hour).Unix()
	for _, until := range []int64{later, later + 60, later - 60} {
		if err := a.Extend(t.Context(), extended, time.Unix(until, 0)); err != nil {
			t.Fatal(err)
		}
		want("on its own node", a, until)
		b.Sync(t.Context())
		want("on another node", b, until)
		want("after a restart", newTestState(t, f.Join()), until)
	}
	reads := n.Count("get")
	for range 100 {
		want("again", a, later-60)
	}
	if n.Count("get") != reads {
		t.Error("a known extension is read for each request")
	}
	n.Intercept(down, nil)
	a.Sync(t.Context())
	want("without the store", a, later-60)
	if err := a.Extend(t.Context(), extended, time.Unix(later, 0)); err == nil {
		t.Error("an extension that nobody keeps is acknowledged")
	}
	for _, data := range []string{damaged, `{"session":"ffffffffffffffffffffffffffffffff","until":1900000000}`, `{`} {
		f.Write(mustName(store.Extensions, extended), data)
		b.Sync(t.Context())
		want(data, b, 0)
	}
}

func TestExtensionsAreForgotten(t *testing.T) {
	t.Parallel()
	f, _, s := fleetWith(t)
	clock := s.setTime()
	other := "f" + extended[1:]
	for session, until := range map[string]time.Duration{extended: time.Minute, other: 3 * time.Hour} {
		if err := s.Extend(t.Context(), session, clock.Add(until)); err != nil {
			t.Fatal(err)
		}
	}
	*clock = clock.Add(2 * time.Hour)
	s.forgetExtensions(t.Context())
	if f.Data(mustName(store.Extensions, extended)) != "" || f.Data(mustName(store.Extensions, other)) == "" {
		t.Error("an extension that is over is kept, or one that is not is forgotten")
	}
}
