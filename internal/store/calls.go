package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
)

// start is the moment from which a store may write. `caddy validate` and
// `explain` open stores that never start. They often run as another user than the
// server, which could not read what they had written.
type start struct {
	once sync.Once
	done chan struct{}
}

func newStart() *start { return &start{done: make(chan struct{})} }

// Start implements Store.
func (s *start) Start() { s.once.Do(func() { close(s.done) }) }

func (s *start) started() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// await waits for the start. Caddy starts its apps in any order, so a call of the
// control API may come a moment earlier.
func (s *start) await(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: nothing is written before the server has started: %w", ErrUnavailable, ctx.Err())
	}
}

const (
	// maxWrites is how many writes of a storage may be under way at once.
	maxWrites = 16

	// maxWaiting is how many calls may wait for their turn.
	maxWaiting = 10_000

	// maxWait is longer than any caller waits: their contexts end before.
	maxWait = time.Minute

	// strangersPatience is how long a stranger waits. Anybody can cause lookups, by
	// asking for videos that nobody has asked for before.
	strangersPatience = 400 * time.Millisecond
)

// Caller says for whom a call is. Callers of each kind wait for each other only.
type Caller int

// The callers. A Stranger is a request without a valid token, of which anybody can cause
// any number, and has a short queue.
const (
	Server Caller = iota // the server itself, and the control API
	Viewer
	Stranger
	writer
)

// calls bounds how many calls of a storage may be under way at once. A call
// that hangs keeps its turn, so a storage that hangs for good costs this many
// goroutines and no more.
type calls map[Caller]turns

// turns are those of the callers of one kind.
type turns struct {
	*queue.Queue
	atOnce int64
}

// newCalls permits so many calls of the server at once, as many of viewers, and half as
// many of strangers.
func newCalls(atOnce int64) calls {
	turnsOf := func(atOnce, waiting int64, wait time.Duration) turns {
		return turns{queue.New(semaphore.NewWeighted(atOnce), waiting, wait), atOnce}
	}
	return calls{
		Server:   turnsOf(atOnce, maxWaiting, maxWait),
		Viewer:   turnsOf(atOnce, maxWaiting, maxWait),
		Stranger: turnsOf(atOnce/2, 2*atOnce, strangersPatience),
		writer:   turnsOf(maxWrites, maxWaiting, maxWait),
	}
}

// enter waits for a turn, no longer than the context allows.
func (c calls) enter(ctx context.Context, caller Caller) error {
	err := c[caller].Enter(ctx, 1)
	switch {
	case err == nil:
		return nil
	case caller == Stranger && (errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout)):
		return ErrLimited
	}
	return fmt.Errorf("%w: too many calls: %w", ErrUnavailable, err)
}

// await makes a call when its turn has come and waits for it no longer than the
// context allows: storages on network file systems hang and ignore contexts.
func await[T any](ctx context.Context, calls calls, caller Caller, call func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := calls.enter(ctx, caller); err != nil {
		return none, err
	}
	done := make(chan result, 1)
	go func() {
		defer calls[caller].Leave(1)
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
