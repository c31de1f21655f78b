// Package store keeps what outlives a process and is shared by a fleet: keys,
// the settings of videos, the gateway's own signing key, revocations, and extensions of sessions. An object is
// JSON under a Name, most often of a few hundred bytes. The store does not look into it.
//
// There are two implementations: Caddy's own storage and Redis. Both promise
// the same: an Update that has returned nil survives a kill of the process, is
// never seen half done, and has every node find a new stamp.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Collection is a kind of object.
type Collection string

// The collections.
const (
	Keys        Collection = "keys"
	Videos      Collection = "videos"
	Signing     Collection = "signing"
	Revocations Collection = "revocations"
	Extensions  Collection = "extensions"
)

var collections = []Collection{Keys, Videos, Signing, Revocations, Extensions}

// Collections returns all collections.
func Collections() []Collection { return slices.Clone(collections) }

// Name names one object. NewName is the only way to make one, so no text from
// outside reaches a storage path or a Redis command unchecked. Names are
// comparable. The zero Name names nothing.
type Name struct {
	collection Collection
	id         string
}

// MaxID is the maximum length of an object's id, in bytes.
const MaxID = 64

// NewName checks an id: 1 to 64 of A-Z a-z 0-9 _ - . ~, and neither "." nor
// "..". Errors wrap ErrName.
func NewName(collection Collection, id string) (Name, error) {
	if !slices.Contains(collections, collection) {
		return Name{}, fmt.Errorf("%w: collection %q", ErrName, collection)
	}
	if !ValidID(id) {
		return Name{}, fmt.Errorf("%w: %.80q: want 1 to %d of A-Z a-z 0-9 _ - . ~, and no path", ErrName, id, MaxID)
	}
	return Name{collection, id}, nil
}

// ValidID reports whether NewName accepts an id.
func ValidID(id string) bool {
	return id != "" && len(id) <= MaxID && !strings.ContainsFunc(id, notInID) && id != "." && id != ".."
}

const idAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.~"

func notInID(r rune) bool { return !strings.ContainsRune(idAlphabet, r) }

// Collection returns the collection of the object.
func (n Name) Collection() Collection { return n.collection }

// ID returns the id of the object within its collection.
func (n Name) ID() string { return n.id }

func (n Name) String() string { return string(n.collection) + "/" + n.id }

// Errors of a Store. Any other error that one returns comes from the change
// function of Update.
var (
	ErrName        = errors.New("store: invalid name")
	ErrUnavailable = errors.New("store: unavailable") // the store as a whole; try again later
	ErrDamaged     = errors.New("store: damaged object")
	ErrLimited     = errors.New("store: too many lookups")
	ErrBusy        = errors.New("store: another node is writing the object") // ErrUnavailable for one object
)

// Object is an object as the store has it.
type Object struct {
	Name   Name
	Data   []byte // nil if there is no such object
	Damage error  // wraps ErrDamaged: there is something under this name that cannot be trusted

	// An earlier secret, or none, has written the object. An Update with the same
	// data has the present one write it.
	Outdated bool
}

// Exists reports whether there is something under the name, damaged or not.
func (o Object) Exists() bool { return o.Data != nil || o.Damage != nil }

// Change makes the new content of an object from the present one. Nil data deletes
// the object. The present data leaves it as it is, and the Update is announced like
// any other. One Update may call a Change more than once, each time with the content
// at that time. A Change may still run when the Update has returned ErrUnavailable,
// so read the variables that it sets only after success.
type Change func(present Object) (data []byte, err error)

// Store keeps objects. It is safe for concurrent use.
//
// Before Start, it writes nothing, so that a command can open the store of a server
// and leave no trace in it.
//
// Implementations observe the context: a call returns soon after the context is
// done, with an error that wraps ErrUnavailable, even if the storage underneath
// hangs.
type Store interface {
	// Start lets the store write, once however often it is called. An Update
	// waits for it.
	Start()

	// Get reads one object. A missing or damaged object is not an error; the
	// Object says so. For a Stranger the error may wrap ErrLimited.
	Get(ctx context.Context, name Name, caller Caller) (Object, error)

	// Update changes one object atomically: of two updates at the same time, on
	// any nodes, the second sees what the first has written. When it returns
	// nil, the change is kept and announced. After an error the object is as it
	// was, unless the error wraps ErrUnavailable: then the change may have been
	// made. An error of change is returned as it is.
	Update(ctx context.Context, name Name, change Change) error

	// Names returns the names of a collection's objects, in no order. It misses none that
	// exists all the time that it takes.
	Names(ctx context.Context, collection Collection) ([]Name, error)

	// GetAll reads many objects of one collection. An error beside an Object that
	// has a name concerns that object alone: it cannot be read, although the
	// store answers. Any other error is the last value.
	GetAll(ctx context.Context, names []Name) iter.Seq2[Object, error]

	// Stamps returns a random text for each collection. Each write replaces the stamp of
	// its collection after it has written its object. A node that finds an unknown stamp
	// knows that the collection has changed. Simultaneous writes always end with a new
	// stamp, in any order, so no node misses a write. A restored backup has other stamps,
	// too.
	Stamps(ctx context.Context) (map[Collection]string, error)

	// Wake returns a channel that receives when it is worth reading the stamps
	// before the next poll is due. It is nil if the store cannot tell.
	Wake() <-chan struct{}

	// Close closes the connections. No method may be called after it.
	Close()
}

// All reads a whole collection, in no order. Its errors are those of Names and GetAll.
func All(ctx context.Context, s Store, collection Collection) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		names, err := s.Names(ctx, collection)
		if err != nil {
			yield(Object{}, err)
			return
		}
		s.GetAll(ctx, names)(yield)
	}
}
