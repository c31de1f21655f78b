package signedplayback

import (
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// TestConfigsThatAreRefused has the options that contradict each other.
func TestSessionOptions(t *testing.T) {
	t.Parallel()
	for options, want := range map[SessionOptions]sessions.Policy{
		{}: {Timeout: time.Minute},
		{SessionTimeout: caddy.Duration(2 * time.Minute), OnSessionLimit: "refuse_new", MaxSession: caddy.Duration(time.Hour)}: {
			Timeout: 2 * time.Minute, RefuseNew: true, Extension: time.Hour,
		},
	} {
		options.Sessions = new(true)
		a := &App{SessionOptions: options, VideoSettings: VideoSettings{MaxSessions: 3}}
		if err := a.provisionSessions(); err != nil || a.sessionPolicy != want {
			t.Errorf("%+v: %+v, %v, want %+v", options, a.sessionPolicy, err, want)
		}
	}
}
