// Package storetest is a store in memory for tests, which can fail, delay and count
// its operations.
package storetest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// readTimeout is how long All waits for one object.
const readTimeout = 800 * time.Millisecond

// Fleet is a store in memory. Several nodes share it. It is safe for concurrent use.
type Fleet struct {
	mu      sync.Mutex
	objects map[store.Name]store.Object
	nodes   []*Node
}

// Step is called before or after an operation, and may end it with an error. Operations
// are get, stranger (a lookup without a token), update, list (of a collection, without a name), read (of one object of a list)
// and changes.
type Step func(ctx context.Context, operation string, name store.Name) error

// Node implements store.Store. A test receives from Wake what it sends to Signal.
type Node struct {
	Signal chan struct{}
	Closed int // how often Close was called

	fleet         *Fleet // its mutex guards what follows
	before, after Step   // may be nil
	calls         map[string]int
	changed       map[store.Collection]bool
}

// NewFleet returns an empty store without nodes.
func NewFleet() *Fleet { return &Fleet{objects: make(map[store.Name]store.Object)} }

func everything() map[store.Collection]bool {
	all := make(map[store.Collection]bool)
	for _, collection := range store.Collections() {
		all[collection] = true
	}
	return all
}

// Join adds a node.
func (f *Fleet) Join() *Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &Node{fleet: f, Signal: make(chan struct{}, 1), calls: make(map[string]int), changed: everything()}
	f.nodes = append(f.nodes, n)
	return n
}

// Plant puts an object into the store without an announcement. The data Damaged makes
// a damaged object.
func (f *Fleet) Plant(name store.Name, data string) {
	object := store.Object{Name: name, Data: []byte(data)}
	if data == Damaged {
		object = store.Object{Name: name, Damage: fmt.Errorf("%w: %s", store.ErrDamaged, name)}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[name] = object
}

// Damaged is the data of a damaged object.
const Damaged = "damaged"

// Write is Plant with an announcement to all nodes. The data "" removes the object.
func (f *Fleet) Write(name store.Name, data string) {
	f.Plant(name, data)
	f.mu.Lock()
	defer f.mu.Unlock()
	if data == "" {
		delete(f.objects, name)
	}
	f.announce(name)
}

func (f *Fleet) announce(name store.Name) {
	for _, n := range f.nodes {
		n.changed[name.Collection()] = true
	}
}

// Data returns the data of an object, "" if there is none.
func (f *Fleet) Data(name store.Name) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.objects[name].Data)
}

// Backup returns all objects.
func (f *Fleet) Backup() map[store.Name]store.Object {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.objects)
}

// Restore replaces all objects, of which all nodes hear.
func (f *Fleet) Restore(objects map[store.Name]store.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects = make(map[store.Name]store.Object)
	maps.Copy(f.objects, objects)
	for _, n := range f.nodes {
		n.changed = everything()
	}
}

// Intercept sets the steps before and after the operations of a node. Each may be nil.
func (n *Node) Intercept(before, after Step) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.before, n.after = before, after
}

// Count returns how often the operations have begun.
func (n *Node) Count(operations ...string) (count int) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	for _, operation := range operations {
		count += n.calls[operation]
	}
	return count
}

func (s Step) run(ctx context.Context, operation string, name store.Name) error {
	if s == nil {
		return nil
	}
	return s(ctx, operation, name)
}

func (n *Node) steps() (before, after Step) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	return n.before, n.after
}

func (n *Node) begin(ctx context.Context, operation string, name store.Name) error {
	n.fleet.mu.Lock()
	n.calls[operation]++
	n.fleet.mu.Unlock()
	before, _ := n.steps()
	return before.run(ctx, operation, name)
}

func (n *Node) end(ctx context.Context, operation string, name store.Name) error {
	_, after := n.steps()
	return after.run(ctx, operation, name)
}

func (n *Node) read(ctx context.Context, operation string, name store.Name) (store.Object, error) {
	if err := n.begin(ctx, operation, name); err != nil {
		return store.Object{}, err
	}
	n.fleet.mu.Lock()
	object := n.fleet.objects[name]
	n.fleet.mu.Unlock()
	object.Name = name
	return object, n.end(ctx, operation, name)
}

// Get implements store.Store.
func (n *Node) Get(ctx context.Context, name store.Name) (store.Object, error) {
	return n.read(ctx, "get", name)
}

// Lookup implements store.Store.
func (n *Node) Lookup(ctx context.Context, name store.Name, stranger bool) (store.Object, error) {
	if stranger {
		return n.read(ctx, "stranger", name)
	}
	return n.Get(ctx, name)
}

// Update implements store.Store.
func (n *Node) Update(ctx context.Context, name store.Name, change store.Change) error {
	if err := n.begin(ctx, "update", name); err != nil {
		return err
	}
	if err := n.update(name, change); err != nil {
		return err
	}
	return n.end(ctx, "update", name)
}

func (n *Node) update(name store.Name, change store.Change) error {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	present := n.fleet.objects[name]
	present.Name = name
	data, err := change(present)
	if err != nil {
		return err
	}
	if delete(n.fleet.objects, name); data != nil {
		n.fleet.objects[name] = store.Object{Name: name, Data: data}
	}
	n.fleet.announce(name)
	select {
	case n.Signal <- struct{}{}:
	default:
	}
	return nil
}

// All implements store.Store.
func (n *Node) All(ctx context.Context, collection store.Collection) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		names, err := n.Names(ctx, collection)
		if err != nil {
			yield(store.Object{}, err)
			return
		}
		for _, name := range names {
			object, err := n.readOfAll(ctx, name)
			if !yield(object, err) || object.Name == (store.Name{}) {
				return
			}
		}
	}
}

// Names implements store.Store.
func (n *Node) Names(ctx context.Context, collection store.Collection) ([]store.Name, error) {
	if err := n.begin(ctx, "list", store.Name{}); err != nil {
		return nil, err
	}
	names := slices.SortedFunc(maps.Keys(n.fleet.Backup()), func(a, b store.Name) int { return strings.Compare(a.String(), b.String()) })
	return slices.DeleteFunc(names, func(name store.Name) bool { return name.Collection() != collection }), nil
}

func (n *Node) readOfAll(ctx context.Context, name store.Name) (store.Object, error) {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	object, err := n.read(reading, "read", name)
	if err == nil {
		return object, nil
	}
	if before, _ := n.steps(); ctx.Err() != nil || before.run(ctx, "changes", store.Name{}) != nil {
		return store.Object{}, err // the store as a whole does not answer
	}
	return store.Object{Name: name}, err
}

// Changes implements store.Store.
func (n *Node) Changes(ctx context.Context) ([]store.Collection, error) {
	if err := n.begin(ctx, "changes", store.Name{}); err != nil {
		return nil, err
	}
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	changed := slices.Collect(maps.Keys(n.changed))
	clear(n.changed)
	return changed, nil
}

// Start implements store.Store.
func (*Node) Start() {}

// Wake implements store.Store.
func (n *Node) Wake() <-chan struct{} { return n.Signal }

// Close implements store.Store.
func (n *Node) Close() {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.Closed++
}

// Down is the Step of a store that is not available.
func Down(context.Context, string, store.Name) error {
	return fmt.Errorf("%w: the test says so", store.ErrUnavailable)
}

// Hang is the Step of a store that does not answer.
func Hang(ctx context.Context, _ string, _ store.Name) error {
	<-ctx.Done()
	return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
}

// On narrows a Step to operations of one kind, and to one object unless id is "".
func On(operation, id string, do Step) Step {
	return func(ctx context.Context, op string, name store.Name) error {
		if op != operation || id != "" && name.ID() != id {
			return nil
		}
		return do(ctx, op, name)
	}
}
