package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
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

	app    *App
	server *controlapi.Server
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
	config := controlapi.Config{
		State: app.state.State,
		LookupKey: func(keyID string) (*token.PublicKey, bool) {
			return app.keys.Lookup(keyID), app.keys.lookupAuthoritative(keyID)
		},
		Revocable:        app.keys.revocable,
		CheckRules:       app.checkRules,
		Defaults:         app.apiSettings(app.defaults, app.VideoSettings),
		Videos:           make(map[string]controlapi.VideoSettings),
		PublicURL:        app.publicURL,
		MaxTokenLifetime: app.policy.MaxLifetime,
		ClientAddress:    func(r *http.Request) netip.Addr { address, _ := clientAddress(r); return address },
		Logger:           ctx.Logger(),
		Now:              func() time.Time { return app.now() },
	}
	for id, own := range app.Videos {
		config.Videos[id] = app.apiSettings(app.videos[id], own)
	}
	if err := a.resolveInto(&config); err != nil {
		return err
	}
	a.app = app
	a.server, err = controlapi.New(config)
	return err
}

// apiSettings returns settings of the config file as the API shows them.
func (a *App) apiSettings(compiled settings, configured VideoSettings) controlapi.VideoSettings {
	origins := configured.AllowedOrigins
	if len(origins) == 0 {
		origins = a.AllowedOrigins
	}
	return controlapi.VideoSettings{RequireSignedURLs: compiled.requireSignedURLs, AllowedOrigins: origins}
}

// resolveInto replaces the placeholders in the options.
func (a *API) resolveInto(config *controlapi.Config) (err error) {
	if config.Account, err = resolve(a.Account); err != nil {
		return fmt.Errorf("account: %w", err)
	}
	for i, text := range a.BearerTokens {
		secret, err := resolveSecret(text)
		if err != nil {
			return fmt.Errorf("bearer_token %d: %w", i+1, err)
		}
		config.BearerTokens = append(config.BearerTokens, secret)
	}
	for i, pair := range a.AuthKeys {
		email, err := resolveSecret(pair.Email)
		if err != nil {
			return fmt.Errorf("auth_key %d, email: %w", i+1, err)
		}
		key, err := resolveSecret(pair.Key)
		if err != nil {
			return fmt.Errorf("auth_key %d, key: %w", i+1, err)
		}
		config.AuthKeys = append(config.AuthKeys, controlapi.AuthKey{Email: email, Key: key})
	}
	return nil
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
	rules, err := compileRules(raw)
	if len(rules) == 0 || err != nil {
		return nil, err
	}
	last := rules[len(rules)-1]
	blocks := slices.ContainsFunc(rules, func(rule accessRule) bool { return rule.block })
	if !last.block && (last.kind != anyViewer || !blocks) {
		warnings = append(warnings, `the last of the accessRules allows, and a viewer who matches no rule is allowed as well, so it restricts nothing; end the list with {"type":"any","action":"block"}`)
	}
	var v4, v6, countries bool
	for _, rule := range rules {
		countries = countries || rule.kind == byCountry
		for _, prefix := range rule.prefixes {
			v4 = v4 || prefix.Addr().Is4()
			v6 = v6 || prefix.Addr().Is6()
		}
	}
	if countries && a.countries == nil {
		warnings = append(warnings, "there is a rule of type ip.geoip.country and the gateway has no geoip_database, so viewers to whom it applies are refused")
	}
	if v4 && !v6 {
		warnings = append(warnings, "there are rules for IPv4 addresses and none for IPv6, and viewers who have both may come by IPv6")
	}
	return warnings, nil
}

// ServeHTTP answers calls of the API and hands other requests on.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
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

// Interface guards
var (
	_ caddy.Module                = (*API)(nil)
	_ caddy.Provisioner           = (*API)(nil)
	_ caddyhttp.MiddlewareHandler = (*API)(nil)
)
