package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
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
	video           string         // "" until the viewer has proved that they may ask for it
	verified        *verifiedToken // nil for a request by video id
	rejected        *verifiedToken // a token with a valid signature and the wrong dates
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

	result result
	reason reason // of a refusal, or of one that is only reported; else ""

	logged   bool
	response response // part of the decision, so that both are one allocation
	own      *ownHeaders
}

func newDecision(g *Gate, r *http.Request, o stepObserver) *decision {
	return &decision{
		gate: g, app: g.app, request: r, observer: o, Resource: playbackpath.Resource{Kind: playbackpath.KindOther}, result: resultAllowed,
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
	d.result = resultRefused
	if why, ok := errors.AsType[*refusal](err); ok {
		d.reason = why.reason
	}
	d.log()
	return deny(w, err)
}

// result is the outcome of a request. It is a label of metrics and a value of
// logs, so it comes from a closed set.
type result string

const (
	resultAllowed     result = "allowed"
	resultRefused     result = "refused"
	resultWouldRefuse result = "would_refuse"
	resultPreflight   result = "preflight"
)

// clientLocation caches the client's address and the facts about it, looked up on
// first use.
type clientLocation struct {
	addr       netip.Addr // valid once it has been looked up
	facts      geo.Facts
	factsKnown bool
}

var (
	errClientIP = errors.New("an access rule needs the viewer's address, which is unknown")
	errTooEarly = errors.New("an access rule needs the viewer's address, which the TLS handshake has yet to confirm")
)

// Address implements accessrules.Viewer. Caddy has determined the address, so
// trusted_proxies decides whose headers count.
func (d *decision) Address() (netip.Addr, error) {
	if d.client.addr.IsValid() {
		return d.client.addr, nil
	}
	// Until the handshake is finished, the address may be spoofed and the
	// request replayed (RFC 8470). Caddy's own matchers refuse it as well.
	if tls := d.request.TLS; tls != nil && !tls.HandshakeComplete {
		return netip.Addr{}, refuse(reasonTooEarly, errTooEarly)
	}
	addr, ok := clientAddress(d.request)
	if !ok {
		return netip.Addr{}, refuse(reasonClientIPUnknown, errClientIP)
	}
	d.client.addr = addr
	return addr, nil
}

// clientAddress returns the client's address as Caddy has determined it. An
// IPv4-mapped IPv6 address becomes IPv4 and a zone is dropped, so that every
// IPv4 rule sees its viewers.
func clientAddress(r *http.Request) (addr netip.Addr, ok bool) {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(text)
	return addr.Unmap().WithZone(""), err == nil
}

// Facts implements accessrules.Viewer.
func (d *decision) Facts(needed geo.Fact) (geo.Facts, error) {
	if !d.app.geo.Has(needed) {
		return geo.Facts{}, refuse(factUnavailable(needed), fmt.Errorf("an access rule needs %s, which is not set", needed.Option()))
	}
	if !d.client.factsKnown {
		addr, err := d.Address()
		if err != nil {
			return geo.Facts{}, err
		}
		d.client.facts, d.client.factsKnown = d.app.geo.Lookup(addr), true
	}
	if !d.client.facts.Readable(needed) {
		return geo.Facts{}, refuse(factUnavailable(needed), fmt.Errorf("an access rule needs the record of the viewer's address in %s, which cannot be read", needed.Option()))
	}
	return d.client.facts, nil
}

// factUnavailable is the reason of a refusal because a rule needs a fact that the
// gate cannot tell.
func factUnavailable(fact geo.Fact) reason {
	if fact == geo.Country {
		return reasonCountryUnavailable
	}
	return reasonNetworkUnavailable
}

// knownCountry returns the viewer's country for logs, "" if it is unknown. It
// decides nothing.
func (d *decision) knownCountry() string {
	addr, ok := clientAddress(d.request)
	if !ok {
		return ""
	}
	return d.app.geo.Lookup(addr).Country.String()
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
		if d.verified == nil || d.verified.key == nil {
			return "", true
		}
		return d.verified.key.ID(), true
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
