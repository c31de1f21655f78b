package signedplayback

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
)

// decision is all that the gate finds out about one request, in the order in
// which the pipeline finds it out. It belongs to the goroutine of the request.
// It lives longer than the request, because access logs read it afterwards, so
// it is never reused.
type decision struct {
	gate     *Gate
	app      *App
	request  *http.Request
	observer stepObserver

	// What the client sent, before the request becomes the origin's.
	query         string
	requestOrigin string

	// From the path.
	target playbackpath.Target
	playbackpath.Resource

	// From the token and the store.
	video           string              // "" until the viewer has proved that they may ask for it
	verified        *verification.Token // nil for a request by video id
	rejected        *verification.Token // a token with a valid signature and the wrong dates
	settings        settings
	settingsUnknown bool // the settings cannot be read

	// Of the request that the origin gets.
	originPath string // escaped
	pastCache  bool   // the origin may answer this viewer otherwise than others
	purged     int64  // when the video was last purged, see state.VideoDocument

	// From the session.
	session   *sessions.Session // nil if the request is not counted
	uncounted bool              // until the response tells which session the request is of
	admitted  *admitted         // the answer about the session that the response begins
	renewed   *sessions.Info    // the session that the token takes over; nil for other requests
	rooted    bool              // the response leads below a new session
	until     time.Time         // of a session that plays on after its token has expired

	// From the client.
	client      clientLocation
	matchedRule int // of the access rules that were evaluated last, or NoRule

	result refusal.Result
	reason refusal.Reason // of a refusal, or of one that is only reported; else ""

	logged   bool
	response response // part of the decision, so that both are one allocation
	own      *headerpolicy.Own
}

func newDecision(g *Gate, r *http.Request, o stepObserver) *decision {
	return &decision{
		gate: g, app: g.app, request: r, observer: o, Resource: playbackpath.Resource{Kind: playbackpath.KindOther}, result: refusal.Allowed,
		query: r.URL.RawQuery, requestOrigin: r.Header.Get("Origin"),
	}
}

// namedVideo returns the video that the request names: by a valid token, or by
// its id.
func (d *decision) namedVideo() string {
	if d.video != "" {
		return d.video
	}
	return d.target.VideoID
}

// now returns the time of the request, which `explain` may choose.
func (d *decision) now() time.Time {
	if t := d.explained(); t != nil {
		return t.at
	}
	return d.app.now()
}

// explained returns the trace of a request that `explain` replays, nil for one of a viewer.
func (d *decision) explained() *trace {
	t, _ := d.observer.(*trace)
	return t
}

// loadSettings looks up the settings of a video. Its errors are refusals.
func (d *decision) loadSettings(videoID string) (err error) {
	stranger := d.verified == nil && d.explained() == nil
	d.settings, err = d.app.settings(d.request, videoID, stranger)
	d.settingsUnknown = err != nil
	return err
}

// refuse answers with a refusal.
func (d *decision) refuse(w http.ResponseWriter, err error) error {
	d.result = refusal.Refused
	if why, ok := errors.AsType[*refusal.Error](err); ok {
		d.reason = why.Reason
	}
	d.log()
	return deny(w, err)
}

// record offers the decision as placeholders and as fields of the access log.
// Both read it on demand, so it is recorded before the pipeline runs, and a
// value that nobody reads costs nothing.
func (d *decision) record() {
	ctx := d.request.Context()
	if span := oteltrace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("url.path", redact.Tokens(d.request.URL.Path)))
	}
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(d.placeholder)
	}
	if hasAccessLog(ctx) {
		d.log()
	}
}

// hasAccessLog reports whether the server writes an access log, as far as a
// handler can tell.
func hasAccessLog(ctx context.Context) bool {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return !ok || server == nil || server.Logs != nil
}

// log adds the decision once to the fields of log lines about the request: in
// the access log and, after an error, in the error log.
func (d *decision) log() {
	extra, ok := d.request.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if ok && !d.logged {
		d.logged = true
		extra.Add(zap.Inline(d))
	}
}

// recordedNames are the placeholders and log fields of a decision, without their
// prefix.
var recordedNames = [...]string{"video", "kind", "key_id", "token_id", "country", "result", "reason"}

func (d *decision) placeholder(name string) (any, bool) {
	name, ok := strings.CutPrefix(name, "http.signed_playback.")
	if !ok {
		return nil, false
	}
	return d.recordedValue(name)
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (d *decision) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	for _, name := range recordedNames {
		if value, _ := d.recordedValue(name); value != "" {
			enc.AddString("signed_playback_"+name, value)
		}
	}
	return nil
}

// recordedValue returns the value of one of recordedNames.
func (d *decision) recordedValue(name string) (value string, ok bool) {
	switch name {
	case "video":
		return d.video, true
	case "kind":
		return string(d.Kind), true
	case "key_id":
		if d.verified == nil || d.verified.Key == nil {
			return "", true
		}
		return d.verified.Key.ID(), true
	case "token_id":
		return redact.TokenID(d.target.Token), true
	case "country":
		return d.knownCountry(), true
	case "result":
		return string(d.result), true
	case "reason":
		return string(d.reason), true
	}
	return "", false
}
