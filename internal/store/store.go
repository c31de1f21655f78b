// Package store keeps what outlives a process and is shared by a fleet: keys,
// settings of videos, and the gateway's own signing key. An object is a few
// hundred bytes of JSON under a Name; what is in it is the caller's affair.
//
// There are two implementations: Caddy's own storage and Redis. Both promise
// the same: an Update that has returned nil survives a kill of the process, is
// never seen half, and is reported by Changes on every node.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
)

// Collection is a kind of objects.
type Collection string

// The collections.
const (
	Keys    Collection = "keys"
	Videos  Collection = "videos"
	Signing Collection = "signing"
)

func (c Collection) valid() bool { return c == Keys || c == Videos || c == Signing }

// Name names one object. NewName is the only way to make one, so no text from
// outside reaches a storage path or a Redis command unchecked. Names are
// comparable; the zero Name names nothing.
type Name struct {
	collection Collection
	id         string
}

// MaxID is how long the id of an object may be, in bytes.
const MaxID = 64

// NewName checks an id: 1 to 64 of A-Z a-z 0-9 _ - . ~, and neither "." nor
// "..". Errors wrap ErrName.
func NewName(collection Collection, id string) (Name, error) {
	switch {
	case !collection.valid():
		return Name{}, fmt.Errorf("%w: collection %q", ErrName, collection)
	case id == "." || id == "..":
		return Name{}, fmt.Errorf("%w: %q is a path", ErrName, id)
	case !ValidID(id):
		return Name{}, fmt.Errorf("%w: %.80q: want 1 to %d of A-Z a-z 0-9 _ - . ~", ErrName, id, MaxID)
	}
	return Name{collection, id}, nil
}

// ValidID reports whether NewName takes an id.
func ValidID(id string) bool {
	return id != "" && len(id) <= MaxID && !strings.ContainsFunc(id, notInID) && id != "." && id != ".."
}

const idAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.~"

func notInID(r rune) bool { return !strings.ContainsRune(idAlphabet, r) }

// Collection returns the collection that the object is in.
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
	ErrBusy        = errors.New("store: another node is writing the object") // ErrUnavailable for one object
)

// Object is an object as it was found.
type Object struct {
	Name   Name
	Data   []byte // nil if there is no such object
	Damage error  // wraps ErrDamaged: there is something under this name that cannot be trusted
}

// Change makes the new content of an object from the present one. Returning nil
// data deletes the object; returning data equal to the present leaves it alone.
// It may be called more than once for one Update, each time with what is
// present then, and may still be running when an Update has returned with
// ErrUnavailable: what it writes to may be read after success only.
type Change func(present Object) (data []byte, err error)

// Store keeps objects. It is safe for concurrent use, except Changes, which has
// one caller.
//
// Implementations observe the context: a call returns soon after it is done,
// with an error that wraps ErrUnavailable, even if the storage underneath
// hangs.
type Store interface {
	// Get reads one object. That there is none, or that it is damaged, is not
	// an error but said in the Object.
	Get(ctx context.Context, name Name) (Object, error)

	// Update changes one object atomically: of two at the same time, on
	// whichever nodes, the second sees what the first has written. When it
	// returns nil, the change is kept and announced. After an error the
	// object is as it was, unless the error wraps ErrUnavailable: then it may
	// turn out to be changed. An error of change is returned as it is.
	Update(ctx context.Context, name Name, change Change) error

	// All reads a whole collection, in no order. It ends with the first error.
	All(ctx context.Context, collection Collection) iter.Seq2[Object, error]

	// Changes returns the objects that have been changed since the last call,
	// by this node or others. complete is false if some changes may be missing
	// from the list, as it is for the first call: then everything may have
	// changed.
	Changes(ctx context.Context) (changed []Name, complete bool, err error)

	// Wake returns a channel that receives when it is worth calling Changes
	// before the next poll is due. It is nil if the store cannot tell.
	Wake() <-chan struct{}

	// Close gives up connections. Nothing may be called after it.
	Close()
}

// format is the version of the sealed form. Objects of other versions are
// damaged to us, so a downgrade fails closed.
const format = 1

// sealed is what is written: the data with all that it takes to notice that it
// is not, or not whole, what was written under this name.
type sealed struct {
	Format int             `json:"signed_playback"`
	Name   string          `json:"name"`
	SHA256 string          `json:"sha256"`
	Data   json.RawMessage `json:"data"`
}

// seal encodes an object for storage. data must be JSON.
func seal(name Name, data []byte) ([]byte, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, fmt.Errorf("store: encoding %s: %w", name, err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // it would change the bytes that the digest is of
	err := enc.Encode(sealed{format, name.String(), digest(compact.Bytes()), compact.Bytes()})
	return out.Bytes(), err
}

// unseal decodes what seal has made. Anything else is reported as the object's
// damage.
func unseal(name Name, raw []byte) Object {
	damaged := func(why string, args ...any) Object {
		return Object{Name: name, Damage: fmt.Errorf("%w: %s: %s", ErrDamaged, name, fmt.Sprintf(why, args...))}
	}
	var s sealed
	if err := json.Unmarshal(raw, &s); err != nil {
		return damaged("%d bytes that are not an object of ours: %v", len(raw), err)
	}
	switch {
	case s.Format != format:
		return damaged("it has format %d: want %d", s.Format, format)
	case s.Name != name.String():
		return damaged("it says that it is %.80q", s.Name)
	case len(s.Data) == 0:
		return damaged("it has no content")
	case s.SHA256 != digest(s.Data):
		return damaged("its content has been changed")
	}
	return Object{Name: name, Data: s.Data}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
