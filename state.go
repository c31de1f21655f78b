package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

const (
	// pollInterval is how often a node asks the store what has changed, so
	// that a revocation on one node is in force on all within two seconds.
	pollInterval = time.Second

	// Now and then everything is read again, in case that something has changed
	// which nobody has announced: an object mended by hand, or a change whose
	// author was killed before it could tell.
	rereadInterval = 5 * time.Minute

	// readTimeout and writeTimeout bound what a request waits for one object,
	// syncTimeout a round of the background, loadTimeout the first reading at
	// start.
	readTimeout  = 800 * time.Millisecond
	writeTimeout = 800 * time.Millisecond
	syncTimeout  = 5 * time.Second
	loadTimeout  = time.Second

	// maxStale is how long the last known state stays in force without the
	// store. It is the longest life of the control API's tokens: whoever was to
	// be kept out by a change that cannot be heard of has none by then.
	maxStale = maxMintedLifetime
)

// statePool keeps states over config reloads, so that a revocation holds at
// once under all configs that still serve.
var statePool = caddy.NewUsagePool()

// state is what the control API writes and the gates read: keys, settings of
// videos and the signing key, as they are in a store. Requests read snapshots;
// a goroutine keeps them up to date.
type state struct {
	poolKey  string
	storages *storages
	store    store.Store
	metrics  *metrics
	now      func() time.Time

	keys      storedKeys
	videos    *storedVideos
	signer    signer
	generator *keyGenerator

	started sync.Once
	ctx     context.Context
	cancel  context.CancelFunc
	round   round

	// For the goroutine of watch and, before it is started, for load.
	unread    map[store.Collection]bool // changed, and not yet read
	lost      []string                  // revoked keys of which the store does not say so
	readAllAt time.Time
	since     time.Time // of the last success
	failing   bool

	away atomic.Bool // failing, for requests
}

// acquireState returns the state of a store, shared with other configs that
// use it. Each call must be matched by releaseState.
func acquireState(identity string, storage *configStorage, open openStore) (*state, error) {
	value, loaded, err := statePool.LoadOrNew(identity, func() (caddy.Destructor, error) {
		shared := &storages{all: []*configStorage{storage}}
		backend, err := open(shared.present, stateLogger)
		if err != nil {
			return nil, err
		}
		return newState(identity, shared, backend), nil
	})
	if err != nil {
		return nil, err
	}
	s := value.(*state)
	if loaded {
		s.storages.offer(storage)
	}
	return s, nil
}

// openStore makes a store, on Caddy's storage or with the help of it.
type openStore func(storage func() certmagic.Storage, logger func() *zap.Logger) (store.Store, error)

func newState(identity string, shared *storages, backend store.Store) *state {
	s := &state{
		poolKey:  identity,
		storages: shared,
		store:    backend,
		metrics:  collectMetrics(),
		now:      time.Now,
		unread:   make(map[store.Collection]bool),
		since:    time.Now(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.videos = newStoredVideos(s)
	s.signer.state = s
	s.generator = newKeyGenerator()
	s.round.next = make(chan struct{})
	s.round.wanted = make(chan struct{}, 1)
	s.load()
	return s
}

func releaseState(s *state, storage *configStorage) error {
	deleted, err := statePool.Delete(s.poolKey)
	if !deleted {
		s.storages.withdraw(storage)
	}
	return err
}

// Destruct implements caddy.Destructor.
func (s *state) Destruct() error {
	s.cancel()
	s.store.Close()
	return nil
}

// stateLogger is looked up each time, because states outlive configs and their
// loggers.
func stateLogger() *zap.Logger { return caddy.Log().Named(appID) }

// start begins to follow the store, once however often it is called.
func (s *state) start() {
	s.started.Do(func() { go s.watch() })
}

// load reads the state for the first time. If the store does not answer, the
// server starts all the same, knows nothing, and so refuses what depends on it.
func (s *state) load() {
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	s.sync(ctx)
}

func (s *state) watch() {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var begun time.Time
	for {
		select {
		case <-tick.C:
		case <-s.store.Wake():
		case <-s.round.wanted:
			select {
			case <-time.After(time.Until(begun.Add(catchUpInterval))):
			case <-s.ctx.Done():
				return
			}
		case <-s.ctx.Done():
			return
		}
		begun = time.Now()
		done := s.round.begin()
		ctx, cancel := context.WithTimeout(s.ctx, syncTimeout)
		s.sync(ctx)
		cancel()
		close(done)
	}
}

// sync brings the snapshots up to what the store says.
func (s *state) sync(ctx context.Context) {
	err := s.readChanges(ctx)
	if s.ctx.Err() != nil {
		return
	}
	if err == nil {
		s.recovered()
		s.revokeAgain(ctx)
		return
	}
	if !s.failing {
		stateLogger().Error("the store cannot be read; what is known stays in force, what is not is refused", zap.Error(err))
	}
	s.failing = true
	s.away.Store(true)
	if s.now().Sub(s.since) > maxStale && s.keys.known() {
		stateLogger().Error("the store has been away for too long; from now on everything that depends on it is refused",
			zap.Time("since", s.since))
		s.forget()
	}
}

func (s *state) recovered() {
	if s.failing {
		stateLogger().Info("the store can be read again", zap.Time("away_since", s.since))
	}
	s.failing = false
	s.since = s.now()
	s.away.Store(false)
}

// forget gives up all that is known, so that it fails closed.
func (s *state) forget() {
	s.unread[store.Keys] = true
	s.keys.forget()
	s.videos.forget()
	s.signer.forget()
}

func (s *state) readChanges(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	changed, err := s.store.Changes(asking)
	if err != nil {
		return s.failed("changes", err)
	}
	for _, collection := range changed {
		s.unread[collection] = true
	}
	again := s.now().Sub(s.readAllAt) > rereadInterval
	if again {
		s.videos.refreshAll()
	}
	if s.unread[store.Videos] {
		s.videos.suspectAll()
		delete(s.unread, store.Videos)
	}
	if again || s.unread[store.Signing] {
		s.signer.suspect()
		delete(s.unread, store.Signing)
	}
	if again || s.unread[store.Keys] {
		if err := s.readKeys(ctx); err != nil {
			return err
		}
	}
	if again {
		s.readAllAt = s.now()
	}
	return nil
}

// readKeys reads all keys. A key that cannot be read, although the store
// answers, is not used until it can be read: it may have been revoked.
func (s *state) readKeys(ctx context.Context) (failure error) {
	reload := s.keys.beginReload()
	for object, err := range s.store.All(ctx, store.Keys) {
		switch {
		case err == nil:
			reload.add(s.decodeKey(object))
		case object.Name == store.Name{}:
			reload.abandon()
			return s.failed("list", err)
		default:
			failure = s.failed("get", err)
			reload.add(storedKey{id: object.Name.ID(), damage: err})
		}
	}
	s.lost = append(s.lost, reload.commit()...)
	if failure == nil {
		delete(s.unread, store.Keys)
	}
	return failure
}

func (s *state) readKey(ctx context.Context, name store.Name) error {
	object, err := s.get(ctx, name)
	if err != nil {
		return err
	}
	s.keys.publish(s.decodeKey(object))
	return nil
}

// revokeAgain writes revocations that the store has lost, most likely because an
// older backup of it was restored. What cannot be written now is when the store
// is next read.
func (s *state) revokeAgain(ctx context.Context) {
	for len(s.lost) > 0 {
		keyID := s.lost[0]
		if err := s.revoke(ctx, keyID); err != nil {
			stateLogger().Error("could not write a revocation that the store has lost; trying again",
				zap.String("key_id", keyID), zap.Error(err))
			return
		}
		s.lost = s.lost[1:]
		stateLogger().Warn("the store had lost a revocation; it is written again", zap.String("key_id", keyID))
	}
}

// get reads one object and sees to it that a failure is counted.
func (s *state) get(ctx context.Context, name store.Name) (store.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	object, err := s.store.Get(ctx, name)
	if err != nil {
		return store.Object{}, s.failed("get", err)
	}
	return object, nil
}

// update changes one object and sees to it that a failure of the store is
// counted. Once begun, it goes on without its caller.
func (s *state) update(ctx context.Context, name store.Name, change store.Change) error {
	if s.away.Load() {
		return s.failed("update", errStoreAway)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	err := s.store.Update(ctx, name, change)
	if errors.Is(err, store.ErrUnavailable) {
		return s.failed("update", err)
	}
	return err
}

var errStoreAway = fmt.Errorf("%w: it has not answered lately", store.ErrUnavailable)

// all reads a collection and sees to it that a failure is counted.
func (s *state) all(ctx context.Context, collection store.Collection) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for object, err := range s.store.All(ctx, collection) {
			if err != nil {
				err = s.failed("list", err)
			}
			if !yield(object, err) {
				return
			}
		}
	}
}

func (s *state) failed(operation string, err error) error {
	s.metrics.storeErrors.WithLabelValues(operation).Inc()
	return err
}

// decode reads the content of an object. What is damaged is counted and named
// in the log, so that somebody mends it.
func (s *state) decode(object store.Object, into any) error {
	err := object.Damage
	if err == nil {
		if err = json.Unmarshal(object.Data, into); err != nil {
			err = fmt.Errorf("%w: %s: %w", store.ErrDamaged, object.Name, err)
		}
	}
	if err != nil {
		_ = s.failed("decode", err)
		stateLogger().Error("an object in the store is damaged, so what depends on it is refused",
			zap.Stringer("object", object.Name), zap.Error(err))
	}
	return err
}

// catchUp waits until the store has been asked for changes once more, for a
// token whose key may have been made on another node a moment ago. It waits
// for a moment at the most, and lets few wait at once: anybody can send tokens
// of unknown keys.
func (s *state) catchUp(ctx context.Context) {
	if s.away.Load() {
		return
	}
	ended := s.round.join()
	if ended == nil {
		return
	}
	defer s.round.leave()
	timeout := time.NewTimer(catchUpTimeout)
	defer timeout.Stop()
	select {
	case <-ended:
	case <-timeout.C:
	case <-ctx.Done():
	}
}

const (
	catchUpTimeout  = 250 * time.Millisecond
	catchUpInterval = 50 * time.Millisecond
	maxCatchingUp   = 64
)

// round lets requests wait for the next sync to end.
type round struct {
	wanted chan struct{}

	mu      sync.Mutex
	next    chan struct{} // closed at the end of the next sync to begin
	waiting int
}

// begin starts a round. The caller closes the channel when it ends.
func (r *round) begin() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	this := r.next
	r.next = make(chan struct{})
	return this
}

// join asks for a round soon, and returns what is closed at its end: nil if too
// many are waiting.
func (r *round) join() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == maxCatchingUp {
		return nil
	}
	r.waiting++
	select {
	case r.wanted <- struct{}{}:
	default:
	}
	return r.next
}

func (r *round) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
}

// storages is the storage of whichever config is in force: a state outlives
// configs, but a storage may end with its own.
type storages struct {
	mu  sync.RWMutex
	all []*configStorage // the last one is used
}

// configStorage is the storage of one config.
type configStorage struct{ certmagic.Storage }

// offer adds the storage of a config that is being loaded, as the last resort.
func (s *storages) offer(storage *configStorage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.Insert(s.all, 0, storage)
}

// use prefers the storage of a config that is starting.
func (s *storages) use(storage *configStorage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(without(s.all, storage), storage)
}

// withdraw takes back the storage of a config that ends.
func (s *storages) withdraw(storage *configStorage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = without(s.all, storage)
}

func without(all []*configStorage, storage *configStorage) []*configStorage {
	return slices.DeleteFunc(slices.Clone(all), func(other *configStorage) bool { return other == storage })
}

func (s *storages) present() certmagic.Storage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[len(s.all)-1].Storage
}
