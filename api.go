package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	caddy.RegisterModule(new(API))
}

// API is the control API: it makes and revokes signing keys, mints tokens and
// keeps settings of videos, in the shapes of Cloudflare Stream's API, so that
// its SDKs and scripts work when they are pointed at `<host>/client/v4`.
// Requests for other paths go on to the next handler.
//
// At least one credential is required.
type API struct {
	// Secrets that authorize as `Authorization: Bearer <secret>`. Placeholders
	// are resolved.
	BearerTokens []string `json:"bearer_token,omitempty"`

	// Pairs that authorize as `X-Auth-Email` and `X-Auth-Key`.
	AuthKeys []AuthKey `json:"auth_key,omitempty"`

	// The only account id that is answered. Placeholders are resolved. Default:
	// any.
	Account string `json:"account,omitempty"`

	app         *App
	logger      *zap.Logger
	credentials credentials
	failures    *failureLimit
	account     string
	listing     chan struct{} // one list of videos at a time reads the whole store
}

// AuthKey is an email address and the key that goes with it.
type AuthKey struct {
	// What `X-Auth-Email` says. Placeholders are resolved.
	Email string `json:"email"`

	// What `X-Auth-Key` says. Placeholders are resolved.
	Key string `json:"key"`
}

// CaddyModule returns the Caddy module information.
func (*API) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.signed_playback_api",
		New: func() caddy.Module { return new(API) },
	}
}

// Provision compiles the configuration.
func (a *API) Provision(ctx caddy.Context) error {
	app, err := ctx.App(appID)
	if err != nil {
		return fmt.Errorf("loading app %s: %w", appID, err)
	}
	a.app = app.(*App)
	a.logger = ctx.Logger()
	a.failures = newFailureLimit()
	a.listing = make(chan struct{}, 1)
	if a.account, err = resolve(a.Account); err != nil {
		return fmt.Errorf("account: %w", err)
	}
	if a.account != "" {
		if err := checkAccount(a.account); err != nil {
			return err
		}
	}
	a.credentials, err = a.provisionCredentials()
	return err
}

const (
	apiPrefix = "/client/v4"

	// maxBodyBytes is more than any call needs.
	maxBodyBytes = 64 << 10
	maxBodyDepth = 32
)

// ServeHTTP answers calls of the API and hands other requests on.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if r.URL.Path != apiPrefix && !strings.HasPrefix(r.URL.Path, apiPrefix+"/") {
		return next.ServeHTTP(w, r)
	}
	if r.Header["X-Auth-Key"] != nil {
		// Caddy's access log has every header but Authorization and Cookie. A
		// secret must not get there, so the line below has to do.
		caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	}
	c := &call{api: a, request: r}
	result, err := c.serve(w)
	if err == nil && c.finish != nil && r.Context().Err() != nil {
		c.finish()
	}
	status := a.answer(w, c, result, err)
	c.log(status, err)
	return nil
}

// call is one call of the API. It belongs to the request's goroutine.
type call struct {
	api      *API
	request  *http.Request
	route    string // the call's name, for the log
	subject  string // the id that it is about, once it is checked
	messages []apiMessage
	counts   *listCounts
	changed  []zap.Field // what the call has changed, for the log

	// Undoes what the call has made, for a caller who has left before the
	// answer. May be nil.
	finish func()
}

// apiMessage is an element of `errors` and `messages`.
type apiMessage struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// apiError is a refused call.
type apiError struct {
	status int
	apiMessage
}

func (e *apiError) Error() string { return e.Message }

// The codes are Cloudflare's where its meaning is known.
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

func failure(status, code int, format string, args ...any) error {
	return &apiError{status, apiMessage{code, fmt.Sprintf(format, args...)}}
}

func badRequest(format string, args ...any) error {
	return failure(http.StatusBadRequest, codeBadRequest, format, args...)
}

func (c *call) warn(format string, args ...any) {
	c.messages = append(c.messages, apiMessage{codeWarning, fmt.Sprintf(format, args...)})
}

// serve checks who is calling and does what is asked for.
func (c *call) serve(w http.ResponseWriter) (result any, err error) {
	if err := c.api.authorize(c.request); err != nil {
		return nil, err
	}
	// Whoever records a request of an unfinished handshake can repeat it (RFC
	// 8470).
	if tls := c.request.TLS; tls != nil && !tls.HandshakeComplete {
		return nil, failure(http.StatusTooEarly, codeBadRequest, "the TLS handshake is unfinished; try again")
	}
	handle, err := c.api.find(c)
	if err != nil {
		return nil, err
	}
	body, err := c.body(w)
	if err != nil {
		return nil, err
	}
	return handle(c, body)
}

// handleFunc does one call. body is the zero Value where there is none.
type handleFunc func(c *call, body strictjson.Value) (result any, err error)

// find returns what handles a request. The path is looked at as it was sent, so
// nothing in it has a second spelling.
func (a *API) find(c *call) (handleFunc, error) {
	path, ok := strings.CutPrefix(c.request.URL.EscapedPath(), apiPrefix+"/accounts/")
	account, path, hasPath := strings.Cut(path, "/")
	if !ok || !hasPath || checkAccount(account) != nil || a.account != "" && account != a.account {
		return nil, a.noRoute(c)
	}
	resource, path, below := strings.Cut(path, "/")
	if resource != "stream" {
		return nil, a.noRoute(c)
	}
	first, second, two := strings.Cut(path, "/")
	method := c.request.Method
	switch {
	case !below:
		return c.pick(method, map[string]route{http.MethodGet: {"videos.list", (*call).listVideos}})
	case path == "":
		return nil, a.noRoute(c)
	case path == "keys":
		return c.pick(method, map[string]route{
			http.MethodGet:  {"keys.list", (*call).listKeys},
			http.MethodPost: {"keys.create", (*call).createKey},
		})
	case path == "keys/rotate":
		return c.pick(method, map[string]route{http.MethodPost: {"keys.rotate", (*call).rotateKey}})
	case first == "keys":
		c.subject = second
		return c.pick(method, map[string]route{http.MethodDelete: {"keys.delete", (*call).deleteKey}})
	case !two:
		c.subject = first
		return c.pick(method, map[string]route{
			http.MethodGet:    {"videos.get", (*call).getVideo},
			http.MethodPost:   {"videos.edit", (*call).editVideo},
			http.MethodDelete: {"videos.delete", (*call).deleteVideo},
		})
	case second == "token":
		c.subject = first
		return c.pick(method, map[string]route{http.MethodPost: {"token.create", (*call).createToken}})
	}
	return nil, a.noRoute(c)
}

type route struct {
	name   string
	handle handleFunc
}

func (c *call) pick(method string, routes map[string]route) (handleFunc, error) {
	chosen, ok := routes[method]
	if !ok {
		return nil, failure(http.StatusNotFound, codeRoute, "no route for that URI with the method %.20q", method)
	}
	c.route = chosen.name
	return chosen.handle, nil
}

func (*API) noRoute(c *call) error {
	return failure(http.StatusNotFound, codeRoute,
		"could not route to %.200q, perhaps your object identifier is invalid? That is no call of this API, or not its account", c.request.URL.EscapedPath())
}

// checkAccount holds account ids to the form of video ids.
func checkAccount(account string) error {
	if !token.ValidVideoID(account) {
		return fmt.Errorf("account %q: want 1 to 64 of A-Z a-z 0-9 _ -", account)
	}
	return nil
}

// body reads the body as one JSON object, whatever its Content-Type says: the
// curl lines of Cloudflare's documentation say that it is a form.
func (c *call) body(w http.ResponseWriter) (strictjson.Value, error) {
	data, err := io.ReadAll(http.MaxBytesReader(w, c.request.Body, maxBodyBytes))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return strictjson.Value{}, failure(http.StatusRequestEntityTooLarge, codeTooLarge,
			"the body is longer than %d bytes", maxBodyBytes)
	}
	if err != nil {
		return strictjson.Value{}, badRequest("the body could not be read")
	}
	text := strings.TrimSpace(string(data))
	if text == "" || text == "null" {
		return strictjson.Value{}, nil
	}
	body, err := strictjson.Parse(data, maxBodyDepth)
	if err != nil {
		return strictjson.Value{}, badRequest("the body: %v", err)
	}
	if !body.IsObject() {
		return strictjson.Value{}, badRequest("the body is not a JSON object")
	}
	return body, nil
}

// members hands each member of a body to what reads it. One that nobody reads
// is an error: it may be the one that was to keep somebody out.
func members(body strictjson.Value, readers map[string]func(strictjson.Value) error) error {
	for name, value := range body.Members() {
		read, known := readers[string(name)]
		if !known {
			return unknownMember(string(name), readers)
		}
		if read == nil {
			continue
		}
		if err := read(value); err != nil {
			return err
		}
	}
	return nil
}

func unknownMember(name string, readers map[string]func(strictjson.Value) error) error {
	var settable []string
	for known, read := range readers {
		if strings.EqualFold(known, name) {
			return badRequest("unknown member %.80q: did you mean %q?", name, known)
		}
		if read != nil {
			settable = append(settable, known)
		}
	}
	if len(settable) == 0 {
		return badRequest("unknown member %.80q: this call takes none", name)
	}
	slices.Sort(settable)
	return badRequest("unknown member %.80q; known are %s", name, strings.Join(settable, ", "))
}

// envelope is what every answer is wrapped in.
type envelope struct {
	Result   any          `json:"result"`
	Success  bool         `json:"success"`
	Errors   []apiMessage `json:"errors"`
	Messages []apiMessage `json:"messages"`
	*listCounts
}

// answer writes the outcome of a call.
func (a *API) answer(w http.ResponseWriter, c *call, result any, err error) (status int) {
	status = http.StatusOK
	out := envelope{Result: result, Success: err == nil, Errors: []apiMessage{}, Messages: []apiMessage{}, listCounts: c.counts}
	if err != nil {
		why := apiErrorOf(err)
		status = why.status
		out.Result, out.Errors = nil, []apiMessage{why.apiMessage}
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
	body, err := json.Marshal(out)
	if err != nil {
		a.logger.Error("encoding an answer", zap.Error(err))
		status, body = http.StatusInternalServerError, nil
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return status
}

// apiErrorOf makes an answer of an error. What is not meant for callers goes to
// the log alone.
func apiErrorOf(err error) *apiError {
	if why, ok := errors.AsType[*apiError](err); ok {
		return why
	}
	status, code, text := http.StatusInternalServerError, codeInternal, "internal error; the server's log says more"
	switch {
	case errors.Is(err, store.ErrBusy):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, "another node is writing the same object; try again in a moment"
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, "the store is not available; try again later. A change that was asked for is not certain to have been made"
	case errors.Is(err, errTooManyKeys):
		status, code, text = http.StatusServiceUnavailable, codeUnavailable, errTooManyKeys.Error()
	}
	return &apiError{status, apiMessage{code, text}}
}

// quoted matches what an error quotes, most often of what the caller has sent.
var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"?`)

// log notes what was done by whom, and never a secret: neither the path nor
// what is quoted of the call, for somebody may have put one there.
func (c *call) log(status int, err error) {
	address, _ := clientAddress(c.request)
	fields := []zap.Field{zap.String("call", c.route), zap.Int("status", status), zap.Stringer("client_ip", address)}
	if c.subject != "" && validSubject(c.subject) {
		fields = append(fields, zap.String("id", c.subject))
	}
	fields = append(fields, c.changed...)
	if err != nil {
		fields = append(fields, zap.String("error", quoted.ReplaceAllString(err.Error(), `"…"`)))
	}
	switch {
	case status == http.StatusTooManyRequests:
		c.api.logger.Debug("call of the control API refused", fields...)
	case status >= http.StatusInternalServerError:
		c.api.logger.Error("call of the control API failed", fields...)
	case status >= http.StatusBadRequest:
		c.api.logger.Info("call of the control API refused", fields...)
	default:
		c.api.logger.Info("call of the control API", fields...)
	}
}

func validSubject(id string) bool {
	_, err := store.NewName(store.Keys, id)
	return err == nil
}

// Interface guards
var (
	_ caddy.Module                = (*API)(nil)
	_ caddy.Provisioner           = (*API)(nil)
	_ caddyhttp.MiddlewareHandler = (*API)(nil)
)
