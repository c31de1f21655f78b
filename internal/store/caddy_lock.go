package store

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

const lockRetry = 50 * time.Millisecond

// acquire makes the caller the only writer of an object: first on this node,
// then on all nodes.
//
// Keys are not locked on all nodes. The object of a key is made once, under an
// id that no other key has, and then only ever revoked, which nobody takes back:
// two writers cannot lose anything. And a revocation must not wait for the lock
// of a node that has died.
func (s *Caddy) acquire(ctx context.Context, name Name) (release func(), err error) {
	here := s.writers[maphash.Comparable(s.seed, name)%uint64(len(s.writers))]
	if err := enter(ctx, here); err != nil {
		return nil, err
	}
	leave := func() { here.Leave(1) }
	if name.collection == Keys {
		return leave, nil
	}
	storage, lock := s.storage(), root+"_"+string(name.collection)+"_"+name.id
	if err := s.lock(ctx, storage, lock); err != nil {
		leave()
		return nil, err
	}
	return func() {
		defer leave()
		s.unlock(ctx, storage, lock)
	}, nil
}

// lock tries again and again: some storages look only once a second whether a
// lock has been released, and fail when the lock is just being written.
func (s *Caddy) lock(ctx context.Context, storage certmagic.Storage, lock string) error {
	if deadline, ok := ctx.Deadline(); ok {
		// End before the caller does, so that it learns the reason.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-lockRetry))
		defer cancel()
	}
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, lockRetry)
		err := storage.Lock(attempt, lock)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			go s.clearLock(context.WithoutCancel(ctx), storage, lock)
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%w, or has died doing so; the lock %q ends by itself within a minute", ErrBusy, lock)
			}
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// clearLock takes a lock with the patience that a storage needs to find out that
// its owner has died, and releases it. File storage breaks an empty lock, which
// a full disk leaves, after two seconds of waiting. File storage also goes on
// refreshing a lock for seconds after its release, even if by then the lock
// belongs to another node that has died; but no write takes longer than this
// waits.
func (s *Caddy) clearLock(ctx context.Context, storage certmagic.Storage, lock string) {
	if _, already := s.stuck.LoadOrStore(lock, struct{}{}); already {
		return
	}
	defer s.stuck.Delete(lock)
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	for err := storage.Lock(ctx, lock); err != nil; err = storage.Lock(ctx, lock) {
		// Another error says nothing about the owner, who may be alive.
		if ctx.Err() != nil {
			s.logger().Warn("breaking a lock that its owner has not released in time", zap.String("lock", lock), zap.Error(err))
			break
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
		}
	}
	s.unlock(ctx, storage, lock)
}

func (s *Caddy) unlock(ctx context.Context, storage certmagic.Storage, lock string) {
	if err := storage.Unlock(context.WithoutCancel(ctx), lock); err != nil {
		s.logger().Warn("could not release a lock", zap.String("lock", lock), zap.Error(err))
	}
}
