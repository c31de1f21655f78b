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

// readTimeout is how long GetAll waits for one object.
const readTimeout = 800 * time.Millisecond

// Fleet is a store in memory. Several nodes share it. It is safe for concurrent use.
type Fleet struct {
	mu      sync.Mutex
	objects map[store.Name]store.Object
	stamps  map[store.Collection]int
}

// Step is called before or after an operation, and may end it with an error. Operations
// are get, stranger (a lookup without a token), update, list (of a collection, without a name), read (of one object of a list)
// and changes (the stamps).
type Step func(ctx context.Context, operation string, name store.Name) error

// Node implements store.Store. A test receives from Wake what it sends to Signal.
type Node struct {
	Signal chan struct{}
	Closed int // how often Close was called

	fleet         *Fleet // its mutex guards what follows
	before, after Step   // may be nil
	calls         map[string]int
}

// NewFleet returns an empty store without nodes.
func NewFleet() *Fleet {
	return &Fleet{objects: make(map[store.Name]store.Object), stamps: make(map[store.Collection]int)}
}

// Join adds a node.
func (f *Fleet) Join() *Node {
	return &Node{fleet: f, Signal: make(chan struct{}, 1), calls: make(map[string]int)}
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
	f.stamps[name.Collection()]++
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
	for _, collection := range store.Collections() {
		f.stamps[collection]++
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

func (n *Node) begin(ctx context.Context, operation string, name store.Name) error {
	n.fleet.mu.Lock()
	n.calls[operation]++
	n.fleet.mu.Unlock()
	return n.run(ctx, &n.before, operation, name)
}

func (n *Node) run(ctx context.Context, step *Step, operation string, name store.Name) error {
	n.fleet.mu.Lock()
	do := *step
	n.fleet.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx, operation, name)
}

func (n *Node) read(ctx context.Context, operation string, name store.Name) (store.Object, error) {
	if err := n.begin(ctx, operation, name); err != nil {
		return store.Object{}, err
	}
	n.fleet.mu.Lock()
	object := n.fleet.objects[name]
	n.fleet.mu.Unlock()
	object.Name = name
	return object, n.run(ctx, &n.after, operation, name)
}

// Get implements store.Store.
func (n *Node) Get(ctx context.Context, name store.Name, caller store.Caller) (store.Object, error) {
	if caller == store.Stranger {
		return n.read(ctx, "stranger", name)
	}
	return n.read(ctx, "get", name)
}

// Update implements store.Store.
func (n *Node) Update(ctx context.Context, name store.Name, change store.Change) error {
	if err := n.begin(ctx, "update", name); err != nil {
		return err
	}
	if err := n.update(name, change); err != nil {
		return err
	}
	return n.run(ctx, &n.after, "update", name)
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
	n.fleet.stamps[name.Collection()]++
	select {
	case n.Signal <- struct{}{}:
	default:
	}
	return nil
}

// Names implements store.Store.
func (n *Node) Names(ctx context.Context, collection store.Collection) ([]store.Name, error) {
	if err := n.begin(ctx, "list", store.Name{}); err != nil {
		return nil, err
	}
	names := slices.SortedFunc(maps.Keys(n.fleet.Backup()), func(a, b store.Name) int { return strings.Compare(a.String(), b.String()) })
	return slices.DeleteFunc(names, func(name store.Name) bool { return name.Collection() != collection }), nil
}

// GetAll implements store.Store.
func (n *Node) GetAll(ctx context.Context, names []store.Name) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, name := range names {
			object, err := n.readOfAll(ctx, name)
			if !yield(object, err) || object.Name == (store.Name{}) {
				return
			}
		}
	}
}

func (n *Node) readOfAll(ctx context.Context, name store.Name) (store.Object, error) {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	object, err := n.read(reading, "read", name)
	if err == nil {
		return object, nil
	}
	if ctx.Err() != nil || n.run(ctx, &n.before, "changes", store.Name{}) != nil {
		return store.Object{}, err // the store as a whole does not answer
	}
	return store.Object{Name: name}, err
}

// Stamps implements store.Store.
func (n *Node) Stamps(ctx context.Context) (map[store.Collection]string, error) {
	if err := n.begin(ctx, "changes", store.Name{}); err != nil {
		return nil, err
	}
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	stamps := make(map[store.Collection]string)
	for _, collection := range store.Collections() {
		stamps[collection] = fmt.Sprint(n.fleet.stamps[collection])
	}
	return stamps, nil
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
