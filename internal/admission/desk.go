package admission

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"net/url"
	"strings"

	"github.com/maypok86/otter/v2"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
)

const (
	// A viewer, or without a token a network, may begin this many sessions at once, and then so
	// many a second. A question takes a second at most, so no more than 26 of maxAsked are about
	// one viewer, however slow the back end is.
	ViewerBurst = 16
	ViewerRate  = 10

	// maxLivePlaylists bounds the playlists of which the gate knows that players are not
	// led below a session.
	maxLivePlaylists = 10_000
)

var errStartsLimited = errors.New("too many playback sessions of this viewer begin at once; try again in a moment")

// Desk decides for gates whether sessions may begin. It is safe for concurrent use.
type Desk struct {
	*Client
	URL     *url.URL
	Budgets *worklimit.Limit[[sha256.Size]byte] // of viewers

	allowOnError bool
	live         *otter.Cache[string, struct{}]
	logger       *zap.Logger
}

// NewDesk returns a Desk. allowOnError lets a session begin if the back end gives no valid answer.
// The logger should keep each message once in a while only.
func NewDesk(config Config, allowOnError bool, logger *zap.Logger) *Desk {
	return &Desk{
		Client: New(config), URL: config.URL, Budgets: worklimit.New[[sha256.Size]byte](ViewerRate, ViewerBurst),
		allowOnError: allowOnError, live: otter.Must(&otter.Options[string, struct{}]{MaximumSize: maxLivePlaylists}), logger: logger,
	}
}

// Admit asks within the budget of the viewer, "" for one without a token. Its errors are refusals,
// whose texts viewers may read: only the log has the cause.
func (d *Desk) Admit(ctx context.Context, viewer string, q Question) (sessions.Terms, error) {
	own := worklimit.Keys[[sha256.Size]byte]{Own: sha256.Sum256([]byte(cmp.Or(viewer, q.Network)))}
	if !d.Budgets.Spend(own) {
		return sessions.Terms{}, refusal.VerificationLimited.Because(errStartsLimited)
	}
	terms, err := d.Ask(ctx, q)
	switch {
	case err == nil:
		return terms, nil
	case errors.Is(err, ErrDenied):
		return terms, refusal.AdmissionDenied.Because(ErrDenied)
	}
	d.logger.Error("the back end of admission gives no valid answer", zap.String("host", d.URL.Host), zap.Bool("allowed", d.allowOnError), zap.Error(err))
	if d.allowOnError {
		return sessions.Terms{}, nil
	}
	return terms, refusal.AdmissionUnavailable.Because(ErrUnavailable)
}

// IsLive reports whether a playlist is known to be live, so that no session is written into it.
func (d *Desk) IsLive(playlist string) bool {
	_, live := d.live.GetIfPresent(playlist)
	return live
}

// Learn remembers whether a playlist is live.
func (d *Desk) Learn(playlist string, live bool) {
	if live {
		d.live.Set(strings.Clone(playlist), struct{}{})
	} else {
		d.live.Invalidate(playlist)
	}
}
