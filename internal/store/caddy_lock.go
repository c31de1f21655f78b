package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

const lockRetry = 50 * time.Millisecond

// acquire makes the caller the only writer of an object in the fleet.
//
// Keys are not locked. A key's object is written when the key is made, under an id
// that no other key has, and after that only to revoke the key, which is final. So
// two writers lose nothing, and a revocation does not wait for the lock of a node that
// has died. The same is true of revocations: each object is written once, under an id of
// its own, and removed when others have its content or it is over.
func (s *Caddy) acquire(ctx context.Context, name Name) (release func(), err error) {
	if name.collection == Keys || name.collection == Revocations {
		return func() {}, nil
	}
	storage, lock := s.storage(), root+"_"+string(name.collection)+"_"+name.id
	if err := s.lock(ctx, storage, lock); err != nil {
		return nil, err
	}
	return func() { s.unlock(ctx, storage, lock) }, nil
}

// lock tries again and again: some storages look only once a second whether a
// lock has been released, or fail while another node writes the lock.
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
// its owner has died, and releases it. File storage breaks an empty lock, which a
// full disk leaves, after two seconds of waiting. It also refreshes a lock for seconds
// after its release, even if by then the lock belongs to another node that has died.
// So clearLock breaks a lock that is not released in finishTimeout: no write takes longer.
func (s *Caddy) clearLock(ctx context.Context, storage certmagic.Storage, lock string) {
	if _, already := s.stuck.LoadOrStore(lock, struct{}{}); already {
		return
	}
	defer s.stuck.Delete(lock)
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	if err := storage.Lock(ctx, lock); err != nil {
		if ctx.Err() == nil {
			return // this error says nothing about the owner, who may be alive
		}
		s.logger().Warn("breaking a lock that its owner has not released in time", zap.String("lock", lock), zap.Error(err))
	}
	s.unlock(ctx, storage, lock)
}

func (s *Caddy) unlock(ctx context.Context, storage certmagic.Storage, lock string) {
	if err := storage.Unlock(context.WithoutCancel(ctx), lock); err != nil {
		s.logger().Warn("could not release a lock", zap.String("lock", lock), zap.Error(err))
	}
}
