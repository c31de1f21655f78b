package state

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

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

// ExtendedUntil returns how long a session may play beyond its token, the zero time for not
// at all. It waits only for an extension that is not known or may have changed. Without
// the store, what is known stays in force.
func (s *State) ExtendedUntil(ctx context.Context, session string) time.Time {
	extension, err := s.extensions.get(ctx, session, nil)
	if err != nil || extension == nil {
		return time.Time{}
	}
	return time.Unix(extension.Until, 0)
}

// decodeExtension makes a record of an object.
func (s *State) decodeExtension(object store.Object) record[extensionDocument] {
	read := record[extensionDocument]{weight: 1}
	if !object.Exists() {
		return read
	}
	doc := new(extensionDocument)
	if read.damage = s.decode(object, doc); read.damage == nil && doc.Session != object.Name.ID() {
		read.damage = s.damaged(object.Name, fmt.Errorf("it is of the session %q", doc.Session))
	}
	if read.damage == nil {
		read.value = doc
	}
	return read
}

// Extend lets a session play beyond its token until a time, instead of any earlier extension,
// and then that is in force on this node. Errors wrap ErrUnavailable.
func (s *State) Extend(ctx context.Context, session string, until time.Time) error {
	return s.extensions.update(ctx, session, func(store.Object) ([]byte, error) {
		return json.Marshal(extensionDocument{session, until.Unix()})
	})
}

// forgetExtensions removes the extensions that ended an hour ago, for clocks that differ.
func (s *State) forgetExtensions(ctx context.Context) {
	over := s.now().Add(-time.Hour).Unix()
	isOver := func(object store.Object) bool {
		extension := s.decodeExtension(object).value
		return extension != nil && extension.Until <= over
	}
	for object, err := range store.All(ctx, s.store, store.Extensions) {
		if err != nil {
			_ = s.failed("list", err)
			continue
		}
		if !isOver(object) {
			continue
		}
		_ = s.update(ctx, object.Name, func(present store.Object) ([]byte, error) {
			if isOver(present) {
				return nil, nil
			}
			return present.Data, present.Damage // extended again meanwhile
		})
	}
}
