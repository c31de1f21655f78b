package signedplayback

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// revoked makes revocations of a state for an hour.
func revoked(t testing.TB, s *state.State, list ...state.Revocation) (id string) {
	t.Helper()
	made := make([]*state.Revocation, len(list))
	for i := range list {
		if list[i].Expires == 0 {
			list[i].Expires = testTime.Add(time.Hour).Unix()
		}
		made[i] = &list[i]
	}
	if err := s.Refuse(context.Background(), made); err != nil {
		t.Fatal(err)
	}
	return made[0].ID
}

// manyRevocations returns a state with so many revocations, none of them of a token of the
// tests.
func manyRevocations(t testing.TB, many int) *state.State {
	s := stateOf(t, newMemStore())
	s.Start()
	for made := 0; made < many; made += state.MaxInCall {
		list := make([]state.Revocation, state.MaxInCall)
		for i := range list {
			list[i] = state.Revocation{Selector: state.Selectors[i%5], Value: fmt.Sprintf("%032x", made+i)}
		}
		revoked(t, s, list...)
	}
	return s
}

// The attack: a viewer goes on playing with a link that has been revoked. A token that has
// played before is refused from the next request on, whatever the revocation names, and all
// others play on. The revocation ends when it expires or is taken back.
func TestRevokedTokens(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), new(Gate))
	s := stateOf(t, newMemStore())
	useState(t, g.app, s)
	s.Start()
	mine := signed(func(c *token.Claims) { c.Viewer, c.ID = "ann", "mine" })
	later := signed(func(c *token.Claims) { c.Viewer, c.ID, c.IssuedAt = "ann", "later", testTime.Add(time.Second) })
	others := signed(func(c *token.Claims) { c.Viewer, c.ID = "bob", "others" })
	public := signed(func(c *token.Claims) { c.VideoID, c.Viewer = "public", "ann" })
	reasons := func(compacts ...string) (all []string) {
		for _, compact := range compacts {
			r := requestFor(t, "/"+compact+"/x.ts", nil)
			a := ask(t, g, r)
			if all = append(all, a.reason); a.reason == "token_revoked" {
				wantRefusal(t, r, a, "token_revoked")
			}
		}
		return all
	}
	now := testTime.Unix()
	for _, tc := range []struct {
		revocation state.Revocation
		want       string // the reasons for mine, later, undated, others and public
	}{
		{state.Revocation{Selector: state.SelectToken, Value: state.DigestOfToken(mine)}, "token_revoked - - -"},
		{state.Revocation{Selector: state.SelectJTI, Value: "mine"}, "token_revoked - - -"},
		{state.Revocation{Selector: state.SelectViewer, Value: "ann", IssuedBefore: now}, "token_revoked - - token_revoked"},
		{state.Revocation{Selector: state.SelectVideo, Value: "demo", IssuedBefore: now}, "token_revoked - token_revoked -"},
		{state.Revocation{Selector: state.SelectSession, Value: "mine"}, "- - - -"},
		{state.Revocation{Selector: state.SelectJTI, Value: "mine", Expires: now + 1}, "token_revoked - - -"},
	} {
		playing := func(when, want string) {
			t.Helper()
			got := ""
			for _, reason := range reasons(mine, later, others, public) {
				if reason == "" {
					reason = "-"
				}
				got += " " + reason
			}
			if got[1:] != want {
				t.Errorf("%s %s, %s: %s, want %s", tc.revocation.Selector, tc.revocation.Value, when, got[1:], want)
			}
		}
		playing("before", "- - - -")
		id := revoked(t, s, tc.revocation)
		playing("while it is in force", tc.want)
		playing("later", tc.want)
		if tc.revocation.Expires == now+1 {
			g.app.now = func() time.Time { return testTime.Add(time.Second) }
			playing("after it has expired", "- - - -")
			g.app.now = func() time.Time { return testTime }
		}
		if known, err := s.TakeBack(t.Context(), id); !known || err != nil {
			t.Fatalf("TakeBack = %t, %v", known, err)
		}
		playing("after it is taken back", "- - - -")
	}
	wantOutcome(t, g, requestFor(t, "/public/x.ts", nil), "")
	useState(t, g.app, stateOf(t, downStore()))
	if got := reasons(others)[0]; got != "state_unavailable" {
		t.Errorf("while the revocations are not known, a token that has played is refused with %q", got)
	}
}

// An object of the store that cannot be read may revoke anything, so all tokens are refused.
func TestDamagedRevocationsFailClosed(t *testing.T) {
	t.Parallel()
	m := newMemStore()
	m.damage(store.Revocations, "x")
	g := newGate(t, testApp(), new(Gate))
	useState(t, g.app, stateOf(t, m))
	wantOutcome(t, g, requestFor(t, "/"+plainToken()+"/x.ts", nil), "state_unavailable")
}

// In report-only mode, a revoked token plays and is reported. explain shows which revocation
// it is.
func TestRevocationsAreReportedAndExplained(t *testing.T) {
	t.Parallel()
	app := testApp()
	app.ReportOnly = []string{"token"}
	g := newGate(t, app, new(Gate))
	s := stateOf(t, newMemStore())
	useState(t, g.app, s)
	s.Start()
	id := revoked(t, s, state.Revocation{Selector: state.SelectJTI, Value: "j1", IssuedBefore: testTime.Unix(), Reason: "leaked"})
	wantReported(t, g, requestFor(t, "/"+plainToken()+"/x.ts", nil), "token_revoked")
	shown := func(compact string) string {
		return strings.Join(strings.Fields(printed(t, explainedBy(t, g, requestFor(t, "/"+compact+"/x.ts", nil)), false)), " ")
	}
	text := shown(plainToken())
	want := "revoked would refuse revocation " + id + `, of the jti "j1", for tokens issued up to 2027-01-15T08:00:00Z, until 2027-01-15T09:00:00Z, in 1h0m0s: "leaked"`
	if !strings.Contains(text, want) {
		t.Errorf("explain shows\n%s\nwithout\n%s", text, want)
	}
	other := signed(func(c *token.Claims) { c.ID = "j2" })
	if text := shown(other); !strings.Contains(text, "revoked pass none of 1 is about the token") {
		t.Errorf("explain shows\n%s", text)
	}
}

// BenchmarkDecideWithRevocations is a warm decision with none and with as many revocations
// as there may be. They must not cost more, and no allocation.
func BenchmarkDecideWithRevocations(b *testing.B) {
	for _, many := range []int{0, 100_000} {
		b.Run(fmt.Sprint(many), func(b *testing.B) {
			g := newGate(b, new(App), new(Gate))
			useState(b, g.app, manyRevocations(b, many))
			var r *http.Request
			r, reset := warmCases[0].request(b)
			reset()
			fresh := *newDecision(g, r, silentObserver{})
			var d decision
			b.ReportAllocs()
			for b.Loop() {
				d = fresh
				if err := d.decide(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
