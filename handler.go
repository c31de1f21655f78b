package signedplayback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// ServeHTTP decides on a request and hands it on if it may pass.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	dropBody(w, r)
	d := &decision{
		gate: g, app: g.app, request: r, kind: kindOther, result: resultAllowed,
		query: r.URL.RawQuery, requestOrigin: first(r.Header["Origin"]),
	}
	d.record()
	defer func() {
		d.count()
		if p := recover(); p != nil {
			panic(redactPanic(p))
		}
	}()
	if err := g.decide(d); err != nil {
		return d.refuse(w, err)
	}
	if d.trace != nil {
		return nil
	}
	if r.Method == http.MethodOptions {
		answerPreflight(w, r)
		return nil
	}
	d.passReported()
	if hasGone(r) {
		w.WriteHeader(statusClientClosedRequest)
		return nil
	}
	if g.player != nil && g.servePlayer(w, d) {
		return nil
	}
	r, done := g.originRequest(r, d)
	defer done()
	err := d.response.start(w, d).serve(next, r)
	if _, isRefusal := errors.AsType[*refusal](err); isRefusal {
		return d.refuse(w, err)
	}
	if err != nil {
		d.log()
	}
	return err
}

// statusClientClosedRequest is what reverse_proxy writes, too, for the log.
const statusClientClosedRequest = 499

// hasGone reports whether the viewer has taken the request back. Those who do so
// at once, again and again (HTTP/2 rapid reset, CVE-2023-44487), must not have the
// origin asked and connections made for each.
func hasGone(r *http.Request) bool {
	if r.ProtoMajor >= 2 {
		// The goroutine of a new request runs before that of its connection
		// reads the next frame, which is the one that takes it back.
		runtime.Gosched()
	}
	return r.Context().Err() != nil
}

// decide is the gate's decision: nil to let the request pass, else a refusal.
// The steps are in the order of their cost, and each relies on those before it.
func (g *Gate) decide(d *decision) error {
	r := d.request
	if err := d.enforce(methodCheck, checkMethod(r.Method)); err != nil {
		return err
	}
	if err := d.enforce(pathCheck, g.parseTarget(d)); err != nil {
		return err
	}
	if r.Method == http.MethodOptions {
		d.result = resultPreflight
		return nil
	}
	if err := d.enforce(tokenCheck, g.app.authenticate(d)); err != nil {
		return err
	}
	if err := d.enforce(originsCheck, d.settings.origins.check(r, d.kind)); err != nil {
		return err
	}
	if err := d.enforce(rulesCheck, checkRules(d)); err != nil {
		return err
	}
	return d.enforce(downloadsCheck, checkDownload(d))
}

func checkMethod(method string) error {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	return refuse(reasonMethodNotAllowed, errMethod)
}

// parseTarget finds out what the request asks for.
func (g *Gate) parseTarget(d *decision) (err error) {
	if d.target, err = parsePath(d.request.URL); err != nil {
		return refuse(reasonPathInvalid, err)
	}
	// Some origins ignore a slash at the end, so it must not make a guarded
	// name another one.
	name := strings.TrimSuffix(d.target.suffix.decoded, "/")
	d.kind = kindOf(name)
	d.manifest = d.kind == kindManifest
	d.download = g.downloads.match(name) ||
		len(name) != len(d.target.suffix.decoded) && g.downloads.match(d.target.suffix.decoded)
	if d.download && d.kind != kindIframe {
		d.kind = kindDownload
	}
	return nil
}

// authenticate establishes which video the request is for and that the viewer
// may ask for it: by a token, or by the id of a video that requires none. A
// token is enforced even where none is required.
func (a *App) authenticate(d *decision) (err error) {
	if d.target.token == "" {
		return a.authenticateByID(d)
	}
	verified, err := a.verify(d)
	if err == nil {
		if err = verified.checkTime(a.now(), a.policy); err != nil {
			err = refuse(tokenReason(err), err)
		}
	}
	if err != nil {
		a.assume(d, verified)
		return err
	}
	d.verified = verified
	d.video = verified.video.String()
	return a.settle(d, d.video)
}

// settle looks up the settings of the request's video. Errors are refusals.
func (a *App) settle(d *decision, videoID string) (err error) {
	d.settings, err = a.settings(d.request.Context(), videoID)
	d.unsettled = err != nil
	return err
}

func (a *App) authenticateByID(d *decision) (err error) {
	id := d.target.videoID
	err = a.settle(d, id)
	if err == nil && d.settings.requireSignedURLs {
		err = refuse(reasonTokenRequired, errTokenRequired)
	}
	if err == nil || d.goesOn(tokenCheck) {
		d.video = id
	}
	return err
}

// assume has a request whose token is refused go on, where that is only
// reported, for the video that the token names: whoever may ask for it without
// a token may do so with any. A token without a valid form names none.
func (a *App) assume(d *decision, verified *verifiedToken) {
	if d.trace == nil && !d.gate.mayReportTokens {
		return
	}
	parsed, err := token.Parse(d.target.token)
	if err != nil {
		return
	}
	claims := parsed.Unverified()
	_ = a.settle(d, claims.VideoID) // unsettled, the request ends with what is wrong with the token
	if !d.goesOn(tokenCheck) {
		return
	}
	d.video = claims.VideoID
	switch {
	case verified != nil:
		d.verified = verified
	case d.trace != nil && !d.reports(tokenCheck): // or what it says counts for nothing
		d.trace.assume(d, claims)
	}
}

// verifiedToken is what is known of a token for good: its signature holds and
// its rules can be evaluated. Whether it is valid at present is decided on each
// request. It is immutable, and as small as can be, for there may be a hundred
// thousand of them in the cache.
type verifiedToken struct {
	video              sharedText
	expires, notBefore int64 // in Unix seconds
	downloadable       bool
	rules              accessRules
	index              *ruleIndex // of the rules, nil if there are few
	key                *token.PublicKey
}

func newVerifiedToken(claims token.Claims, rules accessRules, key *token.PublicKey) *verifiedToken {
	return &verifiedToken{
		video:   shareText(claims.VideoID),
		expires: claims.ExpiresAt.Unix(), notBefore: claims.NotBefore.Unix(),
		downloadable: claims.Downloadable,
		rules:        rules,
		index:        rules.index(),
		key:          key,
	}
}

// matchRule is accessRules.match.
func (t *verifiedToken) matchRule(v viewer) (int, error) {
	if t.index != nil {
		return t.index.match(v)
	}
	return t.rules.match(v)
}

func (t *verifiedToken) expiresAt() time.Time { return time.Unix(t.expires, 0) }

func (t *verifiedToken) checkTime(now time.Time, policy token.Policy) error {
	dates := token.Claims{ExpiresAt: t.expiresAt(), NotBefore: time.Unix(t.notBefore, 0)}
	return dates.CheckTime(now, policy)
}

// verify returns the token of a request, if its signature holds: one that is
// remembered, or one that is verified now.
func (a *App) verify(d *decision) (*verifiedToken, error) {
	compact := d.target.token
	if known := a.tokens.get(compact, a.keys); known != nil {
		return known, nil
	}
	ctx := d.request.Context()
	parsed, key, err := a.parse(ctx, compact)
	if err != nil {
		return nil, d.refusal(err)
	}
	return a.tokens.verify(ctx, compact, key, func() (verified *verifiedToken, err error) {
		defer func() { a.metrics.countVerification(err) }()
		client := clientPrefix(d.request)
		if err := a.limit.enter(ctx, client); err != nil {
			return nil, err
		}
		defer a.limit.leave()
		began := time.Now()
		verified, err = verifyWith(key, parsed)
		a.metrics.verifySeconds.Observe(time.Since(began).Seconds())
		if errors.Is(err, token.ErrSignature) {
			a.limit.note(client)
		}
		return verified, err
	})
}

// parse checks the form of a token and finds its key. Anybody can send tokens
// with unknown keys, so a key that the header names is looked up before the
// payload is decoded.
func (a *App) parse(ctx context.Context, compact string) (parsed token.Parsed, key *token.PublicKey, err error) {
	header, err := token.ParseHeader(compact)
	if err != nil {
		return token.Parsed{}, nil, err
	}
	if header.KeyID() != "" {
		if key, err = a.key(ctx, header.KeyID()); err != nil {
			return token.Parsed{}, nil, err
		}
	}
	parsed, err = header.ParsePayload()
	if err == nil && key == nil {
		key, err = a.key(ctx, parsed.Unverified().KeyID)
	}
	return parsed, key, err
}

// verifyWith is a pure function of a token and its key.
func verifyWith(key *token.PublicKey, parsed token.Parsed) (*verifiedToken, error) {
	claims, err := parsed.Verify(key)
	if err != nil {
		return nil, refuse(tokenReason(err), err)
	}
	rules, err := compileRules(claims.AccessRules)
	if err != nil {
		return nil, refuse(reasonRulesInvalid, err)
	}
	return newVerifiedToken(claims, rules, key), nil
}

// key finds a key. One that is not known here may have been made on another
// node a moment ago. Errors are refusals or of package token.
func (a *App) key(ctx context.Context, keyID string) (*token.PublicKey, error) {
	if keyID == "" {
		return nil, token.ErrKeyUnknown
	}
	key := a.keys.Lookup(keyID)
	if key == nil && a.keys.mayAppear(keyID) {
		a.state.catchUp(ctx)
		key = a.keys.Lookup(keyID)
	}
	switch {
	case key != nil:
		return key, nil
	case !a.keys.certain(keyID):
		return nil, refuse(reasonStateUnavailable, errKeysUnknown)
	}
	return nil, token.ErrKeyUnknown
}

func checkRules(d *decision) (err error) {
	if d.verified == nil {
		return nil
	}
	if d.matchedRule, err = d.verified.matchRule(d); err != nil {
		return err
	}
	if !d.verified.rules.allow(d.matchedRule) {
		return refuse(reasonRuleBlocked, errRuleBlocked)
	}
	return nil
}

// checkDownload holds downloads to the `downloadable` claim. A request without
// a token has no such claim, even where the video itself requires none.
func checkDownload(d *decision) error {
	if !d.download || d.verified != nil && d.verified.downloadable {
		return nil
	}
	return refuse(reasonDownloadNotAllowed, errDownload)
}

var (
	errMethod          = errors.New("a playback URL is for GET, HEAD and OPTIONS")
	errTokenRequired   = errors.New("the video requires a signed token")
	errKeysUnknown     = errors.New("the key cannot be looked up: the store or the remote key set has not been read, or the key's object is damaged")
	errRuleBlocked     = errors.New("an access rule of the token blocks the viewer")
	errDownload        = errors.New("downloads need a token with the claim downloadable")
	errClientIP        = errors.New("an access rule needs the viewer's address, which is unknown")
	errTooEarly        = errors.New("an access rule needs the viewer's address, which the TLS handshake has yet to confirm")
	errSettingsUnknown = errors.New("the settings of the video cannot be read, or their object is damaged")
	errNoDatabase      = errors.New("an access rule needs the viewer's country, and there is no geo database; set geoip_database")
	errDatabase        = errors.New("an access rule needs the viewer's country, which the geo database cannot tell")
)

// originRequest makes the request that the origin gets of the viewer's. done
// must be called when it has been answered.
func (g *Gate) originRequest(r *http.Request, d *decision) (forOrigin *http.Request, done func()) {
	g.address(r, d)
	removeViewerHeaders(r.Header)
	limitRanges(r.Header)
	switch {
	case d.manifest:
		return prepareManifestRequest(r)
	case d.kind == kindOther:
		// It may turn out to be a manifest.
		askForWhole(r.Header)
	}
	return r, func() {}
}

// address gives the request the path that the video has at the origin: it is
// built from the video id and the suffix, and nothing of the viewer's path is
// left.
func (g *Gate) address(r *http.Request, d *decision) {
	path := g.originPath.file(d.video, d.target.suffix.escaped)
	r.URL.User = nil
	r.URL.Path, r.URL.RawPath = path, path
	if d.target.suffix.decoded != d.target.suffix.escaped {
		r.URL.Path = g.originPath.file(d.video, d.target.suffix.decoded)
	}
	r.RequestURI = path
	if d.query != "" || r.URL.ForceQuery {
		r.RequestURI = path + "?" + d.query
	}
}

// removeViewerHeaders removes what the origin must not see, because it may
// carry the token, and what it must not act on: headers by which some origins
// let a request name another path or method than its own, and an upgrade, which
// would outlive the token.
func removeViewerHeaders(h http.Header) {
	for name := range h {
		switch name {
		case "Referer", "Origin",
			"X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Forwarded-Method",
			"X-Original-Url", "X-Original-Uri", "X-Original-Method", "X-Rewrite-Url",
			"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
			"Connection", "Upgrade", "Http2-Settings", "Expect", "Content-Length", "Trailer":
			delete(h, name)
		}
	}
}

// maxRanges is how many byte ranges a request may ask for at once. Players ask
// for one.
const maxRanges = 8

// limitRanges drops a Range header by which a short request could have the
// origin send a file many times over. The answer is then the whole file, as RFC
// 9110 section 14.2 allows.
func limitRanges(h http.Header) {
	ranges := h["Range"]
	if len(ranges) > 1 || len(ranges) == 1 && strings.Count(ranges[0], ",") >= maxRanges {
		delete(h, "Range")
		delete(h, "If-Range")
	}
}

// dropBody makes sure that a body ends here: no method of playback has one, and
// what two servers disagree about is a second request.
func dropBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 && len(r.TransferEncoding) == 0 {
		return
	}
	r.Body = http.NoBody
	r.ContentLength = 0
	r.TransferEncoding = nil
	r.Trailer = nil
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// decision is what the gate finds out about one request. It belongs to the
// request's goroutine.
type decision struct {
	gate     *Gate
	app      *App
	request  *http.Request
	target   target
	kind     kind
	manifest bool           // by its name; a download can be one too
	download bool           // needs the claim; the iframe can be one too
	video    string         // "" until the viewer has proved to be allowed to ask for it
	verified *verifiedToken // nil for a request by video id
	settings settings

	unsettled   bool // the settings cannot be read
	where       where
	matchedRule int // of the token's access rules, or noRule

	result result
	reason reason // of a refusal, or of one that is only reported; else ""
	trace  *trace // nil but for a request that is explained

	// As the viewer has sent them, before the request becomes the origin's.
	query         string
	requestOrigin string

	refused  refusal
	logged   bool
	response response // here, so that both are one allocation
}

// refusal makes a refusal of an error of package token. It takes no memory of
// its own, for a flood of garbage must cost as little as can be.
func (d *decision) refusal(err error) error {
	if why, ok := err.(*refusal); ok { //nolint:errorlint // of this package, and never wrapped
		return why
	}
	d.refused = refusal{tokenReason(err), err}
	return &d.refused
}

// refuse makes the answer of a refusal.
func (d *decision) refuse(w http.ResponseWriter, err error) error {
	d.result = resultRefused
	if why, ok := errors.AsType[*refusal](err); ok {
		d.reason = why.reason
	}
	d.log()
	return deny(w, err)
}

// result is what became of a request. It is a label of metrics and a value of
// logs, so it stays one of a closed set.
type result string

const (
	resultAllowed     result = "allowed"
	resultRefused     result = "refused"
	resultWouldRefuse result = "would_refuse"
	resultPreflight   result = "preflight"
)

// count counts the request by what became of it.
func (d *decision) count() {
	if d.trace == nil {
		d.app.metrics.countRequest(d.result, d.reason, d.kind)
	}
}

// address implements viewer. The address is the one that Caddy has determined,
// so trusted_proxies decides whose headers count. IPv4-mapped IPv6 addresses
// become IPv4 and zones are dropped, lest an IPv4 rule miss its viewer.
func (d *decision) address() (netip.Addr, error) {
	if d.where.addr.IsValid() {
		return d.where.addr, nil
	}
	// Without a finished handshake the address may be spoofed and the
	// request replayed (RFC 8470); Caddy's own matchers do the same.
	if tls := d.request.TLS; tls != nil && !tls.HandshakeComplete {
		return netip.Addr{}, refuse(reasonTooEarly, errTooEarly)
	}
	addr, ok := clientAddress(d.request)
	if !ok {
		return netip.Addr{}, refuse(reasonClientIPUnknown, errClientIP)
	}
	d.where.addr = addr
	return addr, nil
}

func clientAddress(r *http.Request) (addr netip.Addr, ok bool) {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(text)
	return addr.Unmap().WithZone(""), err == nil
}

// country implements viewer.
func (d *decision) country() (geo.CountryCode, error) {
	if d.where.known {
		return d.where.country, nil
	}
	if d.app.countries == nil {
		return geo.CountryCode{}, refuse(reasonCountryUnavailable, errNoDatabase)
	}
	addr, err := d.address()
	if err != nil {
		return geo.CountryCode{}, err
	}
	code, err := d.app.countries.Country(addr)
	if err != nil {
		return geo.CountryCode{}, refuse(reasonCountryUnavailable, errDatabase)
	}
	d.where.country, d.where.known = code, true
	return code, nil
}

// where is where a viewer is, looked up for the first rule that asks.
type where struct {
	addr    netip.Addr // valid once it has been looked up
	country geo.CountryCode
	known   bool // the country
}

// record offers the decision as placeholders and, where there is an access log,
// as its fields. Both read it when somebody asks, so it may be recorded before
// it is made, and what nobody asks for costs nothing.
func (d *decision) record() {
	ctx := d.request.Context()
	d.trace, _ = ctx.Value(traceKey{}).(*trace)
	if span := oteltrace.SpanFromContext(ctx); span.IsRecording() {
		redactSpan(span, d.request.URL.Path)
	}
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(d.placeholder)
	}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); !ok || server == nil || server.Logs != nil {
		d.log()
	}
}

// log adds the decision to the fields of log lines about the request: those of
// the access log, and, if there is an error, of the error log.
func (d *decision) log() {
	extra, ok := d.request.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if ok && !d.logged {
		d.logged = true
		extra.Add(zap.Inline(d))
	}
}

// recorded are the names under which a decision is seen.
var recorded = [...]string{"video", "kind", "key_id", "token_id", "country", "result", "reason"}

func (d *decision) placeholder(name string) (any, bool) {
	name, ok := strings.CutPrefix(name, "http.signed_playback.")
	if !ok {
		return nil, false
	}
	return d.value(name)
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (d *decision) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	for _, name := range recorded {
		if value, _ := d.value(name); value != "" {
			enc.AddString("signed_playback_"+name, value)
		}
	}
	return nil
}

// value returns what is known under one of the recorded names.
func (d *decision) value(name string) (value string, ok bool) {
	switch name {
	case "video":
		return d.video, true
	case "kind":
		return string(d.kind), true
	case "key_id":
		if d.verified == nil || d.verified.key == nil {
			return "", true
		}
		return d.verified.key.ID(), true
	case "token_id":
		return tokenID(d.target.token), true
	case "country":
		return d.knownCountry(), true
	case "result":
		return string(d.result), true
	case "reason":
		return string(d.reason), true
	}
	return "", false
}

// knownCountry returns the viewer's country, "" if it cannot be told. It
// decides nothing.
func (d *decision) knownCountry() string {
	addr, ok := clientAddress(d.request)
	if !ok || d.app.countries == nil {
		return ""
	}
	code, err := d.app.countries.Country(addr)
	if err != nil {
		return ""
	}
	return code.String()
}

// tokenID names a token in logs: the first 16 hexadecimal digits of its
// SHA-256, which lead nobody to the token.
func tokenID(compact string) string {
	if compact == "" {
		return ""
	}
	digest := sha256.Sum256([]byte(compact))
	return hex.EncodeToString(digest[:8])
}
