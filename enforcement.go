package signedplayback

import (
	"errors"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
)

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

func (e *Enforcement) compile() (reportonly.Setting, error) {
	return reportonly.Compile(e.Enforce, e.ReportOnly)
}

// reports tells whether a check is in report-only mode for the video of this
// request.
func (d *decision) reports(c reportonly.Check) bool {
	return c < reportonly.Checks && d.settings.enforcement.Or(d.gate.enforcement).Checks.Has(c)
}

// reportOnly tells whether the request continues although a check has failed. It
// cannot if nobody knows which video it is for. If the settings of the video are
// unknown, the checks that they decide have to be in report-only mode as well.
func (d *decision) reportOnly(c reportonly.Check) bool {
	if c >= reportonly.Checks {
		return false
	}
	video := d.namedVideo()
	if video == "" && d.gate.mayReportTokens {
		video = d.assumeVideo()
	}
	reportsSettings := d.reports(reportonly.Schedule) && d.reports(reportonly.Origins) && d.reports(reportonly.Rules)
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
	if why, ok := errors.AsType[*refusal.Error](err); ok && d.reason == "" {
		d.result, d.reason = refusal.WouldRefuse, why.Reason
		if d.response.d != nil { // what comes before has been logged
			d.logReported()
		}
	}
}

// unlessReported returns the refusal of a session that the response begins, nil in report-only
// mode.
func (d *decision) unlessReported(err error) error {
	if refusal.Is(err) && d.reports(reportonly.Sessions) {
		d.report(err)
		return nil
	}
	return err
}

// applyReportOnly prepares the response to a request that passes in report-only
// mode. Headers follow the decision, because browsers enforce allowed origins
// that the gate does not.
func (d *decision) applyReportOnly() {
	if d.reports(reportonly.Origins) {
		d.settings.origins = originPolicy{}
	}
	if d.result == refusal.WouldRefuse {
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
