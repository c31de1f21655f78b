package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
)

const (
	// maxWaiting is how many calls may wait for their turn.
	maxWaiting = 10_000

	// maxWait is longer than any caller waits: their contexts end before.
	maxWait = time.Minute

	// strangersPatience is how long a stranger waits. Anybody can cause lookups, by
	// asking for videos that nobody has asked for before.
	strangersPatience = 400 * time.Millisecond
)

// newCalls bounds how many calls of a storage may be under way at once. A call
// that hangs keeps its turn, so a storage that hangs for good costs this many
// goroutines and no more.
func newCalls(atOnce int64) *queue.Queue {
	return queue.New(semaphore.NewWeighted(atOnce), maxWaiting, maxWait)
}

// lookups bounds the calls that requests for videos cause.
type lookups struct{ viewers, strangers *queue.Queue }

// newLookups permits half as many lookups of strangers as of viewers at once, and
// has few of them wait.
func newLookups(atOnce int64) lookups {
	return lookups{
		viewers:   newCalls(atOnce),
		strangers: queue.New(semaphore.NewWeighted(atOnce/2), 2*atOnce, strangersPatience),
	}
}

// get makes the call of a lookup, with the queue in which it waits.
func (l lookups) get(stranger bool, call func(*queue.Queue) (Object, error)) (Object, error) {
	if !stranger {
		return call(l.viewers)
	}
	object, err := call(l.strangers)
	if errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout) {
		return object, ErrLimited
	}
	return object, err
}

// enter waits for a turn, no longer than the context allows.
func enter(ctx context.Context, calls *queue.Queue) error {
	if err := calls.Enter(ctx, 1); err != nil {
		return fmt.Errorf("%w: too many calls: %w", ErrUnavailable, err)
	}
	return nil
}

// await makes a call when its turn has come and waits for it no longer than the
// context allows: storages on network file systems hang and ignore contexts.
func await[T any](ctx context.Context, calls *queue.Queue, call func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := enter(ctx, calls); err != nil {
		return none, err
	}
	done := make(chan result, 1)
	go func() {
		defer calls.Leave(1)
		value, err := call()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("%w: no answer: %w", ErrUnavailable, ctx.Err())
	}
}
