package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/command"
	"github.com/signed-playback/caddy-signed-playback/internal/console"
	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
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

	// Whether the operator's page is served at `/console/`. It needs a bearer token to
	// sign in with. The page is static and open to everybody; all that it shows and does is
	// a call of the API. It shows players of the origin of `public_url`, and of no other.
	// Default: off.
	Console bool `json:"console,omitempty"`

	app    *App
	ctx    caddy.Context
	server *controlapi.Server
	page   *console.Page // nil without Console
}

// AuthKey is an email address and the key that belongs to it.
type AuthKey struct {
	// The value of `X-Auth-Email`. Placeholders are resolved.
	Email string `json:"email"`

	// The value of `X-Auth-Key`. Placeholders are resolved.
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
	module, err := ctx.App(appID)
	if err != nil {
		return fmt.Errorf("loading app %s: %w", appID, err)
	}
	app := module.(*App)
	account, err := resolve(a.Account)
	if err != nil {
		return fmt.Errorf("account: %w", err)
	}
	config := controlapi.Config{
		BearerTokens: a.BearerTokens,
		Resolve:      resolveSecret,
		Account:      account,
		State:        app.state.State,
		LookupKey: func(keyID string) (*token.PublicKey, bool) {
			return app.keys.Lookup(keyID), app.keys.Authoritative(keyID)
		},
		Revocable:     app.keys.Revocable,
		CheckRules:    app.checkRules,
		Defaults:      app.apiSettings(app.defaults, app.VideoSettings),
		Videos:        make(map[string]controlapi.VideoSettings),
		PublicURL:     app.publicURL,
		Policy:        app.policy,
		ClientAddress: func(r *http.Request) netip.Addr { address, _ := clientAddress(r); return address },
		Logger:        ctx.Logger(),
		SampledLogger: sampledLogger(ctx.Logger(), time.Second, 5),
		Now:           func() time.Time { return app.now() },
		Explain:       a.explainRunning,
		Refusals:      func() controlapi.Refusals { return app.metrics.Refusals.Last(time.Now()) },
		Gateway:       a.describeGateway,
	}
	if app.countsSessions() {
		config.Sessions, config.MaxSession = app.state.tracker, time.Duration(app.MaxSession)
	}
	for id, own := range app.Videos {
		video := app.apiSettings(app.videos[id], own)
		video.AccessRules = own.AccessRules
		if at := app.videos[id].availableFrom; !at.IsZero() {
			video.AvailableFrom = &at
		}
		if at := app.videos[id].availableUntil; !at.IsZero() {
			video.AvailableUntil = &at
		}
		config.Videos[id] = video
	}
	for _, pair := range a.AuthKeys {
		config.AuthKeys = append(config.AuthKeys, controlapi.AuthKey(pair))
	}
	a.app, a.ctx = app, ctx
	if a.server, err = controlapi.New(config); err != nil || !a.Console {
		return err
	}
	return a.provisionConsole(ctx, account)
}

// provisionConsole prepares the operator's page. A config in which nobody could use it is
// an error.
func (a *API) provisionConsole(ctx caddy.Context, account string) (err error) {
	if len(a.BearerTokens) == 0 {
		return errConsoleWithoutToken
	}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		if path := routecheck.KeptFromConsole(siteconfig.Server(server), console.Path, console.Path+"console.js"); path != "" {
			return fmt.Errorf("console: no request for %q gets to signed_playback_api; let its matcher, or that of the handle block around it, "+
				"have the path %q too", path, console.Path+"*")
		}
	}
	a.page, err = console.New(account, a.app.publicURL)
	return err
}

var errConsoleWithoutToken = errors.New("console: operators sign in to the page with a bearer token; set bearer_token")

// apiSettings returns settings of the config file as the API shows them.
func (a *App) apiSettings(compiled settings, configured VideoSettings) controlapi.VideoSettings {
	origins := configured.AllowedOrigins
	if len(origins) == 0 {
		origins = a.AllowedOrigins
	}
	return controlapi.VideoSettings{RequireSignedURLs: compiled.requireSignedURLs, AllowedOrigins: origins}
}

// placeholderOnly matches a text that is one placeholder and nothing else.
var placeholderOnly = regexp.MustCompile(`^\{(env|file)\.[^{}]*\}$`)

// resolveSecret is resolve for text that no error may show.
func resolveSecret(text string) (string, error) {
	secret, err := resolve(text)
	switch name := placeholderOnly.FindString(text); {
	case err == nil:
		return secret, nil
	case name != "":
		return "", fmt.Errorf("the placeholder %s is empty or unknown; the server looks it up in the environment of its start", name)
	default:
		return "", errors.New("a placeholder in it is empty or unknown")
	}
}

// checkRules implements controlapi.Config.CheckRules.
func (a *App) checkRules(raw json.RawMessage) (warnings []string, err error) {
	rules, err := accessrules.CompileClaim(raw)
	if err != nil {
		return nil, err
	}
	return rules.Warnings(a.geo.Has), nil
}

// ServeHTTP answers calls of the API and requests for the console, and hands other requests on.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if a.page != nil && a.page.Serves(r.URL.Path) {
		a.page.ServeHTTP(w, r)
		return nil
	}
	if !controlapi.Serves(r.URL.Path) {
		return next.ServeHTTP(w, r)
	}
	if r.Header["X-Auth-Key"] != nil {
		// Caddy's access log has every header but Authorization and Cookie. A
		// secret must not get there, so the API's own log line has to suffice.
		caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	}
	a.server.ServeHTTP(w, r)
	return nil
}

// explainRunning is the call of the control API that replays a request in the running
// config.
func (a *API) explainRunning(ctx context.Context, asked controlapi.ExplainedRequest) (any, error) {
	servers, err := a.servers()
	if err != nil {
		return nil, err
	}
	request, err := replay.Request{URL: asked.URL, IP: asked.IP, Origin: asked.Origin, Referer: asked.Referer, Method: http.MethodGet}.HTTP()
	if err != nil {
		return nil, err
	}
	var notes []string
	if missing := a.app.missingKeys(); missing != "" {
		notes = []string{missing}
	}
	return replay.Running(servers, traced, notes...).Explain(request.WithContext(ctx), asked.At)
}

// servers returns the servers of the running config.
func (a *API) servers() (map[string]*caddyhttp.Server, error) {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil, err
	}
	return app.(*caddyhttp.App).Servers, nil
}

// describeGateway describes the running config for pages and scripts.
func (a *API) describeGateway() (controlapi.Gateway, error) {
	servers, err := a.servers()
	if err != nil {
		return controlapi.Gateway{}, err
	}
	g := controlapi.Gateway{Version: command.Version(), Databases: make(map[string]bool)}
	for fact, name := range map[geo.Fact]string{geo.Country: "country", geo.ASN: "asn", geo.Anonymous: "anonymous"} {
		g.Databases[name] = a.app.geo.Has(fact)
	}
	g.Defaults.AccessRules = a.app.AccessRules
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		server := servers[name]
		add := func(handler caddyhttp.MiddlewareHandler, hosts []string) {
			if gate, ok := handler.(*Gate); ok {
				g.Gates = append(g.Gates, controlapi.Gate{
					Playback: siteconfig.BaseURL(server, hosts), Hosts: append([]string{}, hosts...), Manifest: gate.manifest, Player: gate.player != nil,
				})
			}
		}
		siteconfig.Handlers(server.Routes, nil, add)
		for _, route := range slices.Sorted(maps.Keys(server.NamedRoutes)) {
			siteconfig.Handlers(caddyhttp.RouteList{*server.NamedRoutes[route]}, nil, add)
		}
	}
	public, _ := url.Parse(a.app.publicURL)
	for i, gate := range g.Gates {
		if a.app.publicURL != "" && (len(g.Gates) == 1 || len(gate.Hosts) == 0 || slices.Contains(gate.Hosts, public.Hostname())) {
			g.Gates[i].Playback = a.app.publicURL
		}
	}
	return g, nil
}

// Interface guards
var (
	_ caddy.Module                = (*API)(nil)
	_ caddy.Provisioner           = (*API)(nil)
	_ caddyhttp.MiddlewareHandler = (*API)(nil)
)
