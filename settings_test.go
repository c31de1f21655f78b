package signedplayback

import (
	"fmt"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
)

// The attack: strangers ask for random videos without a token, and each request costs
// a look into the store. Their network is limited, and so is the site of an attacker
// who changes the network, while viewers with a token and other networks notice
// nothing. Package worklimit tests the networks.
func TestLookupsOfStrangersAreLimited(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		from   func(i int) string
		budget int
		near   string // shares the budget
		far    []string
	}{
		"an address": {func(int) string { return "198.51.100.7" }, lookupBurst, "198.51.100.9", []string{"198.51.101.7", "2001:db8::1"}},
		"a /48":      {func(i int) string { return fmt.Sprintf("2001:db8:0:%x::1", i%256<<8) }, lookupBurst * worklimit.SiteShare, "2001:db8:0:ffff::1", []string{"2001:db8:1::1"}},
		"no address": {func(int) string { return "" }, lookupBurst, "", []string{"198.51.101.7"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemStore()
			m.plant(store.Videos, "open", `{"uid":"open","requireSignedURLs":false}`)
			g := newGate(t, testApp(), new(Gate))
			useState(t, g.app, stateOf(t, m))
			now := testTime
			g.app.lookups = worklimit.NewNetworks(lookupRate, lookupBurst)
			g.app.lookups.Now = func() time.Time { return now }
			reason := func(path, address string) string {
				return ask(t, g, requestFor(t, path, from(address))).reason
			}
			stranger := func(i int) string { return fmt.Sprintf("/stranger-%d/x.ts", i) }
			if got := reason("/open/x.ts", tc.near); got != "" {
				t.Fatalf("an open video: %s", got)
			}
			for i := range tc.budget - 1 { // the open video was one
				if got := reason(stranger(i), tc.from(i)); got != "token_required" {
					t.Fatalf("request %d of %d: %s", i+1, tc.budget, got)
				}
			}
			reads := m.Count("get", "stranger")
			r := requestFor(t, stranger(tc.budget), from(tc.near))
			a := ask(t, g, r)
			if wantRefusal(t, r, a, "verification_limited"); a.header.Get("Retry-After") == "" {
				t.Error("the refusal has no Retry-After")
			}
			if m.Count("get", "stranger") != reads {
				t.Error("a limited request has cost a look into the store")
			}
			for path, want := range map[string]string{
				"/" + plainToken() + "/x.ts": "", // of a video that nobody has asked for
				"/open/x.ts":                 "",
				stranger(0):                  "token_required", // known to have no settings
			} {
				if got := reason(path, tc.near); got != want {
					t.Errorf("%.20s from the limited network: %q, want %q", path, got, want)
				}
			}
			for i, other := range tc.far {
				if got := reason(stranger(tc.budget+1+i), other); got != "token_required" {
					t.Errorf("another network, %s: %s", other, got)
				}
			}
			now = now.Add(time.Second)
			if got := reason(stranger(tc.budget), tc.near); got != "token_required" {
				t.Errorf("the budget does not recover: %s", got)
			}
		})
	}
}
