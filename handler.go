package signedplayback

import (
	"errors"
	"net/http"
	"runtime"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
)

// pipelineStep is one check of the pipeline.
type pipelineStep struct {
	name  string // as `explain` shows it
	check check  // that the step belongs to, for report-only mode

	// run returns a refusal, or nil to let the request continue. It may rely on
	// all that the steps before it have found out.
	run func(*decision) error

	// preflight steps also run for OPTIONS. The others do not, because a
	// rejected preflight is an opaque network error for a player, which would
	// hide the reason of the request that follows.
	preflight bool
}

// pipeline lists the steps of a decision in order. Cheap steps come first.
var pipeline = [...]pipelineStep{
	{name: "method", check: methodCheck, run: checkMethod, preflight: true},
	{name: "path", check: pathCheck, run: checkPath, preflight: true},
	{name: "token", check: tokenCheck, run: checkToken},
	{name: "revoked", check: tokenCheck, run: checkRevocations},
	{name: "settings", check: tokenCheck, run: checkSettings},
	{name: "schedule", check: scheduleCheck, run: checkSchedule},
	{name: "origins", check: originsCheck, run: checkOrigin},
	{name: "access_rules", check: rulesCheck, run: checkOperatorRules},
	{name: "rules", check: rulesCheck, run: checkRules},
	{name: "download", check: downloadsCheck, run: checkDownload},
	{name: "session", check: sessionsCheck, run: checkSession},
}

// ServeHTTP decides on a request and hands it to the next handler if it may
// pass.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if trace, ok := r.Context().Value(traceKey{}).(*trace); ok {
		return trace.follow(newDecision(g, r, trace), w, next)
	}
	dropBody(w, r)
	d := newDecision(g, r, silentObserver{})
	d.record()
	defer func() {
		d.app.metrics.countRequest(d.result, d.reason, d.Kind)
		if p := recover(); p != nil {
			panic(redactPanic(p))
		}
	}()
	err := g.answer(w, d, next)
	if err != nil {
		g.hideRequest(r, d)
		g.guardErrorRoutes(w, d, err)
	}
	return err
}

// answer decides on a request and answers it. Its error is for error routes.
func (g *Gate) answer(w http.ResponseWriter, d *decision, next caddyhttp.Handler) error {
	if g.serveSDK(w, d) {
		return nil
	}
	if err := d.decide(); err != nil {
		return d.refuse(w, err)
	}
	if d.result == resultPreflight {
		answerPreflight(w, d.request)
		return nil
	}
	d.applyReportOnly()
	if clientCancelled(d.request) {
		w.WriteHeader(statusClientClosedRequest)
		return nil
	}
	if g.player != nil && g.servePlayer(w, d) || g.serveViews(w, d) {
		return nil
	}
	if d.renewed != nil {
		return g.answerRenewal(w, d)
	}
	return g.forward(w, d, next)
}

// decide runs the pipeline. Its error is the refusal with which the request
// ends.
func (d *decision) decide() error {
	for i := range pipeline {
		s := &pipeline[i]
		if d.request.Method == http.MethodOptions && !s.preflight {
			d.result = resultPreflight
			return nil
		}
		err := s.run(d)
		reportOnly := err != nil && d.reportOnly(s.check)
		if err = d.observer.stepDone(d, s, err, reportOnly); err != nil {
			return err
		}
	}
	return nil
}

// forward has the next handler answer at the origin's path of the video.
func (g *Gate) forward(w http.ResponseWriter, d *decision, next caddyhttp.Handler) error {
	r, done := g.originRequest(d.request, d)
	defer done()
	err := d.response.start(w, d).serve(next, r)
	if isRefusal(err) {
		return d.refuse(w, err)
	}
	if err != nil {
		d.log()
	}
	return err
}

// statusClientClosedRequest is the status that reverse_proxy logs as well for a
// request that its client has cancelled.
const statusClientClosedRequest = 499

// clientCancelled reports whether the client has cancelled the request. A client
// that sends and cancels requests all the time (HTTP/2 rapid reset,
// CVE-2023-44487) must not make the gate connect to the origin for each.
func clientCancelled(r *http.Request) bool {
	if r.ProtoMajor >= 2 {
		// Go runs the goroutine of a new request before the connection reads
		// its next frame, which is the one that cancels.
		runtime.Gosched()
	}
	return r.Context().Err() != nil
}

// checkMethod refuses requests that only read in name, too: a service worker would
// see and answer all later requests of the browser to this host.
func checkMethod(d *decision) error {
	switch d.request.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		return refuse(reasonMethodNotAllowed, errMethod)
	}
	if len(d.request.Header["Service-Worker"]) > 0 {
		return refuse(reasonServiceWorker, errServiceWorker)
	}
	return nil
}

// checkPath parses the path and finds out what kind of resource it names.
func checkPath(d *decision) (err error) {
	if d.target, err = d.gate.paths.Parse(d.request.URL); err != nil {
		if strings.HasSuffix(d.request.URL.Path, "/"+playbackpath.IframeSuffix) {
			d.Kind = playbackpath.KindIframe
		}
		return refuse(reasonPathInvalid, err)
	}
	d.Resource = d.gate.paths.Resource(d.target.Suffix.Decoded)
	return nil
}

// checkToken verifies the token, if the request has one, and then its
// audience, issuer and dates. A token counts even where the video requires none.
func checkToken(d *decision) error {
	if d.target.Token == "" {
		return nil
	}
	verify := d.app.verifier.verify
	if d.explained() != nil {
		verify = d.app.verifier.verifyUncounted
	}
	verified, err := verify(d.request, d.target.Token)
	if err != nil {
		return err
	}
	if err := verified.check(d.now(), d.app.policy); err != nil && !d.isExtended(verified, err) {
		d.rejected = verified
		return refuse(tokenReason(err), err)
	}
	d.verified, d.video = verified, verified.video
	return nil
}

// checkRevocations refuses a revoked token. It looks each token up once for each set of
// revocations.
func checkRevocations(d *decision) error {
	if d.verified == nil {
		return nil
	}
	all := d.app.state.Revocations()
	if all == nil {
		return refuse(reasonStateUnavailable, errRevocationsUnknown)
	}
	if d.verified.clean.Load() == all {
		return nil
	}
	if all.Match(d.verified.subject(d.target.Token), d.now()) != nil {
		return refuse(reasonTokenRevoked, errRevoked)
	}
	d.verified.clean.Store(all)
	return nil
}

// checkSettings loads the settings of the video, and refuses a request without a
// token where they require one.
func checkSettings(d *decision) error {
	if err := d.loadSettings(d.namedVideo()); err != nil {
		return err
	}
	if d.target.Token == "" && d.settings.requireSignedURLs {
		return refuse(reasonTokenRequired, errTokenRequired)
	}
	d.video = d.namedVideo()
	return nil
}

// checkSchedule compares the time with the one in which the video may be played.
func checkSchedule(d *decision) error {
	from, until := d.settings.availableFrom, d.settings.availableUntil
	if from.IsZero() && until.IsZero() {
		return nil
	}
	switch now := d.now(); {
	case now.Before(from):
		return refuse(reasonNotAvailableYet, errNotAvailableYet)
	case !until.IsZero() && !now.Before(until):
		return refuse(reasonNoLongerAvailable, errNoLongerAvailable)
	}
	return nil
}

func checkOrigin(d *decision) error {
	return d.settings.origins.check(d.request, d.Kind, d.target.First())
}

// checkOperatorRules evaluates the operator's access rules.
func checkOperatorRules(d *decision) error {
	return d.evaluate(d.settings.rules, errOperatorRule)
}

// checkRules evaluates the access rules of the token.
func checkRules(d *decision) error {
	if d.verified == nil {
		return nil
	}
	return d.evaluate(d.verified.rules, errRuleBlocked)
}

// evaluate refuses a viewer whom access rules block.
func (d *decision) evaluate(rules accessrules.List, blocked error) (err error) {
	if d.matchedRule, err = rules.Match(d); err != nil {
		return err
	}
	if !rules.Allows(d.matchedRule) {
		return refuse(reasonRuleBlocked, blocked)
	}
	return nil
}

// checkDownload requires the claim `downloadable` for downloads. A request
// without a token has no such claim, even where the video requires no token.
func checkDownload(d *decision) error {
	if !d.Download || d.verified != nil && d.verified.downloadable {
		return nil
	}
	return refuse(reasonDownloadNotAllowed, errDownload)
}

var (
	errServiceWorker      = errors.New("no file of a video may become a service worker, which would see all requests to this host")
	errRevocationsUnknown = errors.New("whether the token is revoked is unknown: the store has not been read, or an object in it is damaged")
	errMethod             = errors.New("a playback URL is for GET, HEAD and OPTIONS")
	errRevoked            = errors.New("the control API has revoked the token, its viewer or its video")
	errTokenRequired      = errors.New("the video requires a signed token")
	errNotAvailableYet    = errors.New("the video is not available yet: the time in available_from or availableFrom has not come")
	errNoLongerAvailable  = errors.New("the video is no longer available: the time in available_until or availableUntil has passed")
	errOperatorRule       = errors.New("an access rule of the operator blocks the viewer")
	errRuleBlocked        = errors.New("an access rule of the token blocks the viewer")
	errDownload           = errors.New("downloads need a token with the claim downloadable")
)
