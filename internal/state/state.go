// Package state is what the control API writes and the gates read: keys,
// revocations, the settings of videos and the gateway's own signing key, as they are in
// a store that a fleet shares.
//
// # How it follows the store
//
// Requests read snapshots in memory. A goroutine looks each second, and whenever
// the store wakes it, whether any node has written something, and then reads the
// keys again and the new revocations, and marks the settings of videos as stale. So a change on one node
// is in force on all of them within two seconds. Every five minutes everything
// is read again, in case of a change that nobody has announced.
//
// # How it fails
//
// Without the store, the last known state stays in force, for 24 hours at most.
// What has never been known is an error, and so is an object that is damaged. A
// revocation is never forgotten, whatever the store says later.
package state

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	// pollInterval is how often a node looks for changes, so that a revocation
	// on one node is in force on all of them within two seconds.
	pollInterval = time.Second

	// rereadInterval is how often everything is read again, in case of a change
	// that nobody has announced: an object mended by hand, or a change whose
	// author was killed before it could announce it.
	rereadInterval = 5 * time.Minute

	// callTimeout bounds how long a request waits for a store that is silent, and
	// slowTimeout for one that answers other calls meanwhile: while a flood keeps
	// the processors busy, the store is not unavailable. syncTimeout bounds one
	// look for changes, loadTimeout the first.
	callTimeout = 800 * time.Millisecond
	slowTimeout = 3 * time.Second
	syncTimeout = 5 * time.Second
	loadTimeout = 2 * time.Second

	// maxStale is how long the last known state stays in force without the
	// store. After that time every token of the gateway's own key has expired,
	// so a node that cannot hear of a revocation lets no such token in for
	// longer.
	maxStale = MaxTokenLifetime
)

// MaxTokenLifetime is the longest lifetime of a token that is signed with the
// gateway's own key.
const MaxTokenLifetime = 24 * time.Hour

// Config is what a State gets from its host.
type Config struct {
	Store store.Store

	// Renew has Start rewrite the objects that an earlier secret of the store, or
	// none, has written.
	Renew bool

	// Logger returns the logger of the config in force, which a State outlives.
	Logger func() *zap.Logger

	// CountError counts a failed operation of the store: changes, get, list,
	// update, or decode for a damaged object.
	CountError func(operation string)

	// Now returns the time. Default: time.Now.
	Now func() time.Time
}

// State is the state of one store. It is safe for concurrent use, except Sync.
type State struct {
	store      store.Store
	renewing   bool
	logger     func() *zap.Logger
	countError func(operation string)
	now        func() time.Time

	newKey func() (*token.SigningKey, error) // tests set their own: making keys is slow

	keys
	videos      *records[Video]
	signer      signer
	secret      sessionSecret
	revocations *revocations
	extensions  *records[extensionDocument]
	making      *queue.Queue // of calls that make keys

	makingFailed atomic.Uint64 // how many keys could not be stored

	started sync.Once
	ctx     context.Context
	cancel  context.CancelFunc

	// For requests that wait for the next look for changes.
	waiting *queue.Queue
	wanted  chan struct{}
	next    atomic.Pointer[chan struct{}] // closed at the end of the next look to begin

	// For Sync.
	stamps             map[store.Collection]string // of what has been read
	missingRevocations []string                    // revoked keys that the store has lost
	lostRevocations    []*Revocation               // of tokens and sessions, the same
	rereadAt           time.Time
	begun              time.Time
	since              time.Time // of the last success

	unavailable atomic.Bool   // the last look has failed
	answers     atomic.Uint64 // how many calls the store has answered
}

// New returns a State that has read the store. If the store does not answer
// within a second, nothing is known at first. Start begins to follow the store.
func New(config Config) *State {
	if config.Now == nil {
		config.Now = time.Now
	}
	s := &State{
		store: config.Store, renewing: config.Renew, logger: config.Logger, countError: config.CountError, now: config.Now,
		newKey:  func() (*token.SigningKey, error) { return token.GenerateSigningKey("") },
		making:  queue.New(semaphore.NewWeighted(1), maxWaitingForKey, maxWaitForKey),
		waiting: queue.New(semaphore.NewWeighted(maxCatchingUp), 0, 0),
		wanted:  make(chan struct{}, 1),
		since:   config.Now(),
		begun:   config.Now(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.next.Store(new(make(chan struct{})))
	s.videos = newRecords(s, store.Videos, videoMemory(debug.SetMemoryLimit(-1)), s.compileVideo)
	s.extensions = newRecords(s, store.Extensions, maxExtensions, s.decodeExtension)
	s.revocations = newRevocations()
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	s.Sync(ctx)
	return s
}

// Start lets the store write and begins to follow it, once however often it is
// called.
func (s *State) Start() {
	s.started.Do(func() {
		s.store.Start()
		go s.watch()
		if s.renewing {
			go s.renewAll()
		}
	})
}

// Close ends everything and closes the store.
func (s *State) Close() {
	s.cancel()
	s.store.Close()
}

// Unavailable reports whether the store does not answer. Then the last known
// state is in force, and there may be changes that this node does not know.
func (s *State) Unavailable() bool { return s.unavailable.Load() }

func (s *State) watch() {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var begun, merged time.Time
	for {
		select {
		case <-tick.C:
		case <-s.store.Wake():
		case <-s.wanted:
		case <-s.ctx.Done():
			return
		}
		select {
		case <-time.After(time.Until(begun.Add(minInterval))):
		case <-s.ctx.Done():
			return
		}
		begun = time.Now()
		ended := *s.next.Swap(new(make(chan struct{})))
		ctx, cancel := context.WithTimeout(s.ctx, syncTimeout)
		s.Sync(ctx)
		cancel()
		close(ended)
		if s.now().Sub(merged) > rereadInterval {
			merged = s.now()
			go s.mergeBatches(s.ctx)
			go s.forgetExtensions(s.ctx)
		}
	}
}

const (
	// minInterval is the least time between two looks. Anybody can cause looks,
	// with tokens of unknown keys.
	minInterval = 50 * time.Millisecond

	// catchUpTimeout is how long a request waits for a look, and maxCatchingUp
	// how many requests wait at a time.
	catchUpTimeout = 250 * time.Millisecond
	maxCatchingUp  = 64
)

// CatchUp waits until the store has been asked for changes once more, for a
// token whose key another node may have made a moment ago. It waits 250 ms at
// most, and returns at once if many requests wait already.
func (s *State) CatchUp(ctx context.Context) {
	if s.Unavailable() || s.waiting.Enter(ctx, 1) != nil {
		return
	}
	defer s.waiting.Leave(1)
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	ended := *s.next.Load()
	select {
	case s.wanted <- struct{}{}:
	default:
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// Sync looks for changes in the store and updates the snapshots. If the store
// does not answer, what is known stays in force. It has one caller at a time:
// New, then the goroutine of Start.
func (s *State) Sync(ctx context.Context) {
	err := s.readChanges(ctx)
	if s.ctx.Err() != nil {
		return
	}
	if err == nil {
		if s.unavailable.Swap(false) {
			s.logger().Info("the store can be read again", zap.Time("unavailable_since", s.since))
		}
		s.since = s.now()
		s.restoreRevocations(ctx)
		s.restoreLost(ctx)
		return
	}
	if !s.unavailable.Swap(true) {
		s.logger().Error("the store cannot be read; the last known keys and settings stay in force, and what is not known is refused", zap.Error(err))
	}
	if s.now().Sub(s.since) > maxStale && s.KeysKnown() {
		s.logger().Error("the store has been unavailable for too long; from now on everything that depends on it is refused",
			zap.Time("since", s.since))
		s.forget()
	}
}

// forget gives up everything that is known, so that it fails closed. The next
// look that succeeds reads everything: the last one is long ago.
func (s *State) forget() {
	s.keys.forget()
	s.revocations.forget()
	s.extensions.forget()
	s.videos.forget()
	s.signer.own.Store(nil)
}

func (s *State) readChanges(ctx context.Context) error {
	asking, done := s.oneCall(ctx)
	stamps, err := s.store.Stamps(asking)
	if done(err); err != nil {
		return s.failed("changes", err)
	}
	changed := func(collection store.Collection) bool {
		stamp, known := s.stamps[collection]
		return !known || stamp != stamps[collection]
	}
	reread := s.now().Sub(s.rereadAt) > rereadInterval
	if reread {
		s.videos.refresh()
		s.extensions.refresh()
	}
	if changed(store.Videos) {
		s.videos.markStale()
	}
	if changed(store.Extensions) {
		s.extensions.markStale()
	}
	if reread || changed(store.Signing) {
		s.signer.stale.Store(true)
		s.secret.stale.CompareAndSwap(false, s.secret.wanted.Load())
	}
	if s.secret.stale.Load() {
		_ = s.readSecret(ctx, true) // the known secret stays in force
	}
	// The next look reads again what cannot be read now.
	if reread || changed(store.Keys) {
		if err = s.readKeys(ctx); err != nil {
			delete(stamps, store.Keys)
		}
	}
	if reread || changed(store.Revocations) {
		failure := s.readRevocations(ctx)
		if failure != nil || s.Revocations() == nil {
			delete(stamps, store.Revocations)
		}
		err = errors.Join(err, failure)
	}
	s.stamps = stamps
	if err == nil && reread {
		s.rereadAt = s.now()
	}
	return err
}

// restoreRevocations writes revocations that the store has lost, most likely
// because an older backup of it was restored. If that fails, the next look tries
// again.
func (s *State) restoreRevocations(ctx context.Context) {
	for len(s.missingRevocations) > 0 {
		keyID := s.missingRevocations[0]
		if err := s.Revoke(ctx, keyID); err != nil {
			s.logger().Error("could not write a revocation that the store has lost; trying again",
				zap.String("key_id", keyID), zap.Error(err))
			return
		}
		s.missingRevocations = s.missingRevocations[1:]
		s.logger().Warn("the store had lost a revocation; it is written again", zap.String("key_id", keyID))
	}
}
