package signedplayback

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/webhook"
)

// droppedEvent counts an event that the receiver has not taken.
const droppedEvent = "event"

// sessionEvent is the end of a session as it is posted.
type sessionEvent struct {
	Event   string `json:"event"` // session.ended
	ID      string `json:"id"`
	UID     string `json:"uid"`
	Video   string `json:"video"`
	Started string `json:"started"`
	Ended   string `json:"ended"`
	Seconds int64  `json:"seconds"` // from the first request to the last
	Bytes   int64  `json:"bytes"`
	Country string `json:"country"`
	Reason  string `json:"reason"`
	Shared  bool   `json:"shared"`
}

// sessionEnded tells of the end of a session: in the log, in a metric, and to the receiver of
// session_events.
func (s *sharedState) sessionEnded(e sessions.Event) {
	event := sessionEvent{
		"session.ended", e.ID.String(), e.UID(), e.Video, e.Started.UTC().Format(time.RFC3339), e.Ended.UTC().Format(time.RFC3339),
		int64(e.LastSeen.Sub(e.Started) / time.Second), e.Bytes, e.Country, string(e.Reason), e.Shared,
	}
	s.metrics.sessionsEnded[e.Reason].Inc()
	s.logger().Named("sessions").Info("session ended",
		zap.String("session", event.ID), zap.String("video", event.Video), zap.String("uid", event.UID), zap.String("started", event.Started),
		zap.Int64("seconds", event.Seconds), zap.Int64("bytes", event.Bytes), zap.String("country", event.Country), zap.String("reason", event.Reason),
		zap.Bool("shared", event.Shared))
	s.mu.RLock()
	receiver := s.receiver
	s.mu.RUnlock()
	if receiver == nil {
		return
	}
	if body, err := json.Marshal(event); err == nil {
		receiver.Send(body)
	}
}

// viewersShare tells of viewers who probably share a token, and revokes their tokens if the config in
// force says so. Its caller does not wait for the store, because the fleet's sessions depend on it.
func (s *sharedState) viewersShare(reports []sessions.Sharing) {
	s.mu.RLock()
	config := s.configs[len(s.configs)-1]
	s.mu.RUnlock()
	var list []*state.Revocation
	for _, report := range reports {
		s.metrics.sharing.Inc()
		s.logger().Named("sessions").Warn("a viewer probably shares a token",
			zap.String("uid", report.UID()), zap.Stringer("session", report.ID), zap.String("video", report.Video), zap.Int("score", report.Score),
			zap.Int("networks", report.Networks), zap.Int("countries", report.Countries), zap.Int("sessions", report.Active))
		if config.revokeShared {
			list = append(list, sharedTokens(report, config)...)
		}
	}
	go s.revokeShared(list)
}

func (s *sharedState) revokeShared(list []*state.Revocation) {
	ctx, cancel := context.WithTimeout(s.ctx, revokeTimeout)
	defer cancel()
	for some := range slices.Chunk(list, state.MaxInCall) {
		if err := s.Refuse(ctx, some); err != nil {
			s.logger().Named("sessions").Error("could not revoke the tokens of viewers who probably share them", zap.Int("revocations", len(some)), zap.Error(err))
		}
	}
}

// sessionsAway tells that the Redis of a fleet does not answer, or that it does again.
func (s *sharedState) sessionsAway(err error) {
	if err == nil {
		s.logger().Info("playback sessions are counted over the fleet again")
		return
	}
	s.logger().Error("playback sessions are counted by this node alone, because redis does not answer; they play on", zap.Error(err))
}

const revokeTimeout = 5 * time.Second

// sharedTokens returns revocations of the tokens of a viewer: by uid, else by jti, else of the
// token. A jti may look like the digest of a token, so it is revoked as both.
func sharedTokens(report sessions.Sharing, config *App) []*state.Revocation {
	now := config.now()
	expires := report.Expires
	if longest := now.Add(cmp.Or(config.policy.MaxLifetime, state.MaxTokenLifetime)); longest.After(expires) {
		expires = longest
	}
	expires = expires.Add(time.Duration(config.MaxSession)) // of sessions that play on
	revocation := func(selector state.Selector, value string, issuedBefore int64) *state.Revocation {
		return &state.Revocation{Selector: selector, Value: value, IssuedBefore: issuedBefore, Expires: expires.Unix(), Reason: "on_sharing"}
	}
	if uid := report.UID(); uid != "" {
		return []*state.Revocation{revocation(state.SelectViewer, uid, now.Unix())}
	}
	name := strings.TrimPrefix(report.Viewer, sessions.Unnamed)
	list := []*state.Revocation{revocation(state.SelectJTI, name, 0)}
	if digest, err := hex.DecodeString(name); err == nil && len(digest) == sha256.Size {
		list = append(list, revocation(state.SelectToken, name, 0))
	}
	return list
}

// eventReceiver is where a config has the ends of sessions posted.
type eventReceiver struct {
	*webhook.Webhook
	identity string // of its configuration
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

// keyOfEvents signs events. It is derived from session_secret, because the receiver of events must
// not be able to make sessions.
func keyOfEvents(sessionSecret string) []byte {
	mac := hmac.New(sha256.New, []byte(sessionSecret))
	mac.Write([]byte("session_events"))
	return []byte(hex.EncodeToString(mac.Sum(nil)))
}

// sendEventsOf posts the ends of sessions to the receiver of a config. The caller holds s.mu.
func (s *sharedState) sendEventsOf(config *App) {
	identity := ""
	if config.eventsURL != nil {
		identity = fmt.Sprintf("%s %x", config.eventsURL, config.eventsKey)
	}
	if s.receiver != nil && s.receiver.identity == identity {
		return
	}
	if s.receiver != nil {
		go s.receiver.Close()
		s.receiver = nil
	}
	if identity != "" {
		s.receiver = &eventReceiver{webhook.New(webhook.Config{
			URL: config.eventsURL, Key: config.eventsKey, Logger: s.logger, Drop: func() { s.metrics.countDropped(droppedEvent) },
		}), identity}
	}
}
