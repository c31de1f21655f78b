package signedplayback

import (
	"context"
	"net/url"

	"github.com/signed-playback/caddy-signed-playback/internal/command"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
)

func init() {
	command.Register(command.Module{
		Module: replay.Module{Gateway: gatewayOf, Trace: traced},
		Leeway: defaultLeeway,
	})
}

// gatewayOf returns what the commands look at in an App.
func gatewayOf(app any) replay.Gateway {
	a := app.(*App)
	return replay.Gateway{
		MissingKeys: a.missingKeys,
		CountKeys:   a.keys.Count,
		LoadKeySet: func() error {
			if a.keys.Remote == nil {
				return nil
			}
			return a.keys.Remote.Load()
		},
		RevokedKey: func() string {
			for _, keyID := range a.keys.Fixed.IDs() {
				if stored, _ := a.state.Key(keyID); stored.Revoked {
					return keyID
				}
			}
			return ""
		},
		ReadStore: func(ctx context.Context) error {
			_, err := a.state.VideoDocument(ctx, "doctor")
			return err
		},
		LacksSecret: func() bool { return a.countsSessions() && a.authority.Authority() == nil },
		Geo:         a.geo,
		TakeAdmission: func() (backEnd *url.URL) {
			if a.admission != nil {
				backEnd, a.admission = a.admission.URL, nil
			}
			return backEnd
		},
		Cleanup: a.Cleanup,
	}
}
