package state

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// maxExtensions bounds the extensions in the memory of a node. It reads others from the
// store when a session needs them.
const maxExtensions = 100_000

// extensionDocument says how long a playback session may play beyond its token.
type extensionDocument struct {
	Session string `json:"session"`
	Until   int64  `json:"until"` // Unix seconds
}

// extensions are the extensions of sessions whose tokens have expired.
type extensions struct {
	cache      *otter.Cache[string, extension]
	reads      singleflight.Group
	generation atomic.Uint64 // an extension of an earlier one may have changed
}

type extension struct {
	until      int64 // Unix seconds, 0 for none
	generation uint64
}

func newExtensions() *extensions {
	return &extensions{cache: otter.Must(&otter.Options[string, extension]{MaximumSize: maxExtensions})}
}

// ExtendedUntil returns how long a session may play beyond its token, the zero time for not
// at all. It waits only for an extension that is not known or may have changed. Without
// the store, what is known stays in force.
func (s *State) ExtendedUntil(ctx context.Context, session string) time.Time {
	e := s.extensions
	known, ok := e.cache.GetIfPresent(session)
	generation := e.generation.Load()
	if ok && known.generation == generation || s.Unavailable() {
		return unixDate(known.until)
	}
	select {
	case result := <-e.reads.DoChan(session+"#"+strconv.FormatUint(generation, 10), func() (any, error) {
		until, err := s.readExtension(session)
		if err == nil {
			e.cache.Set(session, extension{until, generation})
		}
		return until, err
	}):
		if result.Err == nil {
			known.until = result.Val.(int64)
		}
	case <-ctx.Done():
	}
	return unixDate(known.until)
}

// readExtension returns 0 for a session without an extension, and for a damaged one.
func (s *State) readExtension(session string) (until int64, err error) {
	name, err := store.NewName(store.Extensions, session)
	if err != nil {
		return 0, err
	}
	ctx, done := s.oneCall(s.ctx)
	object, err := s.store.Lookup(ctx, name, false)
	if done(err); err != nil {
		return 0, s.failed("get", err)
	}
	doc := s.decodeExtension(object)
	return doc.Until, nil
}

func (s *State) decodeExtension(object store.Object) (doc extensionDocument) {
	if !object.Exists() {
		return doc
	}
	err := s.decode(object, &doc)
	if err == nil && doc.Session != object.Name.ID() {
		_ = s.damaged(object.Name, fmt.Errorf("it is of the session %q", doc.Session))
	}
	if err != nil || doc.Session != object.Name.ID() {
		return extensionDocument{}
	}
	return doc
}

// Extend lets a session play beyond its token until a time, instead of any earlier extension,
// and then that is in force on this node. Errors wrap ErrUnavailable.
func (s *State) Extend(ctx context.Context, session string, until time.Time) error {
	name, err := store.NewName(store.Extensions, session)
	if err != nil {
		return err
	}
	err = s.update(ctx, name, func(store.Object) ([]byte, error) {
		return json.Marshal(extensionDocument{session, until.Unix()})
	})
	if err == nil {
		s.extensions.generation.Add(1)
	}
	return err
}

// forgetExtensions removes the extensions that ended an hour ago, for clocks that differ.
func (s *State) forgetExtensions(ctx context.Context) {
	over := s.now().Add(-time.Hour).Unix()
	for object, err := range s.store.All(ctx, store.Extensions) {
		if err != nil {
			_ = s.failed("list", err)
			continue
		}
		if doc := s.decodeExtension(object); doc.Session == "" || doc.Until > over {
			continue
		}
		_ = s.update(ctx, object.Name, func(present store.Object) ([]byte, error) {
			if s.decodeExtension(present).Until > over {
				return present.Data, nil // extended again meanwhile
			}
			return nil, nil
		})
	}
}

func unixDate(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}
