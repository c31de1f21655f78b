package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/option"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/webhook"
)

// SessionOptions are the options of playback sessions. All but the first need it.
type SessionOptions struct {
	// Whether requests are counted as playback sessions: `on` in the Caddyfile.
	// Default: false.
	Sessions *bool `json:"sessions,omitempty"`

	// A session that asks for nothing for so long has ended, at least `15s`.
	// Default: `60s`.
	SessionTimeout caddy.Duration `json:"session_timeout,omitempty"`

	// What happens when a viewer with as many sessions as permitted begins one
	// more: `end_oldest` ends the session that began first, `refuse_new` refuses
	// the new one. Default: `end_oldest`.
	OnSessionLimit string `json:"on_session_limit,omitempty"`

	// A secret that authenticates the session ids in URLs, the same on all nodes: at
	// least 16 characters. Placeholders are resolved. Default: one that is made and kept
	// beside the signing key in the store. Permitted: `{env.SESSION_SECRET}`. Not
	// permitted: `changeme`.
	SessionSecret string `json:"session_secret,omitempty"`

	// How long the control API may extend a session beyond the `exp` of its token.
	// Default: not at all.
	MaxSession caddy.Duration `json:"max_session,omitempty"`

	// The https URL to which the end of each session is posted as JSON; http to a
	// loopback address only. Placeholders are resolved. Default: nowhere. Permitted:
	// `https://hooks.example.com/playback`. Not permitted: `http://hooks.example.com/`.
	SessionEvents string `json:"session_events,omitempty"`

	// The http or https URL of your back end, which is asked with POST at the start of
	// each session whether it may begin. Placeholders are resolved. Default: none, so
	// every session begins that the other checks allow. Permitted:
	// `https://app.example.com/admission`. Not permitted: `app.example.com`.
	Admission string `json:"admission,omitempty"`

	// Whether a session may begin if the back end gives no valid answer: `deny` or
	// `allow`. Default: `deny`.
	AdmissionOnError string `json:"admission_on_error,omitempty"`

	// What happens to a viewer who probably shares a token: `report` writes a line to
	// the log, `revoke` revokes the viewer's tokens as well. Default: `report`.
	OnSharing string `json:"on_sharing,omitempty"`
}

// minSessionTimeout is more than a player's usual pause between two segments.
const minSessionTimeout = 15 * time.Second

func (a *App) provisionSessions() error {
	a.sessionPolicy.Timeout = sessions.DefaultTimeout
	o := a.SessionOptions
	if !a.countsSessions() {
		for _, needs := range []struct {
			option string
			isSet  bool
		}{
			{"session_timeout", o.SessionTimeout != 0},
			{"on_session_limit", o.OnSessionLimit != ""},
			{"max_session", o.MaxSession != 0},
			{"session_events", o.SessionEvents != ""},
			{"admission", o.Admission != ""},
			{"on_sharing", o.OnSharing != ""},
			{"max_sessions", a.limitsSessions()},
		} {
			if needs.isSet {
				return fmt.Errorf("%s: %w", needs.option, errSessionsOff)
			}
		}
		return nil
	}
	if o.SessionTimeout != 0 {
		a.sessionPolicy.Timeout = time.Duration(o.SessionTimeout)
	}
	if a.sessionPolicy.Timeout < minSessionTimeout {
		return fmt.Errorf("session_timeout %s: want at least %s, or a player that waits for its next segment has ended", a.sessionPolicy.Timeout, minSessionTimeout)
	}
	if o.MaxSession < 0 {
		return fmt.Errorf("max_session %s is negative", time.Duration(o.MaxSession))
	}
	a.sessionPolicy.Extension = time.Duration(o.MaxSession)
	var err error
	if a.revokeShared, err = onSharingWords.IsSecond(o.OnSharing); err != nil {
		return err
	}
	if a.sessionPolicy.RefuseNew, err = onSessionLimitWords.IsSecond(o.OnSessionLimit); err != nil {
		return err
	}
	return a.provisionSessionEvents()
}

var errSessionsOff = errors.New("it needs `sessions on`")

func (a *App) limitsSessions() bool {
	for _, own := range a.Videos {
		if own.MaxSessions != 0 {
			return true
		}
	}
	return a.MaxSessions != 0
}

var (
	onSessionLimitWords = option.Words{Option: "on_session_limit", First: "end_oldest", Second: "refuse_new"}
	onSharingWords      = option.Words{Option: "on_sharing", First: "report", Second: "revoke"}
)

// countsSessions reports whether `sessions` is on.
func (a *App) countsSessions() bool { return a.Sessions != nil && *a.Sessions }

// minSessionSecret is the length of the shortest session_secret.
const minSessionSecret = 16

func (a *App) provisionSessionSecret() error {
	switch {
	case !a.countsSessions() && a.SessionSecret != "":
		return fmt.Errorf("session_secret: %w", errSessionsOff)
	case !a.countsSessions():
		return nil
	}
	a.authority = &sessions.Source{Stored: a.state.SessionSecret}
	if a.SessionSecret == "" {
		a.state.FollowSessionSecret(context.Background(), false)
		return nil
	}
	secret, err := resolveSecret(a.SessionSecret)
	if err != nil {
		return fmt.Errorf("session_secret: %w", err)
	}
	if len(secret) < minSessionSecret {
		return fmt.Errorf("session_secret: it has %d bytes, want at least %d; `openssl rand -hex 32` makes one", len(secret), minSessionSecret)
	}
	a.authority.Fixed = sessions.NewAuthority([]byte(secret))
	a.eventsKey = keyOfEvents(secret)
	return nil
}

// startSessions has the store keep a secret, if the config has none.
func (a *App) startSessions() {
	if a.countsSessions() && a.authority.Fixed == nil {
		a.state.FollowSessionSecret(context.Background(), true)
	}
}

// provisionSessionEvents checks session_events. Its errors quote no URL, which may contain a
// secret.
func (a *App) provisionSessionEvents() error {
	address, err := resolveSecret(a.SessionEvents)
	if err == nil && address != "" {
		a.eventsURL, err = webhook.ParsePrivate(address, isLoopback)
	}
	if err != nil {
		return fmt.Errorf("session_events: %w", err)
	}
	return nil
}

var (
	onErrorWords = option.Words{Option: "on_error", First: "deny", Second: "allow"}

	errAdmissionURL    = errors.New("admission takes the URL of your back end, and perhaps `on_error allow` or `on_error deny`")
	errOnErrorNoServer = errors.New("admission_on_error: it needs admission, the URL of your back end")
)

// provisionAdmission comes after the secrets. Its errors quote no URL, which may contain a secret.
func (a *App) provisionAdmission(ctx caddy.Context) error {
	allow, err := onErrorWords.IsSecond(a.AdmissionOnError)
	switch {
	case err != nil:
		return fmt.Errorf("admission: %w", err)
	case a.Admission == "" && a.AdmissionOnError != "":
		return errOnErrorNoServer
	case a.Admission == "":
		return nil
	}
	address, err := resolveSecret(a.Admission)
	var u *url.URL
	if err == nil {
		u, err = webhook.Parse(address)
	}
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	if webhook.IsExposed(u, isLoopback) {
		a.logger.Warn("admission is not encrypted, so others on the network can read who watches and let anybody begin; use https", zap.String("host", u.Host))
	}
	if a.eventsKey == nil {
		a.logger.Warn("admission without session_secret: the questions have no signature, so your back end cannot tell them from forged ones; set session_secret", zap.String("host", u.Host))
	}
	a.admission = admission.NewDesk(
		admission.Config{URL: u, Key: a.eventsKey, Now: time.Now, Asked: a.metrics.CountAdmission}, allow, sampledLogger(ctx.Logger(), time.Minute, 1))
	return nil
}

// parseAdmission reads a URL that no error quotes: it may contain a secret.
func (o *SessionOptions) parseAdmission(d option.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 && (len(args) != 3 || args[1] != onErrorWords.Option) || args[0] == "" {
		return d.Errf("%v, not \"%d\" arguments", errAdmissionURL, len(args))
	}
	o.Admission = args[0]
	if len(args) > 1 {
		o.AdmissionOnError = args[2]
		if _, err := onErrorWords.IsSecond(args[2]); err != nil || args[2] == "" {
			return d.Errf("admission: on_error %q: want deny or allow", args[2])
		}
	}
	if option.HasPlaceholder(o.Admission) {
		return nil // Provision resolves and checks it
	}
	if _, err := webhook.Parse(o.Admission); err != nil {
		return d.Errf("admission: %v", err)
	}
	return nil
}

// parseSessionEvents reads a URL that no error quotes: it may contain a secret.
func (o *SessionOptions) parseSessionEvents(d option.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return d.Errf("session_events takes one URL, not %d arguments", len(args))
	}
	o.SessionEvents = args[0]
	if option.HasPlaceholder(o.SessionEvents) {
		return nil // Provision resolves and checks it
	}
	if _, err := webhook.ParsePrivate(o.SessionEvents, isLoopback); err != nil {
		return d.Errf("session_events: %v", err)
	}
	return nil
}

func (o *SessionOptions) options() option.Options {
	return option.Options{
		"sessions":         option.Switch(&o.Sessions),
		"session_timeout":  duration(&o.SessionTimeout),
		"session_secret":   option.Secret(&o.SessionSecret),
		"max_session":      duration(&o.MaxSession),
		"session_events":   o.parseSessionEvents,
		"admission":        o.parseAdmission,
		"on_sharing":       onSharingWords.Read(&o.OnSharing),
		"on_session_limit": onSessionLimitWords.Read(&o.OnSessionLimit),
	}
}
