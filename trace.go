package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// traceKey is the context key of a request's trace.
type traceKey struct{}

// trace follows the decision about a request that is explained and not served.
// The gate decides as it does for viewers, but goes on after a refusal as far as
// it can, so that all reasons are seen and not only the first.
type trace struct {
	decision *decision // nil until the request has reached a gate
	steps    []explained
	why      error // the first refusal that is made and not only reported
	reported error // the first that is only reported
	assumed  bool  // what the token says is taken for true, although its signature is not
}

// explained is a check with its outcome.
type explained struct {
	Check   string   `json:"check"`
	Outcome verdict  `json:"outcome"`
	Reason  reason   `json:"reason,omitempty"`
	Details []string `json:"details"`
}

type verdict string

const (
	verdictPass   verdict = "pass"
	verdictRefuse verdict = "refuse"
	verdictReport verdict = "report"  // would refuse
	verdictSkip   verdict = "skipped" // not decided, because a check before it refuses
)

// note records the outcome of a check. It returns the error if nothing after
// that check can be decided.
func (t *trace) note(d *decision, c check, err error) error {
	t.decision = d
	became := verdictPass
	switch {
	case err != nil && d.onlyReports(c):
		became = verdictReport
		if t.reported == nil {
			t.reported = err
		}
	case err != nil:
		became = verdictRefuse
		if t.why == nil {
			t.why = err
		}
	}
	t.explain(d, c, became, err)
	if c == pathCheck || c == tokenCheck && d.video == "" {
		return err
	}
	return nil
}

// assume has the checks after a token that does not verify look at what it says.
func (t *trace) assume(d *decision, claims token.Claims) {
	rules, err := compileRules(claims.AccessRules)
	if err != nil {
		return
	}
	t.assumed = true
	d.verified = newVerifiedToken(claims, rules, nil)
}

func (t *trace) add(name string, became verdict, err error, details ...string) {
	s := explained{Check: name, Outcome: became, Details: details}
	if why, ok := errors.AsType[*refusal](err); ok && (became == verdictRefuse || became == verdictReport) {
		s.Reason = why.reason
		s.Details = append(s.Details, why.Error())
	}
	s.Details = redactEach(s.Details) // of what stands in headers and suffixes
	t.steps = append(t.steps, s)
}

func (t *trace) explain(d *decision, c check, became verdict, err error) {
	switch c {
	case methodCheck:
		t.add("method", became, err, d.request.Method)
	case pathCheck:
		t.explainPath(d, became, err)
	case tokenCheck:
		t.explainToken(d, became, err)
	case originsCheck:
		t.add("origins", became, err, explainOrigins(d)...)
	case rulesCheck:
		t.add("rules", became, err, explainRules(d, err != nil && !errors.Is(err, errRuleBlocked))...)
	case downloadsCheck:
		t.add("download", became, err, explainDownload(d))
	}
}

func (t *trace) explainPath(d *decision, became verdict, err error) {
	if err != nil {
		t.add("path", became, err)
		return
	}
	under := "under a token"
	if d.target.token == "" {
		under = fmt.Sprintf("of the video %q, without a token", d.target.videoID)
	}
	t.add("path", became, nil, fmt.Sprintf("%q, kind %s, %s", d.target.suffix.decoded, d.kind, under))
}

// tokenSteps are the parts of the token check, in the order in which the gate
// makes them, with the reasons for which each refuses.
var tokenSteps = []struct {
	name    string
	reasons []reason
	detail  func(*decision, token.Claims) string
}{
	{"token", []reason{reasonTokenMalformed, reasonAlgorithmNotAllowed}, func(d *decision, c token.Claims) string {
		return fmt.Sprintf("well-formed, RS256, token id %s, sub %q", tokenID(d.target.token), c.VideoID)
	}},
	{"key", []reason{reasonKeyUnknown}, func(d *decision, c token.Claims) string {
		if stored, _ := d.app.state.keys.get(c.KeyID); stored.revoked {
			return fmt.Sprintf("kid %q, which the control API has revoked", c.KeyID)
		}
		return fmt.Sprintf("kid %q", c.KeyID)
	}},
	{"signature", []reason{reasonSignatureInvalid, reasonVerificationLimited}, func(_ *decision, c token.Claims) string {
		return fmt.Sprintf("by the key %q", c.KeyID)
	}},
	{"claims", []reason{reasonRulesInvalid}, func(_ *decision, c token.Claims) string {
		return fmt.Sprintf("downloadable %t, %s", c.Downloadable, rulesCount(c))
	}},
	{"dates", []reason{reasonTokenExpired, reasonTokenNotYetValid, reasonTokenLifetimeExceeded}, func(d *decision, c token.Claims) string {
		return explainDates(d.app.now(), c)
	}},
}

// explainToken splits the token check into its parts. The reason of a refusal
// tells which of them has refused.
func (t *trace) explainToken(d *decision, became verdict, err error) {
	why, _ := errors.AsType[*refusal](err)
	if d.target.token == "" {
		t.explainSettings(d, became, err)
		return
	}
	var claims token.Claims
	parsed, malformed := token.Parse(d.target.token)
	if malformed == nil {
		claims = parsed.Unverified()
	}
	failed := false
	for _, part := range tokenSteps {
		switch {
		case failed:
			t.add(part.name, verdictSkip, nil, t.unchecked(part.name, d, claims, part.detail)...)
		case why != nil && slices.Contains(part.reasons, why.reason), why != nil && part.name == "key" && errors.Is(why.err, errKeysUnknown):
			failed = true
			details := []string{}
			if malformed == nil {
				details = append(details, part.detail(d, claims))
			}
			t.add(part.name, became, err, details...)
		default:
			t.add(part.name, verdictPass, nil, part.detail(d, claims))
		}
	}
	switch {
	case !failed:
		t.explainSettings(d, became, err)
	case d.video != "":
		t.explainSettings(d, verdictPass, nil)
	}
}

// unchecked tells what the rest of a token says, if it can be read.
func (t *trace) unchecked(name string, d *decision, claims token.Claims, detail func(*decision, token.Claims) string) []string {
	if claims.VideoID == "" || name == "signature" {
		return []string{"not reached"}
	}
	return []string{"not reached; it says: " + detail(d, claims)}
}

func rulesCount(c token.Claims) string {
	switch n := len(shownRules(c)); n {
	case 0:
		return "no access rules"
	case 1:
		return "1 access rule"
	default:
		return fmt.Sprintf("%d access rules", n)
	}
}

// shownRules decodes rules for showing them. What they do, compileRules says.
func shownRules(c token.Claims) (rules []token.AccessRule) {
	_ = json.Unmarshal(c.AccessRules, &rules)
	return rules
}

func explainDates(now time.Time, c token.Claims) string {
	text := "exp " + explainDate(now, c.ExpiresAt)
	if !c.NotBefore.IsZero() {
		text = "nbf " + explainDate(now, c.NotBefore) + ", " + text
	}
	return text
}

func explainDate(now, date time.Time) string {
	shown := date.UTC().Format(time.RFC3339)
	if apart := now.Sub(date).Truncate(time.Second); apart >= 0 {
		return fmt.Sprintf("%s, %s ago", shown, apart)
	}
	return fmt.Sprintf("%s, in %s", shown, date.Sub(now).Truncate(time.Second))
}

// explainSettings tells what the video demands, and who says so.
func (t *trace) explainSettings(d *decision, became verdict, err error) {
	id := d.video
	if id == "" {
		id = d.target.videoID
	}
	if id == "" {
		t.add("settings", became, err)
		return
	}
	source := "the global options"
	if _, ok := d.app.videos[id]; ok {
		source = "its video block in the config"
	} else if stored, readErr := d.app.state.videos.get(d.request.Context(), id); readErr == nil && stored != nil {
		source = "the control API, over the global options"
	}
	demand := "requires no token"
	if d.settings.requireSignedURLs {
		demand = "requires a token"
	}
	details := []string{fmt.Sprintf("video %q %s, %s (by %s)", id, demand, explainAllowed(d.settings.origins), source)}
	if only := d.settings.enforcement.or(d.gate.enforcement).reportOnly; only != 0 {
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
	return fmt.Sprintf("allows the origins %s and %s", strings.Join(p.allowed.patterns(), " "), missing)
}

func explainOrigins(d *decision) []string {
	h := d.request.Header
	sent := "neither Origin nor Referer is sent"
	switch origins, referers := h["Origin"], h["Referer"]; {
	case len(origins) > 0:
		sent = fmt.Sprintf("Origin %q", strings.Join(origins, ", "))
	case len(referers) > 0:
		sent = fmt.Sprintf("no Origin; Referer %q", redactTokens(strings.Join(referers, ", ")))
	}
	if d.settings.origins.allowed == nil {
		sent += "; any origin is allowed"
	}
	return []string{sent}
}

func explainDownload(d *decision) string {
	switch {
	case !d.download:
		return "this is no download"
	case d.target.token == "":
		return "a download, without a token"
	case d.verified == nil:
		return "a download, with a token that does not verify"
	default:
		return fmt.Sprintf("a download, and downloadable is %t", d.verified.downloadable)
	}
}

// explainRules tells of each rule that was looked at what it made of the
// viewer.
func explainRules(d *decision, unevaluated bool) (details []string) {
	switch {
	case d.target.token == "":
		return []string{"no token, so no rules"}
	case d.verified == nil:
		return []string{"the token does not verify, so its rules do not count"}
	}
	parsed, _ := token.Parse(d.target.token)
	rules := shownRules(parsed.Unverified())
	for i, rule := range rules {
		var made string
		switch {
		case i < d.matchedRule || d.matchedRule < 0:
			made = explainViewer(d, rule) + "no match"
		case i == d.matchedRule && unevaluated:
			made = "cannot be evaluated"
		case i == d.matchedRule:
			made = explainViewer(d, rule) + "match: " + rule.Action
		default:
			made = "not reached"
		}
		listed := ""
		if list := append(append([]string(nil), rule.IP...), rule.Country...); len(list) > 0 && rule.Type != "any" {
			listed = fmt.Sprintf(" [%s]", strings.Join(list, " "))
		}
		details = append(details, fmt.Sprintf("rule %d of %d: %s%s %s: %s", i+1, len(rules), rule.Type, listed, rule.Action, made))
	}
	switch {
	case len(rules) == 0:
		return []string{"the token has none"}
	case d.matchedRule < 0:
		details = append(details, "no rule matches, so the viewer is allowed")
	}
	return details
}

func explainViewer(d *decision, rule token.AccessRule) string {
	addr, err := d.address()
	if err != nil || rule.Type == "any" {
		return ""
	}
	if rule.Type != "ip.geoip.country" {
		return fmt.Sprintf("client is %s, ", addr)
	}
	country := d.knownCountry()
	if country == "" {
		country = "no known country"
	}
	return fmt.Sprintf("client %s is in %s, ", addr, country)
}
