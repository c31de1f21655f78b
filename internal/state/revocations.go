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

// Revocations are the revocations in force. State.Revocations returns another address after
// each new revocation. So a token that is not revoked need not be looked up again while the
// address stays: a revocation can only end. They are safe for concurrent use.
type Revocations struct {
	of             *revocations
	some, sessions bool // whether there may be any, and any of sessions
}

type selection struct {
	selector Selector
	value    string
}

// Match returns a revocation of a token, nil if there is none.
func (r *Revocations) Match(s Subject, now time.Time) *Revocation {
	if !r.some {
		return nil
	}
	for _, at := range [...]selection{
		{SelectToken, digest(s.Token)}, {SelectJTI, s.ID}, {SelectViewer, s.Viewer}, {SelectVideo, s.Video},
	} {
		if of := r.of.find(at, s.IssuedAt, now); of != nil {
			return of
		}
	}
	return nil
}

// HasSessions reports whether there may be revocations of sessions.
func (r *Revocations) HasSessions() bool { return r.sessions }

// Session returns a revocation of a playback session, nil if there is none.
func (r *Revocations) Session(id string, now time.Time) *Revocation {
	return r.of.find(selection{SelectSession, id}, 0, now)
}

// Live returns the revocations that have not expired, in no order. The caller owns the list.
func (r *Revocations) Live(now time.Time) (live []*Revocation) {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	for _, record := range r.of.records {
		if !record.TakenBack && !record.expired(now) {
			live = append(live, record)
		}
	}
	return live
}

// maxRevocations is how many revocations may be in force at a time, and how many may be
// taken back and not expired.
const maxRevocations = 100_000

// revocations are the revocations as this node knows them. They only grow until they
// expire: whatever the store says later, a revocation stays, and so does the mark that it
// is taken back. So no restored backup and no read that overlaps a write revives a token.
//
// In the store they are in batches: one object for each call that made some. An object
// is never changed, only removed, so that nodes read each object once.
type revocations struct {
	inForce atomic.Pointer[Revocations] // nil until everything has been read

	mu       sync.Mutex // guards what follows
	records  map[string]*Revocation
	batches  map[store.Name]*batch // immutable
	sessions int                   // how many are in found
	pending  int                   // how many are being written
	last     time.Time             // Created of the newest one made here

	// The records that are not taken back. Requests wait for index alone, which is locked
	// for moments. Lists are immutable.
	index sync.RWMutex
	found map[selection][]*Revocation

	merging sync.Mutex // held while batches are merged

	// For Sync.
	doubt     bool // the store may have lost some
	readAllAt time.Time
}

func newRevocations() *revocations {
	return &revocations{
		records: make(map[string]*Revocation), batches: make(map[store.Name]*batch), found: make(map[selection][]*Revocation),
	}
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
func (s *State) Revocations() *Revocations { return s.revocations.inForce.Load() }

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
	r := s.revocations
	known := r.known()
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
	for object, err := range s.store.GetAll(ctx, unknown) {
		switch {
		case err != nil && object.Name == store.Name{}:
			return nil, s.failed("list", err)
		case err != nil:
			failure = s.failed("get", err)
		case object.Exists():
			of := s.readBatch(object, known[object.Name])
			r.add(of.records)
			r.doubt = r.doubt || of.damaged
			next[object.Name] = of
		}
	}
	if failure != nil {
		return nil, failure
	}
	if r.commit(known, next); r.doubt {
		lost = r.lost(s.steadyTime())
		r.doubt = len(lost) > 0
	}
	return lost, nil
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

// known returns the known batches.
func (r *revocations) known() map[store.Name]*batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches
}

// commit takes over the batches of the store. This node has written others meanwhile, which
// were not known when the reading began.
func (r *revocations) commit(known, next map[store.Name]*batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, of := range r.batches {
		switch {
		case next[name] != nil:
		case known[name] == nil:
			next[name] = of
		default:
			r.doubt = true
		}
	}
	r.batches = next
	for _, of := range next {
		if of.records == nil {
			r.inForce.Store(nil)
			return
		}
	}
	if r.inForce.Load() == nil {
		r.announce()
	}
}

// announce has requests look up all tokens again.
func (r *revocations) announce() {
	r.inForce.Store(&Revocations{r, len(r.found) > 0, r.sessions > 0})
}

// add takes over records. A record in a batch that says the same as a known one is
// replaced by it, which saves memory.
func (r *revocations) add(records []*Revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	grown := false
	for i, record := range records {
		known := r.records[record.ID]
		switch {
		case known == nil, record.TakenBack && !known.TakenBack:
			r.records[record.ID] = record
			if at := (selection{record.Selector, record.Value}); !record.TakenBack {
				r.set(at, append(r.found[at], record))
				grown = true
			} else if known != nil {
				at.value = known.Value
				r.set(at, without(r.found[at], func(of *Revocation) bool { return of == known }))
			}
		case known.TakenBack == record.TakenBack:
			records[i] = known
		}
	}
	if grown && r.inForce.Load() != nil {
		r.announce()
	}
}

// set has requests find a list of revocations.
func (r *revocations) set(at selection, list []*Revocation) {
	if at.selector == SelectSession {
		r.sessions += len(list) - len(r.found[at])
	}
	r.index.Lock()
	defer r.index.Unlock()
	if r.found[at] = list; len(list) == 0 {
		delete(r.found, at)
	}
}

func without(list []*Revocation, of func(*Revocation) bool) []*Revocation {
	return slices.DeleteFunc(slices.Clone(list), of)
}

// find returns a revocation of what was issued at a time.
func (r *revocations) find(at selection, issued int64, now time.Time) *Revocation {
	r.index.RLock()
	list := r.found[at]
	r.index.RUnlock()
	for _, of := range list {
		if !of.expired(now) && (of.IssuedBefore == 0 || issued <= of.IssuedBefore) {
			return of
		}
	}
	return nil
}

// lost returns the records that are in no batch that can be read, in the order of their
// ids, so that all nodes that write them back write the same objects.
func (r *revocations) lost(now time.Time) (lost []*Revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
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

// forget makes the revocations unknown until the next complete reading. It removes none of them.
func (r *revocations) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inForce.Store(nil)
}

// prune removes expired records.
func (r *revocations) prune(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	expired := func(record *Revocation) bool { return record.expired(now) }
	maps.DeleteFunc(r.records, func(_ string, record *Revocation) bool { return expired(record) })
	for at, list := range r.found {
		if rest := without(list, expired); len(rest) < len(list) {
			r.set(at, rest)
		}
	}
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
