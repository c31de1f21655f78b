package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
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

// The attack: somebody runs `caddy validate` or `explain` as root, and the server,
// which runs as another user, cannot read what these have written. So a store reads
// before its start and writes nothing.
func TestNothingIsWrittenBeforeTheStart(t *testing.T) {
	t.Parallel()
	key := named(Keys, "k")
	for name, filled := range map[string]bool{"empty": false, "filled": true} {
		for kind, redis := range map[string]bool{"caddy": false, "redis": true} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				storage, server := newMemStorage(), (*redisServer)(nil)
				open := func() Store { return NewCaddy(as[certmagic.Storage](storage), zap.NewNop, nil) }
				if redis {
					server = startRedis(t)
					open = func() Store { return unstartedRedis(t, server.address(), storage, zap.NewNop()) }
				}
				want := ""
				if filled {
					want = `"before"`
					other := open()
					if redis {
						other = server.open(t) // in another storage, so this node has not seen the data
					}
					other.Start()
					write(t, other, key, want)
				}
				var written []string
				storage.intercept(func(operation, key string) error {
					if !slices.Contains([]string{"load", "list", "stat", "exists"}, operation) {
						written = append(written, operation+" "+key)
					}
					return nil
				})
				before := dataOf(t, server)

				s := open()
				wantObject(t, s, key, want)
				follow(t, s)
				for _, collection := range collections {
					if _, err := readAll(t.Context(), s, collection); err != nil {
						t.Error(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				wantUnavailable(t, "Update", tryWrite(ctx, s, key, `"too early"`), "has started")
				if diff := cmp.Diff(before, dataOf(t, server)); diff != "" || written != nil {
					t.Errorf("before the start, the storage was told to %q, and Redis changed (-before +after):\n%s", written, diff)
				}

				written = nil
				waiting := make(chan error, 1)
				go func() { waiting <- tryWrite(t.Context(), s, key, `"after"`) }()
				s.Start()
				if err := <-waiting; err != nil {
					t.Errorf("an Update that waits for the start: %v", err)
				}
				node := open()
				wantObject(t, node, key, `"after"`)
				if written == nil {
					t.Error("this test does not see what a started store writes")
				}
			})
		}
	}
}

func dataOf(t *testing.T, server *redisServer) map[string]string {
	t.Helper()
	if server == nil {
		return nil
	}
	return server.save(t)
}
