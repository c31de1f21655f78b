package state

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// fleet is a store in memory that the states of a test share, each through a
// node of its own.
type fleet struct {
	mu      sync.Mutex
	objects map[store.Name]store.Object
	nodes   []*node
}

// step is called in the course of an operation and may end it with an error.
// Operations are get, update, list (of a collection, without a name), read (of
// one object of a list) and changes.
type step func(ctx context.Context, operation string, name store.Name) error

// node implements store.Store.
type node struct {
	fleet *fleet
	wake  chan struct{}

	// All guarded by fleet.mu.
	before  step // may be nil
	after   step // may be nil; called after the operation has read or written
	calls   map[string]int
	changed map[store.Collection]bool
	closed  int
}

func newFleet() *fleet { return &fleet{objects: make(map[store.Name]store.Object)} }

func everything() map[store.Collection]bool {
	return map[store.Collection]bool{store.Keys: true, store.Videos: true, store.Signing: true}
}

// node adds a node.
func (f *fleet) node() *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &node{fleet: f, wake: make(chan struct{}, 1), calls: make(map[string]int), changed: everything()}
	f.nodes = append(f.nodes, n)
	return n
}

// plant puts an object into the store and tells nobody. The data "damaged" makes a
// damaged object.
func (f *fleet) plant(name store.Name, data string) {
	object := store.Object{Name: name, Data: []byte(data)}
	if data == damaged {
		object = store.Object{Name: name, Damage: fmt.Errorf("%w: %s", store.ErrDamaged, name)}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[name] = object
}

const damaged = "damaged"

// write is a change by another node, of which all nodes hear. The data "" removes the
// object.
func (f *fleet) write(name store.Name, data string) {
	f.plant(name, data)
	f.mu.Lock()
	defer f.mu.Unlock()
	if data == "" {
		delete(f.objects, name)
	}
	f.announce(name)
}

func (f *fleet) announce(name store.Name) {
	for _, n := range f.nodes {
		n.changed[name.Collection()] = true
	}
}

// object returns the name and the data for a word like "a live", "b revoked", "c damaged",
// "v private" or "v public".
func object(words string) (store.Name, string) {
	id, is, _ := strings.Cut(words, " ")
	switch is {
	case "live":
		return keyNamed(id), liveKey(id)
	case "revoked":
		return keyNamed(id), revokedKey(id)
	case "damaged":
		return keyNamed(id), damaged
	case "private", "public":
		return videoNamed(id), fmt.Sprintf(`{"uid":%q,"requireSignedURLs":%t}`, id, is == "private")
	}
	panic("no object: " + words)
}

func (f *fleet) plantAll(objects ...string) {
	for _, words := range objects {
		f.plant(object(words))
	}
}

func (f *fleet) writeAll(objects ...string) {
	for _, words := range objects {
		f.write(object(words))
	}
}

// fleetWith returns a store with objects, and one node of it.
func fleetWith(t *testing.T, objects ...string) (*fleet, *node, *testState) {
	t.Helper()
	f := newFleet()
	f.plantAll(objects...)
	n := f.node()
	return f, n, newTestState(t, n)
}

// bubble runs a subtest that owns the clock.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func (f *fleet) data(name store.Name) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.objects[name].Data)
}

// backup returns all objects, restore makes them the content of the store.
func (f *fleet) backup() map[store.Name]store.Object {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.objects)
}

func (f *fleet) restore(objects map[store.Name]store.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects = make(map[store.Name]store.Object)
	maps.Copy(f.objects, objects)
	for _, n := range f.nodes {
		n.changed = everything()
	}
}

// intercept sets what happens before and after the operations of a node.
func (n *node) intercept(before, after step) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.before, n.after = before, after
}

// count returns how many operations of the kinds there have been.
func (n *node) count(operations ...string) (count int) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	for _, operation := range operations {
		count += n.calls[operation]
	}
	return count
}

// run runs the step before or after an operation.
func (n *node) run(ctx context.Context, of func() step, operation string, name store.Name) error {
	n.fleet.mu.Lock()
	do := of()
	n.fleet.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx, operation, name)
}

func (n *node) begin(ctx context.Context, operation string, name store.Name) error {
	return n.run(ctx, func() step { n.calls[operation]++; return n.before }, operation, name)
}

func (n *node) end(ctx context.Context, operation string, name store.Name) error {
	return n.run(ctx, func() step { return n.after }, operation, name)
}

func (n *node) read(ctx context.Context, operation string, name store.Name) (store.Object, error) {
	if err := n.begin(ctx, operation, name); err != nil {
		return store.Object{}, err
	}
	n.fleet.mu.Lock()
	object := n.fleet.objects[name]
	n.fleet.mu.Unlock()
	object.Name = name
	return object, n.end(ctx, operation, name)
}

func (n *node) Get(ctx context.Context, name store.Name) (store.Object, error) {
	return n.read(ctx, "get", name)
}

func (n *node) Update(ctx context.Context, name store.Name, change store.Change) error {
	if err := n.begin(ctx, "update", name); err != nil {
		return err
	}
	if err := n.update(name, change); err != nil {
		return err
	}
	return n.end(ctx, "update", name)
}

func (n *node) update(name store.Name, change store.Change) error {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	present := n.fleet.objects[name]
	present.Name = name
	data, err := change(present)
	if err != nil || present.Damage == nil && (data == nil) == (present.Data == nil) && string(data) == string(present.Data) {
		return err
	}
	if delete(n.fleet.objects, name); data != nil {
		n.fleet.objects[name] = store.Object{Name: name, Data: data}
	}
	n.fleet.announce(name)
	select {
	case n.wake <- struct{}{}:
	default:
	}
	return nil
}

func (n *node) All(ctx context.Context, collection store.Collection) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := n.begin(ctx, "list", store.Name{}); err != nil {
			yield(store.Object{}, err)
			return
		}
		names := slices.SortedFunc(maps.Keys(n.fleet.backup()), func(a, b store.Name) int { return strings.Compare(a.String(), b.String()) })
		for _, name := range names {
			if name.Collection() != collection {
				continue
			}
			object, err := n.readOfAll(ctx, name)
			if !yield(object, err) || object.Name == (store.Name{}) {
				return
			}
		}
	}
}

func (n *node) readOfAll(ctx context.Context, name store.Name) (store.Object, error) {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	object, err := n.read(reading, "read", name)
	if err == nil {
		return object, nil
	}
	if ctx.Err() != nil || n.run(ctx, func() step { return n.before }, "changes", store.Name{}) != nil {
		return store.Object{}, err // the store as a whole does not answer
	}
	return store.Object{Name: name}, err
}

func (n *node) Changes(ctx context.Context) ([]store.Collection, error) {
	if err := n.begin(ctx, "changes", store.Name{}); err != nil {
		return nil, err
	}
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	changed := slices.Collect(maps.Keys(n.changed))
	clear(n.changed)
	return changed, nil
}

func (*node) Start() {}

func (n *node) Wake() <-chan struct{} { return n.wake }

func (n *node) Close() {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.closed++
}

// down is the step of a store that is not available.
func down(context.Context, string, store.Name) error {
	return fmt.Errorf("%w: the test says so", store.ErrUnavailable)
}

// hang is the step of a store that does not answer.
func hang(ctx context.Context, _ string, _ store.Name) error {
	<-ctx.Done()
	return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
}

// on narrows a step to operations of one kind, and to one object unless id is "".
func on(operation, id string, do step) step {
	return func(ctx context.Context, op string, name store.Name) error {
		if op != operation || id != "" && name.ID() != id {
			return nil
		}
		return do(ctx, op, name)
	}
}

// testTime is the time of clocks that a test sets.
var testTime = time.Date(2027, 1, 15, 8, 0, 0, 0, time.UTC)

// testState is a State whose clock and error counters belong to the test.
type testState struct {
	*State
	mu     sync.Mutex
	failed map[string]int
	clock  *time.Time // nil for the real one
}

// newTestState opens a State that nobody follows: the test calls Sync.
func newTestState(t *testing.T, n *node) *testState {
	t.Helper()
	s := &testState{failed: make(map[string]int)}
	s.State = New(Config{
		Store:  n,
		Logger: zap.NewNop,
		CountError: func(operation string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed[operation]++
		},
		Now: func() time.Time {
			if s.clock != nil {
				return *s.clock
			}
			return time.Now()
		},
	})
	s.newKey = func() (*token.SigningKey, error) { return keyOf(rand.Text()), nil }
	t.Cleanup(s.Close)
	return s
}

// setTime sets the clock, as if the State had read everything just then.
func (s *testState) setTime() (clock *time.Time) {
	now := testTime
	s.clock = &now
	s.since, s.rereadAt = now, now
	return s.clock
}

// errors returns how many operations of a kind have failed.
func (s *testState) errors(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed[operation]
}

func keyNamed(id string) store.Name { return mustName(store.Keys, id) }

func videoNamed(id string) store.Name { return mustName(store.Videos, id) }

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

var testKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })

// keyOf is testKey under another id: making keys is slow.
func keyOf(id string) *token.SigningKey {
	return must(token.ParseSigningKey([]byte(testKey().PEM()), id))
}

// keyDoc is the document of a key that verifies.
func keyDoc(id string, change func(*keyDocument)) string {
	doc := keyDocument{ID: id, Created: testTime, JWK: must(keyOf(id).Public().JWK())}
	change(&doc)
	return string(must(json.Marshal(doc)))
}

func liveKey(id string) string { return keyDoc(id, func(*keyDocument) {}) }

func revokedKey(id string) string {
	return keyDoc(id, func(doc *keyDocument) { doc.JWK, doc.Revoked = nil, testTime.Add(time.Minute) })
}

// wantKeys checks what a State knows about keys: "a live", revoked, damaged, none, or
// unknown.
func wantKeys(t *testing.T, s *testState, keys ...string) {
	t.Helper()
	for _, words := range keys {
		id, want, _ := strings.Cut(words, " ")
		key, known := s.Key(id)
		got := "none"
		switch {
		case !known:
			got = "unknown"
		case key.Revoked:
			got = "revoked"
		case key.Damage != nil:
			got = "damaged"
		case key.Public != nil && key.Public.ID() == id:
			got = "live"
		}
		if got != want {
			t.Errorf("the key %q is %s, want %s", id, got, want)
		}
	}
}

// wantVideo checks what a State says about the video "v": private, public, unset,
// default, damaged or unavailable.
func wantVideo(t *testing.T, s *testState, want string) {
	t.Helper()
	wantVideoOf(t, s, "v", want)
}

func wantVideoOf(t *testing.T, s *testState, id, want string) {
	t.Helper()
	if got := videoIs(s.Video(t.Context(), id)); got != want {
		t.Errorf("the video %q is %s, want %s", id, got, want)
	}
}

func videoIs(video *Video, err error) string {
	switch {
	case errors.Is(err, ErrDamaged):
		return "damaged"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	case err != nil:
		return err.Error()
	case video == nil:
		return "unset"
	case video.RequireSignedURLs == nil:
		return "default"
	case *video.RequireSignedURLs:
		return "private"
	}
	return "public"
}
