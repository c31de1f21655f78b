package signedplayback

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/webhook"
)

// statePool keeps states over config reloads, so that a revocation is in force
// at once under all configs that still serve.
var statePool = caddy.NewUsagePool()

// sharedState is the state of a store in statePool. It outlives configs, but
// their storages may end with them, so it uses the storage of the config in
// force.
type sharedState struct {
	*state.State
	tracker  *sessions.Tracker
	tracking bool // the tracker works, because a config has sessions on
	ctx      context.Context
	stop     context.CancelFunc // ends it
	poolKey  string
	metrics  *metrics.Metrics

	endedUpTo *state.Revocations // that the tracker knows; of its goroutine

	mu       sync.RWMutex
	receiver *eventReceiver // of the ends of sessions, nil for none
	configs  []*App         // that use it; the storage of the last one is used
}

// openStore opens a store on a Caddy storage, or with the help of one.
type openStore func(storage func() certmagic.Storage, logger func() *zap.Logger) (store.Store, error)

// storeSecrets returns the secrets of the store, nil without any. Errors contain no
// secret.
func (a *App) storeSecrets() (secrets *store.Secrets, fingerprint string, err error) {
	if a.StoreSecret == "" && len(a.EarlierStoreSecrets) > 0 {
		return nil, "", errors.New("earlier_store_secrets: set store_secret too, which replaces them")
	}
	if a.StoreSecret == "" {
		return nil, "", nil
	}
	all := append([]string{a.StoreSecret}, a.EarlierStoreSecrets...)
	for i, text := range all {
		if all[i], err = resolveSecret(text); err != nil {
			return nil, "", fmt.Errorf("store_secret: secret %d: %w", i+1, err)
		}
	}
	if secrets, err = store.NewSecrets(all...); err != nil {
		return nil, "", fmt.Errorf("store_secret: %w", err)
	}
	return secrets, fmt.Sprintf(" %x", sha256.Sum256([]byte(strings.Join(all, "\x00")))), nil
}

// provisionState opens the store, or takes over the state of the previous
// config.
func (a *App) provisionState(ctx caddy.Context) error {
	address, err := resolve(a.StoreURL)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	secrets, fingerprint, err := a.storeSecrets()
	if err != nil {
		return err
	}
	a.storage = ctx.Storage()
	switch {
	case a.Store == "redis" && address == "":
		return errors.New("store redis: it needs the URL of the Redis, like redis://127.0.0.1:6379/0")
	case a.Store == "redis":
		err = a.acquireState("redis "+address+fingerprint, func(storage func() certmagic.Storage, logger func() *zap.Logger) (store.Store, error) {
			return store.NewRedis(address, storage, logger, secrets)
		})
	case a.Store != "" && a.Store != "caddy":
		return fmt.Errorf("store %q: want caddy or redis", a.Store)
	case address != "":
		return errors.New("store caddy takes no URL; the global option `storage` says where Caddy keeps its files")
	default:
		err = a.acquireState("caddy "+storageIdentity(a.storage)+fingerprint, func(storage func() certmagic.Storage, logger func() *zap.Logger) (store.Store, error) {
			return store.NewCaddy(storage, logger, secrets), nil
		})
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", a.Store, err)
	}
	return nil
}

// storageIdentity returns the same text for two storages with the same
// configuration. If it cannot tell, each config gets a separate state, and these
// follow each other as two nodes do.
func storageIdentity(storage certmagic.Storage) string {
	config, err := json.Marshal(storage)
	if err != nil || string(config) == "{}" {
		return fmt.Sprintf("%T %p", storage, storage)
	}
	return fmt.Sprintf("%T %s", storage, config)
}

// acquireState sets a.state to the state of a store, shared with other configs
// that use it. Each call must be matched by a call of release.
func (a *App) acquireState(poolKey string, open openStore) error {
	value, loaded, err := statePool.LoadOrNew(poolKey, func() (caddy.Destructor, error) {
		s := &sharedState{poolKey: poolKey, configs: []*App{a}, metrics: a.metrics}
		opened, err := open(s.storage, s.logger)
		if err != nil {
			return nil, err
		}
		config := sessions.Config{
			Policy: a.sessionPolicy, Ended: s.sessionEnded, Shared: s.viewersShare, Dropped: a.metrics.CountDropped,
			Revoked:    s.revokedSessions,
			Extended:   func(id sessions.ID) time.Time { return s.ExtendedUntil(context.Background(), id.String()) },
			CountError: func() { a.metrics.CountStoreError("sessions") }, Away: s.sessionsAway,
		}
		if redis, shared := opened.(*store.Redis); shared {
			config.Redis = redis
		}
		s.tracker = sessions.New(config)
		s.ctx, s.stop = context.WithCancel(context.Background())
		s.State = state.New(state.Config{Store: opened, Renew: len(a.EarlierStoreSecrets) > 0, Logger: s.logger, CountError: a.metrics.CountStoreError})
		return s, nil
	})
	if err != nil {
		return err
	}
	a.state = value.(*sharedState)
	if loaded {
		a.state.offer(a)
	}
	return nil
}

// revokedSessions returns which sessions are revoked, or nil if none has been since the last call.
func (s *sharedState) revokedSessions() func(sessions.ID) bool {
	all := s.Revocations()
	if all == nil || !all.HasSessions() || all == s.endedUpTo {
		return nil
	}
	s.endedUpTo = all
	return func(id sessions.ID) bool { return all.Session(id.String(), time.Now()) != nil }
}

// logger returns the logger of the config in force.
func (*sharedState) logger() *zap.Logger { return caddy.Log().Named(appID) }

func (s *sharedState) release(config *App) error {
	deleted, err := statePool.Delete(s.poolKey)
	if !deleted {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.configs = without(s.configs, config)
	}
	return err
}

// Destruct implements caddy.Destructor.
func (s *sharedState) Destruct() error {
	s.stop()
	if s.tracking {
		s.tracker.Stop()
	}
	if s.receiver != nil {
		s.receiver.Close()
	}
	s.Close()
	return nil
}

// offer adds a config that is being loaded. Its storage is the last resort.
func (s *sharedState) offer(config *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configs = slices.Insert(s.configs, 0, config)
}

// use prefers the storage of a config that starts.
func (s *sharedState) use(config *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configs = append(without(s.configs, config), config)
	s.tracker.Use(config.sessionPolicy)
	s.sendEventsOf(config)
	if config.countsSessions() && !s.tracking {
		s.tracking = true
		go s.tracker.Run(s.ctx)
	}
}

func without(configs []*App, config *App) []*App {
	return slices.DeleteFunc(slices.Clone(configs), func(other *App) bool { return other == config })
}

func (s *sharedState) storage() certmagic.Storage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.configs[len(s.configs)-1].storage
}

// sessionEnded tells of the end of a session: in the log, in a metric, and to the receiver of
// session_events.
func (s *sharedState) sessionEnded(e sessions.Event) {
	s.metrics.SessionsEnded[e.Reason].Inc()
	s.logger().Named("sessions").Info("session ended", zap.Inline(e))
	s.mu.RLock()
	receiver := s.receiver
	s.mu.RUnlock()
	if receiver == nil {
		return
	}
	if body, err := json.Marshal(e); err == nil {
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
		s.metrics.Sharing.Inc()
		s.logger().Named("sessions").Warn("a viewer probably shares a token", zap.Inline(report))
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
			URL: config.eventsURL, Key: config.eventsKey, Logger: s.logger, Drop: func() { s.metrics.CountDropped(metrics.DroppedEvent) },
		}), identity}
	}
}
