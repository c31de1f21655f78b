package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// Another node reads everything of a key but its private half. Dates have microseconds, so
// that a list is the same before and after a restart.
func TestKeysAreStored(t *testing.T) {
	t.Parallel()
	f, _, s := fleetWith(t)
	other := newTestState(t, f.Join())
	*s.setTime() = testTime.Add(123456789 * time.Nanosecond)
	key := keyOf("a")
	created, err := s.storeKey(t.Context(), key.Public(), true, "request")
	if want := testTime.Add(123456 * time.Microsecond); err != nil || !created.Equal(want) || created.Location() != time.UTC {
		t.Fatalf("storeKey = %v, %v, want %v", created, err, want)
	}
	other.Sync(t.Context())
	for _, s := range []*testState{s, other} {
		got, _ := s.Key("a")
		if !got.Public.Equal(key.Public()) || !got.Created.Equal(created) || !got.Own || got.Request != "request" || got.ID != "a" {
			t.Errorf("the key is %+v", got)
		}
	}
	text := f.Data(keyNamed("a"))
	for _, member := range []string{`"d"`, `"p"`, `"q"`, `"dp"`, `"dq"`, `"qi"`, "PRIVATE"} {
		if strings.Contains(text, member) {
			t.Errorf("the store contains %s of the private half: %s", member, text)
		}
	}
}

// A9: an id is given once. A new key does not overwrite a live, revoked or damaged one.
func TestKeyIDIsTakenForGood(t *testing.T) {
	t.Parallel()
	for what, data := range map[string]string{"live": liveKey("a"), "revoked": revokedKey("a"), "damaged": damaged, "empty": "{}"} {
		f, _, s := fleetWith(t)
		f.Plant(keyNamed("a"), data) // by another node, a moment ago
		before := f.Backup()[keyNamed("a")]
		if _, err := s.storeKey(t.Context(), keyOf("a").Public(), false, ""); !errors.Is(err, errKeyExists) {
			t.Errorf("%s: storeKey = %v, want errKeyExists", what, err)
		}
		after := f.Backup()[keyNamed("a")]
		if string(after.Data) != string(before.Data) || (after.Damage == nil) != (before.Damage == nil) {
			t.Errorf("%s: the object is %q now", what, after.Data)
		}
		wantKeys(t, s, "a none")
	}
}

// A key or a revocation that could not be stored is not in force, though the store may have
// it: the next restart might take back what the client relies on.
func TestKeyThatIsNotStored(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t, "b live")
	n.Intercept(on("update", "", down), nil)
	if key, _, err := s.CreateKey(t.Context(), ""); !errors.Is(err, ErrUnavailable) || key != nil {
		t.Errorf("CreateKey = %v, %v, want ErrUnavailable", key, err)
	}
	if err := s.Revoke(t.Context(), "b"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Revoke = %v, want ErrUnavailable", err)
	}
	wantKeys(t, s, "b live")
	if live := s.LiveKeys(); len(live) != 1 {
		t.Errorf("%d keys are live, want 1", len(live))
	}
}

// A revocation replaces any object under the id, once. It keeps the date of the key and
// drops the public half.
func TestRevocationIsStored(t *testing.T) {
	t.Parallel()
	const otherVersion = `{"id":"a","revoked":"2020-01-01T00:00:00Z"}`
	for data, written := range map[string]bool{liveKey("a"): true, damaged: true, `"x"`: true, "": true, revokedKey("a"): false, otherVersion: false} {
		f := newFleet()
		f.Write(keyNamed("a"), data)
		s := newTestState(t, f.Join())
		*s.setTime() = testTime.Add(time.Hour)
		before := f.Data(keyNamed("a"))
		for range 2 {
			if err := s.Revoke(t.Context(), "a"); err != nil {
				t.Errorf("%.80s: Revoke = %v", data, err)
			}
			wantKeys(t, s, "a revoked")
		}
		if (f.Data(keyNamed("a")) != before) != written || f.Backup()[keyNamed("a")].Damage != nil {
			t.Errorf("%.80s: the object is %s", data, f.Data(keyNamed("a")))
		}
		wantKeys(t, newTestState(t, f.Join()), "a revoked")
		if data != liveKey("a") {
			continue
		}
		var doc keyDocument
		if err := json.Unmarshal([]byte(f.Data(keyNamed("a"))), &doc); err != nil {
			t.Fatal(err)
		}
		want := keyDocument{ID: "a", Created: testTime, Revoked: testTime.Add(time.Hour)}
		if diff := cmp.Diff(want, doc); diff != "" {
			t.Errorf("the revocation (-want +got):\n%s", diff)
		}
	}
}

// A4: no id that is a path reaches the store.
func TestIDsThatAreNoNames(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t)
	for _, id := range []string{"", ".", "..", "../a", "a/b", "a%2fb", strings.Repeat("a", 65)} {
		for what, err := range map[string]error{
			"Revoke":        s.Revoke(t.Context(), id),
			"Video":         errorOf(s.Video(t.Context(), id)),
			"VideoDocument": errorOf(s.VideoDocument(t.Context(), id)),
			"EditVideo":     errorOf(s.EditVideo(t.Context(), id, func(*VideoDocument) error { return nil })),
		} {
			if !errors.Is(err, store.ErrName) {
				t.Errorf("%s(%q) = %v, want ErrName", what, id, err)
			}
		}
		if ValidKeyID(id) {
			t.Errorf("%q is a valid id", id)
		}
	}
	if got := n.Count("update", "get"); got != 0 {
		t.Errorf("%d calls of the store, want none", got)
	}
}

// The list is newest first, and always in the same order.
func TestLiveKeysAreInOrder(t *testing.T) {
	t.Parallel()
	f := newFleet()
	f.plantAll("gone revoked", "broken damaged")
	want := []string{"x1", "y1", "x0", "y0"}
	for i, id := range want {
		f.Plant(keyNamed(id), keyDoc(id, func(doc *keyDocument) { doc.Created = testTime.Add(-time.Duration(i/2) * time.Second) }))
	}
	s := newTestState(t, f.Join())
	for range 3 {
		var got []string
		for _, key := range s.LiveKeys() {
			got = append(got, key.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("live keys (-want +got):\n%s", diff)
		}
	}
}

// S4: an object under a key's name that is not that key makes this key unusable: the object
// may have been a revocation. Other keys do not change.
func TestDamagedKeyIsNotUsed(t *testing.T) {
	t.Parallel()
	keySet := func(keys ...*token.SigningKey) json.RawMessage {
		list := make([]json.RawMessage, len(keys))
		for i, key := range keys {
			list[i] = must(key.Public().JWK())
		}
		return must(json.Marshal(map[string]any{"keys": list}))
	}
	for what, data := range map[string]string{
		"damaged":              damaged,
		"null":                 "null",
		"another type":         `["a"]`,
		"empty":                `{}`,
		"no key":               keyDoc("a", func(d *keyDocument) { d.JWK = nil }),
		"key of another id":    keyDoc("a", func(d *keyDocument) { d.JWK = must(keyOf("b").Public().JWK()) }),
		"document of another":  keyDoc("a", func(d *keyDocument) { d.ID = "b" }),
		"document without id":  keyDoc("a", func(d *keyDocument) { d.ID = "" }),
		"two keys":             keyDoc("a", func(d *keyDocument) { d.JWK = keySet(keyOf("a"), keyOf("b")) }),
		"a set of none":        keyDoc("a", func(d *keyDocument) { d.JWK = keySet() }),
		"a key that is no RSA": keyDoc("a", func(d *keyDocument) { d.JWK = json.RawMessage(`{"kty":"oct","k":"AAAA","kid":"a"}`) }),
		"created is no date":   `{"id":"a","created":"yesterday"}`,
		"revoked is no date":   `{"id":"a","revoked":"yesterday"}`,
		"revoked is a bool":    `{"id":"a","revoked":true}`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f, _, s := fleetWith(t, "a live", "b live")
			wantKeys(t, s, "a live")
			f.Write(keyNamed("a"), data)
			wantKeysAfterSync(t, s, "a damaged", "b live")
			if key, _ := s.Key("a"); !errors.Is(key.Damage, ErrDamaged) || s.Unavailable() || s.errors("decode") == 0 {
				t.Errorf("damage %v, unavailable: %t, %d errors are counted", key.Damage, s.Unavailable(), s.errors("decode"))
			}
			f.writeAll("a live") // repaired
			wantKeysAfterSync(t, s, "a live")
		})
	}
}

// A node that knows a revocation keeps it for good: neither data that was read before it
// nor an older store restores the key.
func TestRevokedKeyNeverComesBack(t *testing.T) {
	t.Parallel()
	for _, attack := range []string{ // the steps before a node looks for changes
		"backup revoke restore", "revoke lose-everything", "revoke lose-everything make-again", "revoke live", "revoke damage", "revoke remove",
		"revoke unreadable sync readable",
		"backup revoke restore long-outage readable",
		"backup revoke-elsewhere sync restore",
		"read-during-which-revoke",
		"reload-during-which-revoke sync",
		"reload-during-which-revoke-and-fail sync readable",
	} {
		t.Run(attack, func(t *testing.T) {
			t.Parallel()
			f, n, s := fleetWith(t, "a live", "b live")
			clock := s.setTime()
			wantKeys(t, s, "a live")
			old := f.Backup()
			revoke := func() {
				if err := s.Revoke(t.Context(), "a"); err != nil {
					t.Errorf("Revoke = %v", err)
				}
			}
			revokeAfter := func(operation, id string) {
				n.Intercept(nil, on(operation, id, func(context.Context, string, store.Name) error {
					n.Intercept(nil, nil)
					revoke()
					return nil
				}))
			}
			steps := map[string]func(){
				"backup":           func() { old = f.Backup() },
				"restore":          func() { f.Restore(old) },
				"revoke":           revoke,
				"revoke-elsewhere": func() { f.writeAll("a revoked") },
				"live":             func() { f.writeAll("a live") },
				"damage":           func() { f.writeAll("a damaged") },
				"remove":           func() { f.Write(keyNamed("a"), "") },
				"lose-everything":  func() { f.Restore(nil) },
				"make-again":       func() { _, _ = s.storeKey(t.Context(), keyOf("a").Public(), false, "") },
				"unreadable":       func() { n.Intercept(on("read", "a", down), nil) },
				"readable":         func() { n.Intercept(nil, nil) },
				"sync":             func() { s.Sync(t.Context()) },
				"long-outage": func() {
					*clock = clock.Add(maxStale + 1)
					n.Intercept(down, nil)
					wantKeysAfterSync(t, s, "a unknown")
				},
				"read-during-which-revoke": func() {
					revokeAfter("get", "a")
					if err := s.readKey(t.Context(), "a"); err != nil {
						t.Error(err)
					}
					wantKeys(t, s, "a revoked")
				},
				"reload-during-which-revoke": func() {
					f.Restore(old) // so that there is something to read
					revokeAfter("read", "a")
				},
				"reload-during-which-revoke-and-fail": func() {
					f.Restore(old)
					n.Intercept(nil, on("read", "", func(ctx context.Context, operation string, name store.Name) error {
						if name.ID() == "a" {
							revoke()
							return nil
						}
						n.Intercept(on("changes", "", down), nil)
						return down(ctx, operation, name)
					}))
				},
			}
			for step := range strings.FieldsSeq(attack) {
				steps[step]()
			}
			for range 2 {
				wantKeysAfterSync(t, s, "a revoked")
				if slices.ContainsFunc(s.LiveKeys(), func(k Key) bool { return k.ID == "a" }) {
					t.Error("the revoked key verifies")
				}
			}
		})
	}
}

// A key that is published during a reload is newer than the key that the reload reads.
func TestKeysThatChangeDuringAReload(t *testing.T) {
	t.Parallel()
	f, n, s := fleetWith(t, "a live", "b live", "c live")
	f.Restore(f.Backup())
	n.Intercept(nil, on("read", "c", func(ctx context.Context, _ string, _ store.Name) error {
		n.Intercept(nil, nil)
		if _, err := s.storeKey(ctx, keyOf("aa").Public(), false, ""); err != nil {
			t.Errorf("storeKey = %v", err)
		}
		s.keys.publish(Key{ID: "b", Damage: errors.New("it has changed")})
		s.keys.publish(Key{ID: "a"}) // it does not exist any more
		return s.Revoke(ctx, "c")
	}))
	wantKeysAfterSync(t, s, "a none", "b damaged", "c revoked", "aa live")
}

// Until the keys have been read, nothing is known about any key: a key that is published
// before must not look like the only one.
func TestKeysPublishedBeforeTheFirstReading(t *testing.T) {
	t.Parallel()
	var k keys
	k.publish(Key{ID: "a", Public: keyOf("a").Public()})
	k.publish(Key{ID: "b", Revoked: true})
	if k.KeysKnown() {
		t.Fatal("the keys count as read")
	}
	k.beginReading()
	found := map[string]Key{"b": {ID: "b", Public: keyOf("b").Public()}, "c": {ID: "c", Public: keyOf("c").Public()}}
	if k.commit(maps.Clone(found), false); k.KeysKnown() {
		t.Fatal("the keys count as read before they are")
	}
	k.beginReading()
	if missing := k.commit(found, true); !slices.Equal(missing, []string{"b"}) {
		t.Errorf("commit = %q, want b: the store does not say that it is revoked", missing)
	}
	if key, _ := k.Key("b"); !key.Revoked {
		t.Error("a key that was revoked before the first reading is not")
	}
	if live := k.LiveKeys(); len(live) != 1 || live[0].ID != "c" {
		t.Errorf("%d keys are live, want c alone", len(live))
	}
}

// Requests read snapshots while everything changes: a reader that has seen a revocation
// never sees the key again. The race detector watches the other reads.
func TestStateUnderConcurrentChanges(t *testing.T) {
	t.Parallel()
	f, _, s := fleetWith(t, "k0 live", "k1 live", "k2 live", "k3 live", "v public")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			seen := make(map[string]bool)
			for ctx.Err() == nil {
				for i := range 4 {
					id := fmt.Sprint("k", i)
					key, known := s.Key(id)
					if !known || seen[id] && !key.Revoked {
						t.Errorf("the key %s came back", id)
						return
					}
					seen[id] = key.Revoked
				}
				_, _ = s.Video(ctx, "v")
				s.LiveKeys()
				s.Unavailable()
			}
		})
	}
	for i := range 4 {
		id := fmt.Sprint("k", i)
		stale, _ := s.Key(id)
		var change sync.WaitGroup
		change.Go(func() {
			if err := s.Revoke(ctx, id); err != nil {
				t.Errorf("Revoke = %v", err)
			}
		})
		change.Go(func() { s.keys.publish(stale) })
		for range 20 {
			s.keys.beginReading()
			s.keys.commit(map[string]Key{id: stale}, true)
			f.writeAll("v public")
			s.Sync(ctx)
		}
		change.Wait()
		s.keys.publish(stale)
		wantKeys(t, s, id+" revoked")
	}
	stop()
	wg.Wait()
}

// A12: a repeated call replaces the key of the call before it, whose answer was lost. Other
// keys stay. A failure leaves no live key whose private half nobody has.
func TestRepeatedCreationReplacesItsKey(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t)
	create := func(request string) string {
		t.Helper()
		key, _, err := s.CreateKey(t.Context(), request)
		if err != nil {
			t.Fatalf("CreateKey = %v", err)
		}
		wantKeys(t, s, key.ID()+" live")
		return key.ID()
	}
	first, other, plain := create("one"), create("two"), create("")
	second := create("one")
	create("")
	wantKeys(t, s, first+" revoked", second+" live", other+" live", plain+" live")
	n.Intercept(on("update", second, down), nil)
	if _, _, err := s.CreateKey(t.Context(), "one"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("CreateKey = %v, want ErrUnavailable", err)
	}
	if live := s.LiveKeys(); len(live) != 4 {
		t.Errorf("%d keys are live, want 4", len(live))
	}
}

// The number of keys is limited. The gateway's own keys, revoked keys and the key that a
// repeated call replaces do not count.
func TestKeyLimit(t *testing.T) {
	t.Parallel()
	_, _, s := fleetWith(t)
	public, found := testKey().Public(), make(map[string]Key)
	for i := range MaxKeys - 1 {
		setKey(found, Key{ID: fmt.Sprint("k", i), Public: public})
		setKey(found, Key{ID: fmt.Sprint("own", i), Public: public, Own: true})
		setKey(found, Key{ID: fmt.Sprint("gone", i), Revoked: true})
	}
	s.keys.commit(found, true)
	if err := s.mayCreate(""); err != nil {
		t.Errorf("mayCreate = %v with %d keys", err, MaxKeys-1)
	}
	s.keys.publish(Key{ID: "last", Public: public, Request: "request"})
	for request, want := range map[string]error{"": ErrKeyLimit, "other": ErrKeyLimit, "request": nil} {
		if err := s.mayCreate(request); !errors.Is(err, want) {
			t.Errorf("mayCreate(%q) = %v with %d keys, want %v", request, err, MaxKeys, want)
		}
	}
	for what, change := range map[string]func(){"unavailable": func() { s.unavailable.Store(true) }, "unknown": s.keys.forget} {
		if change(); !errors.Is(s.mayCreate(""), ErrUnavailable) {
			t.Errorf("a key may be made with the store %s", what)
		}
	}
}

// A7: keys are made one at a time, so that playback has a processor, and few calls wait for
// their turn. If the store turns out to be unavailable, all of them fail at once.
func TestKeysAreMadeOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, _, s := fleetWith(t)
		leave := must(s.enterMaking(t.Context())) // a key is being made
		cancelled, cancel := context.WithCancel(t.Context())
		for _, crowd := range []struct {
			ctx  context.Context
			want error
			end  func()
		}{
			{cancelled, context.Canceled, cancel},
			{t.Context(), ErrTooManyKeys, func() { <-time.After(maxWaitForKey) }},
			{t.Context(), ErrUnavailable, func() { s.makingFailed.Add(1); leave() }},
		} {
			var wg sync.WaitGroup
			for range maxWaitingForKey {
				wg.Go(func() {
					if leave, err := s.enterMaking(crowd.ctx); !errors.Is(err, crowd.want) || leave != nil {
						t.Errorf("enterMaking = %v, want %v", err, crowd.want)
					}
				})
			}
			synctest.Wait()
			if _, err := s.enterMaking(t.Context()); !errors.Is(err, ErrTooManyKeys) {
				t.Errorf("enterMaking over the limit = %v, want ErrTooManyKeys", err)
			}
			crowd.end()
			wg.Wait()
		}
		must(s.enterMaking(t.Context()))()
	})
}
