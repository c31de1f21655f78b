package signedplayback

import (
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
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
}

// minSessionTimeout is more than a player's usual pause between two segments.
const minSessionTimeout = 15 * time.Second

func (a *App) provisionSessions() error {
	a.sessionPolicy.Timeout = sessions.DefaultTimeout
	o := a.SessionOptions
	if a.Sessions == nil || !*a.Sessions {
		option := ""
		switch {
		case o.SessionTimeout != 0:
			option = "session_timeout"
		case o.OnSessionLimit != "":
			option = "on_session_limit"
		case o.MaxSession != 0:
			option = "max_session"
		case a.limitsSessions():
			option = "max_sessions"
		}
		if option != "" {
			return fmt.Errorf("%s: %w", option, errSessionsOff)
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
	var err error
	a.sessionPolicy.RefuseNew, err = parseOnSessionLimit(o.OnSessionLimit)
	return err
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

// parseOnSessionLimit reads the value of on_session_limit.
func parseOnSessionLimit(value string) (refuseNew bool, err error) {
	switch value {
	case "", "end_oldest":
		return false, nil
	case "refuse_new":
		return true, nil
	}
	return false, fmt.Errorf("on_session_limit %q: want end_oldest or refuse_new", value)
}

func (o *SessionOptions) options() map[string]option {
	return map[string]option{
		"sessions":        func(d *caddyfile.Dispenser) error { return switchArg(d, &o.Sessions) },
		"session_timeout": func(d *caddyfile.Dispenser) error { return durationArg(d, &o.SessionTimeout) },
		"session_secret":  func(d *caddyfile.Dispenser) error { return secretArg(d, &o.SessionSecret) },
		"max_session":     func(d *caddyfile.Dispenser) error { return durationArg(d, &o.MaxSession) },
		"on_session_limit": func(d *caddyfile.Dispenser) error {
			if err := oneArg(d, &o.OnSessionLimit); err != nil {
				return err
			}
			_, err := parseOnSessionLimit(o.OnSessionLimit)
			return located(d, err)
		},
	}
}
