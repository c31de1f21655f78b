package signedplayback

import (
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

func TestSessionOptions(t *testing.T) {
	t.Parallel()
	on, off := new(true), new(false)
	for _, tc := range []struct {
		name    string
		options SessionOptions
		max     int
		video   int // max_sessions of a video
		want    sessions.Policy
		wantErr string
	}{
		{name: "defaults", options: SessionOptions{Sessions: on}, want: sessions.Policy{Timeout: time.Minute}},
		{
			name: "all", max: 3, video: 1, want: sessions.Policy{Timeout: 2 * time.Minute, RefuseNew: true, Extension: time.Hour},
			options: SessionOptions{Sessions: on, SessionTimeout: caddy.Duration(2 * time.Minute), OnSessionLimit: "refuse_new", MaxSession: caddy.Duration(time.Hour)},
		},
		{name: "short timeout", options: SessionOptions{Sessions: on, SessionTimeout: caddy.Duration(time.Second)}, wantErr: "session_timeout 1s"},
		{name: "unknown action", options: SessionOptions{Sessions: on, OnSessionLimit: "kick"}, wantErr: `on_session_limit "kick"`},
		{name: "negative extension", options: SessionOptions{Sessions: on, MaxSession: -1}, wantErr: "max_session -1ns"},
		{name: "timeout of nothing", options: SessionOptions{SessionTimeout: caddy.Duration(time.Minute)}, wantErr: "session_timeout: it needs"},
		{name: "limit of nothing", options: SessionOptions{Sessions: off}, max: 1, wantErr: "max_sessions: it needs"},
		{name: "limit of a video without sessions", video: 1, wantErr: "max_sessions: it needs"},
		{name: "action without sessions", options: SessionOptions{OnSessionLimit: "end_oldest"}, wantErr: "on_session_limit: it needs"},
		{name: "events in cleartext", options: SessionOptions{Sessions: on, SessionEvents: "http://192.0.2.1/s3cret"}, wantErr: "session_events: http to"},
		{name: "events without sessions", options: SessionOptions{SessionEvents: "https://h/"}, wantErr: "session_events: it needs"},
		{name: "unknown answer to sharing", options: SessionOptions{Sessions: on, OnSharing: "ban"}, wantErr: `on_sharing "ban"`},
		{name: "sharing without sessions", options: SessionOptions{OnSharing: "report"}, wantErr: "on_sharing: it needs"},
		{name: "extension without sessions", options: SessionOptions{MaxSession: 1}, wantErr: "max_session: it needs"},
	} {
		a := &App{SessionOptions: tc.options, VideoSettings: VideoSettings{MaxSessions: tc.max}, Videos: map[string]VideoSettings{"film": {MaxSessions: tc.video}}}
		err := a.provisionSessions()
		if tc.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: %v, want an error with %q", tc.name, err, tc.wantErr)
			}
			continue
		}
		if err != nil || a.sessionPolicy != tc.want {
			t.Errorf("%s: %+v, %v, want %+v", tc.name, a.sessionPolicy, err, tc.want)
		}
	}
}
