// Package queue bounds how much work runs at once and how many callers wait for
// their turn. Everything in this product that strangers can make wait (signature
// checks, manifests in memory, key generation, listings) waits in such a queue,
// so each bound is a number beside the queue that it belongs to.
package queue

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

var (
	// ErrFull is the error of Enter when as many callers wait as may.
	ErrFull = errors.New("too many callers are waiting")

	// ErrTimeout is the error of Enter when a caller has waited as long as it may.
	ErrTimeout = errors.New("no turn came in time")
)

// Queue hands out turns of a capacity. Several queues can share one capacity, so
// that callers who misbehave wait in a queue of their own. A Queue is safe for
// concurrent use.
type Queue struct {
	capacity   *semaphore.Weighted
	maxWaiting int64
	patience   time.Duration
	waiting    atomic.Int64
}

// New returns a queue in which at most maxWaiting callers wait, each for at most
// patience. With maxWaiting 0, nobody waits: a caller gets a turn at once or
// ErrFull.
func New(capacity *semaphore.Weighted, maxWaiting int64, patience time.Duration) *Queue {
	return &Queue{capacity: capacity, maxWaiting: maxWaiting, patience: patience}
}

// Enter waits until weight units of the capacity are free and takes them. The
// caller must give them back with Leave unless there is an error: ErrFull,
// ErrTimeout, or that of the context. Turns come in the order of Enter.
func (q *Queue) Enter(ctx context.Context, weight int64) error {
	if q.capacity.TryAcquire(weight) {
		return nil
	}
	if q.waiting.Add(1) > q.maxWaiting {
		q.waiting.Add(-1)
		return ErrFull
	}
	defer q.waiting.Add(-1)
	ctx, cancel := context.WithTimeoutCause(ctx, q.patience, ErrTimeout)
	defer cancel()
	if q.capacity.Acquire(ctx, weight) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Leave gives weight units back.
func (q *Queue) Leave(weight int64) { q.capacity.Release(weight) }

// Waiting returns how many callers wait.
func (q *Queue) Waiting() int64 { return q.waiting.Load() }
