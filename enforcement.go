package signedplayback

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// check is a step of the gate's decision. Those that can be report-only come
// first; without the others nobody knows what the request is for.
type check int

const (
	tokenCheck check = iota
	originsCheck
	rulesCheck
	downloadsCheck
	methodCheck
	pathCheck
)

// reportableChecks is how many can be report-only.
const reportableChecks = methodCheck

func (c check) String() string {
	switch c {
	case tokenCheck:
		return "token"
	case originsCheck:
		return "origins"
	case rulesCheck:
		return "rules"
	case downloadsCheck:
		return "downloads"
	case methodCheck:
		return "method"
	case pathCheck:
		return "path"
	}
	return fmt.Sprintf("check %d", int(c))
}

// checkSet is a set of checks that can be report-only.
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

// Enforcement says whether refusals are made or only reported. It is for
// introducing the gate, or a stricter setting, where viewers already are.
type Enforcement struct {
	// Whether requests are refused. If not, everything is decided, counted and
	// logged as `would_refuse`, and the request passes as though the check that
	// refuses it were not there. Requests that name no video, and other methods
	// than GET, HEAD and OPTIONS, are refused all the same. Default: true.
	Enforce *bool `json:"enforce,omitempty"`

	// The checks that only report: `token`, `origins`, `rules`, `downloads`.
	// Default: none.
	ReportOnly []string `json:"report_only,omitempty"`
}

// enforcement is a compiled Enforcement. What a video says itself counts before
// what its gate says, and that before what is said for all.
type enforcement struct {
	set        bool // says anything at all
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
	for c := range reportableChecks {
		if name == c.String() {
			return c, nil
		}
	}
	return 0, fmt.Errorf("report_only %q: want some of %s", name, allChecks)
}

// or returns e, or what holds where e says nothing.
func (e enforcement) or(outer enforcement) enforcement {
	if e.set {
		return e
	}
	return outer
}

// warn says at start that something is let through, for whoever forgets that it
// is would learn of it when it is too late.
func (e enforcement) warn(logger *zap.Logger, of string) {
	switch {
	case !e.set || e.reportOnly == 0:
	case e.reportOnly == allChecks:
		logger.Warn("NOTHING IS REFUSED: enforce is off, so refusals are only reported", zap.String("of", of))
	default:
		logger.Warn("NOT EVERYTHING IS REFUSED: some checks only report", zap.String("of", of), zap.Stringer("report_only", e.reportOnly))
	}
}

// reports tells whether a check only reports, for the video of this request.
func (d *decision) reports(c check) bool {
	return c < reportableChecks && d.settings.enforcement.or(d.gate.enforcement).reportOnly.has(c)
}

// goesOn tells whether the request goes on after a check has refused it.
func (d *decision) goesOn(c check) bool { return d.trace != nil || d.reports(c) }

// enforce returns the error of a check if the request ends with it. If it does
// not, because the check only reports, the first such error is what the request
// would have been refused for.
func (d *decision) enforce(c check, err error) error {
	if d.trace != nil {
		return d.trace.note(d, c, err)
	}
	if err == nil || !d.onlyReports(c) {
		return err
	}
	d.report(err)
	return nil
}

// onlyReports tells whether the refusal of a check only reports. A request that
// names no video cannot be passed on, one whose video has unknown settings not
// past allowed origins that refuse, and one with a token behind the first
// segment, as of a gate at the wrong path, would hand it to the origin.
func (d *decision) onlyReports(c check) bool {
	return d.reports(c) && d.video != "" && (!d.unsettled || d.reports(originsCheck)) &&
		!holdsToken(d.target.suffix.decoded)
}

// reportable tells of a reason whether there are requests that pass and would
// have been refused for it. There are none where nobody knows what the request is
// for, nor where the gate finds out when the origin has answered.
func (r reason) reportable() bool {
	return !slices.Contains([]reason{
		reasonPathInvalid, reasonMethodNotAllowed, reasonTokenMalformed, reasonAlgorithmNotAllowed, reasonManifestInvalid,
	}, r)
}

// report remembers what a request would have been refused for.
func (d *decision) report(err error) {
	if why, ok := errors.AsType[*refusal](err); ok && d.reason == "" {
		d.result, d.reason = resultWouldRefuse, why.reason
	}
}

// passReported readies the answer where checks only report.
func (d *decision) passReported() {
	if d.reports(originsCheck) {
		// Or the browser would enforce what the gate does not.
		d.settings.origins = originPolicy{}
	}
	if d.result == resultWouldRefuse {
		d.logReport()
	}
}

// logReport tells of a request that passes and would have been refused.
func (d *decision) logReport() {
	d.log()
	if entry := d.gate.reportLog.Check(zapcore.WarnLevel, "would refuse: "+string(d.reason)); entry != nil {
		fields := []zap.Field{zap.Inline(d)}
		if ip, ok := caddyhttp.GetVar(d.request.Context(), caddyhttp.ClientIPVarKey).(string); ok {
			fields = append(fields, zap.String("client_ip", ip))
		}
		entry.Write(fields...)
	}
}

// newReportLog returns a logger that says for each reason what happens, and not
// for each request: the access log does that.
func newReportLog(ctx caddy.Context) *zap.Logger {
	const perSecond = 5
	return ctx.Logger().WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, perSecond, 0)
	}))
}
