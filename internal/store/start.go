package store

import (
	"context"
	"fmt"
	"sync"

	"github.com/caddyserver/certmagic"
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
		return fmt.Errorf("%w: %w", errNotStarted, ctx.Err())
	}
}

var errNotStarted = fmt.Errorf("%w: nothing is written before the server has started", ErrUnavailable)

// guard returns a Caddy storage that can only be read before the start.
func (s *start) guard(storage func() certmagic.Storage) func() certmagic.Storage {
	return func() certmagic.Storage {
		if s.started() {
			return storage()
		}
		return readOnlyStorage{storage()}
	}
}

// readableStorage is the part of certmagic.Storage that changes nothing.
type readableStorage interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Exists(ctx context.Context, key string) bool
	List(ctx context.Context, path string, recursive bool) ([]string, error)
	Stat(ctx context.Context, key string) (certmagic.KeyInfo, error)
}

// readOnlyStorage is a Caddy storage that refuses to write.
type readOnlyStorage struct{ readableStorage }

func (readOnlyStorage) Store(context.Context, string, []byte) error { return errNotStarted }
func (readOnlyStorage) Delete(context.Context, string) error        { return errNotStarted }
func (readOnlyStorage) Lock(context.Context, string) error          { return errNotStarted }
func (readOnlyStorage) Unlock(context.Context, string) error        { return errNotStarted }
