package signedplayback

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// explainedBy returns a gate's explanation of a request. The gate must not answer
// the request, and only an allowed one reaches the next handler.
func explainedBy(t *testing.T, g *Gate, r *http.Request) explanation {
	t.Helper()
	found := new(trace)
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
	return found.explanation(g.app.now())
}

// told is the outcome in an explanation.
type told struct {
	Allowed bool
	Result  result
	Reason  reason
	Status  int // of a refusal
}

// done returns the outcome of the gate itself.
func done(t *testing.T, g *Gate, r *http.Request) told {
	t.Helper()
	a := ask(t, g, r)
	did := told{Result: result(placeholder(r, "result")), Reason: reason(placeholder(r, "reason"))}
	if did.Result == resultRefused {
		did.Status = a.status
	}
	if did.Result == resultPreflight {
		did.Result = resultAllowed
	}
	did.Allowed = did.Result != resultRefused
	return did
}

// wantExplained checks that an explanation has the outcome of the gate itself, and
// no part of a token.
func wantExplained(t *testing.T, g *Gate, request func() *http.Request) told {
	t.Helper()
	r := request()
	want, e := done(t, g, request()), explainedBy(t, g, r)
	if diff := cmp.Diff(want, told{e.Allowed, e.Result, e.Reason, e.Status}); diff != "" {
		t.Fatalf("%s %s %v from %q, reporting [%s] (-gate +explanation):\n%s%s",
			r.Method, shortened(r), r.Header, r.RemoteAddr, g.enforcement.reportOnly, diff, printed(t, e, false))
	}
	for _, asJSON := range []bool{false, true} {
		wantNoToken(t, r, "the explanation", printed(t, e, asJSON))
	}
	return want
}

func printed(t *testing.T, e explanation, asJSON bool) string {
	t.Helper()
	var out bytes.Buffer
	if err := e.print(&out, asJSON); err != nil {
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
		result result
		reason string
	}{
		{"/" + plainToken() + "/x.ts", resultAllowed, ""},
		{"/demo/x.ts", resultRefused, "token_required"},
		{"/" + signedWithRules(blocksAll) + "/x.ts", resultWouldRefuse, "rule_blocked"},
	} {
		before := countOf(g, tc.result, tc.reason)
		explainedBy(t, g, requestFor(t, tc.target, nil))
		if n := countOf(g, tc.result, tc.reason) - before; n != 0 {
			t.Errorf("%s: explained, and counted %v times as %s %s", tc.target[:6], n, tc.result, tc.reason)
		}
	}
}

// lines shows the checks and the notes of an explanation, a line each. A refusal
// ends with its reason; the text after the reason is not shown.
func lines(e explanation) (lines []string) {
	for _, c := range e.Checks {
		details := strings.Join(c.Details, "; ")
		if c.Reason != "" {
			if end := strings.LastIndex(details, string(c.Reason)+": "); end >= 0 {
				details = details[:end+len(c.Reason)]
			}
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s", c.Check, c.Outcome, details))
	}
	return append(lines, e.Notes...)
}

// allowedLines are the lines of an allowed GET of /<first>/x.ts. Those of change
// replace the lines of the same check; "<check>" alone removes its line.
func allowedLines(first string, change ...string) []string {
	video := "demo"
	if parsed, err := token.Parse(first); err == nil {
		video = parsed.Unverified().VideoID
	}
	settings := `settings pass: video "demo" requires a token, allows any origin (by the global options)`
	if video == "site" {
		settings = `settings pass: video "site" requires a token, allows the origins example.com and denies requests without one (by its video block in the config)`
	}
	want := []string{
		`method pass: GET`,
		`path pass: "x.ts", kind segment, under a token`,
		fmt.Sprintf(`token pass: well-formed, RS256, token id %s, sub %q`, redact.TokenID(first), video),
		`key pass: kid "k1"`,
		`signature pass: by the key "k1"`,
		`claims pass: downloadable false, no access rules`,
		`dates pass: exp 2027-01-15T09:00:00Z, in 1h0m0s`,
		settings,
		`origins pass: neither Origin nor Referer is sent; any origin is allowed`,
		`rules pass: the token has none`,
		`download pass: this is no download`,
	}
	for _, line := range change {
		check, _, changed := strings.Cut(line, " ")
		i := slices.IndexFunc(want, func(old string) bool { return strings.HasPrefix(old, check+" ") })
		switch {
		case i < 0:
			want = append(want, line) // a note
		case changed:
			want[i] = line
		default:
			want = slices.Delete(want, i, i+1)
		}
	}
	return want
}

// Each check shows the values that it is about. The checks after a refusal show
// what they would say, as far as that is known.
func TestExplainedChecks(t *testing.T) {
	t.Parallel()
	refusing, reporting := newGate(t, testApp(), new(Gate)), newGate(t, testApp(), &Gate{Enforcement: reporting("token", "rules")})
	without := newGate(t, new(App), new(Gate)) // no geo database
	limited := newGate(t, &App{MaxTokenLifetime: caddy.Duration(time.Minute)}, new(Gate))
	twoRules := `[{"type":"ip.src","ip":["198.51.100.0/24","2001:db8::/32"],"action":"block"},` +
		`{"type":"ip.geoip.country","country":["GB","FR"],"action":"allow"},{"type":"any","action":"block"}]`
	expired := signed(func(c *token.Claims) {
		c.ExpiresAt, c.NotBefore = testTime.Add(-90*time.Second), testTime.Add(-time.Hour)
	})
	expiredBlocked := signed(func(c *token.Claims) { c.ExpiresAt, c.AccessRules = testTime, json.RawMessage(blocksAll) })
	unknown := encoded(`{"alg":"RS256","kid":"`+strangeKey+`"}`, `{"sub":"site","exp":1800003600,"downloadable":true,"accessRules":`+blocksAll+`}`)
	forged := encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo","exp":1800003600,"downloadable":true,"accessRules":`+blocksAll+`}`)
	claim := signed(func(c *token.Claims) { c.Downloadable = true })
	const (
		download  = `path pass: "downloads/x.mp4", kind download, under a token`
		oneRule   = `claims pass: downloadable false, 1 access rule`
		blocked   = `rules refuse: rule 1 of 1: any block: match: block; rule_blocked`
		denied    = `download refuse: a download, and downloadable is false; download_not_allowed`
		only      = `settings pass: video "demo" requires a token, allows any origin (by the global options); only reported: token, rules`
		reported  = `dates report: exp 2027-01-15T08:00:00Z, 0s ago; token_expired`
		asThough  = `the checks after the token were made as though it were valid`
		oneRuleOf = `rules refuse: rule 1 of 2: %s allow: cannot be evaluated; rule 2 of 2: any block: not reached; %s`
	)
	unreached := []string{
		`signature skipped: not reached`, `claims skipped: not reached; it says: downloadable true, 1 access rule`, `dates skipped: not reached; it says: exp 2027-01-15T09:00:00Z, in 1h0m0s`,
	}
	noToken := func(path string, more ...string) []string {
		return append([]string{path, "token", "key", "signature", "claims", "dates", `rules pass: no token, so no rules`}, more...)
	}
	for _, tc := range []struct {
		name          string
		gate          *Gate
		first, suffix string
		change        func(*http.Request)
		want          []string // the lines that differ from those of an allowed request
	}{
		{"allowed", refusing, plainToken(), "/x.ts", nil, nil},
		{"method", refusing, plainToken(), "/x.ts", method("POST"), []string{`method refuse: POST; method_not_allowed`}},
		{"path", refusing, "a.b", "/x.ts", nil, []string{
			`path refuse: path_invalid`,
			"token", "key", "signature", "claims", "dates", "settings", "origins", "rules", "download",
		}},
		{"preflight", refusing, "demo", "/x.ts", method("OPTIONS"), noToken(`path pass: "x.ts", kind segment, of the video "demo", without a token`,
			`method pass: OPTIONS`, "settings", "origins", "rules", "download")},
		{"malformed", refusing, plainToken() + "=", "/x.ts", nil, []string{
			`token refuse: token_malformed`,
			`key skipped: not reached`, `signature skipped: not reached`, `claims skipped: not reached`, `dates skipped: not reached`, "settings", "origins", "rules", "download",
		}},
		{"unknown key", refusing, unknown, "/downloads/x.mp4", nil, append(unreached, download,
			`key refuse: kid "`+strangeKey+`"; key_unknown`,
			`origins refuse: neither Origin nor Referer is sent; origin_required`,
			blocked, `download pass: a download, and downloadable is true`, asThough)},
		{"forged", refusing, forged, "/x.ts", nil, append(unreached[1:],
			`signature refuse: by the key "k1"; signature_invalid`, blocked, asThough)},
		{"unreadable rules", refusing, signedWithRules(`[{"type":"any","action":"allow"},{"type":"any"}]`), "/x.ts", nil, []string{
			`claims refuse: downloadable false, 2 access rules; rules_invalid`,
			`dates skipped: not reached; it says: exp 2027-01-15T09:00:00Z, in 1h0m0s`, `rules pass: the token does not verify, so its rules do not count`,
		}},
		{"expired", refusing, expired, "/x.ts", nil, []string{
			`dates refuse: nbf 2027-01-15T07:00:00Z, 1h0m0s ago, exp 2027-01-15T07:58:30Z, 1m30s ago; token_expired`,
		}},
		{"expires too late", limited, plainToken(), "/x.ts", nil, []string{
			`dates refuse: exp 2027-01-15T09:00:00Z, in 1h0m0s; token_lifetime_exceeded`,
		}},
		{"no token", refusing, "demo", "/x.ts", nil, noToken(`path pass: "x.ts", kind segment, of the video "demo", without a token`,
			`settings refuse: video "demo" requires a token, allows any origin (by the global options); token_required`)},
		{"an open video with an origin", refusing, "oursite", "/x.ts", with("Referer", "https://example.com/"+plainToken()+"/iframe"), noToken(
			`path pass: "x.ts", kind segment, of the video "oursite", without a token`,
			`settings pass: video "oursite" requires no token, allows the origins example.com and allows requests without one (by its video block in the config)`,
			`origins pass: no Origin; Referer "https://example.com/`+redact.TokenID(plainToken())+`/iframe"`)},
		{"another site", refusing, signedFor("site"), "/x.ts", with("Origin", "https://evil.com"), []string{
			`origins refuse: Origin "https://evil.com"; origin_not_allowed`,
		}},
		{"a rule that allows", refusing, signedWithRules(twoRules), "/x.ts", nil, []string{
			`claims pass: downloadable false, 3 access rules`,
			`rules pass: rule 1 of 3: ip.src [198.51.100.0/24 2001:db8::/32] block: client is 203.0.113.7, no match; ` +
				`rule 2 of 3: ip.geoip.country [GB FR] allow: client 203.0.113.7 is in GB, match: allow; rule 3 of 3: any block: not reached`,
		}},
		{"a rule that blocks", refusing, signedWithRules(twoRules), "/x.ts", from("8.8.8.8"), []string{
			`claims pass: downloadable false, 3 access rules`,
			`rules refuse: rule 1 of 3: ip.src [198.51.100.0/24 2001:db8::/32] block: client is 8.8.8.8, no match; ` +
				`rule 2 of 3: ip.geoip.country [GB FR] allow: client 8.8.8.8 is in no known country, no match; ` +
				`rule 3 of 3: any block: match: block; rule_blocked`,
		}},
		{"no rule matches", refusing, signedWithRules(`[{"type":"ip.geoip.country","country":["US"],"action":"block"}]`), "/x.ts", nil, []string{
			oneRule, `rules pass: rule 1 of 1: ip.geoip.country [US] block: client 203.0.113.7 is in GB, no match; no rule matches, so the viewer is allowed`,
		}},
		{"download", refusing, plainToken(), "/downloads/x.mp4", nil, []string{download, denied}},
		{"download with the claim", refusing, claim, "/downloads/x.mp4", nil, []string{
			download, `claims pass: downloadable true, no access rules`, `download pass: a download, and downloadable is true`,
		}},
		{"download without a token", refusing, "public", "/downloads/x.mp4", nil, noToken(`path pass: "downloads/x.mp4", kind download, of the video "public", without a token`,
			`settings pass: video "public" requires no token, allows any origin (by its video block in the config)`,
			`download refuse: a download, without a token; download_not_allowed`)},
		{"report-only, expired and blocked", reporting, expiredBlocked, "/x.ts", nil, []string{oneRule, reported, only, strings.Replace(blocked, "refuse", "report", 1)}},
		{"report-only, but not for downloads", reporting, expiredBlocked, "/downloads/x.mp4", nil, []string{
			oneRule, reported, only, strings.Replace(blocked, "refuse", "report", 1), download, denied,
		}},
		{"report-only, forged claims do not count", reporting, forged, "/downloads/x.mp4", nil, append(unreached[1:], only, download,
			`signature report: by the key "k1"; signature_invalid`, `rules pass: the token does not verify, so its rules do not count`,
			`download refuse: a download, with a token that does not verify; download_not_allowed`)},
		// A rule that cannot be evaluated has not matched. The fault is with the
		// proxy that hides the address, or with the config.
		{"a rule by address, and no address", refusing, signedWithRules(needsAddress), "/x.ts", from("@"), []string{
			`claims pass: downloadable false, 2 access rules`, fmt.Sprintf(oneRuleOf, "ip.src [203.0.113.0/24]", "client_ip_unknown"),
		}},
		{"a rule by country, and no address", refusing, signedWithRules(needsCountry), "/x.ts", from(""), []string{
			`claims pass: downloadable false, 2 access rules`, fmt.Sprintf(oneRuleOf, "ip.geoip.country [GB]", "client_ip_unknown"),
		}},
		{"a rule by address, and early data", refusing, signedWithRules(needsAddress), "/x.ts", unfinishedHandshake, []string{
			`claims pass: downloadable false, 2 access rules`, fmt.Sprintf(oneRuleOf, "ip.src [203.0.113.0/24]", "too_early"),
		}},
		{"a rule by country, and no database", without, signedWithRules(needsCountry), "/x.ts", nil, []string{
			`claims pass: downloadable false, 2 access rules`, fmt.Sprintf(oneRuleOf, "ip.geoip.country [GB]", "country_unavailable"),
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedBy(t, tc.gate, requestFor(t, "/"+tc.first+tc.suffix, tc.change))
			if diff := cmp.Diff(allowedLines(tc.first, tc.want...), lines(e)); diff != "" {
				t.Errorf("the explanation (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExplainedAudience(t *testing.T) {
	t.Parallel()
	g := newGate(t, &App{Audience: []string{"media", "live"}, Issuer: []string{"id"}}, new(Gate))
	for _, tc := range []struct{ audience, issuer, want, dates string }{
		{"live", "id", `audience pass: aud ["live"], and one of ["media" "live"] is required; iss "id", and one of ["id"] is required`, "dates pass: "},
		{"shop", "", `audience refuse: aud ["shop"], and one of ["media" "live"] is required; iss "", and one of ["id"] is required; audience_not_allowed`, "dates skipped: "},
	} {
		compact := signed(func(c *token.Claims) { c.Audience, c.Issuer = []string{tc.audience}, tc.issuer })
		got := lines(explainedBy(t, g, requestFor(t, "/"+compact+"/x.ts", nil)))
		if i := slices.Index(got, tc.want); i < 0 || !strings.HasPrefix(got[i-1], "claims pass: ") || !strings.HasPrefix(got[i+1], tc.dates) {
			t.Errorf("the explanation of aud %q is %q, want %q after the claims, and %q", tc.audience, got, tc.want, tc.dates)
		}
	}
}

// The explanation names a key that the control API has revoked, and the place
// where the settings of a video are configured. Settings that cannot be read are
// not those of a video without any.
func TestExplainedState(t *testing.T) {
	t.Parallel()
	m := newMemStore()
	m.plant(store.Keys, "k1", revokedKey("k1"))
	m.plant(store.Videos, "stored", `{"uid":"stored","requireSignedURLs":false,"allowedOrigins":["*.example.org","example.com:8443","[2001:db8::1]"]}`)
	m.damage(store.Videos, "damaged")
	app := testApp()
	app.AllowedOrigins = []string{"*"}
	g := newGate(t, app, new(Gate))
	useState(t, g.app, stateOf(t, m))
	for first, want := range map[string]string{
		plainToken(): `key refuse: kid "k1", which the control API has revoked; key_unknown`,
		"stored":     `settings pass: video "stored" requires no token, allows the origins *.example.org [2001:db8::1] example.com:8443 and denies requests without one (by the control API, over the global options)`,
		"unset":      `settings refuse: video "unset" requires a token, allows the origins * and denies requests without one (by the global options); token_required`,
		"public":     `settings pass: video "public" requires no token, allows the origins * and denies requests without one (by its video block in the config)`,
	} {
		if got := lines(explainedBy(t, g, requestFor(t, "/"+first+"/x.ts", nil))); !slices.Contains(got, want) {
			t.Errorf("%.20s: no line %s\nin\n%s", first, want, strings.Join(got, "\n"))
		}
	}
	if e := explainedBy(t, g, requestFor(t, "/damaged/x.ts", nil)); e.Reason != reasonStateUnavailable || e.Status != http.StatusServiceUnavailable {
		t.Errorf("damaged: %s %d, want state_unavailable 503", e.Reason, e.Status)
	}
}
