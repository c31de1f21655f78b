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
	"github.com/signed-playback/caddy-signed-playback/token"
)

// explainedBy has a gate explain what it makes of a request. Nothing may be
// served meanwhile.
func explainedBy(t *testing.T, g *Gate, r *http.Request) explanation {
	t.Helper()
	found := new(trace)
	w := httptest.NewRecorder()
	_ = g.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), traceKey{}, found)), caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		t.Errorf("%s is explained and served", shortened(r))
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

// told is what an explanation says that the gate does.
type told struct {
	Allowed bool
	Result  result
	Reason  reason
	Status  int // of a refusal
}

// done tells what the gate itself does.
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

// wantExplained holds that a gate does what it says that it does, and that it
// says so without a part of a token.
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

// Nothing is decided twice: what is explained is what the gate does, whatever is
// only reported.
func TestExplanationsAreTheGatesDecisions(t *testing.T) {
	gates := reportingGates(t)
	next := randomPlaybacks()
	seen := make(map[told]int)
	for i := range 2000 {
		p := next()
		seen[wantExplained(t, gates[i%len(gates)], func() *http.Request { return p.request(t) })]++
	}
	if len(seen) < 25 {
		t.Errorf("%d different outcomes: the test does not test enough of them", len(seen))
	}
}

// The same at other times, for a gate that refuses.
func TestExplanationsAtOtherTimes(t *testing.T) {
	app := testApp()
	app.MaxTokenLifetime = caddy.Duration(2 * time.Hour)
	g := newGate(t, app, new(Gate))
	next := randomRequests(t)
	seen := make(map[string]int)
	for range 1000 {
		request, now := next()
		g.app.now = now
		seen[string(wantExplained(t, g, request).Reason)]++
	}
	for _, why := range []string{"", "token_expired", "token_not_yet_valid", "token_lifetime_exceeded"} {
		if seen[why] < 3 {
			t.Errorf("%d of the requests ended with %q: the test does not test it", seen[why], why)
		}
	}
}

// The same for a video whose settings cannot be read, so that nobody knows what
// the checks behind the token's are about.
func TestExplanationsOfUnknownSettings(t *testing.T) {
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

// A request that is explained is none of a viewer's, so no metric counts it.
func TestExplanationsAreNotCounted(t *testing.T) {
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
			t.Errorf("%s is explained and counted %v times as %s %s", tc.target[:6], n, tc.result, tc.reason)
		}
	}
}

// lines shows the checks of an explanation, a line each.
func lines(e explanation) (lines []string) {
	for _, c := range e.Checks {
		text := fmt.Sprintf("%s %s", c.Check, c.Outcome)
		if c.Reason != "" {
			text += fmt.Sprintf(" (%s)", c.Reason)
		}
		lines = append(lines, text+": "+strings.Join(c.Details, "; "))
	}
	return append(lines, e.Notes...)
}

const (
	asked        = `method pass: GET`
	segment      = `path pass: "x.ts", kind segment, under a token`
	soundKey     = `key pass: kid "k1"`
	soundSig     = `signature pass: by the key "k1"`
	plainClaims  = `claims pass: downloadable false, no access rules`
	hourLeft     = `dates pass: exp 2027-01-15T09:00:00Z, in 1h0m0s`
	demoSettings = `settings pass: video "demo" requires a token, allows any origin (by the global options)`
	siteSettings = `settings pass: video "site" requires a token, allows the origins example.com and denies requests without one (by its video block in the config)`
	anyOrigin    = `origins pass: neither Origin nor Referer is sent; any origin is allowed`
	noRules      = `rules pass: the token has none`
	noDownload   = `download pass: this is no download`
	asThough     = `the checks after the token were made as though it were valid`
)

func soundToken(compact, video string) string {
	return fmt.Sprintf(`token pass: well-formed, RS256, token id %s, sub %q`, redact.TokenID(compact), video)
}

// Each check says what it was about, and those behind a refusal what they would
// have said, as far as anybody can know.
func TestExplainedChecks(t *testing.T) {
	g := newGate(t, testApp(), new(Gate))
	expired := signed(func(c *token.Claims) {
		c.ExpiresAt, c.NotBefore = testTime.Add(-90*time.Second), testTime.Add(-time.Hour)
	})
	unknown := encoded(`{"alg":"RS256","kid":"`+strangeKey+`"}`, `{"sub":"site","exp":1800003600,"downloadable":true,"accessRules":`+blocksAll+`}`)
	forged := encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo","exp":1800003600}`)
	countries := signedWithRules(`[{"type":"ip.src","ip":["198.51.100.0/24","2001:db8::/32"],"action":"block"},` +
		`{"type":"ip.geoip.country","country":["GB","FR"],"action":"allow"},{"type":"any","action":"block"}]`)
	unmatched := signedWithRules(`[{"type":"ip.geoip.country","country":["US"],"action":"block"}]`)
	claim := signed(func(c *token.Claims) { c.Downloadable = true })
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
		want         []string
	}{
		{"allowed", plainToken() + "/x.ts", nil, []string{
			asked, segment, soundToken(plainToken(), "demo"), soundKey, soundSig, plainClaims, hourLeft, demoSettings, anyOrigin, noRules, noDownload,
		}},
		{"method", plainToken() + "/x.ts", method("POST"), []string{
			`method refuse (method_not_allowed): POST; method_not_allowed: a playback URL is for GET, HEAD and OPTIONS`,
			segment, soundToken(plainToken(), "demo"), soundKey, soundSig, plainClaims, hourLeft, demoSettings, anyOrigin, noRules, noDownload,
		}},
		{"path", "a.b/x.ts", nil, []string{
			asked, `path refuse (path_invalid): path_invalid: the first segment is neither a token nor a video id`,
		}},
		{"preflight", "demo/x.ts", method("OPTIONS"), []string{
			`method pass: OPTIONS`, `path pass: "x.ts", kind segment, of the video "demo", without a token`,
		}},
		{"malformed", plainToken() + "=/x.ts", nil, []string{
			asked, segment, `token refuse (token_malformed): token_malformed: token: malformed: not canonical unpadded base64url`,
			`key skipped: not reached`, `signature skipped: not reached`, `claims skipped: not reached`, `dates skipped: not reached`,
		}},
		{"unknown key", unknown + "/downloads/x.mp4", nil, []string{
			asked, `path pass: "downloads/x.mp4", kind download, under a token`, soundToken(unknown, "site"),
			`key refuse (key_unknown): kid "` + strangeKey + `"; key_unknown: token: unknown key`,
			`signature skipped: not reached`,
			`claims skipped: not reached; it says: downloadable true, 1 access rule`,
			`dates skipped: not reached; it says: exp 2027-01-15T09:00:00Z, in 1h0m0s`,
			siteSettings,
			`origins refuse (origin_required): neither Origin nor Referer is sent; origin_required: the request has neither Origin nor Referer, and the video has allowed origins`,
			`rules refuse (rule_blocked): rule 1 of 1: any block: match: block; rule_blocked: an access rule of the token blocks the viewer`,
			`download pass: a download, and downloadable is true`, asThough,
		}},
		{"forged", forged + "/x.ts", nil, []string{
			asked, segment, soundToken(forged, "demo"), soundKey,
			`signature refuse (signature_invalid): by the key "k1"; signature_invalid: token: invalid signature`,
			`claims skipped: not reached; it says: downloadable false, no access rules`,
			`dates skipped: not reached; it says: exp 2027-01-15T09:00:00Z, in 1h0m0s`,
			demoSettings, anyOrigin, noRules, noDownload, asThough,
		}},
		{"expired", expired + "/x.ts", nil, []string{
			asked, segment, soundToken(expired, "demo"), soundKey, soundSig, plainClaims,
			`dates refuse (token_expired): nbf 2027-01-15T07:00:00Z, 1h0m0s ago, exp 2027-01-15T07:58:30Z, 1m30s ago; token_expired: token: expired`,
			demoSettings, anyOrigin, noRules, noDownload,
		}},
		{"no token", "demo/x.ts", nil, []string{
			asked, `path pass: "x.ts", kind segment, of the video "demo", without a token`,
			`settings refuse (token_required): video "demo" requires a token, allows any origin (by the global options); token_required: the video requires a signed token`,
			anyOrigin, `rules pass: no token, so no rules`, noDownload,
		}},
		{"an open video with an origin", "oursite/x.ts", with("Referer", "https://example.com/"+plainToken()+"/iframe"), []string{
			asked, `path pass: "x.ts", kind segment, of the video "oursite", without a token`,
			`settings pass: video "oursite" requires no token, allows the origins example.com and allows requests without one (by its video block in the config)`,
			`origins pass: no Origin; Referer "https://example.com/` + redact.TokenID(plainToken()) + `/iframe"`,
			`rules pass: no token, so no rules`, noDownload,
		}},
		{"another site", signedFor("site") + "/x.ts", with("Origin", "https://evil.com"), []string{
			asked, segment, soundToken(signedFor("site"), "site"), soundKey, soundSig, plainClaims, hourLeft, siteSettings,
			`origins refuse (origin_not_allowed): Origin "https://evil.com"; origin_not_allowed: the video's allowed origins do not cover the site that asks`,
			noRules, noDownload,
		}},
		{"a rule that allows", countries + "/x.ts", nil, []string{
			asked, segment, soundToken(countries, "demo"), soundKey, soundSig, `claims pass: downloadable false, 3 access rules`, hourLeft, demoSettings, anyOrigin,
			`rules pass: rule 1 of 3: ip.src [198.51.100.0/24 2001:db8::/32] block: client is 203.0.113.7, no match; ` +
				`rule 2 of 3: ip.geoip.country [GB FR] allow: client 203.0.113.7 is in GB, match: allow; rule 3 of 3: any block: not reached`,
			noDownload,
		}},
		{"a rule that blocks", countries + "/x.ts", from("8.8.8.8"), []string{
			asked, segment, soundToken(countries, "demo"), soundKey, soundSig, `claims pass: downloadable false, 3 access rules`, hourLeft, demoSettings, anyOrigin,
			`rules refuse (rule_blocked): rule 1 of 3: ip.src [198.51.100.0/24 2001:db8::/32] block: client is 8.8.8.8, no match; ` +
				`rule 2 of 3: ip.geoip.country [GB FR] allow: client 8.8.8.8 is in no known country, no match; ` +
				`rule 3 of 3: any block: match: block; rule_blocked: an access rule of the token blocks the viewer`,
			noDownload,
		}},
		{"no rule matches", unmatched + "/x.ts", nil, []string{
			asked, segment, soundToken(unmatched, "demo"), soundKey, soundSig, `claims pass: downloadable false, 1 access rule`, hourLeft, demoSettings, anyOrigin,
			`rules pass: rule 1 of 1: ip.geoip.country [US] block: client 203.0.113.7 is in GB, no match; no rule matches, so the viewer is allowed`,
			noDownload,
		}},
		{"download", plainToken() + "/downloads/x.mp4", nil, []string{
			asked, `path pass: "downloads/x.mp4", kind download, under a token`, soundToken(plainToken(), "demo"), soundKey, soundSig, plainClaims, hourLeft, demoSettings, anyOrigin, noRules,
			`download refuse (download_not_allowed): a download, and downloadable is false; download_not_allowed: downloads need a token with the claim downloadable`,
		}},
		{"download with the claim", claim + "/downloads/x.mp4", nil, []string{
			asked, `path pass: "downloads/x.mp4", kind download, under a token`, soundToken(claim, "demo"), soundKey, soundSig, `claims pass: downloadable true, no access rules`,
			hourLeft, demoSettings, anyOrigin, noRules, `download pass: a download, and downloadable is true`,
		}},
		{"download without a token", "public/downloads/x.mp4", nil, []string{
			asked, `path pass: "downloads/x.mp4", kind download, of the video "public", without a token`,
			`settings pass: video "public" requires no token, allows any origin (by its video block in the config)`, anyOrigin, `rules pass: no token, so no rules`,
			`download refuse (download_not_allowed): a download, without a token; download_not_allowed: downloads need a token with the claim downloadable`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedBy(t, g, requestFor(t, "/"+tc.target, tc.change))
			if diff := cmp.Diff(tc.want, lines(e)); diff != "" {
				t.Errorf("the explanation (-want +got):\n%s", diff)
			}
		})
	}
}

// Rules that nobody understands are the fault of the claims, and it is said which
// of them is.
func TestExplainedRulesThatNobodyUnderstands(t *testing.T) {
	g := newGate(t, testApp(), new(Gate))
	compact := signedWithRules(`[{"type":"any","action":"allow"},{"type":"any"}]`)
	got := lines(explainedBy(t, g, requestFor(t, "/"+compact+"/x.ts", nil)))
	want := []string{
		asked, segment, soundToken(compact, "demo"), soundKey, soundSig,
		`claims refuse (rules_invalid): downloadable false, 2 access rules; rules_invalid: accessRules, rule 2: action is missing: want "allow" or "block"`,
		`dates skipped: not reached; it says: exp 2027-01-15T09:00:00Z, in 1h0m0s`,
	}
	if diff := cmp.Diff(want, got[:min(len(got), len(want))]); diff != "" {
		t.Errorf("the explanation (-want +got):\n%s", diff)
	}
}

// What is only reported is shown as such, and what is reported is shown beside
// the settings of the video.
func TestExplainedReports(t *testing.T) {
	g := newGate(t, testApp(), &Gate{Enforcement: reporting("token", "rules")})
	blocked := signed(func(c *token.Claims) { c.ExpiresAt, c.AccessRules = testTime, json.RawMessage(blocksAll) })
	forged := encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo","exp":1800003600,"downloadable":true,"accessRules":`+blocksAll+`}`)
	const settings = demoSettings + `; only reported: token, rules`
	for _, tc := range []struct {
		name, target string
		want         []string
		summary      string
	}{
		{
			"expired and blocked", blocked + "/x.ts",
			[]string{
				asked, segment, soundToken(blocked, "demo"), soundKey, soundSig, `claims pass: downloadable false, 1 access rule`,
				`dates report (token_expired): exp 2027-01-15T08:00:00Z, 0s ago; token_expired: token: expired`, settings, anyOrigin,
				`rules report (rule_blocked): rule 1 of 1: any block: match: block; rule_blocked: an access rule of the token blocks the viewer`, noDownload,
			},
			"allowed, because it is only reported: would be refused with 401 token_expired, for 203.0.113.7 at 2027-01-15T08:00:00Z",
		},
		{
			"expired, and a download that is enforced", blocked + "/downloads/x.mp4",
			[]string{
				asked, `path pass: "downloads/x.mp4", kind download, under a token`, soundToken(blocked, "demo"), soundKey, soundSig, `claims pass: downloadable false, 1 access rule`,
				`dates report (token_expired): exp 2027-01-15T08:00:00Z, 0s ago; token_expired: token: expired`, settings, anyOrigin,
				`rules report (rule_blocked): rule 1 of 1: any block: match: block; rule_blocked: an access rule of the token blocks the viewer`,
				`download refuse (download_not_allowed): a download, and downloadable is false; download_not_allowed: downloads need a token with the claim downloadable`,
			},
			"refused with 403 download_not_allowed, for 203.0.113.7 at 2027-01-15T08:00:00Z",
		},
		{
			"no token", "demo/x.ts",
			[]string{
				asked, `path pass: "x.ts", kind segment, of the video "demo", without a token`,
				`settings report (token_required): video "demo" requires a token, allows any origin (by the global options); only reported: token, rules; token_required: the video requires a signed token`,
				anyOrigin, `rules pass: no token, so no rules`, noDownload,
			},
			"allowed, because it is only reported: would be refused with 401 token_required, for 203.0.113.7 at 2027-01-15T08:00:00Z",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedBy(t, g, requestFor(t, "/"+tc.target, nil))
			if diff := cmp.Diff(tc.want, lines(e)); diff != "" {
				t.Errorf("the explanation (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.summary, e.summary()); diff != "" {
				t.Errorf("its summary (-want +got):\n%s", diff)
			}
		})
	}
	// Nobody has vouched for what a forged token claims, so the gate passes it
	// without its rules, and does not hand out downloads for it.
	t.Run("forged claims count for nothing", func(t *testing.T) {
		for suffix, want := range map[string]told{
			"/x.ts":            {Allowed: true, Result: resultWouldRefuse, Reason: reasonSignatureInvalid},
			"/downloads/x.mp4": {Result: resultRefused, Reason: reasonDownloadNotAllowed, Status: http.StatusForbidden},
		} {
			e := explainedBy(t, g, requestFor(t, "/"+forged+suffix, nil))
			if diff := cmp.Diff(want, told{e.Allowed, e.Result, e.Reason, e.Status}); diff != "" {
				t.Errorf("%s (-want +got):\n%s%s", suffix, diff, printed(t, e, false))
			}
			if !slices.Contains(lines(e), "rules pass: the token does not verify, so its rules do not count") {
				t.Errorf("%s: its rules are not said to count for nothing:\n%s", suffix, printed(t, e, false))
			}
		}
	})
}

// A rule that cannot be held against the viewer has not matched him: whoever
// reads that it has looks for the mistake in the rule, and not in the proxy that
// hides the address.
func TestExplainedRulesThatCannotBeEvaluated(t *testing.T) {
	g, without := newGate(t, testApp(), new(Gate)), newGate(t, new(App), new(Gate))
	blocks := signedWithRules(`[{"type":"ip.src","action":"block","ip":["203.0.113.7"]}]`)
	for _, tc := range []struct {
		name    string
		gate    *Gate
		compact string
		change  func(*http.Request)
		want    reason
	}{
		{"address unknown", g, signedWithRules(needsAddress), from("@"), reasonClientIPUnknown},
		{"address unknown, country", g, signedWithRules(needsCountry), from(""), reasonClientIPUnknown},
		{"early data", g, blocks, unfinishedHandshake, reasonTooEarly},
		{"no database", without, signedWithRules(needsCountry), nil, reasonCountryUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedBy(t, tc.gate, requestFor(t, "/"+tc.compact+"/x.ts", tc.change))
			if e.Reason != tc.want {
				t.Errorf("refused with %q, want %q", e.Reason, tc.want)
			}
			for _, line := range lines(e) {
				if strings.HasPrefix(line, "rules ") && strings.Contains(line, "match: ") {
					t.Errorf("a rule that nobody could evaluate has matched: %s", line)
				}
			}
		})
	}
}

// Who has revoked a key and forgotten it finds out why its tokens do not play.
func TestExplainedRevocation(t *testing.T) {
	f := newFleet()
	f.plant(keyNamed("k1"), revokedKey("k1"))
	s := newTestState(t, f.node())
	g := newGate(t, testApp(), new(Gate))
	useState(t, g.app, s)
	e := explainedBy(t, g, requestFor(t, "/"+plainToken()+"/x.ts", nil))
	want := `key refuse (key_unknown): kid "k1", which the control API has revoked; key_unknown: token: unknown key`
	if !slices.Contains(lines(e), want) {
		t.Errorf("the explanation lacks the line %s:\n%s", want, printed(t, e, false))
	}
}

// Settings are shown with where they are from, the control API included, and a
// video whose settings cannot be read is told from one without.
func TestExplainedSettings(t *testing.T) {
	f := newFleet()
	f.plant(videoNamed("stored"), `{"uid":"stored","requireSignedURLs":false,"allowedOrigins":["*.example.org","example.com:8443","[2001:db8::1]"]}`)
	f.damage(videoNamed("damaged"))
	s := newTestState(t, f.node())
	app := testApp()
	app.AllowedOrigins = []string{"*"}
	g := newGate(t, app, new(Gate))
	useState(t, g.app, s)
	for _, tc := range []struct{ video, want string }{
		{"stored", `settings pass: video "stored" requires no token, allows the origins *.example.org [2001:db8::1] example.com:8443 and denies requests without one (by the control API, over the global options)`},
		{"unset", `settings refuse (token_required): video "unset" requires a token, allows the origins * and denies requests without one (by the global options); token_required: the video requires a signed token`},
		{"public", `settings pass: video "public" requires no token, allows the origins * and denies requests without one (by its video block in the config)`},
	} {
		e := explainedBy(t, g, requestFor(t, "/"+tc.video+"/x.ts", nil))
		if got := lines(e)[2]; got != tc.want {
			t.Errorf("%s: %s\nwant %s", tc.video, got, tc.want)
		}
	}
	e := explainedBy(t, g, requestFor(t, "/damaged/x.ts", nil))
	if e.Reason != reasonStateUnavailable || e.Status != http.StatusServiceUnavailable {
		t.Errorf("damaged: %s %d, want state_unavailable 503", e.Reason, e.Status)
	}
}

// The attack, and as often the mistake that explain is asked about: a URL whose
// token stands where none belongs. It must not be printed from there either.
func TestExplanationsShowNoTokenFromElsewhere(t *testing.T) {
	g := newGate(t, testApp(), new(Gate))
	compact := signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Minute) })
	for _, tc := range []struct {
		name, target string
		change       func(*http.Request)
	}{
		{"behind a path that nobody strips", "/play/" + compact + "/manifest/video.m3u8", nil},
		{"behind a video id", "/public/" + compact + "/x.ts", nil},
		{"twice", "/" + compact + "/" + compact + "/x.ts", nil},
		{"behind another token", "/" + plainToken() + "/" + compact + "/x.ts", nil},
		{"in the query", "/public/x.ts?token=" + compact, nil},
		{"in Referer", "/oursite/x.ts", with("Referer", "https://media.example.net/"+compact+"/iframe")},
		{"in Origin", "/oursite/x.ts", with("Origin", "https://media.example.net/"+compact+"/iframe")},
		{"in two Origins", "/oursite/x.ts", with("Origin", "https://example.com", compact)},
		{"with one character too many", "/" + compact + "A/x.ts", nil},
		{"escaped", "/" + strings.ReplaceAll(compact, ".", "%2E") + "/x.ts", nil},
		{"cut behind its payload", "/" + compact[strings.LastIndexByte(compact, '.')+1:] + "/x.ts", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedBy(t, g, requestFor(t, tc.target, tc.change))
			for _, asJSON := range []bool{false, true} {
				text := printed(t, e, asJSON)
				for segment := range strings.SplitSeq(compact, ".") {
					if strings.Contains(text, segment) {
						t.Errorf("the explanation shows a part of the token:\n%s", text)
						return
					}
				}
			}
		})
	}
}
