package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The attack: strangers ask for more videos than the store can look up. They wait for
// each other only: viewers with a token, the control API and the look for changes do
// not notice, and the strangers beyond the queue are told so at once.
func TestStrangersKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	const atOnce, waiting = maxReads / 2, 2 * maxReads
	const strangers = 10 * (atOnce + waiting)
	storage := newMemStorage()
	s := quiet(storage)
	write(t, s, named(Keys, "k"), "1")
	write(t, s, named(Videos, "v"), "1")
	reads := hold(storage, "load", "stranger-")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var told atomic.Int64
	var group sync.WaitGroup
	for i := range strangers {
		group.Go(func() {
			if _, err := s.Get(ctx, named(Videos, fmt.Sprint("stranger-", i)), Stranger); errors.Is(err, ErrLimited) && !errors.Is(err, ErrUnavailable) {
				told.Add(1)
			}
		})
	}
	for told.Load() < strangers-atOnce-waiting {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d of %d strangers are told to come again", told.Load(), strangers)
		}
	}
	if object, err := s.Get(ctx, named(Videos, "v"), Viewer); err != nil || string(object.Data) != "1" {
		t.Errorf("a viewer with a token: %q, %v", object.Data, err)
	}
	wantObject(t, s, named(Keys, "k"), "1")
	wantAll(t, s, Keys, map[string]string{"k": "1"})
	follow(t, s)
	write(t, s, named(Keys, "k"), "2")
	if peak := reads.peak(); peak > atOnce {
		t.Errorf("%d lookups of strangers at once, want at most %d", peak, atOnce)
	}
	close(reads.release)
	group.Wait()
}
