package state

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// records are the objects of a collection that requests have asked for. An object is read
// from the store when it is first asked for, once however many requests ask at the same
// time.
type records[T any] struct {
	state      *State
	collection store.Collection
	decode     func(store.Object) record[T]
	cache      *otter.Cache[string, record[T]]
	reads      singleflight.Group

	// A record is current if it is of the generation of its object. All objects
	// with the same hash have one generation.
	generations [256]atomic.Uint32
	seed        maphash.Seed

	// A record of an earlier refresh serves until it has been read again.
	refreshes atomic.Uint32
}

// record is what the store says about one object. It is immutable.
type record[T any] struct {
	value      *T     // nil if there is no such object
	damage     error  // then value is nil
	weight     uint32 // estimated memory in bytes
	generation uint32 // at the time when the reading began
	refresh    uint32 // the same
}

// newRecords returns records whose weight is at most maxWeight. decode makes one without a
// generation.
func newRecords[T any](s *State, collection store.Collection, maxWeight uint64, decode func(store.Object) record[T]) *records[T] {
	return &records[T]{
		state: s, collection: collection, decode: decode, seed: maphash.MakeSeed(),
		cache: otter.Must(&otter.Options[string, record[T]]{
			MaximumWeight: maxWeight,
			Weigher:       func(_ string, of record[T]) uint32 { return of.weight },
		}),
	}
}

func (r *records[T]) generation(id string) *atomic.Uint32 {
	return &r.generations[maphash.String(r.seed, id)%uint64(len(r.generations))]
}

// get returns an object, nil if the store has none. It waits only for an object that is not
// known or has changed, and never while the store is unavailable. admit is nil for a request
// with a valid token, and otherwise may refuse that the store is asked for an unknown object.
func (r *records[T]) get(ctx context.Context, id string, admit func() error) (*T, error) {
	known, ok := r.cache.GetIfPresent(id)
	unavailable := r.state.Unavailable()
	stranger := admit != nil && known.value == nil
	generation := r.generation(id).Load()
	switch {
	case ok && (unavailable || known.generation == generation):
		if !unavailable && known.refresh != r.refreshes.Load() {
			r.read(id, generation, stranger)
		}
		return known.value, known.damage
	case unavailable:
		return nil, errNoAnswer
	}
	if stranger && !ok {
		if err := admit(); err != nil {
			return nil, err
		}
	}
	select {
	case result := <-r.read(id, generation, stranger):
		if read, done := result.Val.(record[T]); done {
			return read.value, read.damage
		}
		if ok && !errors.Is(result.Err, ErrLimited) {
			return known.value, known.damage
		}
		return nil, result.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// read reads an object, or joins a reading of it that began in the same
// generation, but no viewer joins a stranger's. The reading goes on when its
// callers have gone.
func (r *records[T]) read(id string, generation uint32, stranger bool) <-chan singleflight.Result {
	return r.reads.DoChan(fmt.Sprint(id, "#", generation, stranger), func() (any, error) {
		id := strings.Clone(id) // it outlives the path that it may be a part of
		known, ok := r.cache.GetIfPresent(id)
		refresh := r.refreshes.Load()
		if ok && known.generation == generation && known.refresh == refresh {
			return known, nil // read since the caller looked
		}
		name, err := store.NewName(r.collection, id)
		if err != nil {
			return nil, err
		}
		caller := store.Viewer
		if stranger {
			caller = store.Stranger
		}
		object, err := r.state.get(r.state.ctx, name, caller)
		if err != nil {
			return nil, err
		}
		read := r.decode(object)
		read.generation, read.refresh = generation, refresh
		r.cache.Compute(id, func(record[T], bool) (record[T], otter.ComputeOp) {
			if generation != r.generation(id).Load() {
				return read, otter.CancelOp // it has changed meanwhile
			}
			return read, otter.WriteOp
		})
		return read, nil
	})
}

// update changes an object, and then the change is in force on this node. Reading it now
// means that the first request need not, and that it is known if the store becomes
// unavailable.
func (r *records[T]) update(ctx context.Context, id string, change store.Change) error {
	name, err := store.NewName(r.collection, id)
	if err != nil {
		return err
	}
	if err := r.state.update(ctx, name, change); err != nil {
		return err
	}
	r.drop(id)
	_, _ = r.get(ctx, id, nil)
	return nil
}

// drop has an object that has changed read again. Nobody gets the old one, even if the
// reading fails.
func (r *records[T]) drop(id string) {
	r.generation(id).Add(1)
	r.cache.Invalidate(id)
}

// markStale has every object read again when it is next asked for. The known one serves if
// that fails.
func (r *records[T]) markStale() {
	for i := range r.generations {
		r.generations[i].Add(1)
	}
}

// refresh has every object read again when it is next asked for, without letting
// anybody wait for it.
func (r *records[T]) refresh() { r.refreshes.Add(1) }

func (r *records[T]) forget() {
	r.markStale()
	r.cache.InvalidateAll()
}
