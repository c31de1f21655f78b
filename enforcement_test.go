package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// enforced, unenforced and reporting are what a config can say; the zero
// Enforcement says nothing.
func enforced() Enforcement   { return Enforcement{Enforce: new(true)} }
func unenforced() Enforcement { return Enforcement{Enforce: new(false)} }

func reporting(checks ...string) Enforcement { return Enforcement{ReportOnly: checks} }

// reportingOnly is a config in which just these checks report.
func reportingOnly(set reportonly.Set) Enforcement {
	var e Enforcement
	for c := range reportonly.Checks {
		if set.Has(c) {
			e.ReportOnly = append(e.ReportOnly, c.String())
		}
	}
	return e
}

const (
	blocksAll = `[{"type":"any","action":"block"}]`
	allowsAll = `[{"type":"any","action":"allow"}]`
)

// strangeKey is an id that no key can get here, so the store is not asked for it.
var strangeKey = strings.Repeat("u", 65)

// What a video says counts before what its gate says, and that before what is
// said for all, as a whole: a gate that enforces again must not inherit half of
// what is reported elsewhere.
func TestEnforcementPrecedence(t *testing.T) {
	t.Parallel()
	choices := []Enforcement{{}, enforced(), unenforced(), reporting("origins"), reporting("rules", "downloads")}
	var gates []*Gate
	for _, e := range choices {
		gates = append(gates, &Gate{Enforcement: e})
	}
	reports := func(e Enforcement, c reportonly.Check) bool {
		return e.Enforce != nil && !*e.Enforce || slices.Contains(e.ReportOnly, c.String())
	}
	inForce := func(ofMostSpecific ...Enforcement) Enforcement {
		for _, e := range ofMostSpecific {
			if e.Enforce != nil || e.ReportOnly != nil {
				return e
			}
		}
		return Enforcement{}
	}
	blocked := func(video string) string {
		return "/" + signed(func(c *token.Claims) { c.VideoID, c.AccessRules = video, json.RawMessage(blocksAll) }) + "/x.ts"
	}
	atHome, elsewhere := with("Origin", "https://example.com"), with("Origin", "https://evil.com")
	targets := map[string]string{"blocked": blocked("demo"), "silent": blocked("oursite")}
	for i := range choices {
		site := fmt.Sprint("site", i)
		targets[site], targets["blocked "+site] = "/"+signedFor(site)+"/x.ts", blocked(site)
	}
	for _, global := range choices {
		app := testApp()
		app.Enforcement = global
		for i, ofVideo := range choices {
			app.Videos[fmt.Sprint("site", i)] = VideoSettings{AllowedOrigins: []string{"example.com"}, Enforcement: ofVideo}
		}
		for i, g := range newGates(t, app, gates) {
			ofGate := choices[i]
			for i, ofVideo := range choices {
				site := fmt.Sprint("site", i)
				for _, tc := range []struct {
					name, target string
					change       func(*http.Request)
					check        reportonly.Check
					of           Enforcement
				}{
					{"the video's origins", targets[site], elsewhere, reportonly.Origins, inForce(ofVideo, ofGate, global)},
					{"a token's rules for the video", targets["blocked "+site], atHome, reportonly.Rules, inForce(ofVideo, ofGate, global)},
					{"a video without settings", targets["blocked"], nil, reportonly.Rules, inForce(ofGate, global)},
					{"a video whose settings say nothing of it", targets["silent"], atHome, reportonly.Rules, inForce(ofGate, global)},
				} {
					a := ask(t, g, requestFor(t, tc.target, tc.change))
					if want := reports(tc.of, tc.check); a.allowed() != want {
						t.Errorf("%s with global %s, gate %s, video %s: %d %s, want it to pass: %t",
							tc.name, shown(global), shown(ofGate), shown(ofVideo), a.status, a.reason, want)
					}
				}
			}
		}
	}
}

func shown(e Enforcement) string { return string(must(json.Marshal(e))) }

// A check that is misspelled would otherwise be enforced while its operator watches
// the log for reports.
func TestEnforcementsThatAreRefused(t *testing.T) {
	t.Parallel()
	both := Enforcement{Enforce: new(false), ReportOnly: []string{"rules"}}
	for _, e := range []Enforcement{reporting("rule"), reporting("Rules"), reporting(""), reporting("path"), reporting("rules", "method"), both} {
		_, _, ofGate := provisioned(t, new(App), &Gate{Enforcement: e})
		_, _, global := provisioned(t, &App{VideoSettings: VideoSettings{Enforcement: e}}, nil)
		_, _, ofVideo := provisioned(t, &App{Videos: map[string]VideoSettings{"demo": {Enforcement: e}}}, nil)
		for i, err := range []error{ofGate, global, ofVideo} {
			if want := fmt.Sprintf("report_only %q", last(e.ReportOnly)); err == nil || e.Enforce == nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s in place %d: %v, want an error with %s", shown(e), i, err, want)
			}
		}
	}
}

// passesReported tells of a reason whether a request that is refused for it
// passes where everything is only reported. Without a path and without a token
// that can be read, nobody knows what the request is for.
func passesReported(why string) bool {
	switch why {
	case "path_invalid", "method_not_allowed", "service_worker_not_allowed", "token_malformed", "algorithm_not_allowed":
		return false
	}
	return true
}

// Every reason under `enforce off`: what names a video passes and is recorded
// with the reason for which it would have been refused, all else is refused as
// ever.
func TestEachReasonUnderReportOnly(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Enforcement: unenforced()})
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			r := requestFor(t, tc.target(), tc.change)
			if !passesReported(tc.want) {
				wantOutcome(t, g, r, tc.want)
				return
			}
			wantReported(t, g, r, tc.want)
		})
	}
}

// wantReported checks that a request passes and would have been refused for a reason, and
// that the gate counts and records that. TestReportOnlyLoosensNothingElse checks which
// URI the origin gets.
func wantReported(t *testing.T, g *Gate, r *http.Request, why string) {
	t.Helper()
	count := countOf(g, refusal.WouldRefuse, why)
	a := ask(t, g, r)
	if !a.allowed() {
		t.Fatalf("%s = %d %s %s, want it to pass", shortened(r), a.status, a.reason, a.text)
	}
	if result, got := placeholder(r, "result"), placeholder(r, "reason"); result != "would_refuse" || got != why {
		t.Errorf("recorded as %s %s, want would_refuse %s", result, got, why)
	}
	if got := countOf(g, refusal.WouldRefuse, why) - count; got != 1 {
		t.Errorf("counted %v times as would_refuse %s, want once", got, why)
	}
	if got := a.header.Get("WWW-Authenticate"); got != "" {
		t.Errorf("WWW-Authenticate = %q on a request that passes", got)
	}
}

// countOf returns how many requests have been counted by their outcome, of
// whatever kind.
func countOf(g *Gate, became refusal.Result, why string) (count float64) {
	for _, k := range playbackpath.Kinds {
		count += testutil.ToFloat64(g.app.metrics.Requests.WithLabelValues(string(became), why, string(k)))
	}
	return count
}

// gateOfDamage is a gate whose store has a damaged object in the place of the
// settings of "demo". All other videos allow one site only.
func gateOfDamage(t *testing.T, e Enforcement) *Gate {
	t.Helper()
	m := newMemStore()
	m.damage(store.Videos, "demo")
	s := stateOf(t, m)
	g := newGate(t, &App{VideoSettings: VideoSettings{AllowedOrigins: []string{"example.com"}}}, &Gate{Enforcement: e})
	useState(t, g.app, s)
	return g
}

// The attack: the settings of a video cannot be read, on a gate in report-only mode. With
// all checks in it, the request passes. With the token check alone, a site that may not be
// allowed must not get the video.
func TestReportOnlyOfUnknownSettings(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{
		"video id": "demo", "token": plainToken(), "expired token": signed(func(c *token.Claims) { c.ExpiresAt = testTime }),
		"token of an unknown key": encoded(`{"alg":"RS256","kid":"`+strangeKey+`"}`, `{"sub":"demo","exp":1800000060}`),
	} {
		r := requestFor(t, "/"+first+"/x.ts", with("Origin", "https://evil.com"))
		if a := ask(t, gateOfDamage(t, reporting("token")), r); len(a.origin) > 0 {
			t.Errorf("%s: evil.com gets %s, whose allowed origins are unknown and enforced", name, a.origin[0].RequestURI)
		}
	}
	for _, first := range []string{"demo", plainToken()} {
		wantReported(t, gateOfDamage(t, unenforced()), requestFor(t, "/"+first+"/x.ts", nil), "state_unavailable")
	}
}

// The attack: a gate is tried out at the wrong path, so the first segment is the
// prefix, and the token is below it. Nothing is refused, but the origin and its
// log must not see the token. The log and explain name the directive that removes
// a prefix.
func TestReportOnlyHandsNoTokenToTheOrigin(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Enforcement: unenforced()})
	for _, target := range []string{"/play/" + plainToken() + "/manifest/video.m3u8", "/demo/a/" + plainToken(), "/a.b/" + plainToken() + "/x.ts"} {
		r := requestFor(t, target, nil)
		e := explainedBy(t, g, requestFor(t, target, nil))
		a := ask(t, g, r)
		wantRefusal(t, r, a, "path_invalid")
		for _, text := range []string{a.text, strings.Join(e.Checks[1].Details, "")} {
			if !strings.Contains(text, "handle_path") {
				t.Errorf("%.20s: %q, want the directive handle_path in it", target, text)
			}
		}
	}
}

// A token that names no video that can exist is not passed on, whatever else it
// says: no folder of the origin is its own.
func TestReportOnlyInventsNoVideo(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Enforcement: unenforced()})
	for _, payload := range []string{
		`{"exp":1800000060}`, `{"sub":"","exp":1800000060}`, `{"sub":"../vidB","exp":1800000060}`, `{"sub":"demo/vidB","exp":1800000060}`,
		`{"sub":7,"exp":1800000060}`, `{"sub":"demo","sub":"vidB","exp":1800000060}`, ``, `"demo"`, `{"sub":"demo"`,
	} {
		for _, kid := range []string{"k1", strangeKey} {
			r := requestFor(t, "/"+encoded(`{"alg":"RS256","kid":"`+kid+`"}`, payload)+"/x.ts", nil)
			if a := ask(t, g, r); len(a.origin) != 0 || a.status != http.StatusUnauthorized {
				t.Errorf("%s of key %.4s: %d %s and %d requests to the origin, want 401 and none", payload, kid, a.status, a.reason, len(a.origin))
			}
		}
	}
}

// credential is the first segment of a playback path, with what is true of it.
type credential struct {
	first   string
	video   string         // that it names; "" for none
	fails   refusal.Reason // of the token check
	path    bool           // is no path
	vouched bool           // a key has signed it
	rules   string
	claim   bool // downloadable
}

// site is where a request says that it comes from.
type site struct {
	header http.Header
	// What the origins check says of a resource and of an iframe, of a video
	// that denies and of one that allows requests without an origin.
	strict, strictFrame, lax, laxFrame refusal.Reason
}

// playback is a request by what it consists of, so that what must become of it
// can be told without the gate.
type playback struct {
	credential
	site
	suffix, method string
	address        string
	early          bool
}

func playbacks() (credentials []credential, sites []site) {
	forged := func(kid, sub string) string {
		return encoded(`{"alg":"RS256","kid":"`+kid+`"}`, `{"sub":"`+sub+`","exp":1800000060,"downloadable":true,"accessRules":`+blocksAll+`}`)
	}
	downloadable := func(c *token.Claims) { c.Downloadable = true }
	for _, rules := range []string{"", allowsAll, blocksAll, needsAddress, needsCountry, needsNothing} {
		for _, video := range []string{"demo", "public", "site", "oursite"} {
			compact := signed(func(c *token.Claims) {
				c.VideoID, c.Downloadable = video, video != "demo"
				if rules != "" {
					c.AccessRules = json.RawMessage(rules)
				}
			})
			credentials = append(credentials, credential{first: compact, video: video, vouched: true, rules: rules, claim: video != "demo"})
		}
	}
	expired := signed(func(c *token.Claims) {
		c.VideoID, c.ExpiresAt, c.AccessRules = "site", testTime, json.RawMessage(needsAddress)
	})
	early := signed(func(c *token.Claims) {
		c.VideoID, c.NotBefore, c.Downloadable = "oursite", testTime.Add(time.Hour), true
	})
	const unreadable = `[{"type":"any"}]`
	credentials = append(credentials, []credential{
		{first: "demo", video: "demo", fails: refusal.TokenRequired},
		{first: "site", video: "site", fails: refusal.TokenRequired},
		{first: "public", video: "public"},
		{first: "coming", video: "coming"},
		{first: "gone", video: "gone", fails: refusal.TokenRequired},
		{first: signedFor("gone"), video: "gone", vouched: true},
		{first: signedFor("coming"), video: "coming", vouched: true},
		{first: "oursite", video: "oursite"},
		{first: signed(downloadable), video: "demo", vouched: true, claim: true},
		{first: expired, video: "site", fails: refusal.TokenExpired, vouched: true, rules: needsAddress},
		{first: early, video: "oursite", fails: refusal.TokenNotYetValid, vouched: true, claim: true},
		{first: forged("k1", "demo"), video: "demo", fails: refusal.SignatureInvalid},
		{first: forged("k1", "site"), video: "site", fails: refusal.SignatureInvalid},
		{first: forged(strangeKey, "oursite"), video: "oursite", fails: refusal.KeyUnknown},
		{first: forged(strangeKey, "public"), video: "public", fails: refusal.KeyUnknown},
		{first: signedWithRules(unreadable), video: "demo", fails: refusal.RulesInvalid},
		{first: plainToken() + "=", fails: refusal.TokenMalformed},
		{first: encoded(`{"alg":"HS256","kid":"k1"}`, `{"sub":"demo","exp":1800000060}`), fails: refusal.AlgorithmNotAllowed},
		{first: "a.b", path: true},
		{first: "..", path: true},
	}...)
	no, required := refusal.OriginNotAllowed, refusal.OriginRequired
	sites = []site{
		{header: http.Header{}, strict: required, strictFrame: required},
		{header: http.Header{"Sec-Fetch-Dest": is("iframe")}, strict: required},
		{header: http.Header{"Origin": is("https://example.com")}},
		{header: http.Header{"Referer": is("https://example.com/x")}},
		{header: http.Header{"Origin": is("https://evil.com")}, strict: no, strictFrame: no, lax: no, laxFrame: no},
		{header: http.Header{"Origin": is("null")}, strict: no, strictFrame: no, lax: no, laxFrame: no},
		{header: http.Header{"Referer": is("https://media.example.net/x")}, strict: no, strictFrame: no, lax: no, laxFrame: no},
		{header: http.Header{"Origin": is("https://media.example.net"), "Sec-Fetch-Site": is("same-origin")}, strictFrame: no, laxFrame: no},
	}
	return credentials, sites
}

// failures are the reasons for which each check refuses, "" where it passes.
func (p playback) failures() (reasons [reportonly.Checks]refusal.Reason) {
	frame := p.suffix == "" || p.suffix == "/iframe"
	reasons[reportonly.Token] = p.fails
	switch {
	case p.video == "coming":
		reasons[reportonly.Schedule] = refusal.NotAvailableYet
	case p.video == "gone":
		reasons[reportonly.Schedule] = refusal.NoLongerAvailable
	case p.video == "site" && frame:
		reasons[reportonly.Origins] = p.strictFrame
	case p.video == "site":
		reasons[reportonly.Origins] = p.strict
	case p.video == "oursite" && frame:
		reasons[reportonly.Origins] = p.laxFrame
	case p.video == "oursite":
		reasons[reportonly.Origins] = p.lax
	}
	if p.vouched {
		reasons[reportonly.Rules] = p.ruling()
	}
	if strings.HasPrefix(p.suffix, "/downloads/") && (!p.vouched || !p.claim) {
		reasons[reportonly.Downloads] = refusal.DownloadNotAllowed
	}
	return reasons
}

func (p playback) ruling() refusal.Reason {
	switch p.rules {
	case "", allowsAll, needsNothing:
		return ""
	case blocksAll:
		return refusal.RuleBlocked
	}
	switch {
	case p.early:
		return refusal.TooEarly
	case p.address == "" || p.address == "@":
		return refusal.ClientIPUnknown
	case !strings.HasSuffix(p.address, "203.0.113.7"): // which both rules want
		return refusal.RuleBlocked
	}
	return ""
}

// fate is what becomes of a request.
type fate struct {
	Status int
	Result refusal.Result
	Reason refusal.Reason
	URI    string // at the origin, "" if it is not asked
}

// fate tells it for a gate on which some checks only report: what passes is what
// every other check passes, and the first that fails gives the reason.
func (p playback) fate(reportOnly reportonly.Set) fate {
	refusedFor := func(why refusal.Reason) fate { return fate{Status: why.Status(), Result: refusal.Refused, Reason: why} }
	switch {
	case p.method == http.MethodPost:
		return refusedFor(refusal.MethodNotAllowed)
	case p.path || strings.Contains(p.suffix, ".."):
		return refusedFor(refusal.PathInvalid)
	case p.method == http.MethodOptions:
		return fate{Status: http.StatusNoContent, Result: refusal.Preflight}
	case p.video == "":
		return refusedFor(p.fails)
	}
	suffix := p.suffix
	if suffix == "" {
		suffix = "/iframe"
	}
	passes := fate{Status: http.StatusOK, Result: refusal.Allowed, URI: "/" + p.video + suffix}
	for c, why := range p.failures() {
		switch {
		case why == "":
		case !reportOnly.Has(reportonly.Check(c)):
			return refusedFor(why)
		case passes.Reason == "":
			passes.Result, passes.Reason = refusal.WouldRefuse, why
		}
	}
	return passes
}

func (p playback) request(t *testing.T) *http.Request {
	t.Helper()
	return requestFor(t, "/"+p.first+p.suffix, func(r *http.Request) {
		r.Method, r.Header = p.method, p.header.Clone()
		from(p.address)(r)
		if p.early {
			unfinishedHandshake(r)
		}
	})
}

// randomPlaybacks returns a function that makes one pseudo-random request after
// another, always the same ones.
func randomPlaybacks() func() playback {
	random := rand.New(rand.NewPCG(6, 1))
	credentials, sites := playbacks()
	methods := []string{"GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST"}
	suffixes := []string{"", "/iframe", "/x.ts", "/manifest/video.m3u8", "/downloads/x.mp4", "/downloads/x.mp4", "/a/../b", "/vidB/x.ts"}
	addresses := []string{"203.0.113.7", "203.0.113.7", "::ffff:203.0.113.7", "198.51.100.1", "8.8.8.8", "", "@"}
	return func() playback {
		return playback{
			credential: pick(random, credentials), site: pick(random, sites), suffix: pick(random, suffixes),
			method: pick(random, methods), address: pick(random, addresses), early: random.IntN(5) == 0,
		}
	}
}

// reportingGates are gates of one testApp, one for each set of checks that only report.
func reportingGates(t *testing.T) []*Gate {
	t.Helper()
	var gates [reportonly.All + 1]*Gate
	for set := range gates {
		gates[set] = &Gate{Enforcement: reportingOnly(reportonly.Set(set))}
	}
	return newGates(t, testApp(), gates[:])
}

// Nothing is loosened that is not listed: with any set of checks that only
// report, a request passes if and only if every other check passes, what it is
// refused for is the first of those that do not, and what it would have been
// refused for is the first that fails.
func TestReportOnlyLoosensNothingElse(t *testing.T) {
	t.Parallel()
	gates := reportingGates(t)
	next := randomPlaybacks()
	seen := make(map[string]int)
	for i := range 3000 {
		p, set := next(), reportonly.Set(i%len(gates))
		g, want := gates[set], p.fate(reportonly.Set(i%len(gates)))
		before := countOf(g, want.Result, string(want.Reason))
		r := p.request(t)
		a := ask(t, g, r)
		got := fate{Status: a.status, Result: refusal.Result(placeholder(r, "result")), Reason: refusal.Reason(placeholder(r, "reason"))}
		if len(a.origin) > 0 {
			got.URI = a.origin[0].RequestURI
		}
		if got != want {
			t.Fatalf("%s %s %v from %q (early %t), reporting [%s]: %+v, want %+v", p.method, shortened(r), p.header, p.address, p.early, set, got, want)
		}
		if want.Result == refusal.Refused && a.reason != string(want.Reason) || want.Result != refusal.Refused && a.reason != "" {
			t.Fatalf("%s: the answer says %q, recorded is %s %s", shortened(r), a.reason, got.Result, got.Reason)
		}
		if n := countOf(g, want.Result, string(want.Reason)) - before; n != 1 {
			t.Fatalf("%s: counted %v times as %s %s, want once", shortened(r), n, want.Result, want.Reason)
		}
		seen[string(want.Result)+" "+string(want.Reason)]++
	}
	for _, why := range []refusal.Reason{
		refusal.TokenRequired, refusal.TokenExpired, refusal.TokenNotYetValid, refusal.SignatureInvalid, refusal.KeyUnknown, refusal.RulesInvalid,
		refusal.OriginRequired, refusal.OriginNotAllowed, refusal.RuleBlocked, refusal.TooEarly, refusal.ClientIPUnknown, refusal.DownloadNotAllowed,
	} {
		for _, became := range []refusal.Result{refusal.Refused, refusal.WouldRefuse} {
			if n := seen[string(became)+" "+string(why)]; n < 5 {
				t.Errorf("%d requests are %s %s: the test does not test it", n, became, why)
			}
		}
	}
}

// The browser must not enforce what the gate only reports, and goes on enforcing
// what it does not.
func TestBrowsersEnforceNoReportedOrigins(t *testing.T) {
	t.Parallel()
	type policy struct{ CORS, Vary, Framing string }
	enforced, reported := policy{"https://example.com", "Origin", "frame-ancestors http://example.com"}, policy{CORS: "*"}
	for _, tc := range []struct {
		enforcement Enforcement
		origin      string
		want        policy
	}{
		{Enforcement{}, "https://example.com", enforced},
		{reporting("token", "rules", "downloads"), "https://example.com", enforced},
		{reporting("origins"), "https://evil.com", reported},
		{reporting("origins"), "https://example.com", reported},
		{reporting("origins"), "", reported},
		{unenforced(), "https://evil.com", reported},
	} {
		for i, g := range newGates(t, testApp(), []*Gate{{Enforcement: tc.enforcement}, {Enforcement: tc.enforcement, Player: new(PlayerConfig)}}) {
			for _, suffix := range []string{"/x.ts", "/manifest/video.m3u8", "/iframe"} {
				a := ask(t, g, requestFor(t, "/"+signedFor("site")+suffix, func(r *http.Request) {
					if tc.origin != "" {
						r.Header.Set("Origin", tc.origin)
					}
				}))
				_, framing, _ := strings.Cut(strings.Join(a.header["Content-Security-Policy"], "; "), "frame-ancestors")
				got, want := policy{a.header.Get("Access-Control-Allow-Origin"), a.header.Get("Vary"), ""}, tc.want
				if framing != "" {
					got.Framing = "frame-ancestors" + framing
				}
				if suffix != "/iframe" {
					want.Framing = ""
				}
				if got != want || a.status != http.StatusOK || a.header.Get("X-Frame-Options") != "" {
					t.Errorf("%s from %q, gate %d, %s: %d %+v, want 200 %+v", shown(tc.enforcement), tc.origin, i, suffix, a.status, got, want)
				}
			}
		}
	}
}

// The attack: a flood of forged tokens at a gate that refuses nothing. The
// processor is to be spared all the same, so beyond a network's budget tokens
// pass without being verified, and none of their claims counts.
func TestFloodLimitsHoldUnderReportOnly(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Enforcement: reporting("token")})
	g.app.verifier.Limit.Failures.Now = func() time.Time { return testTime }
	invalid := g.app.metrics.Verified[refusal.SignatureInvalid]
	before, limited := testutil.ToFloat64(invalid), countOf(g, refusal.WouldRefuse, "verification_limited")
	forged := "/" + encoded(`{"alg":"RS256","kid":"k1"}`, `{"sub":"demo","exp":1800000060}`) + "/x.ts"
	const beyond = 50
	for range verification.FailedBurst + beyond {
		if a := ask(t, g, requestFor(t, forged, from("198.51.100.7"))); !a.allowed() {
			t.Fatalf("%d %s, want it to pass", a.status, a.reason)
		}
	}
	if n := testutil.ToFloat64(invalid) - before; n > verification.FailedBurst {
		t.Errorf("%v forged tokens of one network were verified, want at most %d", n, verification.FailedBurst)
	}
	if n := countOf(g, refusal.WouldRefuse, "verification_limited") - limited; n < beyond {
		t.Errorf("%v requests are counted as verification_limited, want at least %d", n, beyond)
	}
	fresh := signed(func(c *token.Claims) { c.Downloadable, c.NotBefore = true, testTime.Add(-time.Second) })
	r := requestFor(t, "/"+fresh+"/x.ts", from("198.51.100.8"))
	wantReported(t, g, r, "verification_limited")
	if got := placeholder(r, "key_id"); got != "" {
		t.Errorf("a token that was not verified has the key %q", got)
	}
	r = requestFor(t, "/"+fresh+"/downloads/x.mp4", from("198.51.100.8"))
	wantOutcome(t, g, r, "download_not_allowed") // nobody has vouched for the claim
	r = requestFor(t, "/"+fresh+"/x.ts", from("203.0.113.7"))
	if a := ask(t, g, r); !a.allowed() || placeholder(r, "result") != "allowed" {
		t.Errorf("a viewer of another network: %d %s", a.status, placeholder(r, "reason"))
	}
}

// Each reason is told of a few times a second and not for each viewer, and no
// reason hides another.
func TestReportsAreSampled(t *testing.T) {
	t.Parallel()
	unsampled, _ := observer.New(zapcore.WarnLevel)
	log := sampledLogger(zap.New(unsampled), time.Second, 5).Core()
	for _, tc := range []struct {
		why           string
		at            time.Time
		reports, want int
	}{
		{"rule_blocked", testTime, 1, 1},
		{"rule_blocked", testTime, 1000, 4},
		{"token_required", testTime, 1000, 5},
		{"rule_blocked", testTime.Add(time.Second), 1000, 5},
	} {
		written := 0
		for range tc.reports {
			if log.Check(zapcore.Entry{Level: zapcore.WarnLevel, Time: tc.at, Message: "would refuse: " + tc.why}, nil) != nil {
				written++
			}
		}
		if written != tc.want {
			t.Errorf("%d lines for %d reports of %s at %s, want %d", written, tc.reports, tc.why, tc.at, tc.want)
		}
	}
}

// gatedServer is the config of a server "playback" with a log in a file, whose members of the log, the
// app, the gate and the server begin with a comma. The handler comes after the gate.
func gatedServer(t *testing.T, file, log, app, gate, server, handler string) string {
	t.Helper()
	return fmt.Sprintf(`{
		"logging": {"logs": {"default": {"writer": {"output": "file", "filename": %q} %s}}},
		"apps": {
			"signed_playback": {"key_file": [%q] %s},
			"http": {"servers": {"playback": {
				"automatic_https": {"disable": true}, "routes": [{"handle": [{"handler": "signed_playback" %s}, %s]}], "logs": {} %s
			}}}
		}
	}`, file, log, writeFile(t, "key.json", publicJWK(testKey())), app, gate, handler, server)
}

const answersPlaylist = `{"handler": "static_response", "body": "#EXTM3U\n"}`

// serversOf provisions a config in JSON, at testTime, and starts nothing.
func serversOf(t *testing.T, config string) map[string]*caddyhttp.Server {
	t.Helper()
	return must(contextOf(t, config).App("http")).(*caddyhttp.App).Servers
}

// contextOf provisions a config in JSON.
func contextOf(t *testing.T, config string) caddy.Context {
	t.Helper()
	var cfg caddy.Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		t.Fatal(err)
	}
	ctx, err := provisionContext(&cfg)
	if err != nil {
		t.Fatalf("provisioning: %v", err)
	}
	appOf(t, ctx)
	return ctx
}

// startReporting provisions the server, and returns what it has logged since
// the last call.
func startReporting(t *testing.T, global, gate string) (server *caddyhttp.Server, log func() []map[string]any) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "log")
	app := `, "enforce": ` + global + `, "video": {"strict": {"enforce": true}, "loose": {"report_only": ["rules", "origins"]}}`
	servers := serversOf(t, gatedServer(t, file, `, "level": "INFO"`, app, gate, "", answersPlaylist))
	read := 0
	return servers["playback"], func() (lines []map[string]any) {
		content, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content[read:])) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatalf("the log has the line %q: %v", line, err)
			}
			lines = append(lines, entry)
		}
		read = len(content)
		return lines
	}
}

// Whoever lets requests through that are to be refused is told so at every
// start, for what and where, and nobody else is bothered.
func TestReportOnlyIsLoudAtStart(t *testing.T) {
	t.Parallel()
	const nothing, some = "NOTHING IS REFUSED: enforce is off, so refusals are only reported", "NOT EVERYTHING IS REFUSED: some checks only report"
	loose := map[string]any{"level": "warn", "msg": some, "of": "video loose", "report_only": "origins, rules"}
	for _, tc := range []struct {
		name, global, gate string
		want               []map[string]any
	}{
		{"a video", "true", "", []map[string]any{loose}},
		{"all", "false", "", []map[string]any{
			{"level": "warn", "msg": nothing, "of": "all gates and videos that do not say otherwise"}, loose,
		}},
		{"a gate", "true", `, "enforce": false`, []map[string]any{loose, {"level": "warn", "msg": nothing, "of": "this gate"}}},
		{"checks of a gate", "null", `, "report_only": ["downloads", "token"]`, []map[string]any{
			loose, {"level": "warn", "msg": some, "of": "this gate", "report_only": "token, downloads"},
		}},
		{"all checks by name", "null", `, "report_only": ["downloads", "token", "rules", "sessions", "admission", "schedule", "origins"]`, []map[string]any{
			loose, {"level": "warn", "msg": nothing, "of": "this gate"},
		}},
		{"a gate that enforces where nothing else does", "false", `, "enforce": true`, []map[string]any{
			{"level": "warn", "msg": nothing, "of": "all gates and videos that do not say otherwise"}, loose,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, log := startReporting(t, tc.global, tc.gate)
			var got []map[string]any
			for _, line := range log() {
				if _, ours := line["of"]; ours {
					delete(line, "ts")
					delete(line, "logger")
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

// A refusal that is only reported is logged in a line that names the client and not the
// token. TestPlaceholdersAndLogFields has the fields of the access log.
func TestReportsAreLogged(t *testing.T) {
	server, log := startReporting(t, "false", "")
	log() // of the start
	r := requestFor(t, "/"+signed(func(c *token.Claims) { c.ExpiresAt = testTime })+"/x.m3u8", nil)
	server.ServeHTTP(httptest.NewRecorder(), r)
	warned := 0
	for _, line := range log() {
		if line["level"] != "warn" {
			continue
		}
		warned++
		wantNoToken(t, r, "the warning", string(must(json.Marshal(line))))
		if line["msg"] != "would refuse: token_expired" || line["client_ip"] != "203.0.113.7" {
			t.Errorf("the warning is %v", line)
		}
	}
	if warned != 1 {
		t.Errorf("%d warnings, want one", warned)
	}
}

func last(list []string) string { return list[len(list)-1] }

// Attack: a shared cache keeps the response to an expired token that passes in
// report-only mode.
func TestReportedResponsesAreNotCached(t *testing.T) {
	t.Parallel()
	g := newGate(t, testApp(), &Gate{Enforcement: unenforced()})
	expired := signed(func(c *token.Claims) { c.ExpiresAt = testTime.Add(-time.Hour) })
	w := &discard{header: make(http.Header)}
	err := g.ServeHTTP(w, requestFor(t, "/"+expired+"/x.ts", nil), caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, err := w.Write([]byte(strings.Repeat("x", 1000)))
		return err
	}))
	if got, want := w.header.Get("Cache-Control"), "private, max-age=0"; err != nil || got != want {
		t.Errorf("Cache-Control = %q (%v), want %q", got, err, want)
	}
}
