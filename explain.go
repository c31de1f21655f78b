package signedplayback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// traceKey is the context key of a trace. A gate that finds one decides and does
// not serve.
type traceKey struct{}

// trace is the stepObserver of a request that `explain` replays. The pipeline decides
// as it does for viewers, but continues after a refusal as far as it can, so that
// you see all reasons and not only the first.
type trace struct {
	at       time.Time // of the request
	decision *decision // nil until the request has reached a gate
	checks   []replay.Check
	refusal  error // the first refusal with which the request ends
	reported error // the first refusal in report-only mode
	assumed  bool  // the claims count although the signature is not valid
	passed   bool  // the request goes on to the handlers after the gate
}

// traced implements replay.Trace.
func traced(r *http.Request, at time.Time) (*http.Request, func() (*replay.Explanation, bool)) {
	t := &trace{at: at}
	return r.WithContext(context.WithValue(r.Context(), traceKey{}, t)), func() (*replay.Explanation, bool) { return t.explanation(), t.passed }
}

// explanation returns what explain shows, nil if the request has reached no gate.
func (t *trace) explanation() *replay.Explanation {
	d := t.decision
	if d == nil {
		return nil
	}
	e := &replay.Explanation{
		Allowed: t.refusal == nil, Result: refusal.Allowed, At: t.at.UTC(), Checks: t.checks,
		Video: d.video, TokenID: redact.TokenID(d.target.Token), Country: d.knownCountry(),
	}
	e.KeyID, _ = d.recordedValue("key_id")
	if addr, ok := clientAddress(d.request); ok {
		e.Client = addr.String()
	}
	if why, ok := errors.AsType[*refusal.Error](cmp.Or(t.refusal, t.reported)); ok {
		e.Reason = why.Reason
	}
	switch {
	case t.refusal != nil:
		e.Result, e.Status = refusal.Refused, e.Reason.Status()
	case t.reported != nil:
		e.Result = refusal.WouldRefuse
	}
	if t.assumed {
		e.Notes = append(e.Notes, "the checks after the token were made as though it were valid")
	}
	return e
}

// follow decides on a request. An allowed one continues to the handlers after the
// gate, which do not answer: another gate may be among them.
func (t *trace) follow(d *decision, w http.ResponseWriter, next caddyhttp.Handler) error {
	row := len(t.checks)
	other := t.decision != nil
	if !other {
		t.decision = d
	} else {
		t.passed = false
		t.add("gate", replay.Pass, nil, fmt.Sprintf("%s gets the path %q", strings.TrimSuffix("another gate at "+d.gate.Source, " at "), d.request.URL.Path))
	}
	if d.gate.serveSDK(w, d) {
		t.add("player", replay.Pass, nil, "the player SDK, which needs no token")
		return nil
	}
	_ = d.decide() // stepDone has seen each error
	if other && t.refusal != nil {
		t.checks[row].Outcome = replay.Refuse
	}
	if t.refusal != nil || d.result == refusal.Preflight || d.gate.player != nil && d.gate.servePlayer(w, d) {
		return nil
	}
	t.passed = true
	r, done := d.gate.originRequest(d.request, d)
	defer done()
	return next.ServeHTTP(w, r)
}

// stepDone implements stepObserver.
func (t *trace) stepDone(d *decision, s *pipelineStep, err error, reportOnly bool) error {
	became := replay.Pass
	switch {
	case err != nil && reportOnly:
		became = replay.Report
		t.reported = cmp.Or(t.reported, err)
	case err != nil:
		became = replay.Refuse
		t.refusal = cmp.Or(t.refusal, err)
	}
	t.explain(d, s.name, became, err)
	if became == replay.Refuse && !t.canContinue(d, s.name) {
		return err
	}
	return nil
}

// canContinue reports whether the steps after one that refuses can be explained,
// and lets the decision continue with the video that the request names.
func (t *trace) canContinue(d *decision, refusedBy string) bool {
	switch refusedBy {
	case "path":
		return false
	case "token":
		video := d.assumeVideo()
		if video == "" {
			return false
		}
		d.continueWith(video)
		if d.verified == nil {
			t.assumeClaims(d)
		}
	case "revoked", "settings":
		d.continueWith(d.namedVideo())
	}
	return true
}

// assumeClaims lets the steps after an invalid signature judge the claims as
// though it were valid.
func (t *trace) assumeClaims(d *decision) {
	parsed, _ := d.app.policy.Parse(d.target.Token) // assumeVideo has parsed it
	if verified, err := verification.NewToken(parsed.Unverified(), nil); err == nil {
		t.assumed, d.verified = true, verified
	}
}

func (t *trace) add(name string, became replay.Outcome, err error, details ...string) {
	s := replay.Check{Check: name, Outcome: became, Details: append([]string{}, details...)}
	if why, ok := errors.AsType[*refusal.Error](err); ok && (became == replay.Refuse || became == replay.Report) {
		s.Reason = why.Reason
		s.Details = append(s.Details, why.Error())
	}
	s.Details = redact.Each(s.Details) // headers and suffixes may contain tokens
	t.checks = append(t.checks, s)
}

func (t *trace) explain(d *decision, name string, became replay.Outcome, err error) {
	switch name {
	case "method":
		t.add(name, became, err, d.request.Method)
	case "path":
		t.explainPath(d, became, err)
	case "token":
		if d.target.Token != "" {
			t.explainToken(d, became, err)
		}
	case "revoked":
		if err != nil || d.verified != nil && d.app.state.RevocationCount() > 0 {
			t.add(name, became, err, explainRevocation(d))
		}
	case "settings":
		t.explainSettings(d, became, err)
	case "schedule":
		if text := explainSchedule(d); text != "" {
			t.add(name, became, err, text)
		}
	case "origins":
		t.add(name, became, err, explainOrigins(d)...)
	case "access_rules":
		if len(d.settings.rules) > 0 {
			t.add(name, became, err, explainRules(d, d.settings.rules, err)...)
		}
	case "rules":
		t.add(name, became, err, explainTokenRules(d, err)...)
	case "download":
		t.add(name, became, err, explainDownload(d))
	case "session":
		if details := explainSession(d); err != nil || len(details) > 0 {
			t.add(name, became, err, details...)
		}
	}
}

func (t *trace) explainPath(d *decision, became replay.Outcome, err error) {
	if err != nil {
		t.add("path", became, err)
		return
	}
	under := "under a token"
	if d.target.Token == "" {
		under = fmt.Sprintf("of the video %q, without a token", d.target.VideoID)
	}
	t.add("path", became, nil, fmt.Sprintf("%q, kind %s, %s", d.target.Suffix.Decoded, d.Kind, under))
}

// tokenParts are the parts of the token step in order, with the reasons of each.
var tokenParts = []struct {
	name    string
	reasons []refusal.Reason
	detail  func(*decision, token.Claims) string
}{
	{"token", []refusal.Reason{refusal.TokenMalformed, refusal.AlgorithmNotAllowed}, func(d *decision, c token.Claims) string {
		return fmt.Sprintf("well-formed, RS256, token id %s, sub %q", redact.TokenID(d.target.Token), c.VideoID)
	}},
	{"key", []refusal.Reason{refusal.KeyUnknown, refusal.StateUnavailable}, func(d *decision, c token.Claims) string {
		if stored, _ := d.app.state.Key(c.KeyID); stored.Revoked {
			return fmt.Sprintf("kid %q, which the control API has revoked", c.KeyID)
		}
		return fmt.Sprintf("kid %q", c.KeyID)
	}},
	{"signature", []refusal.Reason{refusal.SignatureInvalid, refusal.VerificationLimited}, func(_ *decision, c token.Claims) string {
		return fmt.Sprintf("by the key %q", c.KeyID)
	}},
	{"claims", []refusal.Reason{refusal.RulesInvalid}, func(_ *decision, c token.Claims) string {
		return fmt.Sprintf("downloadable %t, %s", c.Downloadable, replay.CountRules(c))
	}},
	{"audience", []refusal.Reason{refusal.AudienceNotAllowed}, func(d *decision, c token.Claims) string {
		return replay.Audience(d.app.policy, c)
	}},
	{"dates", []refusal.Reason{refusal.TokenExpired, refusal.TokenNotYetValid, refusal.TokenLifetimeExceeded}, func(d *decision, c token.Claims) string {
		return replay.Dates(d.now(), c)
	}},
}

// explainToken splits the token step into its parts. The reason of a refusal
// tells which part has refused.
func (t *trace) explainToken(d *decision, became replay.Outcome, err error) {
	why, _ := errors.AsType[*refusal.Error](err)
	var claims token.Claims
	parsed, malformed := d.app.policy.Parse(d.target.Token)
	if malformed == nil {
		claims = parsed.Unverified()
	}
	refused := false
	for _, part := range tokenParts {
		switch {
		case part.name == "audience" && replay.Audience(d.app.policy, claims) == "":
		case refused:
			t.add(part.name, replay.Skip, nil, unchecked(part.name, d, claims, part.detail)...)
		case why != nil && slices.Contains(part.reasons, why.Reason):
			refused = true
			details := []string{}
			if malformed == nil {
				details = append(details, part.detail(d, claims))
			}
			t.add(part.name, became, err, details...)
		default:
			t.add(part.name, replay.Pass, nil, part.detail(d, claims))
		}
	}
}

// unchecked describes a part of a token that was not checked.
func unchecked(name string, d *decision, claims token.Claims, detail func(*decision, token.Claims) string) []string {
	if claims.VideoID == "" || name == "signature" {
		return []string{"not reached"}
	}
	return []string{"not reached; it says: " + detail(d, claims)}
}

// explainRevocation shows which revocation refuses the token.
func explainRevocation(d *decision) string {
	all := d.app.state.Revocations()
	if all == nil {
		return "the revocations are not known"
	}
	r := all.Match(d.verified.Subject(d.target.Token), d.now())
	if r == nil {
		return fmt.Sprintf("none of %d is about the token", len(all.Live(d.now())))
	}
	text := fmt.Sprintf("revocation %s, of the %s %q", r.ID, r.Selector, r.Value)
	if r.IssuedBefore != 0 {
		text += ", for tokens issued up to " + time.Unix(r.IssuedBefore, 0).UTC().Format(time.RFC3339)
	}
	if text += ", until " + replay.Date(d.now(), time.Unix(r.Expires, 0)); r.Reason != "" {
		text += fmt.Sprintf(": %q", r.Reason)
	}
	return text
}

// explainSettings shows what the video requires, and where that is configured.
func (t *trace) explainSettings(d *decision, became replay.Outcome, err error) {
	id := d.namedVideo()
	if id == "" {
		t.add("settings", became, err)
		return
	}
	source := "the global options"
	if _, ok := d.app.videos[id]; ok {
		source = "its video block in the config"
	} else if stored, readErr := d.app.state.Video(d.request.Context(), id); readErr == nil && stored.HasSettings() {
		source = "the control API, over the global options"
	}
	demand := "requires no token"
	if d.settings.requireSignedURLs {
		demand = "requires a token"
	}
	details := []string{fmt.Sprintf("video %q %s, %s (by %s)", id, demand, explainAllowed(d.settings.origins), source)}
	if only := d.settings.enforcement.Or(d.gate.enforcement).Checks; only != 0 {
		details = append(details, fmt.Sprintf("only reported: %s", only))
	}
	t.add("settings", became, err, details...)
}

func explainAllowed(p originPolicy) string {
	if p.allowed == nil {
		return "allows any origin"
	}
	missing := "denies requests without one"
	if p.allowMissing {
		missing = "allows requests without one"
	}
	return fmt.Sprintf("allows the origins %s and %s", strings.Join(p.allowed.Patterns(), " "), missing)
}

// explainSchedule shows when the video may be played, "" for always.
func explainSchedule(d *decision) string {
	var bounds []string
	if from := d.settings.availableFrom; !from.IsZero() {
		bounds = append(bounds, "available from "+replay.Date(d.now(), from))
	}
	if until := d.settings.availableUntil; !until.IsZero() {
		bounds = append(bounds, "available until "+replay.Date(d.now(), until))
	}
	return strings.Join(bounds, ", ")
}

func explainOrigins(d *decision) []string {
	h := d.request.Header
	sent := "neither Origin nor Referer is sent"
	switch origins, referers := h["Origin"], h["Referer"]; {
	case len(origins) > 0:
		sent = fmt.Sprintf("Origin %q", strings.Join(origins, ", "))
	case len(referers) > 0:
		sent = fmt.Sprintf("no Origin; Referer %q", redact.Tokens(strings.Join(referers, ", ")))
	}
	if d.settings.origins.allowed == nil {
		sent += "; any origin is allowed"
	}
	return []string{sent}
}

func explainDownload(d *decision) string {
	switch {
	case !d.Download:
		return "this is no download"
	case d.target.Token == "":
		return "a download, without a token"
	case d.verified == nil:
		return "a download, with a token that does not verify"
	default:
		return fmt.Sprintf("a download, and downloadable is %t", d.verified.Downloadable)
	}
}

// explainTokenRules shows what the rules of the token decide.
func explainTokenRules(d *decision, err error) []string {
	switch {
	case d.target.Token == "":
		return []string{"no token, so no rules"}
	case d.verified == nil:
		return []string{"the token does not verify, so its rules do not count"}
	case len(d.verified.Rules) == 0:
		return []string{"the token has none"}
	}
	return explainRules(d, d.verified.Rules, err)
}

// explainSession shows the session of the request, and what limits the viewer's sessions; nothing
// with sessions off.
func explainSession(d *decision) (details []string) {
	if t := d.verified; t != nil && t.StartBy >= 0 {
		details = append(details, "startBy "+replay.Date(d.now(), time.Unix(t.StartBy, 0)))
	}
	if !d.app.countsSessions() {
		return details
	}
	if key, err := d.sessionInPath(); d.target.Session != "" && err == nil {
		details = append(details, fmt.Sprintf("the session %s, which began %s", key.ID(), replay.Date(d.now(), key.Begun())))
	} else if d.target.Session == "" {
		details = append(details, "no session in the path")
	}
	if t := d.verified; t != nil {
		if limit := sessions.SmallerLimit(t.SessionLimit, d.settings.maxSessions); limit > 0 {
			details = append(details, fmt.Sprintf("at most %d at a time for the viewer; how many run, only the server knows", limit))
		}
	}
	if desk := d.app.admission; desk != nil && !d.Resource.Own {
		details = append(details, fmt.Sprintf("if the session does not run yet, the server asks %s (on_error %s); explain does not", desk.URL.Host, cmp.Or(d.app.AdmissionOnError, onErrorWords.First)))
	}
	return details
}

func explainRules(d *decision, rules accessrules.List, err error) []string {
	failed := err != nil && !errors.Is(err, errRuleBlocked) && !errors.Is(err, errOperatorRule)
	return rules.Explain(d, d.matchedRule, failed)
}

// explainCache shows what a media cache would do with a request that has passed the gate.
func (t *trace) explainCache(c *Cache, r *http.Request) {
	d := decisionOf(r)
	if d == nil {
		return
	}
	plan := c.config.Plan(r)
	switch {
	case d.pastCache:
		t.add("cache", replay.Pass, nil, "goes past the cache: it has a header of pass_request_headers, or nobody knows when the video was last purged")
		return
	case plan.Bypass:
		t.add("cache", replay.Pass, nil, "goes past the cache: it has Authorization, or its method is neither GET nor HEAD")
		return
	}
	query := "no query"
	if plan.Query != "" {
		query = fmt.Sprintf("query %q", plan.Query)
	}
	ttl := fmt.Sprintf("fresh for %s if the origin does not say", plan.TTL)
	if !plan.Known {
		ttl += ", and only if its type is one of media"
	}
	purged := ""
	if d.purged > 0 {
		purged = ", purged " + time.UnixMilli(d.purged).UTC().Format(time.RFC3339)
	}
	t.add("cache", replay.Pass, nil,
		fmt.Sprintf("one object for all viewers: host %q, path %q, %s%s", plan.Host, plan.Path, query, purged),
		fmt.Sprintf("%s; 404 and 410 for %s", ttl, c.config.ErrorTTL))
}
