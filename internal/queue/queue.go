// Package queue bounds the work that runs at the same time and the callers that wait
// for their turn. Signature checks, manifests in memory, key generation, lists and calls
// of the store use it. Each bound is a constant next to its queue.
package queue

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

var (
	// ErrFull is the error of Enter if the maximum number of callers is waiting.
	ErrFull = errors.New("too many callers are waiting")

	// ErrTimeout is the error of Enter after the maximum time of waiting.
	ErrTimeout = errors.New("the wait for a turn took too long")
)

// Queue gives its callers turns of a shared capacity. Several queues can share one
// capacity, so that suspicious callers wait in a separate queue. A Queue is safe for
// concurrent use.
type Queue struct {
	capacity   *semaphore.Weighted
	maxWaiting int64
	patience   time.Duration
	waiting    atomic.Int64
}

// New returns a queue in which at most maxWaiting callers wait, each for at most
// patience. If maxWaiting is 0, no caller waits: Enter returns at once, with a turn or
// with ErrFull.
func New(capacity *semaphore.Weighted, maxWaiting int64, patience time.Duration) *Queue {
	return &Queue{capacity: capacity, maxWaiting: maxWaiting, patience: patience}
}

// Enter waits until weight units of the capacity are free and takes them. The caller
// must return them with Leave. The error is ErrFull, ErrTimeout or the context's error;
// then the caller has taken no units. Waiting callers get their turns in order.
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

// Leave returns weight units.
func (q *Queue) Leave(weight int64) { q.capacity.Release(weight) }
