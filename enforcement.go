package signedplayback

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// check is a group of pipeline steps that can be in report-only mode together.
// Method and path cannot, because without them nobody knows which video the
// request is for.
type check int

const (
	tokenCheck check = iota
	scheduleCheck
	originsCheck
	rulesCheck
	downloadsCheck
	sessionsCheck
	admissionCheck // a part of the sessions
	methodCheck
	pathCheck
)

// reportableChecks is the number of checks that can be in report-only mode. They
// come first.
const reportableChecks = methodCheck

var namesOfChecks = [...]string{
	tokenCheck: "token", scheduleCheck: "schedule", originsCheck: "origins", rulesCheck: "rules", downloadsCheck: "downloads", sessionsCheck: "sessions", admissionCheck: "admission", methodCheck: "method", pathCheck: "path",
}

func (c check) String() string { return namesOfChecks[c] }

// checkSet is a set of checks in report-only mode.
type checkSet uint8

const allChecks checkSet = 1<<reportableChecks - 1

func (s checkSet) has(c check) bool { return s&(1<<c) != 0 }

func (s checkSet) String() string {
	var names []string
	for c := range reportableChecks {
		if s.has(c) {
			names = append(names, c.String())
		}
	}
	return strings.Join(names, ", ")
}

// Enforcement turns on report-only mode: in it, a failed check is logged and
// counted and lets the request through. Use it to introduce the gate, or a
// stricter setting, on a site that has viewers.
type Enforcement struct {
	// Whether requests are refused. If false, all checks are in report-only
	// mode: a failed check is counted and logged as `would_refuse`, and the
	// request passes. Requests that name no video, and methods other than GET,
	// HEAD and OPTIONS, are still refused. Default: true.
	Enforce *bool `json:"enforce,omitempty"`

	// The checks in report-only mode: `token`, `schedule`, `origins`, `rules`,
	// `downloads`, `sessions`, `admission`. The last one is a part of `sessions`.
	// Default: none.
	ReportOnly []string `json:"report_only,omitempty"`
}

// enforcement is a compiled Enforcement. The setting of the video counts before
// the setting of the gate, and that before the setting of the app.
type enforcement struct {
	set        bool // whether the config has a setting
	reportOnly checkSet
}

var errReportOnlyTwice = errors.New("report_only: `enforce off` reports all checks already; give one of the two")

func (e *Enforcement) compile() (enforcement, error) {
	compiled := enforcement{set: e.Enforce != nil || len(e.ReportOnly) > 0}
	for _, name := range e.ReportOnly {
		c, err := parseCheck(name)
		if err != nil {
			return enforcement{}, err
		}
		compiled.reportOnly |= 1 << c
	}
	if e.Enforce != nil && !*e.Enforce {
		if len(e.ReportOnly) > 0 {
			return enforcement{}, errReportOnlyTwice
		}
		compiled.reportOnly = allChecks
	}
	return compiled, nil
}

func parseCheck(name string) (check, error) {
	if i := slices.Index(namesOfChecks[:reportableChecks], name); i >= 0 {
		return check(i), nil
	}
	return 0, fmt.Errorf("report_only %q: want some of %s", name, allChecks)
}

// or returns e if it is set, else outer.
func (e enforcement) or(outer enforcement) enforcement {
	if e.set {
		return e
	}
	return outer
}

// warn logs report-only mode at start, because operators forget that they have
// turned it on.
func (e enforcement) warn(logger *zap.Logger, of string) {
	switch {
	case !e.set || e.reportOnly == 0:
	case e.reportOnly == allChecks:
		logger.Warn("NOTHING IS REFUSED: enforce is off, so refusals are only reported", zap.String("of", of))
	default:
		logger.Warn("NOT EVERYTHING IS REFUSED: some checks only report", zap.String("of", of), zap.Stringer("report_only", e.reportOnly))
	}
}

// reports tells whether a check is in report-only mode for the video of this
// request.
func (d *decision) reports(c check) bool {
	return c < reportableChecks && d.settings.enforcement.or(d.gate.enforcement).reportOnly.has(c)
}

// reportOnly tells whether the request continues although a check has failed. It
// cannot if nobody knows which video it is for. If the settings of the video are
// unknown, the checks that they decide have to be in report-only mode as well.
func (d *decision) reportOnly(c check) bool {
	if c >= reportableChecks {
		return false
	}
	video := d.namedVideo()
	if video == "" && d.gate.mayReportTokens {
		video = d.assumeVideo()
	}
	reportsSettings := d.reports(scheduleCheck) && d.reports(originsCheck) && d.reports(rulesCheck)
	if !d.reports(c) || video == "" || d.settingsUnknown && !reportsSettings {
		return false
	}
	d.continueWith(video)
	return true
}

// assumeVideo returns the video that a rejected token names, "" for a token
// without a valid form, and loads its settings. If they cannot be read, the
// request ends with the refusal of the token.
func (d *decision) assumeVideo() string {
	parsed, err := d.app.policy.Parse(d.target.Token)
	if err != nil {
		return ""
	}
	video := parsed.Unverified().VideoID
	_ = d.loadSettings(video)
	return video
}

// continueWith lets a request continue with the video that it names. The rules
// of a token count only if its signature is valid.
func (d *decision) continueWith(video string) {
	if d.video == "" {
		d.video, d.verified = video, d.rejected
	}
}

// reportable reports whether report-only mode can let a request with this reason
// pass. It cannot if the video is unknown, if no setting allows the use, or if the
// origin has already answered.
func (r reason) reportable() bool {
	return !slices.Contains([]reason{
		reasonPathInvalid, reasonMethodNotAllowed, reasonServiceWorker, reasonTokenMalformed, reasonAlgorithmNotAllowed, reasonManifestInvalid,
	}, r)
}

// stepObserver is told the outcome of each step, and says whether the decision ends
// with it. `explain` is one; requests of viewers have one that says nothing.
type stepObserver interface {
	// stepDone returns the error with which the decision ends, nil to continue.
	// reportOnly tells that the gate lets the request continue in spite of err.
	stepDone(d *decision, s *pipelineStep, err error, reportOnly bool) error
}

// silentObserver is the stepObserver of requests that are served.
type silentObserver struct{}

func (silentObserver) stepDone(d *decision, _ *pipelineStep, err error, reportOnly bool) error {
	if !reportOnly {
		return err
	}
	d.report(err)
	return nil
}

// report lets a request continue in spite of a refusal. The first one counts, as it would
// without report-only mode.
func (d *decision) report(err error) {
	if why, ok := errors.AsType[*refusal](err); ok && d.reason == "" {
		d.result, d.reason = resultWouldRefuse, why.reason
		if d.response.d != nil { // what comes before has been logged
			d.logReported()
		}
	}
}

// unlessReported returns the refusal of a session that the response begins, nil in report-only
// mode.
func (d *decision) unlessReported(err error) error {
	if isRefusal(err) && d.reports(sessionsCheck) {
		d.report(err)
		return nil
	}
	return err
}

// applyReportOnly prepares the response to a request that passes in report-only
// mode. Headers follow the decision, because browsers enforce allowed origins
// that the gate does not.
func (d *decision) applyReportOnly() {
	if d.reports(originsCheck) {
		d.settings.origins = originPolicy{}
	}
	if d.result == resultWouldRefuse {
		d.logReported()
	}
}

func (d *decision) logReported() {
	d.log()
	if entry := d.gate.reportLog.Check(zapcore.WarnLevel, "would refuse: "+string(d.reason)); entry != nil {
		fields := []zap.Field{zap.Inline(d)}
		if ip, ok := caddyhttp.GetVar(d.request.Context(), caddyhttp.ClientIPVarKey).(string); ok {
			fields = append(fields, zap.String("client_ip", ip))
		}
		entry.Write(fields...)
	}
}

// sampledLogger returns a logger for lines that anybody can cause. In each interval, it keeps
// at most this many lines of each message. The access log has every request.
func sampledLogger(logger *zap.Logger, interval time.Duration, most int) *zap.Logger {
	return logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, interval, most, 0)
	}))
}
