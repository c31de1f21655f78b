// Package controlapi is the control API: it makes and revokes signing keys,
// mints tokens and keeps settings of videos, in the shapes of Cloudflare
// Stream's API, so that its SDKs and scripts work when they are pointed at
// <host>/client/v4.
package controlapi

import (
	"context"
	_ "embed" // openapi.json
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	pathPrefix = "/client/v4"

	// maxBodyBytes is more than any call needs.
	maxBodyBytes = 64 << 10
	maxBodyDepth = 32

	// One list of videos at a time reads the whole store. Other lists wait for their
	// turn.
	maxWaitingLists = 64
	maxWaitForList  = time.Minute
)

// Config is what a Server gets from its host. All functions and loggers are required, and
// at least one credential.
type Config struct {
	State *state.State

	// BearerTokens authorize as `Authorization: Bearer <secret>`, AuthKeys as
	// `X-Auth-Email` and `X-Auth-Key`. Resolve replaces placeholders in them. Its
	// errors must not contain a secret.
	BearerTokens []string
	AuthKeys     []AuthKey
	Resolve      func(string) (string, error)

	// Account is the only account id that is answered, "" for any.
	Account string

	// LookupKey finds a key of any origin, or returns nil. authoritative is false if
	// the key may exist in a place that cannot be read now.
	LookupKey func(keyID string) (key *token.PublicKey, authoritative bool)

	// Revocable reports whether there is a key to revoke, of any origin. It may
	// already be revoked, or its object damaged.
	Revocable func(keyID string) bool

	// CheckRules checks the `accessRules` of a token or a video. A warning describes a valid
	// rule that probably does something else than the client wants.
	CheckRules func(rules json.RawMessage) (warnings []string, err error)

	// Defaults are the settings of videos without settings. Videos are those of
	// the config file, by id, which the API cannot change.
	Defaults VideoSettings
	Videos   map[string]VideoSettings

	// Sessions are the playback sessions of the fleet, nil with sessions off.
	Sessions *sessions.Tracker

	// MaxSession is how long a session may be extended beyond its token, 0 for not at all.
	MaxSession time.Duration

	// PublicURL comes before playback paths, "" for paths without a host.
	PublicURL string

	// Policy is that of the gate.
	Policy token.Policy

	// Explain replays a request in the running config, and returns each check with its
	// outcome. Its errors are for the client.
	Explain func(context.Context, ExplainedRequest) (any, error)

	// Refusals returns the refusals of the last hours.
	Refusals func() Refusals

	// Gateway describes the running config, except what this Config has.
	Gateway func() (Gateway, error)

	ClientAddress func(*http.Request) netip.Addr
	Logger        *zap.Logger
	Now           func() time.Time

	// SampledLogger is for lines that anybody can cause. It keeps only some of
	// them.
	SampledLogger *zap.Logger
}

// VideoSettings are the settings of a video in the config file.
type VideoSettings struct {
	RequireSignedURLs bool
	AllowedOrigins    []string        // empty for any
	AccessRules       json.RawMessage // of this video alone, nil for none of its own
	AvailableFrom     *time.Time      // nil for no bound
	AvailableUntil    *time.Time      // the same
}

// Server answers calls. It is safe for concurrent use.
type Server struct {
	Config
	credentials credentials
	failures    *worklimit.Networks // of credentials
	warnings    rate.Sometimes      // of such failures
	lists       *queue.Queue
}

// New returns a Server. Errors name the option that is wrong, and no secret.
func New(config Config) (*Server, error) {
	if config.Account != "" {
		if err := CheckAccount(config.Account); err != nil {
			return nil, err
		}
	}
	credentials, err := newCredentials(config)
	if err != nil {
		return nil, err
	}
	return &Server{
		Config:      config,
		credentials: credentials,
		failures:    worklimit.NewNetworks(failureRate, failureBurst),
		warnings:    rate.Sometimes{Interval: warningInterval},
		lists:       queue.New(semaphore.NewWeighted(1), maxWaitingLists, maxWaitForList),
	}, nil
}

// Serves reports whether a path belongs to the API.
func Serves(path string) bool {
	return path == pathPrefix || strings.HasPrefix(path, pathPrefix+"/")
}

// ServeHTTP implements http.Handler, for requests whose path Serves.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{Server: s, request: r}
	result, err := c.serve(w)
	status := c.answer(w, result, err)
	c.log(status, err)
}

// call is one call of the API. It belongs to the request's goroutine.
type call struct {
	*Server
	request  *http.Request
	route    string // the call's name, for the log
	subject  string // the id in the path
	messages []message
	counts   *listCounts
	changed  []zap.Field // what the call has changed, for the log
}

func (c *call) ctx() context.Context { return c.request.Context() }

// message is an element of `errors` and `messages`.
type message struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// refusal is the error of a refused call.
type refusal struct {
	status int
	message
}

func (e *refusal) Error() string { return e.Message }

// The codes are Cloudflare's if its meaning is known.
const (
	codeRoute       = 7003
	codeCredentials = 10000
	codeUnavailable = 10001
	codeForbidden   = 10002
	codeNotFound    = 10003
	codeBadRequest  = 10005
	codeTooLarge    = 10006
	codeInternal    = 10007
	codeLimited     = 10008

	codeWarning = 10100
)

// refuse returns a refusal. Its text has no token: a client may send one in any place.
func refuse(status, code int, format string, args ...any) error {
	return &refusal{status, message{code, redact.Tokens(fmt.Sprintf(format, args...))}}
}

func badRequest(format string, args ...any) error {
	return refuse(http.StatusBadRequest, codeBadRequest, format, args...)
}

func (c *call) warn(format string, args ...any) {
	c.messages = append(c.messages, message{codeWarning, fmt.Sprintf(format, args...)})
}

// serve checks the credential and makes the call.
func (c *call) serve(w http.ResponseWriter) (result any, err error) {
	if err := c.authorize(c.request); err != nil {
		return nil, err
	}
	// An attacker who records a request of an unfinished handshake can repeat it
	// (RFC 8470).
	if tls := c.request.TLS; tls != nil && !tls.HandshakeComplete {
		return nil, refuse(http.StatusTooEarly, codeBadRequest, "the TLS handshake is unfinished; try again")
	}
	found, err := c.find()
	if err != nil {
		return nil, err
	}
	body, err := c.body(w)
	if err != nil {
		return nil, err
	}
	return found.handle(c, body)
}

// route is one call of the API. For a call without a body, body is the zero Value.
type route struct {
	name   string
	handle func(c *call, body strictjson.Value) (result any, err error)
}

// These calls change nothing, although their method is POST.
const (
	checkRoute   = "videos.check"
	explainRoute = "explain"
)

// describedAPI is the call that belongs to no account.
var describedAPI = route{"openapi.get", func(*call, strictjson.Value) (any, error) { return openAPI, nil }}

// routes are the other calls by method and by the path below .../stream. A * is an id.
var routes = map[string]route{
	"GET ":               {"videos.list", (*call).listVideos},
	"GET /keys":          {"keys.list", (*call).listKeys},
	"POST /keys":         {"keys.create", (*call).createKey},
	"POST /keys/rotate":  {"keys.rotate", (*call).rotateKey},
	"DELETE /keys/*":     {"keys.delete", (*call).deleteKey},
	"GET /*":             {"videos.get", (*call).getVideo},
	"POST /*":            {"videos.edit", (*call).editVideo},
	"DELETE /*":          {"videos.delete", (*call).deleteVideo},
	"POST /*/check":      {checkRoute, (*call).checkEdit},
	"POST /*/token":      {"token.create", (*call).createToken},
	"POST /*/purge":      {"videos.purge", (*call).purgeVideo},
	"GET /*/sessions":    {"sessions.list", (*call).listVideoSessions},
	"GET /sessions":      {"sessions.list", (*call).listViewerSessions},
	"POST /sessions/*":   {"sessions.extend", (*call).extendSession},
	"DELETE /sessions/*": {"sessions.delete", (*call).endSession},

	"GET /sessions/live":    {"sessions.live", (*call).listLive},
	"POST /explain":         {explainRoute, (*call).explain},
	"GET /refusals":         {"refusals", (*call).listRefusals},
	"GET /gateway":          {"gateway", (*call).describeGateway},
	"GET /revocations":      {"revocations.list", (*call).listRevocations},
	"POST /revocations":     {createRevocationsRoute, (*call).createRevocations},
	"DELETE /revocations/*": {"revocations.delete", (*call).deleteRevocation},
}

// reserved are the names below stream that are no video's.
var reserved = map[string]bool{
	"keys": true, "sessions": true, "revocations": true, "explain": true, "refusals": true, "gateway": true,
}

// find returns the route of the request, sets the subject, and checks it if it is
// a video id. It reads the path as the client has sent it, so no part of it has a
// second spelling.
func (c *call) find() (route, error) {
	path := c.request.URL.EscapedPath()
	if path == pathPrefix+"/openapi.json" && c.request.Method == http.MethodGet {
		c.route = describedAPI.name
		return describedAPI, nil
	}
	rest, ok := strings.CutPrefix(path, pathPrefix+"/accounts/")
	account, rest, _ := strings.Cut(rest, "/")
	pattern, isStream := strings.CutPrefix(rest, "stream")
	if !ok || !isStream || CheckAccount(account) != nil || c.Account != "" && account != c.Account {
		return route{}, noRoute(path)
	}
	subject := ""
	below, isBelow := strings.CutPrefix(pattern, "/")
	switch first, rest, hasRest := strings.Cut(below, "/"); {
	case !isBelow, pattern == "/keys/rotate", c.request.Method == http.MethodGet && pattern == "/sessions/live":
	case !reserved[first]:
		subject, pattern = first, "/*"+below[len(first):]
	case hasRest:
		subject, pattern = rest, "/"+first+"/*" // the calls refuse a slash in an id
	}
	if pattern == "/*" && subject == "" {
		return route{}, noRoute(path)
	}
	found, ok := routes[c.request.Method+" "+pattern]
	if !ok {
		for known := range routes {
			if _, of, _ := strings.Cut(known, " "); of == pattern {
				return route{}, refuse(http.StatusNotFound, codeRoute, "no route for that URI with the method %.20q", c.request.Method)
			}
		}
		return route{}, noRoute(path)
	}
	c.route, c.subject = found.name, subject
	if strings.HasPrefix(pattern, "/*") {
		return found, c.checkVideo()
	}
	return found, nil
}

func noRoute(path string) error {
	return refuse(http.StatusNotFound, codeRoute,
		"could not route to %.200q, perhaps your object identifier is invalid? That is no call of this API, or not its account", path)
}

// CheckAccount checks the option Account, which has the form of video ids.
func CheckAccount(account string) error {
	if !token.ValidVideoID(account) {
		return fmt.Errorf("account %q: want 1 to 64 of A-Z a-z 0-9 _ -", account)
	}
	return nil
}

// body reads the body as one JSON object, or as an array for the one call that takes it,
// and ignores its Content-Type: the curl lines of Cloudflare's documentation send that of
// a form.
func (c *call) body(w http.ResponseWriter) (strictjson.Value, error) {
	bulk, longest := c.route == createRevocationsRoute, int64(maxBodyBytes)
	if bulk {
		longest = maxBulkBytes
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, c.request.Body, longest))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return strictjson.Value{}, refuse(http.StatusRequestEntityTooLarge, codeTooLarge,
			"the body is longer than %d bytes", longest)
	}
	if err != nil {
		return strictjson.Value{}, badRequest("the body could not be read")
	}
	text := strings.Trim(string(data), " \t\r\n") // the white space of RFC 8259
	if text == "" || text == "null" {
		return strictjson.Value{}, nil
	}
	body, err := strictjson.Parse(data, maxBodyDepth)
	if err != nil {
		return strictjson.Value{}, badRequest("the body: %v", err)
	}
	if !body.IsObject() && (!bulk || !body.IsArray()) {
		return strictjson.Value{}, badRequest("the body is not a JSON object")
	}
	return body, nil
}

// description is an answer without an envelope: the calls, their parameters and answers as an
// OpenAPI 3.1 document.
type description []byte

//go:embed openapi.json
var openAPI description

// envelope wraps every other answer.
type envelope struct {
	Result   any       `json:"result"`
	Success  bool      `json:"success"`
	Errors   []message `json:"errors"`
	Messages []message `json:"messages"`
	*listCounts
}

// answer writes the result of a call.
func (c *call) answer(w http.ResponseWriter, result any, err error) (status int) {
	status = http.StatusOK
	out := envelope{Result: result, Success: err == nil, Errors: []message{}, Messages: []message{}, listCounts: c.counts}
	if err != nil {
		why := refusalOf(err)
		status = why.status
		out.Result, out.Errors = nil, []message{why.message}
	}
	out.Messages = append(out.Messages, c.messages...)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
	body, isDescription := result.(description)
	if !isDescription {
		body, err = json.Marshal(out)
	}
	if err != nil {
		c.Logger.Error("could not encode an answer", zap.Error(err))
		status, body = http.StatusInternalServerError, nil
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return status
}

// refusalOf maps an error to an answer. Only the log has the text of an error without
// a mapping.
func refusalOf(err error) *refusal {
	if why, ok := errors.AsType[*refusal](err); ok {
		return why
	}
	status, code, text := http.StatusInternalServerError, codeInternal, "internal error; the server's log says more"
	switch {
	case errors.Is(err, state.ErrKeyLimit):
		status, code, text = http.StatusBadRequest, codeBadRequest, err.Error()
	case errors.Is(err, state.ErrRevocationLimit):
		status, code, text = http.StatusForbidden, codeForbidden, err.Error()
	case errors.Is(err, state.ErrTooManyKeys), errors.Is(err, errTooManyLists):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, err.Error()
	case errors.Is(err, sessions.ErrUnavailable):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, "the Redis of the sessions is not available; try again later"
	case errors.Is(err, state.ErrBusy):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, "another node is writing the same object; try again in a moment"
	case errors.Is(err, state.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, "the store is not available; try again later. A change that was asked for is not certain to have been made"
	}
	return &refusal{status, message{code, text}}
}

// quotedText matches a quotation in an error, usually of something that the
// client has sent.
var quotedText = regexp.MustCompile(`"(?:[^"\\]|\\.)*"?`)

// reads reports whether the call is a known one that changes nothing.
func (c *call) reads() bool {
	return c.route == checkRoute || c.route == explainRoute || c.route != "" && c.request.Method == http.MethodGet
}

// log logs the call, its client and its result. It omits the path and quotations of
// the request, which may contain a secret. Pages read every few seconds, and check a form
// while somebody types, so INFO lines are only about changes, tried or made.
func (c *call) log(status int, err error) {
	fields := []zap.Field{zap.String("call", c.route), zap.Int("status", status), zap.Stringer("client_ip", c.ClientAddress(c.request))}
	if state.ValidKeyID(c.subject) { // video ids are valid, too
		fields = append(fields, zap.String("id", c.subject))
	}
	fields = append(fields, c.changed...)
	if err != nil {
		fields = append(fields, zap.String("error", quotedText.ReplaceAllString(err.Error(), `"…"`)))
	}
	level := zap.InfoLevel
	if c.reads() {
		level = zap.DebugLevel
	}
	switch {
	case status == http.StatusUnauthorized:
		c.SampledLogger.Info("call of the control API refused", fields...)
	case status == http.StatusTooManyRequests:
		c.Logger.Debug("call of the control API refused", fields...)
	case status >= http.StatusInternalServerError:
		c.Logger.Error("call of the control API failed", fields...)
	case status >= http.StatusBadRequest:
		c.Logger.Log(level, "call of the control API refused", fields...)
	default:
		c.Logger.Log(level, "call of the control API", fields...)
	}
}
