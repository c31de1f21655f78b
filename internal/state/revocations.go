package state

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// Selector says what a revocation is about.
type Selector string

// The selectors.
const (
	SelectToken   Selector = "token" // the SHA-256 of its text, in hexadecimal digits
	SelectJTI     Selector = "jti"
	SelectViewer  Selector = "uid"
	SelectVideo   Selector = "video"
	SelectSession Selector = "session"
)

// Selectors lists all selectors.
var Selectors = []Selector{SelectToken, SelectJTI, SelectViewer, SelectVideo, SelectSession}

// Revocation refuses tokens, or a playback session, until it expires. It is immutable.
type Revocation struct {
	ID       string   `json:"id"`
	Selector Selector `json:"selector"`
	Value    string   `json:"value,omitempty"` // none if it is taken back

	// IssuedBefore is in Unix seconds. A token with a later `iat` is not revoked. 0: all
	// tokens are.
	IssuedBefore int64 `json:"issuedBefore,omitempty"`

	// Expires is in Unix seconds. From then on the revocation is over.
	Expires int64     `json:"expires"`
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created"`

	// TakenBack is a mark that stays until the revocation would expire. Without it, a
	// node that knows the revocation would write it back.
	TakenBack bool `json:"takenBack,omitempty"`
}

func (r *Revocation) expired(now time.Time) bool { return r.Expires <= now.Unix() }

// Subject is a token of which a gate asks whether it is revoked.
type Subject struct {
	Token, ID, Viewer, Video string // ID and Viewer may be empty
	IssuedAt                 int64  // Unix seconds, negative without `iat`
}

// Revocations are all revocations at a moment. They are immutable.
type Revocations struct {
	indexed, recent *index // recent has those that are newer than indexed
	generation      *Generation
}

// index finds revocations. It is immutable.
type index struct {
	live     []*Revocation // in no order; some may have expired
	found    map[selection]*found
	sessions bool // whether some are of sessions
}

// Generation is the identity of a snapshot. What a snapshot does not revoke is not
// revoked until there is another one, because a revocation in it can only end.
type Generation struct{ _ byte } // of a size, so that each has an address of its own

type selection struct {
	selector Selector
	value    string
}

// found is a list of the revocations with one selection.
type found struct {
	*Revocation
	next *found
}

func newIndex(live []*Revocation) *index {
	x := &index{live: live, found: make(map[selection]*found, len(live))}
	lists := make([]found, len(live))
	for i, revocation := range live {
		at := selection{revocation.Selector, revocation.Value}
		lists[i] = found{revocation, x.found[at]}
		x.found[at] = &lists[i]
		x.sessions = x.sessions || revocation.Selector == SelectSession
	}
	return x
}

// Generation returns the identity of the snapshot.
func (r *Revocations) Generation() *Generation { return r.generation }

// Match returns a revocation of a token, nil if there is none.
func (r *Revocations) Match(s Subject, now time.Time) *Revocation {
	if len(r.indexed.found)+len(r.recent.found) == 0 {
		return nil
	}
	for _, at := range [...]selection{
		{SelectToken, digest(s.Token)}, {SelectJTI, s.ID}, {SelectViewer, s.Viewer}, {SelectVideo, s.Video},
	} {
		if of := r.find(at, s.IssuedAt, now); of != nil {
			return of
		}
	}
	return nil
}

// HasSessions reports whether there may be revocations of sessions.
func (r *Revocations) HasSessions() bool { return r.indexed.sessions || r.recent.sessions }

// Session returns a revocation of a playback session, nil if there is none.
func (r *Revocations) Session(id string, now time.Time) *Revocation {
	return r.find(selection{SelectSession, id}, 0, now)
}

// find returns a revocation of what was issued at a time.
func (r *Revocations) find(at selection, issued int64, now time.Time) *Revocation {
	for _, x := range [...]*index{r.recent, r.indexed} {
		for of := x.found[at]; of != nil; of = of.next {
			if !of.expired(now) && (of.IssuedBefore == 0 || issued <= of.IssuedBefore) {
				return of.Revocation
			}
		}
	}
	return nil
}

// Live returns the revocations that have not expired, in no order. The caller owns the list.
func (r *Revocations) Live(now time.Time) []*Revocation {
	return slices.DeleteFunc(slices.Concat(r.indexed.live, r.recent.live), func(of *Revocation) bool { return of.expired(now) })
}

const (
	// maxRevocations is how many revocations may be in force at a time, and how many
	// may be taken back and not expired.
	maxRevocations = 100_000

	// buildInterval is the least time between two snapshots, and maxRecent how many
	// revocations one has beside its index of all others. Indexing 100,000 takes 40 ms of a
	// processor, so a new revocation must not wait for that, and 5,000 take 2 ms.
	buildInterval = 100 * time.Millisecond
	maxRecent     = 5000
)

// revocations are the revocations as this node knows them. They only grow until they
// expire: whatever the store says later, a revocation stays, and so does the mark that it
// is taken back. So no restored backup and no read that overlaps a write revives a token.
//
// In the store they are in batches: one object for each call that made some. An object
// is never changed, only removed, so that nodes read each object once.
type revocations struct {
	snapshot atomic.Pointer[Revocations] // nil until everything has been read

	mu      sync.Mutex // guards what follows
	records map[string]*Revocation
	recent  []*Revocation // that are not indexed yet; only appended to
	stale   bool          // the index has some that are taken back
	batches map[store.Name]*batch
	written map[store.Name]*batch // by this node since the reading under way began
	known   bool                  // everything has been read
	doubt   bool                  // the store may have lost some
	pending int                   // that are being written
	last    time.Time             // Created of the newest one made here
	version int                   // of all of this

	building chan struct{} // with one place, for the caller who may use what follows
	built    int           // the version of the snapshot
	indexed  *index        // of the snapshot
	builtAt  time.Time

	merging sync.Mutex // held while batches are merged

	readAllAt time.Time // for Sync
}

// batch is an object of the store. It always has a record.
type batch struct {
	records []*Revocation // nil if they are not known, because the object is damaged
	damaged bool
}

// batchDocument is a batch in the store.
type batchDocument struct {
	Revocations []*Revocation `json:"revocations"`
}

// Revocations returns the revocations in force, nil while they are not known.
func (s *State) Revocations() *Revocations { return s.revocations.snapshot.Load() }

// RevocationCount returns how many revocations are in force, 0 while they are not known.
func (s *State) RevocationCount() (count int) {
	if all := s.Revocations(); all != nil {
		count = len(all.Live(s.now()))
	}
	return count
}

// decodeBatch returns the records of an object.
func decodeBatch(object store.Object) ([]*Revocation, error) {
	if object.Damage != nil {
		return nil, object.Damage
	}
	var doc batchDocument
	if err := json.Unmarshal(object.Data, &doc); err != nil {
		return nil, err
	}
	for _, record := range doc.Revocations {
		if record == nil || record.ID == "" || !slices.Contains(Selectors, record.Selector) {
			return nil, errOtherContent
		}
	}
	if len(doc.Revocations) == 0 {
		return nil, errOtherContent
	}
	return doc.Revocations, nil
}

// readRevocations reads the batches that are not known, and now and then all of them. A batch
// whose content is not known and cannot be read may revoke anything, so that nothing is
// known until somebody mends or removes it.
func (s *State) readRevocations(ctx context.Context) error {
	all := s.now().Sub(s.revocations.readAllAt) > rereadInterval
	// A list that is made while another node merges batches may have neither the old
	// nor the new ones, so what seems to be lost is looked for twice.
	for range 2 {
		lost, err := s.readBatches(ctx, all)
		if err != nil {
			return err
		}
		if s.lostRevocations = lost; all {
			s.revocations.readAllAt = s.now()
		}
		if len(lost) == 0 {
			break
		}
	}
	return nil
}

func (s *State) readBatches(ctx context.Context, all bool) (lost []*Revocation, failure error) {
	r := &s.revocations
	known := r.beginReading()
	names, err := s.store.Names(ctx, store.Revocations)
	if err != nil {
		return nil, s.failed("list", err)
	}
	next := make(map[store.Name]*batch, len(names))
	var unknown []store.Name
	for _, name := range names {
		if of := known[name]; of != nil && of.records != nil && !all {
			next[name] = of
		} else {
			unknown = append(unknown, name)
		}
	}
	for object, err := range s.objects(ctx, unknown, all) {
		of := known[object.Name]
		switch {
		case err != nil && object.Name == store.Name{}:
			return nil, s.failed("list", err)
		case err != nil:
			failure = s.failed("get", err)
			if of != nil {
				next[object.Name] = of
			}
		case object.Exists():
			next[object.Name] = s.readBatch(object, of)
		}
	}
	lost = r.commit(next, failure == nil, s.steadyTime())
	s.refreshRevocations()
	return lost, failure
}

// objects reads the objects with some names, or the whole collection.
func (s *State) objects(ctx context.Context, names []store.Name, all bool) func(func(store.Object, error) bool) {
	if all {
		return s.store.All(ctx, store.Revocations)
	}
	return func(yield func(store.Object, error) bool) {
		for _, name := range names {
			calling, done := s.oneCall(ctx)
			object, err := s.store.Get(calling, name)
			done(err)
			object.Name = name
			if !yield(object, err) || err != nil {
				return
			}
		}
	}
}

// readBatch returns the batch of an object that is known as of, nil if it is not known.
// Damage is reported once.
func (s *State) readBatch(object store.Object, of *batch) *batch {
	records, err := decodeBatch(object)
	if err == nil {
		return &batch{records: records}
	}
	if of == nil || !of.damaged {
		_ = s.damaged(object.Name, err)
	}
	if of == nil {
		of = new(batch)
	}
	return &batch{of.records, true}
}

// beginReading returns the known batches.
func (r *revocations) beginReading() map[store.Name]*batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = make(map[store.Name]*batch)
	return r.batches
}

// commit takes over the batches of the store, all of them if complete, and returns the
// revocations that the store has lost.
func (r *revocations) commit(next map[store.Name]*batch, complete bool, now time.Time) (lost []*Revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, of := range next {
		r.doubt = r.doubt || of.damaged
		if r.batches[name] != of {
			r.add(of.records)
		}
	}
	if !complete {
		return nil
	}
	maps.Copy(next, r.written)
	for name := range r.batches {
		r.doubt = r.doubt || next[name] == nil
	}
	r.batches = next
	if r.setKnown(!r.unreadable()); r.doubt {
		lost = r.lost(now)
		r.doubt = len(lost) > 0
	}
	return lost
}

// add takes over records. A record in a batch that says the same as a known one is
// replaced by it, which saves memory.
func (r *revocations) add(records []*Revocation) {
	if r.records == nil {
		r.records = make(map[string]*Revocation)
	}
	for i, record := range records {
		known := r.records[record.ID]
		switch {
		case known == nil, record.TakenBack && !known.TakenBack:
			r.records[record.ID] = record
			if r.version++; record.TakenBack {
				r.stale = true
			} else {
				r.recent = append(r.recent, record)
			}
		case known.TakenBack == record.TakenBack:
			records[i] = known
		}
	}
}

// unreadable reports whether there is a batch whose content is not known.
func (r *revocations) unreadable() bool {
	for _, of := range r.batches {
		if of.records == nil {
			return true
		}
	}
	return false
}

func (r *revocations) setKnown(known bool) {
	if r.known != known {
		r.known = known
		r.version++
	}
}

// lost returns the records that are in no batch that can be read, in the order of their
// ids, so that all nodes that write them back write the same objects.
func (r *revocations) lost(now time.Time) (lost []*Revocation) {
	stored := make(map[*Revocation]bool, len(r.records))
	for _, of := range r.batches {
		for _, record := range of.records {
			if known := r.records[record.ID]; !of.damaged && known != nil && known.TakenBack == record.TakenBack {
				stored[known] = true
			}
		}
	}
	for _, record := range r.records {
		if !stored[record] && !record.expired(now) {
			lost = append(lost, record)
		}
	}
	slices.SortFunc(lost, func(a, b *Revocation) int { return strings.Compare(a.ID, b.ID) })
	return lost
}

// forget gives up the snapshot, but no revocation.
func (r *revocations) forget() {
	r.mu.Lock()
	r.setKnown(false)
	r.mu.Unlock()
	r.snapshot.Store(nil)
}

// refreshRevocations makes the snapshot that contains all that is known at the time of
// the call. Calls at the same time share one.
func (s *State) refreshRevocations() {
	r := &s.revocations
	r.mu.Lock()
	wanted := r.version
	r.mu.Unlock()
	r.building <- struct{}{}
	defer func() { <-r.building }()
	if r.built >= wanted {
		return
	}
	select {
	case <-time.After(time.Until(r.builtAt.Add(buildInterval))):
	case <-s.ctx.Done():
		return
	}
	r.mu.Lock()
	version, known := r.version, r.known
	var live []*Revocation
	all := r.indexed == nil || r.stale || len(r.recent) > maxRecent
	if all {
		live = r.prune(s.steadyTime())
		r.recent, r.stale = nil, false
	}
	recent := r.recent
	r.mu.Unlock()
	if all {
		r.indexed = newIndex(live)
	}
	var next *Revocations
	if known {
		next = &Revocations{r.indexed, newIndex(recent), new(Generation)}
	}
	r.snapshot.Store(next)
	r.built, r.builtAt = version, time.Now()
}

// prune forgets expired records, and returns the revocations that are not taken back.
func (r *revocations) prune(now time.Time) (live []*Revocation) {
	live = make([]*Revocation, 0, len(r.records))
	for id, record := range r.records {
		switch {
		case record.expired(now):
			delete(r.records, id)
		case !record.TakenBack:
			live = append(live, record)
		}
	}
	return live
}

// steadyTime is the time by a clock that nobody has set ahead since the start: a wrong
// date must not remove revocations, which the right one would need again.
func (s *State) steadyTime() time.Time {
	now := s.now()
	if steady := s.begun.Add(now.Sub(s.begun)).Round(0); steady.Before(now.Round(0)) {
		return steady
	}
	return now
}
