package store

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

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
