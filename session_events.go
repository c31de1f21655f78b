package signedplayback

import (
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// sessionEnded tells of the end of a session: one line of the log, and a metric.
func (s *sharedState) sessionEnded(e sessions.Event) {
	s.metrics.sessionsEnded[e.Reason].Inc()
	s.logger().Named("sessions").Info("session ended",
		zap.Stringer("session", e.ID),
		zap.String("video", e.Video),
		zap.String("uid", e.UID()),
		zap.Time("started", e.Started),
		zap.Int64("seconds", int64(e.LastSeen.Sub(e.Started)/time.Second)),
		zap.Int64("bytes", e.Bytes),
		zap.String("country", e.Country),
		zap.String("reason", string(e.Reason)),
		zap.Bool("shared", e.Shared),
	)
}
