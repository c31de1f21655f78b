package signedplayback

import (
	"context"
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

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/filestorage"
	"github.com/caddyserver/certmagic"
	"github.com/prometheus/client_golang/prometheus"
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

// step is called in the course of an operation, whose end its error is.
// Operations are get, update, list (with no name, and then with that of each
// object) and changes.
type step func(ctx context.Context, operation string, name store.Name) error

// node implements store.Store.
type node struct {
	fleet *fleet
	wake  chan struct{}

	// All guarded by fleet.mu.
	before  step // may be nil
	after   step // may be nil; when what is read has been read
	calls   map[string]int
	changed map[store.Collection]bool
	closed  int
}

func newFleet() *fleet { return &fleet{objects: make(map[store.Name]store.Object)} }

// node adds one more node.
func (f *fleet) node() *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &node{
		fleet: f, wake: make(chan struct{}, 1), calls: make(map[string]int),
		changed: map[store.Collection]bool{store.Keys: true, store.Videos: true, store.Signing: true},
	}
	f.nodes = append(f.nodes, n)
	return n
}

// plant puts an object into the store of which nobody is told.
func (f *fleet) plant(name store.Name, data string) {
	f.plantObject(store.Object{Name: name, Data: []byte(data)})
}

func (f *fleet) plantObject(object store.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[object.Name] = object
}

// damage makes an object one that cannot be trusted, and tells all.
func (f *fleet) damage(name store.Name) {
	f.plantObject(store.Object{Name: name, Damage: fmt.Errorf("%w: %s", store.ErrDamaged, name)})
	f.tell(name)
}

// tell has every node hear of a change.
func (f *fleet) tell(names ...store.Name) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		for _, name := range names {
			n.changed[name.Collection()] = true
		}
	}
}

// write is a change by a node that is not there.
func (f *fleet) write(name store.Name, data string) {
	f.plant(name, data)
	f.tell(name)
}

func (f *fleet) data(name store.Name) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.objects[name].Data)
}

// backup returns what is stored, and restore puts it back behind everybody's
// back.
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
		n.changed = map[store.Collection]bool{store.Keys: true, store.Videos: true, store.Signing: true}
	}
}

// intercept sets what happens before and after the operations of a node.
func (n *node) intercept(before, after step) {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.before, n.after = before, after
}

// count returns how many operations of a kind there have been.
func (n *node) count(operation string) int {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	return n.calls[operation]
}

func (n *node) begin(ctx context.Context, operation string, name store.Name) error {
	n.fleet.mu.Lock()
	n.calls[operation]++
	before := n.before
	n.fleet.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, operation, name)
}

func (n *node) end(ctx context.Context, operation string, name store.Name) error {
	n.fleet.mu.Lock()
	after := n.after
	n.fleet.mu.Unlock()
	if after == nil {
		return nil
	}
	return after(ctx, operation, name)
}

func (n *node) read(name store.Name) store.Object {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	object, ok := n.fleet.objects[name]
	if !ok {
		object.Name = name
	}
	return object
}

func (n *node) Get(ctx context.Context, name store.Name) (store.Object, error) {
	if err := n.begin(ctx, "get", name); err != nil {
		return store.Object{}, err
	}
	object := n.read(name)
	return object, n.end(ctx, "get", name)
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
	for _, other := range n.fleet.nodes {
		other.changed[name.Collection()] = true
	}
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
		n.fleet.mu.Lock()
		names := slices.Collect(maps.Keys(n.fleet.objects))
		n.fleet.mu.Unlock()
		slices.SortFunc(names, func(a, b store.Name) int { return strings.Compare(a.String(), b.String()) })
		for _, name := range names {
			if name.Collection() != collection {
				continue
			}
			object, err := n.readOfAll(ctx, name)
			if err != nil {
				object = store.Object{}
				if n.answers(ctx) {
					object.Name = name
				}
			}
			if !yield(object, err) || object.Name == (store.Name{}) {
				return
			}
		}
	}
}

func (n *node) readOfAll(ctx context.Context, name store.Name) (store.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	if err := n.begin(ctx, "read", name); err != nil {
		return store.Object{}, err
	}
	object := n.read(name)
	return object, n.end(ctx, "list", name)
}

// answers reports whether the store answers, when an object could not be read.
func (n *node) answers(ctx context.Context) bool {
	n.fleet.mu.Lock()
	before := n.before
	n.fleet.mu.Unlock()
	return ctx.Err() == nil && (before == nil || before(ctx, "changes", store.Name{}) == nil)
}

func (n *node) Changes(ctx context.Context) (changed []store.Collection, err error) {
	if err := n.begin(ctx, "changes", store.Name{}); err != nil {
		return nil, err
	}
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	changed = slices.Collect(maps.Keys(n.changed))
	clear(n.changed)
	return changed, nil
}

func (n *node) Wake() <-chan struct{} { return n.wake }

func (n *node) Close() {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.closed++
}

var _ store.Store = (*node)(nil)

// down is a store that says that it is not available.
func down(context.Context, string, store.Name) error {
	return fmt.Errorf("%w: the test says so", store.ErrUnavailable)
}

// hang is a store that does not answer.
func hang(ctx context.Context, _ string, _ store.Name) error {
	<-ctx.Done()
	return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
}

// on narrows a step to operations of one kind, and on one object if id is not
// "".
func on(operation, id string, do step) step {
	return func(ctx context.Context, op string, name store.Name) error {
		if op != operation || id != "" && name.ID() != id {
			return nil
		}
		return do(ctx, op, name)
	}
}

// newTestState opens a state that nobody follows: the test calls sync.
func newTestState(t *testing.T, n *node) *state {
	t.Helper()
	s := newState(t.Name(), new(storages), n)
	t.Cleanup(func() {
		if err := s.Destruct(); err != nil {
			t.Errorf("Destruct = %v", err)
		}
	})
	return s
}

// setTime makes a clock of a state's own, which has read everything just now.
func setTime(s *state) (clock *time.Time) {
	now := testTime
	s.now = func() time.Time { return now }
	s.since, s.readAllAt = now, now
	return &now
}

func nameOf(collection store.Collection, id string) store.Name {
	return must(store.NewName(collection, id))
}

func keyNamed(id string) store.Name { return nameOf(store.Keys, id) }

func videoNamed(id string) store.Name { return nameOf(store.Videos, id) }

// keyOf is testKey under another id: making keys is slow.
func keyOf(id string) *token.SigningKey {
	return must(token.ParseSigningKey([]byte(testKey().PEM()), id))
}

// liveKey is the document of a key that verifies, and revokedKey of one that
// does no more.
func liveKey(id string) string {
	return string(must(json.Marshal(keyDocument{ID: id, Created: testTime, JWK: must(keyOf(id).Public().JWK())})))
}

func revokedKey(id string) string {
	return string(must(json.Marshal(keyDocument{ID: id, Created: testTime, Revoked: testTime.Add(time.Minute)})))
}

// wantKey holds what a state knows of a key: live, revoked, damaged, none, or
// unknown.
func wantKey(t *testing.T, s *state, id, want string) {
	t.Helper()
	key, known := s.keys.get(id)
	got := "none"
	switch {
	case !known:
		got = "unknown"
	case key.revoked:
		got = "revoked"
	case key.damage != nil:
		got = "damaged"
	case key.public != nil && key.public.ID() == id:
		got = "live"
	}
	if got != want {
		t.Errorf("the key %q is %s, want %s", id, got, want)
	}
}

// storeErrors returns the metric of failed operations.
func storeErrors(t *testing.T, operation string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	if err := collectMetrics().register(registry); err != nil {
		t.Fatal(err)
	}
	for _, family := range must(registry.Gather()) {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "caddy_signed_playback_store_errors_total" && metric.GetLabel()[0].GetValue() == operation {
				return metric.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric of %q", operation)
	return 0
}

// ringOf is what the gates of a config with testKey look keys up in.
func ringOf(s *state) *keyring {
	return &keyring{fixed: must(token.NewKeySet(testKey().Public())), stored: &s.keys, away: &s.away}
}

func TestStateReadsTheStoreAtStart(t *testing.T) {
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	f.plant(keyNamed("b"), revokedKey("b"))
	f.damage(keyNamed("c"))
	f.plant(videoNamed("v"), `{"uid":"v"}`)
	n := f.node()
	s := newTestState(t, n)
	for id, want := range map[string]string{"a": "live", "b": "revoked", "c": "damaged", "d": "none"} {
		wantKey(t, s, id, want)
	}
	if s.away.Load() || n.count("get") != 0 {
		t.Errorf("away: %t, %d objects read one by one; want false and none: videos are read when somebody asks", s.away.Load(), n.count("get"))
	}
}

// S7: a store that is down when the server starts. Nothing is known, so nothing
// that depends on it is let in, not even by a key of the config, which may have
// been revoked; and it recovers by itself.
func TestStoreIsDownAtStart(t *testing.T) {
	for operation, fails := range map[string]step{
		"everything": down,
		"changes":    on("changes", "", down),
		"list":       on("list", "", down),
	} {
		t.Run(operation, func(t *testing.T) {
			f := newFleet()
			f.plant(keyNamed("a"), liveKey("a"))
			f.plant(keyNamed("b"), revokedKey("b"))
			n := f.node()
			n.intercept(fails, fails)
			s := newTestState(t, n)
			ring := ringOf(s)
			for range 2 {
				wantKey(t, s, "a", "unknown")
				wantKey(t, s, "k1", "unknown")
				if ring.Lookup("k1") != nil || ring.lookupAuthoritative("k1") || ring.mayAppear("k1") {
					t.Error("a key of the config is used though nobody knows whether it is revoked")
				}
				if _, err := s.videos.get(t.Context(), "v"); !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("the settings of a video = %v, want ErrUnavailable", err)
				}
				if !s.away.Load() {
					t.Error("the store does not count as away")
				}
				s.sync(t.Context())
			}
			n.intercept(nil, nil)
			s.sync(t.Context())
			wantKey(t, s, "a", "live")
			wantKey(t, s, "b", "revoked")
			if s.away.Load() || ring.Lookup("k1") == nil {
				t.Error("the state does not recover")
			}
		})
	}
}

// A store that hangs must not keep the server from starting.
func TestStoreHangsAtStart(t *testing.T) {
	for what, hangs := range map[string]step{"at once": hang, "in the middle": on("list", "", hang)} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newFleet().node()
				n.intercept(hangs, nil)
				start := time.Now()
				s := newTestState(t, n)
				if waited := time.Since(start); waited > loadTimeout {
					t.Errorf("opening the state took %s, want %s at the most", waited, loadTimeout)
				}
				wantKey(t, s, "a", "unknown")
			})
		})
	}
}

// What other nodes change is in force here with the next poll, without anybody
// asking.
func TestChangesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(keyNamed("a"), liveKey("a"))
		n := f.node()
		s := newTestState(t, n)
		s.start()
		s.start() // as each reload does
		settle := func() {
			<-time.After(pollInterval)
			synctest.Wait()
		}
		f.write(keyNamed("b"), liveKey("b"))
		settle()
		wantKey(t, s, "b", "live")
		f.write(keyNamed("a"), revokedKey("a"))
		settle()
		wantKey(t, s, "a", "revoked")
		wantKey(t, s, "b", "live")
		f.write(videoNamed("v"), `{"uid":"v","requireSignedURLs":true}`)
		if video, err := s.videos.get(t.Context(), "v"); err != nil || video == nil || !*video.requireSignedURLs {
			t.Fatalf("the settings are %v, %v", video, err)
		}
		settle()
		f.write(videoNamed("v"), `{"uid":"v","requireSignedURLs":false}`)
		settle()
		if video, err := s.videos.get(t.Context(), "v"); err != nil || video == nil || *video.requireSignedURLs {
			t.Errorf("the settings are %v, %v, want the new ones", video, err)
		}
		if polls := n.count("changes"); polls > 6 {
			t.Errorf("the store was polled %d times in 4 s", polls)
		}
		// What this node writes is followed at once.
		before := n.count("changes")
		if err := s.revoke(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		wantKey(t, s, "b", "revoked")
		synctest.Wait()
		if n.count("changes") != before+1 {
			t.Error("a change of this node does not wake it")
		}
	})
}

// Nothing is left running when the last config goes.
func TestStateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newState(t.Name(), new(storages), n)
		s.start()
		synctest.Wait()
		if err := s.Destruct(); err != nil {
			t.Errorf("Destruct = %v", err)
		}
		synctest.Wait()
		polls := n.count("changes")
		<-time.After(10 * pollInterval)
		if n.count("changes") != polls || n.closed != 1 {
			t.Errorf("%d polls after the end, closed %d times; want none and once", n.count("changes")-polls, n.closed)
		}
	})
}

// A state that ends in the middle of a reading does not say that the store is
// away: it is not.
func TestStateEndsInTheMiddle(t *testing.T) {
	n := newFleet().node()
	s := newTestState(t, n)
	n.intercept(func(context.Context, string, store.Name) error { s.cancel(); return store.ErrUnavailable }, nil)
	s.sync(t.Context())
	if s.away.Load() {
		t.Error("the store counts as away")
	}
}

// What nobody has announced, because its author was killed or mended it by
// hand, is found now and then.
func TestEverythingIsReadNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		n := f.node()
		s := newTestState(t, n)
		clock := setTime(s)
		wantVideo(t, s, "public")
		f.plant(keyNamed("a"), revokedKey("a"))
		f.plant(videoNamed("v"), privateVideo)
		lists := n.count("list")
		*clock = clock.Add(rereadInterval)
		s.sync(t.Context())
		if n.count("list") != lists {
			t.Error("everything is read anew too early")
		}
		wantVideo(t, s, "public")
		*clock = clock.Add(1)
		s.sync(t.Context())
		wantKey(t, s, "a", "revoked")
		_, _ = s.videos.get(t.Context(), "v") // has it read
		synctest.Wait()
		wantVideo(t, s, "private")
		lists = n.count("list")
		s.sync(t.Context())
		if n.count("list") != lists {
			t.Error("everything is read each time")
		}
	})
}

// A list of changes that may lack some has everything read, and what was read
// before it was known to be out of date does not stay.
func TestIncompleteChanges(t *testing.T) {
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	f.plant(keyNamed("b"), liveKey("b"))
	n := f.node()
	s := newTestState(t, n)
	f.plant(keyNamed("a"), revokedKey("a"))
	f.restore(f.backup()) // makes the list incomplete
	fails := true
	n.intercept(func(ctx context.Context, operation string, name store.Name) error {
		if operation == "list" && fails {
			return down(ctx, operation, name)
		}
		return nil
	}, nil)
	s.sync(t.Context())
	wantKey(t, s, "a", "live") // as it was known
	if !s.away.Load() {
		t.Error("the store does not count as away")
	}
	fails = false
	s.sync(t.Context()) // its list of changes is complete, and lacks a
	wantKey(t, s, "a", "revoked")
	wantKey(t, s, "b", "live")
}

// A revocation is for good on a node that has heard of it: nothing that was
// read before it, or that an older store says, brings the key back.
func TestRevokedKeyNeverComesBack(t *testing.T) {
	type parts struct {
		f *fleet
		n *node
		s *state
	}
	revoke := func(t *testing.T, s *state) {
		t.Helper()
		if err := s.revoke(t.Context(), "a"); err != nil {
			t.Fatalf("revoke = %v", err)
		}
	}
	for name, attack := range map[string]func(*testing.T, parts){
		"a reload that began before": func(t *testing.T, p parts) {
			p.f.restore(p.f.backup())
			p.n.intercept(nil, on("list", "a", func(context.Context, string, store.Name) error {
				p.n.intercept(nil, nil)
				revoke(t, p.s)
				return nil
			}))
			p.s.sync(t.Context())
		},
		"a reload that began before and failed, and another one": func(t *testing.T, p parts) {
			p.f.restore(p.f.backup())
			p.n.intercept(nil, on("list", "", func(ctx context.Context, operation string, name store.Name) error {
				if name.ID() == "a" {
					revoke(t, p.s)
					return nil
				}
				return down(ctx, operation, name)
			}))
			p.s.sync(t.Context())
			p.n.intercept(nil, nil)
			p.s.sync(t.Context())
		},
		"an old backup": func(t *testing.T, p parts) {
			old := p.f.backup()
			revoke(t, p.s)
			p.f.restore(old)
			p.s.sync(t.Context())
		},
		"an old backup of which nobody is told": func(t *testing.T, p parts) {
			old := p.f.backup()
			revoke(t, p.s)
			p.f.plantObject(old[keyNamed("a")])
			p.f.tell(keyNamed("a"))
			p.s.sync(t.Context())
		},
		"a store that has lost everything": func(t *testing.T, p parts) {
			revoke(t, p.s)
			p.f.restore(nil)
			p.s.sync(t.Context())
		},
		"the key is made anew": func(t *testing.T, p parts) {
			revoke(t, p.s)
			p.f.restore(nil)
			_, _ = p.s.createKey(t.Context(), keyOf("a").Public(), false, "")
			p.s.sync(t.Context())
		},
		"the key is made anew by another node": func(t *testing.T, p parts) {
			revoke(t, p.s)
			p.f.write(keyNamed("a"), liveKey("a"))
			p.s.sync(t.Context())
		},
		"its object is damaged": func(t *testing.T, p parts) {
			revoke(t, p.s)
			p.f.damage(keyNamed("a"))
			p.s.sync(t.Context())
		},
		"its object is removed": func(t *testing.T, p parts) {
			revoke(t, p.s)
			p.f.mu.Lock()
			delete(p.f.objects, keyNamed("a"))
			p.f.mu.Unlock()
			p.f.tell(keyNamed("a"))
			p.s.sync(t.Context())
		},
		"its object cannot be read": func(t *testing.T, p parts) {
			revoke(t, p.s)
			p.f.tell(keyNamed("a"))
			p.n.intercept(on("read", "a", down), nil)
			p.s.sync(t.Context())
			p.n.intercept(nil, nil)
			p.s.sync(t.Context())
		},
		"the store was away for too long, and is an old one then": func(t *testing.T, p parts) {
			clock := setTime(p.s)
			old := p.f.backup()
			revoke(t, p.s)
			p.f.restore(old)
			*clock = clock.Add(maxStale + 1)
			p.n.intercept(down, nil)
			p.s.sync(t.Context())
			wantKey(t, p.s, "a", "unknown")
			p.n.intercept(nil, nil)
			p.s.sync(t.Context())
		},
		"another node has revoked it, and the store is an old one then": func(t *testing.T, p parts) {
			old := p.f.backup()
			p.f.write(keyNamed("a"), revokedKey("a"))
			p.s.sync(t.Context())
			wantKey(t, p.s, "a", "revoked")
			p.f.restore(old)
			p.s.sync(t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(keyNamed("a"), liveKey("a"))
				f.plant(keyNamed("b"), liveKey("b"))
				n := f.node()
				s := newTestState(t, n)
				wantKey(t, s, "a", "live")
				attack(t, parts{f, n, s})
				synctest.Wait()
				ring := ringOf(s)
				ring.fixed = must(token.NewKeySet(keyOf("a").Public())) // the config has it too
				for range 2 {
					wantKey(t, s, "a", "revoked")
					if ring.Lookup("a") != nil || !ring.lookupAuthoritative("a") || ring.mayAppear("a") || slices.ContainsFunc(s.keys.live(), func(k storedKey) bool { return k.id == "a" }) {
						t.Error("the revoked key verifies, or is waited for")
					}
					s.sync(t.Context())
					synctest.Wait()
				}
			})
		})
	}
}

// A revocation that the store has lost is written again, so that it outlives
// this process and reaches nodes that start.
func TestLostRevocationIsWrittenAgain(t *testing.T) {
	for _, tc := range []struct {
		name string
		old  string // what the restored backup has
	}{
		{"the key is live again", liveKey("a")},
		{"the key never was", ""},
		{"the key is damaged", "broken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(keyNamed("a"), revokedKey("a"))
				s := newTestState(t, f.node())
				delete(f.objects, keyNamed("a"))
				if tc.old != "" {
					f.plant(keyNamed("a"), tc.old)
				}
				f.restore(f.backup())
				s.sync(t.Context())
				synctest.Wait()
				wantKey(t, s, "a", "revoked")
				wantKey(t, newTestState(t, f.node()), "a", "revoked")
				updates := f.nodes[0].count("update")
				f.restore(f.backup())
				s.sync(t.Context())
				synctest.Wait()
				if updates != 1 || f.nodes[0].count("update") != 1 {
					t.Errorf("the revocation is written %d times, want once", f.nodes[0].count("update"))
				}
			})
		})
	}
}

// A store that can be read and not be written keeps the revocation on the list:
// it is written when that has passed, and not five minutes later.
func TestLostRevocationThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(keyNamed("a"), revokedKey("a"))
		f.plant(keyNamed("b"), revokedKey("b"))
		n := f.node()
		s := newTestState(t, n)
		f.restore(nil)
		for _, fails := range []step{down, hang} {
			n.intercept(on("update", "", fails), nil)
			s.sync(t.Context())
			synctest.Wait()
			wantKey(t, s, "a", "revoked")
			wantKey(t, s, "b", "revoked")
			if len(f.backup()) != 0 {
				t.Fatal("something is written")
			}
		}
		n.intercept(nil, nil)
		s.sync(t.Context())
		synctest.Wait()
		for _, id := range []string{"a", "b"} {
			if !strings.Contains(f.data(keyNamed(id)), `"revoked"`) {
				t.Errorf("the revocation of %q is not written: %q", id, f.data(keyNamed(id)))
			}
		}
		updates := n.count("update")
		s.sync(t.Context())
		synctest.Wait()
		if n.count("update") != updates {
			t.Error("revocations are written again that the store has")
		}
	})
}

// The same when the store has been away meanwhile, which is when backups are
// restored. This node may not live to the next time that it reads everything.
func TestLostRevocationIsWrittenAgainAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(keyNamed("a"), revokedKey("a"))
		f.plant(keyNamed("b"), liveKey("b"))
		n := f.node()
		s := newTestState(t, n)
		s.start()
		f.tell(keyNamed("b"))
		n.intercept(down, nil)
		<-time.After(3 * pollInterval)
		if !s.away.Load() {
			t.Fatal("the store does not count as away")
		}
		f.plant(keyNamed("a"), liveKey("a"))
		f.restore(f.backup())
		f.tell(keyNamed("b"))
		n.intercept(on("read", "b", func(context.Context, string, store.Name) error {
			<-time.After(100 * time.Millisecond) // the store is slow at first
			return nil
		}), nil)
		<-time.After(5 * pollInterval)
		synctest.Wait()
		wantKey(t, s, "a", "revoked")
		if !strings.Contains(f.data(keyNamed("a")), `"revoked"`) {
			t.Errorf("5 s after the outage the store says %.60s…: the next node that starts lets the key in", f.data(keyNamed("a")))
		}
	})
}

// S4: what is under a key's name and is not that key makes this key one that is
// not used, and about which nothing is certain: it may have been a revocation.
// All others are as they were.
func TestDamagedKeyIsNotUsed(t *testing.T) {
	other := must(token.ParseSigningKey([]byte(otherKey().PEM()), "a"))
	document := func(change func(*keyDocument)) string {
		doc := keyDocument{ID: "a", Created: testTime, JWK: must(keyOf("a").Public().JWK())}
		change(&doc)
		return string(must(json.Marshal(doc)))
	}
	if decoded := (&state{}).decodeKey(store.Object{Name: keyNamed("a"), Data: []byte(document(func(*keyDocument) {}))}); decoded.public == nil {
		t.Fatalf("what the rows differ from is no key: %v", decoded.damage)
	}
	if other.Public().Equal(keyOf("a").Public()) {
		t.Fatal("the other key is the same")
	}
	for what, data := range map[string]string{
		"damaged":              "",
		"null":                 "null",
		"another type":         `["a"]`,
		"empty":                `{}`,
		"no key":               document(func(d *keyDocument) { d.JWK = nil }),
		"key of another id":    document(func(d *keyDocument) { d.JWK = must(keyOf("b").Public().JWK()) }),
		"document of another":  document(func(d *keyDocument) { d.ID = "b" }),
		"document without id":  document(func(d *keyDocument) { d.ID = "" }),
		"two keys":             document(func(d *keyDocument) { d.JWK = json.RawMessage(keySetOf(keyOf("a"), keyOf("b"))) }),
		"a set of none":        document(func(d *keyDocument) { d.JWK = json.RawMessage(`{"keys":[]}`) }),
		"a key that is no RSA": document(func(d *keyDocument) { d.JWK = json.RawMessage(`{"kty":"oct","k":"AAAA","kid":"a"}`) }),
		"created is no date":   `{"id":"a","created":"yesterday"}`,
		"revoked is no date":   `{"id":"a","revoked":"yesterday"}`,
		"revoked is a bool":    `{"id":"a","revoked":true}`,
	} {
		t.Run(what, func(t *testing.T) {
			f := newFleet()
			f.plant(keyNamed("a"), liveKey("a"))
			f.plant(keyNamed("b"), liveKey("b"))
			n := f.node()
			s := newTestState(t, n)
			ring := ringOf(s)
			ring.fixed = must(token.NewKeySet(testKey().Public(), keyOf("a").Public())) // the config has it too
			for _, complete := range []bool{true, false} {
				before := storeErrors(t, "decode")
				if data == "" {
					f.damage(keyNamed("a"))
				} else {
					f.write(keyNamed("a"), data)
				}
				if !complete {
					f.restore(f.backup())
				}
				s.sync(t.Context())
				wantKey(t, s, "a", "damaged")
				if ring.Lookup("a") != nil || ring.lookupAuthoritative("a") || ring.mayAppear("a") || !ring.revocable("a") {
					t.Errorf("Lookup %v, authoritative %t, mayAppear %t, revocable %t", ring.Lookup("a"), ring.lookupAuthoritative("a"), ring.mayAppear("a"), ring.revocable("a"))
				}
				wantKey(t, s, "b", "live")
				if ring.Lookup("b") == nil || ring.Lookup("k1") == nil || !ring.lookupAuthoritative("c") || s.away.Load() {
					t.Error("a damaged key takes others down")
				}
				if storeErrors(t, "decode") <= before {
					t.Error("nothing counts the damage")
				}
			}
			f.write(keyNamed("a"), liveKey("a")) // mended
			s.sync(t.Context())
			wantKey(t, s, "a", "live")
		})
	}
}

// A key that is known to have changed and cannot be read is not used: what has
// changed may be that it is revoked.
func TestKeyThatCannotBeReadIsNotUsed(t *testing.T) {
	for what, fails := range map[string]step{"fails": down, "hangs": hang} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(keyNamed("a"), liveKey("a"))
				f.plant(keyNamed("b"), liveKey("b"))
				n := f.node()
				s := newTestState(t, n)
				f.write(keyNamed("a"), revokedKey("a"))
				f.tell(keyNamed("b"))
				n.intercept(on("read", "a", fails), nil)
				start := time.Now()
				s.sync(t.Context())
				if waited := time.Since(start); waited > readTimeout {
					t.Errorf("one object holds up the others for %s", waited)
				}
				wantKey(t, s, "a", "damaged")
				wantKey(t, s, "b", "live")
				if !s.away.Load() || ringOf(s).lookupAuthoritative("a") {
					t.Error("the failure of the store goes unnoticed")
				}
				n.intercept(on("changes", "", down), nil)
				s.sync(t.Context())
				wantKey(t, s, "a", "damaged")
				n.intercept(nil, nil)
				s.sync(t.Context())
				wantKey(t, s, "a", "revoked")
			})
		})
	}
}

// S6: without the store, what is known stays in force for as long as the
// longest token of the control API lives, and not a moment longer.
func TestStaleStateIsForgotten(t *testing.T) {
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	f.plant(keyNamed("b"), revokedKey("b"))
	f.plant(videoNamed("v"), `{"uid":"v","requireSignedURLs":false}`)
	n := f.node()
	s := newTestState(t, n)
	clock := setTime(s)
	s.sync(t.Context())
	if _, err := s.videos.get(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	s.signer.own.Store(&ownKey{testKey(), testTime})
	ring := ringOf(s)
	n.intercept(down, nil)
	*clock = clock.Add(maxStale)
	s.sync(t.Context())
	wantKey(t, s, "a", "live")
	if _, err := s.videos.get(t.Context(), "v"); err != nil || ring.Lookup("k1") == nil || s.signer.own.Load() == nil {
		t.Errorf("after %s nothing is known any more: %v", maxStale, err)
	}
	*clock = clock.Add(1)
	for range 2 {
		s.sync(t.Context())
		wantKey(t, s, "a", "unknown")
		wantKey(t, s, "b", "unknown")
		if ring.Lookup("k1") != nil || ring.lookupAuthoritative("k1") || s.signer.own.Load() != nil {
			t.Error("a key is used though nobody knows whether it is revoked")
		}
		if video, err := s.videos.get(t.Context(), "v"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("the settings are %v, %v, want ErrUnavailable", video, err)
		}
	}
	n.intercept(nil, nil)
	s.sync(t.Context())
	wantKey(t, s, "a", "live")
	wantKey(t, s, "b", "revoked")
	if video, err := s.videos.get(t.Context(), "v"); err != nil || video == nil {
		t.Errorf("the settings are %v, %v after the store is back", video, err)
	}
	// The clock of staleness starts anew.
	n.intercept(down, nil)
	*clock = clock.Add(maxStale)
	s.sync(t.Context())
	wantKey(t, s, "a", "live")
}

// While the store is away nobody waits for it: what is not known is refused at
// once, and so is what would change.
func TestNobodyWaitsForAStoreThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		n.intercept(down, nil)
		s.sync(t.Context())
		calls := func() int { return n.count("get") + n.count("update") + n.count("changes") + n.count("list") }
		before, errorsBefore, start := calls(), storeErrors(t, "update"), time.Now()
		if _, err := s.videos.get(t.Context(), "v"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("the settings of a video = %v, want ErrUnavailable", err)
		}
		if err := s.revoke(t.Context(), "a"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("revoke = %v, want ErrUnavailable", err)
		}
		if _, err := s.createKey(t.Context(), keyOf("a").Public(), false, ""); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("createKey = %v, want ErrUnavailable", err)
		}
		s.catchUp(t.Context()) // nobody would end its waiting
		if waited := time.Since(start); calls() != before || waited != 0 {
			t.Errorf("%d calls of a store that is away, and somebody waited for %s", calls()-before, waited)
		}
		if got := storeErrors(t, "update") - errorsBefore; got != 2 {
			t.Errorf("%v failed updates are counted, want 2", got)
		}
		wantKey(t, s, "a", "none") // nothing is revoked that is not stored
		n.intercept(nil, nil)
		s.sync(t.Context())
		if err := s.revoke(t.Context(), "a"); err != nil {
			t.Errorf("revoke = %v after the store is back", err)
		}
	})
}

// Failures are counted by what has failed.
func TestStoreErrorsAreCounted(t *testing.T) {
	f := newFleet()
	n := f.node()
	s := newTestState(t, n)
	for _, tc := range []struct {
		operation string
		call      func()
	}{
		{"changes", func() { s.sync(t.Context()); s.away.Store(false) }},
		{"get", func() { _, _ = s.get(t.Context(), keyNamed("a")) }},
		{"update", func() { _ = s.revoke(t.Context(), "a") }},
		{"list", func() {
			for range s.all(t.Context(), store.Videos) {
			}
		}},
	} {
		n.intercept(down, nil)
		before := storeErrors(t, tc.operation)
		tc.call()
		if got := storeErrors(t, tc.operation) - before; got != 1 {
			t.Errorf("%v failures of %s are counted, want 1", got, tc.operation)
		}
		n.intercept(nil, nil)
	}
	// What a caller has asked for wrongly is no failure of the store.
	before := storeErrors(t, "update")
	mistake := errors.New("a mistake")
	if err := s.update(t.Context(), keyNamed("a"), func(store.Object) ([]byte, error) { return nil, mistake }); !errors.Is(err, mistake) {
		t.Errorf("update = %v", err)
	}
	if storeErrors(t, "update") != before {
		t.Error("a mistake of a caller counts as a failure of the store")
	}
}

// A change that has begun is made, whether or not its caller is still there,
// and ends in time with a store that hangs.
func TestUpdatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		ctx, cancel := context.WithCancel(t.Context())
		n.intercept(on("update", "", func(ctx context.Context, _ string, _ store.Name) error { cancel(); return ctx.Err() }), nil)
		if err := s.revoke(ctx, "a"); err != nil {
			t.Errorf("revoke = %v for a caller who has left", err)
		}
		n.intercept(hang, nil)
		start := time.Now()
		if err := s.revoke(t.Context(), "b"); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("revoke = %v, want ErrUnavailable", err)
		}
		if waited := time.Since(start); waited != writeTimeout || waited >= time.Second {
			t.Errorf("a write took %s, want %s and less than a second", waited, writeTimeout)
		}
		wantKey(t, s, "b", "none")
		start = time.Now()
		if _, err := s.get(t.Context(), keyNamed("a")); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("get = %v, want ErrUnavailable", err)
		}
		if waited := time.Since(start); waited != readTimeout || waited >= time.Second {
			t.Errorf("a read took %s, want %s and less than a second", waited, readTimeout)
		}
	})
}

// A10: a key that another node has made a moment ago is found by the first
// token that names it, and many such tokens cost one look.
func TestCatchingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		s.start()
		<-time.After(pollInterval)
		synctest.Wait() // the store has just been asked
		f.write(keyNamed("a"), liveKey("a"))
		before, start := n.count("changes"), time.Now()
		var wg sync.WaitGroup
		for range maxCatchingUp {
			wg.Go(func() {
				s.catchUp(t.Context())
				wantKey(t, s, "a", "live")
			})
		}
		wg.Wait()
		if got := n.count("changes") - before; got != 1 {
			t.Errorf("%d looks for many who wait, want 1", got)
		}
		if waited := time.Since(start); waited > catchUpInterval {
			t.Errorf("the first token of a new key waited for %s", waited)
		}
		if s.round.waiting != 0 {
			t.Errorf("%d still wait", s.round.waiting)
		}
	})
}

// A look that began before the request did may have missed the key, so the
// request waits for the one after it.
func TestCatchingUpWithALookUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		s.start()
		n.intercept(nil, nil)
		slow := make(chan struct{})
		n.intercept(on("changes", "", func(context.Context, string, store.Name) error {
			n.intercept(nil, nil)
			n.fleet.mu.Lock()
			n.changed = nil // it has seen nothing
			n.fleet.mu.Unlock()
			<-slow
			return nil
		}), nil)
		<-time.After(pollInterval)
		synctest.Wait()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.catchUp(t.Context())
		}()
		synctest.Wait()
		close(slow)
		synctest.Wait() // the look under way has ended
		select {
		case <-done:
			t.Error("the request went on with the look that began before it")
		default:
		}
		f.write(keyNamed("a"), liveKey("a"))
		<-done
		wantKey(t, s, "a", "live")
	})
}

// D1: anybody can send tokens of unknown keys. A flood of them costs the store
// a look each catchUpInterval beside the polls and no more, however long it
// lasts.
func TestFloodOfUnknownKeysCostsFewLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newTestState(t, n)
		s.start()
		synctest.Wait()
		before := n.count("changes")
		const long = 20 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				<-time.After(time.Duration(i) * 7 * time.Millisecond)
				for ctx.Err() == nil {
					s.catchUp(ctx)
				}
			})
		}
		wg.Wait()
		got := n.count("changes") - before
		if most := int(long/catchUpInterval) + 2*int(long/pollInterval); got > most || got < most/2 {
			t.Errorf("%d looks in %s, want at most %d", got, long, most)
		}
	})
}

// Only so many wait at a time, and none of them for long: a store that hangs
// must not pile up requests.
func TestFewWaitForAStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newTestState(t, n)
		s.start()
		n.intercept(hang, nil)
		var wg sync.WaitGroup
		start := time.Now()
		for range maxCatchingUp {
			wg.Go(func() {
				s.catchUp(t.Context())
				if waited := time.Since(start); waited != catchUpTimeout {
					t.Errorf("a request waited for %s, want %s", waited, catchUpTimeout)
				}
			})
		}
		synctest.Wait()
		for range 100 {
			s.catchUp(t.Context())
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("one request too many waited for %s", waited)
		}
		wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start = time.Now()
		s.catchUp(ctx)
		if waited := time.Since(start); waited != 0 {
			t.Errorf("a request of a viewer who has left waited for %s", waited)
		}
		s.round.mu.Lock()
		defer s.round.mu.Unlock()
		if s.round.waiting != 0 {
			t.Errorf("%d still wait", s.round.waiting)
		}
	})
}

// A state outlives configs and their storages. It uses that of the config which
// started last, never that of one which has ended, and the one of a config that
// is only being loaded when there is no other.
func TestStorageOfTheConfigInForce(t *testing.T) {
	a, b, c := &configStorage{}, &configStorage{}, &configStorage{}
	s := &storages{all: []*configStorage{a}}
	for i, tc := range []struct {
		do   func()
		want *configStorage
	}{
		{func() { s.use(a) }, a},
		{func() { s.offer(b) }, a},    // being loaded
		{func() { s.withdraw(b) }, a}, // and has failed
		{func() { s.offer(c) }, a},
		{func() { s.use(c) }, c},
		{func() { s.offer(b) }, c},
		{func() { s.withdraw(a) }, c},
		{func() { s.use(b) }, b},
		{func() { s.use(b) }, b},
		{func() { s.withdraw(c) }, b},
		{func() { s.offer(a) }, b},
		{func() { s.withdraw(b) }, a},
	} {
		tc.do()
		s.mu.RLock()
		last := s.all[len(s.all)-1]
		s.mu.RUnlock()
		if last != tc.want {
			t.Fatalf("after step %d another storage is in use", i)
		}
	}
	if len(s.all) != 1 {
		t.Errorf("%d storages are kept, want 1", len(s.all))
	}
}

// loaded provisions an app on a storage in a folder, as a config does that is
// being loaded.
func loaded(t *testing.T, folder string, app *App) *App {
	t.Helper()
	ctx, err := caddy.ProvisionContext(&caddy.Config{
		StorageRaw: caddyconfig.JSONModuleObject(filestorage.FileStorage{Root: folder}, "module", "file_system", nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Provision(ctx); err != nil {
		t.Fatalf("Provision = %v", err)
	}
	return app
}

// A revocation must hold under configs that a reload has replaced and that
// still serve, so all configs of one storage share one state. The last of them
// takes it along.
func TestStateIsSharedOverReloads(t *testing.T) {
	folder := t.TempDir()
	references := func(s *state) int { n, _ := statePool.References(s.poolKey); return n }
	unload := func(app *App) {
		if err := app.Cleanup(); err != nil {
			t.Errorf("Cleanup = %v", err)
		}
	}
	old := loaded(t, folder, new(App))
	shared := old.state
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	next := loaded(t, folder, new(App))
	if next.state != shared || references(shared) != 2 || next.keys.stored != old.keys.stored {
		t.Fatalf("the new config has a state of its own (%d references)", references(shared))
	}
	if shared.storages.present() != old.storage.Storage {
		t.Error("the state uses the storage of a config that has not started")
	}
	elsewhere := loaded(t, t.TempDir(), new(App))
	if elsewhere.state == shared {
		t.Error("a config with another storage shares the state")
	}
	unload(elsewhere)
	if err := errors.Join(next.Start(), old.Stop()); err != nil {
		t.Fatal(err)
	}
	if shared.storages.present() != next.storage.Storage {
		t.Error("the state does not use the storage of the config in force")
	}
	if err := next.state.revoke(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	wantKey(t, old.state, "a", "revoked")
	unload(old)
	if references(shared) != 1 || shared.ctx.Err() != nil || len(shared.storages.all) != 1 {
		t.Errorf("the old config's end ended the state (%d references, %d storages)", references(shared), len(shared.storages.all))
	}
	if err := next.state.revoke(t.Context(), "b"); err != nil {
		t.Errorf("revoke = %v after the old config has ended", err)
	}
	if err := next.Stop(); err != nil {
		t.Fatal(err)
	}
	unload(next)
	if shared.ctx.Err() == nil || references(shared) != 0 {
		t.Errorf("the state outlives its last config (%d references)", references(shared))
	}
	again, last := loaded(t, folder, new(App)), loaded(t, folder, new(App))
	wantKey(t, again.state, "a", "revoked")
	wantKey(t, again.state, "b", "revoked")
	unload(again) // neither has started
	if err := last.state.revoke(t.Context(), "c"); err != nil || last.state.storages.present() != last.storage.Storage {
		t.Errorf("revoke = %v with the storage of a config that is only loaded", err)
	}
	unload(last)
}

// A config that fails after it has acquired the state gives it up.
func TestFailedConfigReleasesTheState(t *testing.T) {
	before := 0
	statePool.Range(func(any, any) bool { before++; return true })
	_, _, err := provisioned(t, &App{KeyFiles: []string{writeFile(t, "key.json", "no key")}}, nil)
	if err == nil {
		t.Fatal("provisioning succeeded, want an error about the key file")
	}
	after := 0
	statePool.Range(func(any, any) bool { after++; return true })
	if after != before {
		t.Errorf("%d states are kept, there were %d", after, before)
	}
	// A store that cannot be opened is an error of the config, and kept nowhere.
	broken := errors.New("broken")
	s, err := acquireState(t.Name(), new(configStorage), func(func() certmagic.Storage, func() *zap.Logger) (store.Store, error) { return nil, broken })
	if s != nil || !errors.Is(err, broken) {
		t.Errorf("acquireState = %v, %v", s, err)
	}
	if _, kept := statePool.References(t.Name()); kept {
		t.Error("a state whose store cannot be opened is kept")
	}
}

// hidden is a storage that no JSON shows.
type hidden certmagic.Storage

// Two storages count as one place if their configs are the same and say where
// that is.
func TestIdentityOfAStorage(t *testing.T) {
	type nameless struct{ hidden }
	type channels struct {
		certmagic.Storage
		C chan int
	}
	a, b := &nameless{}, &nameless{}
	for _, tc := range []struct {
		name       string
		one, other certmagic.Storage
		same       bool
	}{
		{"same folder", &certmagic.FileStorage{Path: "/a"}, &certmagic.FileStorage{Path: "/a"}, true},
		{"another folder", &certmagic.FileStorage{Path: "/a"}, &certmagic.FileStorage{Path: "/b"}, false},
		{"config that is no JSON", &channels{}, &channels{}, false},
		{"another type", &certmagic.FileStorage{Path: "/a"}, &struct {
			certmagic.Storage
			Path string
		}{Path: "/a"}, false},
		{"no config, the same one", a, a, true},
		{"no config", a, b, false},
	} {
		if same := storageIdentity(tc.one) == storageIdentity(tc.other); same != tc.same {
			t.Errorf("%s: the same place: %t, want %t", tc.name, same, tc.same)
		}
	}
}
