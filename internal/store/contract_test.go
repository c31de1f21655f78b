package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

// onEachStore runs a test with two nodes of each kind of store.
func onEachStore(t *testing.T, test func(t *testing.T, a, b Store)) {
	t.Helper()
	onEachStorage(t, func(t *testing.T, storage certmagic.Storage) { test(t, quiet(storage), quiet(storage)) })
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := startRedis(t)
		test(t, server.open(t), server.open(t))
	})
}

// as makes a function of what a store asks for each time that it needs it.
func as[T any](value T) func() T { return func() T { return value } }

// quiet opens a store whose log goes nowhere.
func quiet(storage certmagic.Storage) *Caddy {
	s := NewCaddy(as(storage), zap.NewNop, nil)
	s.Start()
	return s
}

// write makes data the content of an object; "" removes it.
func write(t *testing.T, s Store, name Name, data string) {
	t.Helper()
	if err := tryWrite(t.Context(), s, name, data); err != nil {
		t.Fatalf("Update(%s) = %v", name, err)
	}
}

func tryWrite(ctx context.Context, s Store, name Name, data string) error {
	return s.Update(ctx, name, func(Object) ([]byte, error) {
		if data == "" {
			return nil, nil
		}
		return []byte(data), nil
	})
}

// increment is a Change that counts.
func increment(present Object) ([]byte, error) {
	count := 0
	if present.Data != nil {
		if err := json.Unmarshal(present.Data, &count); err != nil {
			return nil, err
		}
	}
	return json.Marshal(count + 1)
}

// wantObject checks an object's content; "" stands for no object.
func wantObject(t *testing.T, s Store, name Name, data string) {
	t.Helper()
	if err := hasObject(t.Context(), s, name, data); err != nil {
		t.Error(err)
	}
}

func hasObject(ctx context.Context, s Store, name Name, data string) error {
	object, err := s.Get(ctx, name, Server)
	if err != nil || object.Damage != nil || object.Name != name || string(object.Data) != data || (object.Data == nil) != (data == "") {
		return fmt.Errorf("Get(%s) = %s %q, damage %v, %w, want %q", name, object.Name, object.Data, object.Damage, err, data) //nolint:errorlint // one of them is enough
	}
	return nil
}

func wantDamage(t *testing.T, s Store, name Name) {
	t.Helper()
	object, err := s.Get(t.Context(), name, Server)
	if err != nil || !errors.Is(object.Damage, ErrDamaged) || object.Data != nil || object.Name != name {
		t.Errorf("Get(%s) = %q, damage %v, %v, want damage", name, object.Data, object.Damage, err)
	}
}

// readAll collects a collection. A damaged object counts as "damaged".
func readAll(ctx context.Context, s Store, collection Collection) (map[string]string, error) {
	found := make(map[string]string)
	for object, err := range All(ctx, s, collection) {
		if err != nil {
			return nil, err
		}
		if _, twice := found[object.Name.ID()]; twice || object.Name.Collection() != collection {
			return nil, fmt.Errorf("All(%s) yields %s twice, or of another collection", collection, object.Name)
		}
		found[object.Name.ID()] = string(object.Data)
		if object.Damage != nil {
			found[object.Name.ID()] = "damaged"
		}
	}
	return found, nil
}

func wantAll(t *testing.T, s Store, collection Collection, want map[string]string) {
	t.Helper()
	found, err := readAll(t.Context(), s, collection)
	if diff := cmp.Diff(want, found); err != nil || diff != "" {
		t.Errorf("All(%s) = %v (-want +got):\n%.2000s", collection, err, diff)
	}
}

func wantUnavailable(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%s = %v, want ErrUnavailable", what, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s = %q, want %q in it", what, err, word)
		}
	}
}

// seen has the stamps that a test has seen of each store.
var seen sync.Map

// changes returns the collections whose stamp is not the one that changes has seen last.
func changes(ctx context.Context, s Store) (changed []Collection, err error) {
	stamps, err := s.Stamps(ctx)
	if err != nil {
		return nil, err
	}
	last, _ := seen.Swap(s, stamps)
	known, _ := last.(map[Collection]string)
	for _, collection := range collections {
		if stamp, ok := known[collection]; !ok || stamp != stamps[collection] {
			changed = append(changed, collection)
		}
	}
	return changed, nil
}

// wantChanges checks in which collections a node finds changes.
func wantChanges(t *testing.T, s Store, want ...Collection) {
	t.Helper()
	changed, err := changes(t.Context(), s)
	if err != nil || !slices.Equal(changed, want) {
		t.Errorf("Changes = %q, %v, want %q", changed, err, want)
	}
}

// follow brings nodes up to date.
func follow(t *testing.T, nodes ...Store) {
	t.Helper()
	for _, s := range nodes {
		if _, err := changes(t.Context(), s); err != nil {
			t.Fatalf("Changes = %v", err)
		}
		wantChanges(t, s)
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, a, b Store) {
		names := []Name{
			named(Keys, "a"), named(Keys, "A"), named(Videos, "a"), named(Videos, "A"), named(Signing, "a"), named(Keys, "..."),
			named(Keys, "x-a"), named(Videos, strings.Repeat("Z", 64)),
		}
		for _, name := range names {
			wantObject(t, a, name, "")
		}
		for i, name := range names {
			err := a.Update(t.Context(), name, func(present Object) ([]byte, error) {
				if present.Exists() || present.Name != name {
					t.Errorf("a new object is %q, %v", present.Data, present.Damage)
				}
				return fmt.Appendf(nil, `{"<&>": %d}`, i), nil
			})
			if err != nil {
				t.Fatalf("Update(%s) = %v", name, err)
			}
		}
		for i, name := range names {
			wantObject(t, b, name, fmt.Sprintf(`{"<&>":%d}`, i))
			err := b.Update(t.Context(), name, func(present Object) ([]byte, error) {
				return slices.Concat([]byte("["), present.Data, []byte("]")), nil
			})
			if err != nil {
				t.Fatalf("Update(%s) = %v", name, err)
			}
			wantObject(t, a, name, fmt.Sprintf(`[{"<&>":%d}]`, i))
		}
		for _, collection := range collections {
			want := make(map[string]string)
			for i, name := range names {
				if name.Collection() == collection {
					want[name.ID()] = fmt.Sprintf(`[{"<&>":%d}]`, i)
				}
			}
			wantAll(t, b, collection, want)
		}
		for i, name := range names {
			write(t, a, name, "")
			wantObject(t, b, name, "")
			for j, rest := range names[i+1:] {
				wantObject(t, b, rest, fmt.Sprintf(`[{"<&>":%d}]`, i+1+j))
			}
		}
	})
}

// A change that fails, or whose data is no JSON, writes nothing and wakes no node.
func TestRefusedChangesWriteNothing(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, a, b Store) {
		refused := errors.New("refused")
		for _, collection := range []Collection{Keys, Videos} {
			there, gone := named(collection, "there"), named(collection, "gone")
			write(t, a, there, `{"a":1}`)
			follow(t, a, b)
			for name, want := range map[Name]string{there: `{"a":1}`, gone: ""} {
				err := a.Update(t.Context(), name, func(Object) ([]byte, error) { return []byte("2"), refused })
				if err != refused { //nolint:errorlint // the very same
					t.Errorf("Update = %v, want the error of the change as it is", err)
				}
				for _, data := range []string{"no JSON", " "} {
					if err := tryWrite(t.Context(), a, name, data); err == nil || errors.Is(err, ErrUnavailable) {
						t.Errorf("Update with %q, which is no JSON = %v", data, err)
					}
				}
				wantObject(t, a, name, want)
			}
			wantChanges(t, a)
			wantChanges(t, b)
		}
	})
}

// Every node is told of what any node writes, itself too, by collection and once.
func TestChangesAreTold(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, a, b Store) {
		wantChanges(t, a, collections...) // the first call
		wantChanges(t, a)
		write(t, a, named(Keys, "k"), "1")
		wantChanges(t, a, Keys)
		wantChanges(t, a)
		wantChanges(t, b, collections...) // the first call
		wantChanges(t, b)
		write(t, a, named(Signing, "current"), "1")
		write(t, a, named(Videos, "V"), "1")
		write(t, a, named(Videos, "V"), "2")
		for _, s := range []Store{a, b} {
			wantChanges(t, s, Videos, Signing)
			wantChanges(t, s)
		}
		write(t, b, named(Keys, "y"), "1")
		write(t, a, named(Keys, "k"), "")
		for _, s := range []Store{a, b} {
			wantChanges(t, s, Keys)
			wantChanges(t, s)
		}
	})
}

// A node that looks after a change was acknowledged knows it, however many nodes
// write at the same time: else a revoked key would go on playing there.
func TestAcknowledgedChangesAreFound(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, a, b Store) {
		var mu sync.Mutex // of known
		known := make(map[string]string)
		lookAgain := func() (err error) {
			changed, err := changes(t.Context(), b)
			if err == nil && slices.Contains(changed, Keys) {
				known, err = readAll(t.Context(), b, Keys)
			}
			return err
		}
		var wg sync.WaitGroup
		for w := range 6 {
			wg.Go(func() {
				for i := range 5 {
					id := fmt.Sprintf("k-%d-%d", w, i)
					if err := tryWrite(t.Context(), []Store{a, b}[w%2], named(Keys, id), "1"); err != nil {
						t.Errorf("Update = %v", err)
					}
					mu.Lock()
					if err := lookAgain(); err != nil || known[id] != "1" {
						t.Errorf("%s is acknowledged and unknown after the next look: %v", id, err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	})
}

// S3: two nodes that change the same object at the same time. Each sees what
// the other has written.
func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, a, b Store) {
		const writers, rounds = 4, 8
		name := named(Videos, "counter")
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				for range rounds {
					if err := []Store{a, b}[i%2].Update(t.Context(), name, increment); err != nil {
						t.Errorf("Update = %v", err)
					}
				}
			})
		}
		wg.Wait()
		wantObject(t, a, name, strconv.Itoa(writers*rounds))
	})
}
