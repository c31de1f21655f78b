package signedplayback

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// ruledViewers are the viewers of the tests, and what the databases tell about them.
var ruledViewers = []struct {
	address, country string
	asn              int
	kinds            []string
}{
	{"203.0.113.7", "GB", 64496, []string{"vpn"}},
	{"198.51.100.1", "DE", 64497, []string{"tor", "public_proxy"}},
	{"127.0.0.1", "US", 4200000000, []string{"hosting"}},
	{"8.8.8.8", "", 0, nil},
}

// randomRules returns a list of up to three rules in JSON, and a plain reading of it: the
// action that it decides for a viewer, "" if no rule matches.
func randomRules(random *rand.Rand) (list string, decide func(viewer int) string) {
	var rules []string
	var matches []func(viewer int) bool
	var actions []string
	for range random.IntN(4) {
		of := ruledViewers[random.IntN(len(ruledViewers)-1)]
		rule := [...]struct {
			members string
			matches func(viewer int) bool
		}{
			{`"type":"any"`, func(int) bool { return true }},
			{`"type":"ip.src","ip":["` + of.address + `"]`, func(v int) bool { return ruledViewers[v].address == of.address }},
			{`"type":"ip.geoip.country","country":["` + of.country + `"]`, func(v int) bool { return ruledViewers[v].country == of.country }},
			{`"type":"ip.geoip.asnum","asn":[` + fmt.Sprint(of.asn) + `,1]`, func(v int) bool { return ruledViewers[v].asn == of.asn }},
			{`"type":"ip.anonymous","kinds":["` + of.kinds[0] + `"]`, func(v int) bool { return slices.Contains(ruledViewers[v].kinds, of.kinds[0]) }},
			{`"type":"ip.anonymous"`, func(v int) bool { return ruledViewers[v].kinds != nil }},
		}[random.IntN(6)]
		action := []string{"allow", "block"}[random.IntN(2)]
		rules, matches, actions = append(rules, `{`+rule.members+`,"action":"`+action+`"}`), append(matches, rule.matches), append(actions, action)
	}
	return "[" + strings.Join(rules, ",") + "]", func(viewer int) string {
		for i, match := range matches {
			if match(viewer) {
				return actions[i]
			}
		}
		return ""
	}
}

// The most specific list of the operator counts alone. If it blocks, that is final. Whatever
// else it says, the token's rules decide then, if there is a token. An allow of the operator
// opens nothing that the token blocks, and an allow of the token nothing that the operator
// blocks.
func TestOperatorRules(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	blocked, passed := 0, 0
	for range 60 {
		all, decideForAll := randomRules(random)
		own, decideForOwn := randomRules(random)
		stored, decideForStored := randomRules(random)
		ofToken, decideForToken := randomRules(random)
		app := testApp()
		app.RequireSignedURLs, app.AccessRules = new(false), json.RawMessage(all)
		app.Videos = map[string]VideoSettings{"configured": {AccessRules: json.RawMessage(own)}, "plain": {MissingOrigin: "deny"}}
		m := newMemStore()
		m.plant(store.Videos, "stored", `{"uid":"stored","accessRules":`+stored+`}`)
		m.plant(store.Videos, "without", `{"uid":"without","accessRules":[]}`)
		m.plant(store.Videos, "unset", `{"uid":"unset","requireSignedURLs":false}`)
		m.plant(store.Videos, "configured", `{"uid":"configured","accessRules":`+stored+`}`)
		g := newGate(t, app, new(Gate))
		useState(t, g.app, stateOf(t, m))
		for video, decide := range map[string]func(int) string{
			"configured": decideForOwn, "plain": decideForAll, "stored": decideForStored, "unset": decideForAll, "unknown": decideForAll,
			"without": func(int) string { return "" },
		} {
			byToken := signedForWithRules(video, ofToken)
			for v, viewer := range ruledViewers {
				for _, first := range []string{video, byToken} {
					a := ask(t, g, requestFor(t, "/"+first+"/x.ts", from(viewer.address)))
					block := decide(v) == "block" || first == byToken && decideForToken(v) == "block"
					if a.allowed() == block || block && a.reason != "rule_blocked" {
						t.Errorf("all %s, own %s, stored %s, token %s: %s of %s by %.10s: %d %s, want it blocked: %t",
							all, own, stored, ofToken, video, viewer.address, first, a.status, a.reason, block)
					}
					if block {
						blocked++
					} else {
						passed++
					}
				}
			}
		}
	}
	if blocked < 100 || passed < 100 {
		t.Errorf("%d requests are blocked and %d pass, want many of both", blocked, passed)
	}
}

// While databases are replaced under load, each request is decided by one version or the other, and
// by the new one from then on: the operator's rules never fail, and no request waits.
func TestOperatorRulesWhileDatabasesAreReplaced(t *testing.T) {
	t.Parallel()
	files := map[string]string{"country": "updated", "asn": "updated_asn", "anonymous": "updated_anonymous"}
	path := make(map[string]string)
	for name := range files {
		path[name] = writeFile(t, name+".mmdb", string(must(os.ReadFile("testdata/"+name+".mmdb"))))
	}
	g := newGate(t, &App{
		GeoIPDatabase: path["country"], ASNDatabase: path["asn"], AnonymousDatabase: path["anonymous"],
		VideoSettings: VideoSettings{RequireSignedURLs: new(false), AccessRules: json.RawMessage(`[{"type":"ip.geoip.country","country":["DE"],"action":"block"},
			{"type":"ip.anonymous","kinds":["residential_proxy"],"action":"block"},{"type":"ip.geoip.asnum","asn":[64496],"action":"block"}]`)},
	}, new(Gate))
	go g.app.geo.Watch(t.Context())
	var done atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for !done.Load() {
				if a := ask(t, g, requestFor(t, "/demo/x.ts", nil)); !a.allowed() && a.reason != "rule_blocked" {
					t.Errorf("a request meanwhile: %d %s", a.status, a.text)
					return
				}
			}
		})
	}
	if a := ask(t, g, requestFor(t, "/demo/x.ts", nil)); a.reason != "rule_blocked" {
		t.Errorf("before: %d %s", a.status, a.text)
	}
	for name, updated := range files {
		next := writeFile(t, "next.mmdb", string(must(os.ReadFile("testdata/"+updated+".mmdb"))))
		must(struct{}{}, os.Rename(next, path[name]))
	}
	patience := time.After(time.Minute)
	for look := time.Tick(10 * time.Millisecond); !ask(t, g, requestFor(t, "/demo/x.ts", nil)).allowed(); <-look {
		select {
		case <-patience:
			t.Fatal("the new databases do not come into force")
		default:
		}
	}
	done.Store(true)
	all.Wait()
}

// The attack: a cache that viewers share hands what one of them may play to another, whom the
// operator's rules block.
func TestResponsesUnderOperatorRulesArePrivate(t *testing.T) {
	t.Parallel()
	for rules, want := range map[string]string{blocksASN: "private, max-age=0", `[]`: ""} {
		g := newGate(t, &App{ASNDatabase: "testdata/asn.mmdb", VideoSettings: VideoSettings{RequireSignedURLs: new(false), AccessRules: json.RawMessage(rules)}}, new(Gate))
		if got := ask(t, g, requestFor(t, "/demo/x.ts", from("8.8.8.8"))).header.Get("Cache-Control"); got != want {
			t.Errorf("rules %s: Cache-Control = %q, want %q", rules, got, want)
		}
	}
}

// Rules of the operator that cannot be evaluated refuse, and in report-only mode they report.
// The settings of a video may have rules, so where they cannot be read, it is not enough that
// other checks report.
func TestOperatorRulesThatCannotBeEvaluated(t *testing.T) {
	t.Parallel()
	m := newMemStore()
	m.plant(store.Videos, "asn", `{"uid":"asn","accessRules":`+blocksASN+`}`)
	m.plant(store.Videos, "later", `{"uid":"later","accessRules":[{"type":"ip.of.tomorrow","action":"block"}]}`)
	s := stateOf(t, m)
	open := VideoSettings{RequireSignedURLs: new(false)}
	for _, tc := range []struct {
		name, target, want string
		app                App
		change             func(*http.Request)
	}{
		{"no database", "/asn/x.ts", "network_unavailable", App{VideoSettings: open}, nil},
		{"no address", "/asn/x.ts", "client_ip_unknown", App{VideoSettings: open, ASNDatabase: "testdata/asn.mmdb"}, from("@")},
		{"early data", "/asn/x.ts", "too_early", App{VideoSettings: open, ASNDatabase: "testdata/asn.mmdb"}, unfinishedHandshake},
		{"a record that cannot be read", "/asn/x.ts", "network_unavailable", App{VideoSettings: open, ASNDatabase: "testdata/asn.mmdb"}, from("198.18.0.1")},
		{"rules of a later version", "/later/x.ts", "state_unavailable", App{VideoSettings: open}, nil},
	} {
		for _, e := range []Enforcement{enforced(), unenforced(), reporting("token", "origins")} {
			app := tc.app
			g := newGate(t, &app, &Gate{Enforcement: e})
			useState(t, g.app, s)
			r := requestFor(t, tc.target, tc.change)
			if e.Enforce != nil && !*e.Enforce {
				wantReported(t, g, r, tc.want)
			} else {
				wantOutcome(t, g, r, tc.want)
			}
		}
	}
}
