package signedplayback

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/option"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	caddy.RegisterModule(new(Mint))
}

// Mint redirects a user who is logged in to a playback URL with a token of their own, which
// the gateway's own key signs. It comes after a handler that authenticates, like
// `forward_auth` or `basic_auth`, and trusts what that handler says about the user.
type Mint struct {
	// The video id. Placeholders are resolved for each request. A request for
	// something else than a video id is answered with 404. Permitted: `demo`,
	// `{http.request.uri.path.file}`.
	Video string `json:"video"`

	// The viewer: the claim that `viewer_claim` names. Placeholders are resolved for
	// each request. If one is unknown or empty, the request is refused with 403.
	// Permitted: `{http.auth.user.id}`, `{http.request.header.Remote-User}`. Not
	// permitted: text without a placeholder, which would be one viewer for all.
	UID string `json:"uid"`

	// How long the token lasts, at most 24 hours. Default: `1h`.
	Exp caddy.Duration `json:"exp,omitempty"`

	// Where the URL leads: `iframe`, the player page, or `manifest`, the path that
	// the option `manifest` of the gates names. Default: `iframe`.
	To string `json:"to,omitempty"`

	// The claim `climit`: how many playback sessions the viewer may have at a time.
	// Default: no limit of the token's.
	Climit int `json:"climit,omitempty"`

	// The access rules of the token. Default: none.
	Rules json.RawMessage `json:"rules,omitempty"`

	app *App
}

// CaddyModule returns the Caddy module information.
func (*Mint) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.signed_playback_mint",
		New: func() caddy.Module { return new(Mint) },
	}
}

const (
	toIframe   = "iframe"
	toManifest = "manifest"

	defaultMintLifetime = time.Hour
)

// Provision checks the configuration.
func (m *Mint) Provision(ctx caddy.Context) error {
	module, err := ctx.App(appID)
	if err != nil {
		return fmt.Errorf("loading app %s: %w", appID, err)
	}
	m.app = module.(*App)
	if err := m.app.checkServer(ctx); err != nil {
		return err
	}
	m.Exp, m.To = cmp.Or(m.Exp, caddy.Duration(defaultMintLifetime)), cmp.Or(m.To, toIframe)
	if err := cmp.Or(m.checkRequired(), m.check()); err != nil {
		return err
	}
	rules, _ := accessrules.Compile(m.Rules) // which check has compiled
	for _, warning := range rules.Warnings(m.app.geo.Has) {
		ctx.Logger().Warn("rules: " + warning)
	}
	if m.To == toManifest {
		m.app.linksLead = true
		if _, err := m.app.manifestOfLinks(); err != nil {
			return err
		}
	}
	if longest := m.app.policy.MaxLifetime; longest > 0 && time.Duration(m.Exp) > longest {
		return fmt.Errorf("exp %s is longer than max_token_lifetime %s, so the gate would refuse the tokens", time.Duration(m.Exp), longest)
	}
	return nil
}

// checkRequired looks for the options that have no default.
func (m *Mint) checkRequired() error {
	switch {
	case m.Video == "":
		return errors.New("video is missing: give the id of a video, or a placeholder for it")
	case m.UID == "":
		return errors.New("uid is missing: give a placeholder for the user who is logged in, like {http.auth.user.id}")
	}
	return nil
}

// check looks at the values of options that are set.
func (m *Mint) check() error {
	switch {
	case m.Video != "" && !option.HasPlaceholder(m.Video) && !token.ValidVideoID(m.Video):
		return fmt.Errorf("video %q: %w", m.Video, playbackpath.ErrVideoID)
	case m.UID != "" && !option.HasPlaceholder(m.UID):
		return fmt.Errorf("uid %q: want a placeholder for the user who is logged in, like {http.auth.user.id}", m.UID)
	case m.Exp != 0 && m.Exp < caddy.Duration(time.Second) || m.Exp > caddy.Duration(state.MaxTokenLifetime):
		return fmt.Errorf("exp %s: want a duration from 1s to %s", time.Duration(m.Exp), state.MaxTokenLifetime)
	case m.To != "" && m.To != toIframe && m.To != toManifest:
		return fmt.Errorf("to %q: want %s or %s", m.To, toIframe, toManifest)
	case m.Climit < 0:
		return fmt.Errorf("climit %d: want a positive number", m.Climit)
	}
	if _, err := accessrules.Compile(m.Rules); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	return nil
}

var (
	errMintMethod = errors.New("a link for the user is for GET and HEAD")
	errMintEmbed  = errors.New("a page of another site loads the link into itself; link to it instead")
	errMintVideo  = errors.New("the request names no video id")
	errMintUser   = errors.New("the request names no user who is logged in")
)

// ServeHTTP answers with a redirect to the playback URL:
//
//	303  to the URL
//	403  there is no user, or no name that a token can have, or a page of another site loads the link into itself
//	404  there is no video id
//	405  the method is not GET or HEAD
//	503  the gateway's own key cannot be read
func (m *Mint) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	headerpolicy.DropSharedCaching(h)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		return caddyhttp.Error(http.StatusMethodNotAllowed, errMintMethod)
	}
	if weborigin.IsEmbeddedElsewhere(r.Header) {
		return caddyhttp.Error(http.StatusForbidden, errMintEmbed)
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	video, err := repl.ReplaceOrErr(m.Video, true, true)
	if err != nil || !token.ValidVideoID(video) {
		return caddyhttp.Error(http.StatusNotFound, errMintVideo)
	}
	uid, err := repl.ReplaceOrErr(m.UID, true, true)
	if err != nil || uid == "" {
		return caddyhttp.Error(http.StatusForbidden, errMintUser)
	}
	key, err := m.app.state.SigningKey(r.Context())
	if err != nil {
		return caddyhttp.Error(http.StatusServiceUnavailable, fmt.Errorf("the gateway's own signing key: %w", err))
	}
	now := m.app.now()
	claims := token.Claims{
		VideoID: video, Viewer: uid, ExpiresAt: now.Add(time.Duration(m.Exp)), SessionLimit: m.Climit, AccessRules: m.Rules,
	}
	controlapi.Complete(&claims, m.app.policy, now)
	compact, err := token.Sign(claims, key)
	if err != nil {
		return caddyhttp.Error(http.StatusForbidden, err)
	}
	suffix := playbackpath.IframeSuffix
	if m.To == toManifest {
		suffix, _ = m.app.manifestOfLinks() // which Provision has checked
	}
	if logged, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		logged.Add(zap.String("signed_playback_video", video))
	}
	h.Set("Location", m.app.publicURL+"/"+compact+"/"+suffix)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// manifestOfLinks returns the path of the manifest to which links lead: the escaped one of all
// gates. It returns an error if the gates have several.
func (a *App) manifestOfLinks() (string, error) {
	switch paths := a.gateManifests; {
	case len(paths) == 0:
		return playbackpath.DefaultManifest, nil
	case len(paths) > 1 && a.linksLead:
		return "", fmt.Errorf("to manifest of signed_playback_mint: the gates have the manifests %q and %q, and the link cannot tell which; "+
			"give them the same option `manifest`, or the link `to iframe`", paths[0], paths[1])
	default:
		return paths[0], nil
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Mint)(nil)
	_ caddyhttp.MiddlewareHandler = (*Mint)(nil)
)
