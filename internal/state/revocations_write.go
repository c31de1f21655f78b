package state

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

const (
	// maxInBatch is the largest number of revocations in an object of the store, and in
	// a call.
	maxInBatch = 1000

	// maxSmallBatches is how many objects with less than half of that there may be
	// before they are merged. So 100,000 revocations are in about 260 objects.
	maxSmallBatches = 64

	// grace is how long an expired revocation stays in the store, for clocks that differ.
	grace = time.Hour
)

// ErrRevocationLimit is the error of Refuse and TakeBack when there are too many.
var ErrRevocationLimit = fmt.Errorf("there are %d revocations, which is the limit; take some back, or wait until some expire", maxRevocations)

// MaxInCall is how many revocations one call of Refuse makes at most.
const MaxInCall = maxInBatch

// Refuse stores revocations, all or none, and then they are in force on this node. It sets
// their ids and dates. The error is ErrRevocationLimit or wraps ErrUnavailable.
func (s *State) Refuse(ctx context.Context, list []*Revocation) error {
	if len(list) == 0 {
		return nil
	}
	release, err := s.revocations.reserve(len(list), s.date(), false)
	if err != nil {
		return err
	}
	defer release()
	for _, revocation := range list {
		revocation.ID, revocation.Created = randomID(), s.revocations.nextDate(s.date())
	}
	return s.writeRevocations(ctx, list)
}

// TakeBack ends a revocation on this node. known is false if there is none with this id.
// The error is ErrRevocationLimit or wraps ErrUnavailable.
func (s *State) TakeBack(ctx context.Context, id string) (known bool, err error) {
	r := s.revocations
	release, err := r.reserve(1, s.date(), true)
	if err != nil {
		return false, err
	}
	defer release()
	of := r.live(id, s.date())
	if of == nil {
		s.CatchUp(ctx)
		of = r.live(id, s.date())
	}
	if of == nil {
		return false, nil
	}
	return true, s.writeRevocations(ctx, []*Revocation{{ID: id, Selector: of.Selector, Expires: of.Expires, Created: of.Created, TakenBack: true}})
}

func (r *revocations) live(id string, now time.Time) *Revocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if of := r.records[id]; of != nil && !of.TakenBack && !of.expired(now) {
		return of
	}
	return nil
}

// reserve keeps room for some more revocations, or marks of ones that are taken back,
// until release.
func (r *revocations) reserve(some int, now time.Time, takenBack bool) (release func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inForce.Load() == nil {
		return nil, errNoAnswer
	}
	if r.pending+some+len(r.records) > maxRevocations && r.pending+some+r.count(now, takenBack) > maxRevocations {
		return nil, ErrRevocationLimit
	}
	r.pending += some
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pending -= some
	}, nil
}

func (r *revocations) count(now time.Time, takenBack bool) (count int) {
	for _, of := range r.records {
		if of.TakenBack == takenBack && !of.expired(now) {
			count++
		}
	}
	return count
}

// nextDate returns now, or a later date if a revocation has that of now: pages of a list end
// at a date.
func (r *revocations) nextDate(now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !now.After(r.last) {
		now = r.last.Add(time.Microsecond)
	}
	r.last = now
	return now
}

func randomID() string {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	return hex.EncodeToString(random)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// DigestOfToken returns the Value of a revocation of a token: no store, list or log has
// its text.
func DigestOfToken(compact string) string { return digest(compact) }

// writeRevocations writes a batch, and then it is in force on this node.
func (s *State) writeRevocations(ctx context.Context, list []*Revocation) error {
	if err := s.writeBatch(ctx, list); err != nil {
		return err
	}
	if s.revocations.manySmall() {
		go s.mergeBatches(s.ctx)
	}
	return nil
}

// writeBatch stores a batch under a digest of its content, so that nodes which write back
// the same revocations write one object.
func (s *State) writeBatch(ctx context.Context, list []*Revocation) error {
	data, err := json.Marshal(batchDocument{list})
	if err != nil {
		return fmt.Errorf("encoding revocations: %w", err)
	}
	name, err := store.NewName(store.Revocations, digest(string(data))[:32])
	if err != nil {
		return err
	}
	if err := s.update(ctx, name, func(store.Object) ([]byte, error) { return data, nil }); err != nil {
		return err
	}
	s.revocations.publish(name, list)
	return nil
}

// publish takes over a batch that this node has written.
func (r *revocations) publish(name store.Name, list []*Revocation) {
	of := &batch{records: slices.Clone(list)}
	r.edit(func(batches map[store.Name]*batch) { batches[name] = of })
	r.add(of.records)
}

// edit changes the known batches. A reading may be using the map of before.
func (r *revocations) edit(change func(batches map[store.Name]*batch)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches = maps.Clone(r.batches)
	change(r.batches)
}

// restoreLost writes back the revocations that the store has lost, most likely because an
// older backup of it was restored, and removes the damaged objects that had them. If that
// fails, the next look tries again.
func (s *State) restoreLost(ctx context.Context) {
	for len(s.lostRevocations) > 0 {
		some := s.lostRevocations[:min(maxInBatch, len(s.lostRevocations))]
		if err := s.writeBatch(ctx, some); err != nil {
			s.logger().Error("could not write revocations that the store has lost; trying again", zap.Int("revocations", len(s.lostRevocations)), zap.Error(err))
			return
		}
		s.lostRevocations = s.lostRevocations[len(some):]
		s.logger().Warn("the store had lost revocations; they are written again", zap.Int("revocations", len(some)))
	}
	s.removeBatches(ctx, s.revocations.damaged())
}

// damaged returns the damaged objects whose content is known.
func (r *revocations) damaged() (names []store.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, of := range r.batches {
		if of.damaged && of.records != nil {
			names = append(names, name)
		}
	}
	return names
}

// removeBatches removes objects whose content is in others, or over.
func (s *State) removeBatches(ctx context.Context, names []store.Name) {
	for _, name := range names {
		if err := s.update(ctx, name, func(store.Object) ([]byte, error) { return nil, nil }); err != nil {
			s.logger().Warn("could not remove revocations that are over or stored elsewhere; trying again later", zap.Stringer("object", name), zap.Error(err))
			return
		}
		s.revocations.edit(func(batches map[store.Name]*batch) { delete(batches, name) })
	}
}

// mergeBatches merges small batches if there are many, and removes those that are over, here
// and in the store.
// Two nodes that merge at the same time write the same objects, or some revocations twice,
// which the next merging ends.
func (s *State) mergeBatches(ctx context.Context) {
	if !s.revocations.merging.TryLock() {
		return
	}
	defer s.revocations.merging.Unlock()
	s.revocations.prune(s.steadyTime())
	over, small, records := s.revocations.smallBatches(s.steadyTime().Add(-grace))
	if len(small) > maxSmallBatches {
		for some := range slices.Chunk(records, maxInBatch) {
			if err := s.writeBatch(ctx, some); err != nil {
				s.logger().Warn("could not merge revocations; trying again later", zap.Error(err))
				return
			}
		}
		over = append(over, small...)
	}
	s.removeBatches(ctx, over)
}

// manySmall reports whether there are many small batches.
func (r *revocations) manySmall() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	small := 0
	for _, of := range r.batches {
		if len(of.records) < maxInBatch/2 {
			small++
		}
	}
	return small > maxSmallBatches
}

// smallBatches returns batches to remove: over has those without a record that is still
// needed, small has those with few, and records are these few. If two batches have the same
// record, it counts for the first.
func (r *revocations) smallBatches(now time.Time) (over, small []store.Name, records []*Revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	needed := make(map[*Revocation]bool, len(r.records))
	for _, name := range slices.SortedFunc(maps.Keys(r.batches), func(a, b store.Name) int { return strings.Compare(a.ID(), b.ID()) }) {
		of := r.batches[name]
		if of.damaged {
			continue
		}
		var own []*Revocation
		for _, record := range of.records {
			known := r.records[record.ID]
			if known == nil {
				known = record // it has expired
			}
			if known.TakenBack == record.TakenBack && !needed[known] && !known.expired(now) {
				needed[known] = true
				own = append(own, known)
			}
		}
		switch {
		case len(own) == 0:
			over = append(over, name)
		case len(own) < maxInBatch/2:
			small, records = append(small, name), append(records, own...)
		}
	}
	slices.SortFunc(records, func(a, b *Revocation) int { return strings.Compare(a.ID, b.ID) })
	return over, small, records
}
