package signedplayback

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// explainedBy returns a gate's explanation of a request. The gate must not answer
// the request, and only an allowed one reaches the next handler.
func explainedBy(t *testing.T, g *Gate, r *http.Request) *replay.Explanation {
	t.Helper()
	found := &trace{at: g.app.now()}
	w := httptest.NewRecorder()
	_ = g.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), traceKey{}, found)), caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		if found.refusal != nil {
			t.Errorf("%s is refused and handed on", shortened(r))
		}
		return nil
	}))
	if w.Body.Len() > 0 {
		t.Errorf("%s is explained and answered: %q", shortened(r), w.Body)
	}
	if found.decision == nil {
		t.Fatalf("%s is not explained", shortened(r))
	}
	return found.explanation()
}

// told is the outcome in an explanation.
type told struct {
	Allowed bool
	Result  refusal.Result
	Reason  refusal.Reason
	Status  int // of a refusal
}

// done returns the outcome of the gate itself.
func done(t *testing.T, g *Gate, r *http.Request) told {
	t.Helper()
	a := ask(t, g, r)
	did := told{Result: refusal.Result(placeholder(r, "result")), Reason: refusal.Reason(placeholder(r, "reason"))}
	if did.Result == refusal.Refused {
		did.Status = a.status
	}
	if did.Result == refusal.Preflight {
		did.Result = refusal.Allowed
	}
	did.Allowed = did.Result != refusal.Refused
	return did
}

// wantExplained checks that an explanation has the outcome of the gate itself, and
// no part of a token.
func wantExplained(t *testing.T, g *Gate, request func() *http.Request) told {
	t.Helper()
	r := request()
	want, e := done(t, g, request()), explainedBy(t, g, r)
	if got := (told{e.Allowed, e.Result, e.Reason, e.Status}); got != want {
		t.Fatalf("%s %s %v from %q, reporting [%s]: explained as %+v, want %+v:\n%s",
			r.Method, shortened(r), r.Header, r.RemoteAddr, g.enforcement.Checks, got, want, printed(t, e, false))
	}
	for _, asJSON := range []bool{false, true} {
		wantNoToken(t, r, "the explanation", printed(t, e, asJSON))
	}
	return want
}

func printed(t *testing.T, e *replay.Explanation, asJSON bool) string {
	t.Helper()
	var out bytes.Buffer
	err := e.Print(&out)
	if asJSON {
		out.Reset()
		encoder := json.NewEncoder(&out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		err = encoder.Encode(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// An explanation has the outcome of the gate itself, for all combinations of
// checks in report-only mode.
func TestExplanationsAreTheGatesDecisions(t *testing.T) {
	t.Parallel()
	gates := reportingGates(t)
	next := randomPlaybacks()
	seen := make(map[told]int)
	for i := range 2000 {
		p := next()
		seen[wantExplained(t, gates[i%len(gates)], func() *http.Request { return p.request(t) })]++
	}
	if len(seen) < 25 {
		t.Errorf("%d different outcomes: the test does not cover enough of them", len(seen))
	}
}

// The same for a video with settings that cannot be read.
func TestExplanationsOfUnknownSettings(t *testing.T) {
	t.Parallel()
	expired := signed(func(c *token.Claims) { c.ExpiresAt = testTime })
	forged := encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo","exp":1800000060,"downloadable":true}`)
	for _, e := range []Enforcement{{}, unenforced(), reporting("token"), reporting("token", "origins"), reporting("origins", "rules")} {
		g := gateOfDamage(t, e)
		for _, first := range []string{"demo", plainToken(), expired, forged, signedWithRules(blocksAll)} {
			for _, suffix := range []string{"/x.ts", "/downloads/x.mp4"} {
				wantExplained(t, g, func() *http.Request { return requestFor(t, "/"+first+suffix, with("Origin", "https://evil.com")) })
			}
		}
	}
}

// No metric counts a request that is explained, because no viewer has made it.
func TestExplanationsAreNotCounted(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Enforcement: reporting("rules")})
	for _, tc := range []struct {
		target string
		result refusal.Result
		reason string
	}{
		{"/" + plainToken() + "/x.ts", refusal.Allowed, ""},
		{"/demo/x.ts", refusal.Refused, "token_required"},
		{"/" + signedWithRules(blocksAll) + "/x.ts", refusal.WouldRefuse, "rule_blocked"},
	} {
		before := countOf(g, tc.result, tc.reason)
		explainedBy(t, g, requestFor(t, tc.target, nil))
		if n := countOf(g, tc.result, tc.reason) - before; n != 0 {
			t.Errorf("%s: explained, and counted %v times as %s %s", tc.target[:6], n, tc.result, tc.reason)
		}
	}
}

// explainedCase is a request with an explanation in testdata/explain.golden.
type explainedCase struct {
	name          string
	gate          *Gate
	first, suffix string
	change        func(*http.Request)
}

// Each check shows the values that it is about. The checks after a refusal show what they
// would say, as far as that is known. -update writes the golden file.
func TestExplainedChecks(t *testing.T) {
	t.Parallel()
	const golden = "testdata/explain.golden"
	var got strings.Builder
	for _, tc := range slices.Concat(explainedTokens(t), explainedRules(t), explainedState(t)) {
		e := explainedBy(t, tc.gate, requestFor(t, "/"+tc.first+tc.suffix, tc.change))
		text := printed(t, e, strings.HasSuffix(tc.name, "in JSON"))
		for _, compact := range []string{tc.first, plainToken()} {
			text = strings.ReplaceAll(text, cmp.Or(redact.TokenID(compact), "-"), "<token id>")
		}
		fmt.Fprintf(&got, "== %s\n%s\n", tc.name, strings.ReplaceAll(text, strangeKey, "<strange key>"))
	}
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := gocmp.Diff(string(must(os.ReadFile(golden))), got.String()); diff != "" {
		t.Errorf("explanations (-%s +got):\n%s", golden, diff)
	}
}

// explainedTokens are requests about which methods, paths, tokens, origins and downloads decide.
func explainedTokens(t *testing.T) []explainedCase {
	refusing := newGate(t, testApp(), new(Gate))
	limited := newGate(t, &App{MaxTokenLifetime: caddy.Duration(time.Minute)}, new(Gate))
	audience := newGate(t, &App{Audience: []string{"media", "live"}, Issuer: []string{"id"}}, new(Gate))
	expired := signed(func(c *token.Claims) {
		c.ExpiresAt, c.NotBefore = testTime.Add(-90*time.Second), testTime.Add(-time.Hour)
	})
	unknown := encoded(`{"alg":"RS256","kid":"`+strangeKey+`"}`, `{"sub":"site","exp":1800003600,"downloadable":true,"accessRules":`+blocksAll+`}`)
	claim := signed(func(c *token.Claims) { c.Downloadable = true })
	ofProgram := func(audience, issuer string) string {
		return signed(func(c *token.Claims) { c.Audience, c.Issuer = []string{audience}, issuer })
	}
	return []explainedCase{
		{"allowed", refusing, plainToken(), "/x.ts", nil},
		{"method", refusing, plainToken(), "/x.ts", method("POST")},
		{"path", refusing, "a.b", "/x.ts", nil},
		{"preflight", refusing, "demo", "/x.ts", method("OPTIONS")},
		{"malformed", refusing, plainToken() + "=", "/x.ts", nil},
		{"unknown key", refusing, unknown, "/downloads/x.mp4", nil},
		{"forged", refusing, forgedAndBlocked(), "/x.ts", nil},
		{"unreadable rules", refusing, signedWithRules(`[{"type":"any","action":"allow"},{"type":"any"}]`), "/x.ts", nil},
		{"expired", refusing, expired, "/x.ts", nil},
		{"expires too late", limited, plainToken(), "/x.ts", nil},
		{"an allowed audience", audience, ofProgram("live", "id"), "/x.ts", nil},
		{"another audience", audience, ofProgram("shop", ""), "/x.ts", nil},
		{"no token", refusing, "demo", "/x.ts", nil},
		{"an open video with an origin", refusing, "oursite", "/x.ts", with("Referer", "https://example.com/"+plainToken()+"/iframe")},
		{"another site", refusing, signedFor("site"), "/x.ts", with("Origin", "https://evil.com")},
		{"download", refusing, plainToken(), "/downloads/x.mp4", nil},
		{"download with the claim", refusing, claim, "/downloads/x.mp4", nil},
		{"download without a token", refusing, "public", "/downloads/x.mp4", nil},
	}
}

func forgedAndBlocked() string {
	return encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo","exp":1800003600,"downloadable":true,"accessRules":`+blocksAll+`}`)
}

// explainedRules are requests about which access rules decide. A rule that cannot be
// evaluated has not matched. The fault is with the proxy that hides the address, or with
// the config.
func explainedRules(t *testing.T) []explainedCase {
	refusing, reporting := newGate(t, testApp(), new(Gate)), newGate(t, testApp(), &Gate{Enforcement: reporting("token", "rules")})
	without := newGate(t, new(App), new(Gate)) // no geo database
	twoRules := `[{"type":"ip.src","ip":["198.51.100.0/24","2001:db8::/32"],"action":"block"},` +
		`{"type":"ip.geoip.country","country":["GB","FR"],"action":"allow"},{"type":"any","action":"block"}]`
	expiredBlocked := signed(func(c *token.Claims) { c.ExpiresAt, c.AccessRules = testTime, json.RawMessage(blocksAll) })
	operators := testApp()
	operators.AccessRules = json.RawMessage(`[{"type":"ip.geoip.asnum","asn":[64497],"action":"allow"},{"type":"ip.anonymous","kinds":["tor","vpn"],"action":"block"}]`)
	operator := newGate(t, operators, new(Gate))
	return []explainedCase{
		{"a rule of the operator that blocks, and one of the token that allows", operator, signedWithRules(twoRules), "/x.ts", nil},
		{"a rule of the operator that allows, and one of the token that blocks", operator, signedWithRules(twoRules), "/x.ts", from("198.51.100.1")},
		{"rules of the operator of which none matches, without a token", operator, "public", "/x.ts", from("8.8.8.8")},
		{"before the premiere", refusing, signedFor("coming"), "/x.ts", nil},
		{"a time that is over, in report-only mode", newGate(t, testApp(), &Gate{Enforcement: Enforcement{ReportOnly: []string{"schedule"}}}), signedFor("gone"), "/x.ts", nil},
		{"a rule that allows", refusing, signedWithRules(twoRules), "/x.ts", nil},
		{"a rule that blocks", refusing, signedWithRules(twoRules), "/x.ts", from("8.8.8.8")},
		{"no rule matches", refusing, signedWithRules(`[{"type":"ip.geoip.country","country":["US"],"action":"block"}]`), "/x.ts", nil},
		{"report-only, expired and blocked", reporting, expiredBlocked, "/x.ts", nil},
		{"expired and blocked, in JSON", newGate(t, testApp(), &Gate{Enforcement: Enforcement{ReportOnly: []string{"token"}}}), expiredBlocked, "/x.ts", nil},
		{"report-only, but not for downloads", reporting, expiredBlocked, "/downloads/x.mp4", nil},
		{"report-only, forged claims do not count", reporting, forgedAndBlocked(), "/downloads/x.mp4", nil},
		{"a rule by address, and no address", refusing, signedWithRules(needsAddress), "/x.ts", from("@")},
		{"a rule by country, and no address", refusing, signedWithRules(needsCountry), "/x.ts", from("")},
		{"a rule by address, and early data", refusing, signedWithRules(needsAddress), "/x.ts", unfinishedHandshake},
		{"a rule by country, and no database", without, signedWithRules(needsCountry), "/x.ts", nil},
	}
}

// explainedState are requests about which the store decides. Its settings that cannot be
// read are not those of a video without any.
func explainedState(t *testing.T) []explainedCase {
	m := newMemStore()
	m.plant(store.Keys, "k1", revokedKey("k1"))
	m.plant(store.Videos, "stored", `{"uid":"stored","requireSignedURLs":false,"allowedOrigins":["*.example.org","example.com:8443","[2001:db8::1]"]}`)
	m.damage(store.Videos, "damaged")
	app := testApp()
	app.AllowedOrigins = []string{"*"}
	g := newGate(t, app, new(Gate))
	useState(t, g.app, stateOf(t, m))
	return []explainedCase{
		{"a revoked key", g, plainToken(), "/x.ts", nil},
		{"settings of the control API", g, "stored", "/x.ts", nil},
		{"no settings", g, "unset", "/x.ts", nil},
		{"settings of the config", g, "public", "/x.ts", nil},
		{"damaged settings", g, "damaged", "/x.ts", nil},
	}
}
