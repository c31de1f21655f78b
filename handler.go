package signedplayback

import (
	"errors"
	"net/http"
	"runtime"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
)

// pipelineStep is one check of the pipeline.
type pipelineStep struct {
	name  string           // as `explain` shows it
	check reportonly.Check // that the step belongs to, for report-only mode

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
	{name: "method", check: reportonly.Method, run: checkMethod, preflight: true},
	{name: "path", check: reportonly.Path, run: checkPath, preflight: true},
	{name: "token", check: reportonly.Token, run: checkToken},
	{name: "revoked", check: reportonly.Token, run: checkRevocations},
	{name: "settings", check: reportonly.Token, run: checkSettings},
	{name: "schedule", check: reportonly.Schedule, run: checkSchedule},
	{name: "origins", check: reportonly.Origins, run: checkOrigin},
	{name: "access_rules", check: reportonly.Rules, run: checkOperatorRules},
	{name: "rules", check: reportonly.Rules, run: checkRules},
	{name: "download", check: reportonly.Downloads, run: checkDownload},
	{name: "session", check: reportonly.Sessions, run: checkSession},
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
		d.app.metrics.CountRequest(d.result, d.reason, d.Kind)
		if p := recover(); p != nil {
			panic(redact.Panic(p))
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
	if d.result == refusal.Preflight {
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
			d.result = refusal.Preflight
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
	if refusal.Is(err) {
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
		return refusal.MethodNotAllowed.Because(errMethod)
	}
	if len(d.request.Header["Service-Worker"]) > 0 {
		return refusal.ServiceWorker.Because(errServiceWorker)
	}
	return nil
}

// checkPath parses the path and finds out what kind of resource it names.
func checkPath(d *decision) (err error) {
	if d.target, err = d.gate.paths.Parse(d.request.URL); err != nil {
		if strings.HasSuffix(d.request.URL.Path, "/"+playbackpath.IframeSuffix) {
			d.Kind = playbackpath.KindIframe
		}
		return refusal.PathInvalid.Because(err)
	}
	d.Resource = d.gate.paths.Resource(d.target.Suffix.Decoded)
	return nil
}

// checkSettings loads the settings of the video, and refuses a request without a
// token where they require one.
func checkSettings(d *decision) error {
	if err := d.loadSettings(d.namedVideo()); err != nil {
		return err
	}
	if d.target.Token == "" && d.settings.requireSignedURLs {
		return refusal.TokenRequired.Because(errTokenRequired)
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
		return refusal.NotAvailableYet.Because(errNotAvailableYet)
	case !until.IsZero() && !now.Before(until):
		return refusal.NoLongerAvailable.Because(errNoLongerAvailable)
	}
	return nil
}

func checkOrigin(d *decision) error {
	return d.settings.origins.check(d.request, d.Kind, d.target.First())
}

// checkDownload requires the claim `downloadable` for downloads. A request
// without a token has no such claim, even where the video requires no token.
func checkDownload(d *decision) error {
	if !d.Download || d.verified != nil && d.verified.Downloadable {
		return nil
	}
	return refusal.DownloadNotAllowed.Because(errDownload)
}

var (
	errServiceWorker     = errors.New("no file of a video may become a service worker, which would see all requests to this host")
	errMethod            = errors.New("a playback URL is for GET, HEAD and OPTIONS")
	errTokenRequired     = errors.New("the video requires a signed token")
	errNotAvailableYet   = errors.New("the video is not available yet: the time in available_from or availableFrom has not come")
	errNoLongerAvailable = errors.New("the video is no longer available: the time in available_until or availableUntil has passed")
	errDownload          = errors.New("downloads need a token with the claim downloadable")
)
