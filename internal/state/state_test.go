package state

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

func TestStateReadsTheStoreAtStart(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t, "a live", "b revoked", "c damaged", "v public")
	wantKeys(t, s, "a live", "b revoked", "c damaged", "d none")
	if s.Unavailable() || n.Count("get") != 0 {
		t.Errorf("unavailable: %t, %d objects read one by one; want false and none: a video is read on first use", s.Unavailable(), n.Count("get"))
	}
}

// S7: the store is down, or hangs, when the server starts. Nothing is known, so the gate
// admits nothing that depends on the store. The server starts in time and recovers by
// itself. One object that cannot be read concerns that object only.
func TestStoreIsDownAtStart(t *testing.T) {
	t.Parallel()
	for operation, fails := range map[string]step{
		"everything": down, "changes": on("changes", "", down), "list": on("list", "", down),
		"everything hangs": hang, "the list hangs": on("list", "", hang), "one object": on("read", "b", down),
	} {
		bubble(t, operation, func(t *testing.T) {
			f := newFleet()
			f.plantAll("a live", "b revoked")
			n := f.Join()
			n.Intercept(fails, nil)
			start := time.Now()
			s := newTestState(t, n)
			wantWaited(t, "opening the state", start, loadTimeout)
			if operation == "one object" {
				wantKeys(t, s, "a live", "b damaged")
			} else {
				wantKeys(t, s, "a unknown", "k1 unknown")
			}
			wantVideo(t, s, "unavailable")
			if !s.Unavailable() {
				t.Error("the store counts as available")
			}
			n.Intercept(nil, nil)
			wantKeysAfterSync(t, s, "a live", "b revoked")
			if s.Unavailable() {
				t.Error("the state does not recover")
			}
		})
	}
}

// The next poll applies the changes of other nodes.
func TestChangesAreFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, n, s := fleetWith(t, "a live")
		s.Start()
		s.Start() // as each reload does
		poll := func() {
			<-time.After(pollInterval)
			synctest.Wait()
		}
		f.writeAll("b live")
		poll()
		wantKeys(t, s, "b live")
		f.writeAll("a revoked")
		poll()
		wantKeys(t, s, "a revoked", "b live")
		f.writeAll("v private")
		wantVideo(t, s, "private")
		f.writeAll("v public")
		poll()
		wantVideo(t, s, "public")
		if polls := n.Count("changes"); polls > 6 {
			t.Errorf("the store was polled %d times in 3 s", polls)
		}
		// A change wakes the node at once, and only once.
		<-time.After(minInterval)
		before := n.Count("changes")
		if err := s.Revoke(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		wantKeys(t, s, "b revoked")
		synctest.Wait()
		if n.Count("changes") != before+1 {
			t.Error("a change does not wake the node")
		}
	})
}

// Close stops the goroutine. A reading that Close interrupts does not make the store count
// as unavailable.
func TestStateEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, n, s := fleetWith(t)
		s.Start()
		synctest.Wait()
		n.Intercept(func(context.Context, string, store.Name) error { s.Close(); return store.ErrUnavailable }, nil)
		s.Sync(t.Context())
		if s.Unavailable() {
			t.Error("the store counts as unavailable")
		}
		n.Intercept(nil, nil)
		synctest.Wait()
		polls := n.Count("changes")
		<-time.After(10 * pollInterval)
		if n.Count("changes") != polls || n.Closed != 1 {
			t.Errorf("%d polls after the end, closed %d times; want none and once", n.Count("changes")-polls, n.Closed)
		}
	})
}

// After five minutes the state finds a change without an announcement: its author was
// killed, or somebody changed the file. No viewer waits for that.
func TestEverythingIsReadAgainNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plantAll("v public")
		f.plantSigningKey("own", testTime)
		n := f.Join()
		s := newTestState(t, n)
		clock := s.setTime()
		wantVideo(t, s, "public")
		signingKey(t, s)
		f.plantAll("v private")
		*clock = clock.Add(rereadInterval)
		lists := n.Count("list")
		s.Sync(t.Context())
		if n.Count("list") != lists {
			t.Error("everything is read again too early")
		}
		f.writeAll("b live") // a change of keys does not delay it
		s.Sync(t.Context())
		wantVideo(t, s, "public")
		f.plantAll("a revoked")
		*clock = clock.Add(1)
		wantKeysAfterSync(t, s, "a revoked")
		if !s.signer.stale.Load() {
			t.Error("the signing key is not read again")
		}
		wantVideo(t, s, "public") // this call starts the reading
		synctest.Wait()
		wantVideo(t, s, "private")
		lists = n.Count("list")
		s.Sync(t.Context())
		if n.Count("list") != lists {
			t.Error("everything is read each time")
		}
	})
}

// If a reading fails after the announcement of a change, the next look reads the change,
// though there is no second announcement.
func TestChangeThatCannotBeReadIsReadLater(t *testing.T) {
	t.Parallel()
	f, n, s := fleetWith(t, "a live", "b live", "c live")
	f.writeAll("a revoked", "c revoked")
	n.Intercept(on("list", "", down), nil)
	wantKeysAfterSync(t, s, "a live") // as it was known
	if !s.Unavailable() {
		t.Error("the store counts as available")
	}
	// The store fails while the keys are read: a revocation that was read before is in
	// force.
	n.Intercept(func(ctx context.Context, operation string, name store.Name) error {
		if name.ID() == "b" {
			n.Intercept(down, nil)
			return down(ctx, operation, name)
		}
		return nil
	}, nil)
	wantKeysAfterSync(t, s, "a revoked", "b live", "c live")
	n.Intercept(nil, nil)
	wantKeysAfterSync(t, s, "b live", "c revoked")
}

// A key that cannot be read, although the store answers, verifies nothing: it may have been
// revoked. It delays no other key, and is read as soon as possible.
func TestKeyThatCannotBeReadIsNotUsed(t *testing.T) {
	t.Parallel()
	for what, fails := range map[string]step{"fails": down, "hangs": hang} {
		bubble(t, what, func(t *testing.T) {
			f, n, s := fleetWith(t, "a live", "b live")
			f.writeAll("a revoked", "b revoked")
			n.Intercept(on("read", "a", fails), nil)
			start := time.Now()
			s.Sync(t.Context())
			wantWaited(t, "the other keys", start, callTimeout)
			wantKeys(t, s, "a damaged", "b revoked")
			if !s.Unavailable() {
				t.Error("the store counts as available")
			}
			n.Intercept(on("changes", "", down), nil)
			wantKeysAfterSync(t, s, "a damaged")
			n.Intercept(nil, nil)
			wantKeysAfterSync(t, s, "a revoked")
		})
	}
}

// S6: without the store, the last known state stays in force exactly as long as the longest
// lifetime of a token of the gateway's own key.
func TestStaleStateIsForgotten(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t, "a live", "b revoked", "v public")
	clock := s.setTime()
	s.Sync(t.Context())
	wantVideo(t, s, "public")
	s.signer.own.Store(&ownKey{key: testKey()})
	n.Intercept(down, nil)
	*clock = clock.Add(maxStale)
	wantKeysAfterSync(t, s, "a live")
	wantVideo(t, s, "public")
	if s.signer.own.Load() == nil {
		t.Error("the signing key is forgotten too early")
	}
	*clock = clock.Add(1)
	for range 2 {
		wantKeysAfterSync(t, s, "a unknown", "b unknown")
		wantVideo(t, s, "unavailable")
		if s.signer.own.Load() != nil || s.KeysKnown() || s.LiveKeys() != nil {
			t.Error("a key is in use that may have been revoked")
		}
	}
	n.Intercept(nil, nil)
	wantKeysAfterSync(t, s, "a live", "b revoked")
	wantVideo(t, s, "public")
	// The 24 hours begin again.
	n.Intercept(down, nil)
	*clock = clock.Add(maxStale)
	wantKeysAfterSync(t, s, "a live")
	if maxStale < MaxTokenLifetime || retirement < MaxTokenLifetime+time.Minute {
		t.Errorf("the state is kept for %s, keys are retired for %s, and tokens live for %s", maxStale, retirement, MaxTokenLifetime)
	}
}

// While the store is unavailable, no call waits for it: an unknown video and a change are
// refused at once.
func TestNobodyWaitsForAnUnavailableStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, n, s := fleetWith(t)
		n.Intercept(down, nil)
		s.Sync(t.Context())
		calls := func() int { return n.Count("get", "update", "changes", "list") }
		before, start := calls(), time.Now()
		wantVideo(t, s, "unavailable")
		for what, err := range map[string]error{
			"Revoke":     s.Revoke(t.Context(), "a"),
			"storeKey":   errorOf(s.storeKey(t.Context(), keyOf("a").Public(), false, "")),
			"EditVideo":  errorOf(s.EditVideo(t.Context(), "v", func(*VideoDocument) error { return nil })),
			"SigningKey": errorOf(s.SigningKey(t.Context())),
		} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s = %v, want ErrUnavailable", what, err)
			}
		}
		s.CatchUp(t.Context()) // nothing would end its waiting
		if waited := time.Since(start); calls() > before+1 || waited != 0 {
			t.Errorf("%d calls of a store that is unavailable, which took %s", calls()-before, waited)
		}
		wantKeys(t, s, "a none") // a revocation that is not stored is not in force
		n.Intercept(nil, nil)
		s.Sync(t.Context())
		if err := s.Revoke(t.Context(), "a"); err != nil {
			t.Errorf("Revoke = %v after the store is back", err)
		}
	})
}

func errorOf[T any](_ T, err error) error { return err }

// Failures of the store are counted by operation. A client's mistake is not counted.
func TestStoreErrorsAreCounted(t *testing.T) {
	t.Parallel()
	_, n, s := fleetWith(t)
	for operation, call := range map[string]func(){
		"changes": func() { s.Sync(t.Context()); s.unavailable.Store(false) },
		"get":     func() { _, _ = s.VideoDocument(t.Context(), "v") },
		"update":  func() { _ = s.Revoke(t.Context(), "a") },
		"list": func() {
			for range s.VideoDocuments(t.Context()) {
			}
		},
	} {
		n.Intercept(down, nil)
		call()
		n.Intercept(nil, nil)
		if got := s.errors(operation); got != 1 {
			t.Errorf("%d failures of %s are counted, want 1", got, operation)
		}
	}
	mistake := errors.New("a mistake")
	if err := s.update(t.Context(), keyNamed("a"), func(store.Object) ([]byte, error) { return nil, mistake }); !errors.Is(err, mistake) {
		t.Errorf("update = %v", err)
	}
	if s.errors("update") != 1 {
		t.Error("a client's mistake counts as a failure of the store")
	}
}

// A change that has begun continues when its client cancels, and ends in time if the store
// hangs.
func TestUpdatesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, n, s := fleetWith(t)
		ctx, cancel := context.WithCancel(t.Context())
		n.Intercept(on("update", "", func(ctx context.Context, _ string, _ store.Name) error { cancel(); return ctx.Err() }), nil)
		if err := s.Revoke(ctx, "a"); err != nil {
			t.Errorf("Revoke = %v for a client that has cancelled", err)
		}
		n.Intercept(hang, nil)
		for what, call := range map[string]func() error{
			"a write": func() error { return s.Revoke(t.Context(), "b") },
			"a read":  func() error { return errorOf(s.VideoDocument(t.Context(), "v")) },
		} {
			start := time.Now()
			if err := call(); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s = %v, want ErrUnavailable", what, err)
			}
			if waited := time.Since(start); waited >= time.Second {
				t.Errorf("%s took %s, want less than a second", what, waited)
			}
		}
		wantKeys(t, s, "b none")
	})
}

// A10: the first token that names a key which another node has just made finds it. Many
// such tokens cost one look.
func TestCatchingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, n, s := fleetWith(t)
		s.Start()
		<-time.After(pollInterval)
		synctest.Wait() // the state has just polled the store
		f.writeAll("a live")
		before, start := n.Count("changes"), time.Now()
		var wg sync.WaitGroup
		for range maxCatchingUp {
			wg.Go(func() {
				s.CatchUp(t.Context())
				wantKeys(t, s, "a live")
			})
		}
		wg.Wait()
		if got := n.Count("changes") - before; got != 1 {
			t.Errorf("%d looks for many requests, want 1", got)
		}
		wantWaited(t, "the first token of a new key", start, minInterval)
	})
}

// A look that began before the request may have missed the key, so the request waits for
// the next look.
func TestCatchingUpWithALookUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, n, s := fleetWith(t)
		s.Start()
		slow := make(chan struct{})
		n.Intercept(on("changes", "", func(context.Context, string, store.Name) error {
			n.Intercept(nil, nil)
			<-slow
			return nil
		}), nil)
		<-time.After(pollInterval)
		synctest.Wait()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.CatchUp(t.Context())
		}()
		synctest.Wait()
		close(slow)
		synctest.Wait() // the look under way has ended
		select {
		case <-done:
			t.Error("the request continued after a look that began before it")
		default:
		}
		f.writeAll("a live")
		<-done
		wantKeys(t, s, "a live")
	})
}

// D1: anybody can send tokens of unknown keys. A flood of them costs the store one look
// each minInterval, and so do writes that wake nodes.
func TestFloodCostsFewLooks(t *testing.T) {
	t.Parallel()
	for what, flood := range map[string]func(context.Context, *testState, *node){
		"unknown keys": func(ctx context.Context, s *testState, _ *node) { s.CatchUp(ctx) },
		"writes": func(ctx context.Context, _ *testState, n *node) {
			select {
			case n.Signal <- struct{}{}:
			case <-ctx.Done():
			}
		},
	} {
		bubble(t, what, func(t *testing.T) {
			_, n, s := fleetWith(t)
			s.Start()
			synctest.Wait()
			before := n.Count("changes")
			const long = 20 * time.Second
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					<-time.After(time.Duration(i) * 7 * time.Millisecond)
					for ctx.Err() == nil {
						flood(ctx, s, n)
					}
				})
			}
			wg.Wait()
			got := n.Count("changes") - before
			if most := int(long/minInterval) + 2*int(long/pollInterval); got > most || got < most/2 {
				t.Errorf("%d looks in %s, want at most %d", got, long, most)
			}
		})
	}
}

// Few requests wait at a time, and none of them for long: a store that hangs must not cause
// a queue of requests.
func TestFewWaitForAStoreThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, n, s := fleetWith(t)
		s.Start()
		n.Intercept(hang, nil)
		start := time.Now()
		waitedExactly := func(what string, want time.Duration) {
			t.Helper()
			if waited := time.Since(start); waited != want {
				t.Errorf("%s waited for %s, want %s", what, waited, want)
			}
		}
		var wg sync.WaitGroup
		for range maxCatchingUp {
			wg.Go(func() {
				s.CatchUp(t.Context())
				waitedExactly("a request", catchUpTimeout)
			})
		}
		synctest.Wait()
		for range 100 {
			s.CatchUp(t.Context())
		}
		waitedExactly("a request over the limit", 0)
		wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.CatchUp(ctx)
		waitedExactly("a client that has cancelled", catchUpTimeout)
	})
}

// A node writes a revocation again that the store has lost, so that it outlives this
// process and reaches nodes that start: once, and as soon as the store accepts writes,
// which may be later than reads.
func TestLostRevocationIsWrittenAgain(t *testing.T) {
	t.Parallel()
	for backup, old := range map[string]string{"the key is live again": liveKey("a"), "the key is missing": "", "the key is damaged": "broken"} {
		bubble(t, backup, func(t *testing.T) {
			f, n, s := fleetWith(t, "a revoked", "b revoked")
			f.Restore(nil)
			if old != "" {
				f.Plant(keyNamed("a"), old)
			}
			before := f.Data(keyNamed("a"))
			for _, fails := range []step{down, hang} {
				n.Intercept(on("update", "", fails), nil)
				wantKeysAfterSync(t, s, "a revoked", "b revoked")
				if f.Data(keyNamed("a")) != before || f.Data(keyNamed("b")) != "" {
					t.Fatal("a store that fails has changed")
				}
			}
			n.Intercept(nil, nil)
			updates := n.Count("update")
			for range 3 {
				s.Sync(t.Context())
				f.Restore(f.Backup())
			}
			if got := n.Count("update") - updates; got != 2 {
				t.Errorf("%d writes of two revocations, want 2", got)
			}
			wantKeys(t, newTestState(t, f.Join()), "a revoked", "b revoked")
		})
	}
}

// The same after an outage, which is when backups are restored. The node must not wait for
// the next reading of everything: it may not live that long.
func TestLostRevocationIsWrittenAgainAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, n, s := fleetWith(t, "a revoked", "b live")
		s.Start()
		n.Intercept(down, nil)
		<-time.After(3 * pollInterval)
		if !s.Unavailable() {
			t.Fatal("the store counts as available")
		}
		f.plantAll("a live")
		f.Restore(f.Backup())
		n.Intercept(on("read", "b", func(context.Context, string, store.Name) error {
			<-time.After(100 * time.Millisecond) // the store is slow at first
			return nil
		}), nil)
		<-time.After(5 * pollInterval)
		synctest.Wait()
		wantKeys(t, s, "a revoked")
		if !strings.Contains(f.Data(keyNamed("a")), `"revoked"`) {
			t.Errorf("5 s after the outage the store has %.60s…: a node that starts now accepts the key", f.Data(keyNamed("a")))
		}
	})
}

// clockJumps are steps by which somebody sets the clock.
var clockJumps = map[string]time.Duration{
	"an hour ahead": time.Hour, "an hour back": -time.Hour, "ten years ahead": 87600 * time.Hour, "ten years back": -87600 * time.Hour,
}

// afterJump is the result of time.Now at a time after somebody has set the clock: the date
// has moved, and the monotonic clock has not.
func afterJump(now time.Time, by time.Duration) time.Time {
	const hasMonotonic, nanosecondBits = 1 << 63, 30
	wall := (*uint64)(unsafe.Pointer(&now)) // there is no other way to make such a time
	if *wall&hasMonotonic == 0 {
		panic("the time has no monotonic part")
	}
	*wall += uint64(int64(by/time.Second)) << nanosecondBits
	return now
}

// S9: the store is unavailable for a moment and somebody sets the clock. The state stays in
// force neither shorter nor longer because of that. A wrong clock may cause a new signing
// key, but the tokens of the key before it remain valid.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	for name, by := range clockJumps {
		_, n, s := fleetWith(t, "a live")
		now := time.Now()
		s.clock = &now
		s.Sync(t.Context())
		begun := now
		n.Intercept(down, nil)
		now = afterJump(begun.Add(time.Second), by)
		wantKeysAfterSync(t, s, "a live")
		now = afterJump(begun.Add(maxStale+1), by)
		wantKeysAfterSync(t, s, "a unknown")

		_, _, s = fleetWith(t)
		clock := s.setTime()
		first := signingKey(t, s)
		*clock = testTime.Add(by)
		second := signingKey(t, s)
		*clock = testTime.Add(time.Minute)
		if third := signingKey(t, s); third != second {
			t.Errorf("%s: the key %s of a moment ago no longer signs", name, second)
		}
		wantKeys(t, s, first+" live", second+" live")
	}
}

// After a secret of the store has changed, every object that an earlier one has written
// is rewritten with its data as it is, and a damaged one is left alone: rewriting that
// would make an attacker's object one of ours, or open a private video.
func TestOutdatedObjectsAreRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plantAll("a live", "b damaged", "v private", "w public")
		objects := f.Backup()
		for _, outdated := range []store.Name{keyNamed("a"), videoNamed("v")} {
			object := objects[outdated]
			object.Outdated = true
			objects[outdated] = object
		}
		f.Restore(objects)
		n := f.Join()
		fails := true
		n.Intercept(func(_ context.Context, operation string, name store.Name) error {
			if operation == "update" && fails && name == videoNamed("v") {
				fails = false
				return store.ErrBusy
			}
			return nil
		}, nil)
		s := newTestState(t, n)
		s.renewing = true
		s.Start()
		<-time.After(2 * rereadInterval)
		synctest.Wait()
		if got := n.Count("update"); got != 3 {
			t.Errorf("%d writes, want one of each outdated object, and the one that failed", got)
		}
		for name, object := range f.Backup() {
			if object.Outdated || string(object.Data) != string(objects[name].Data) || (object.Damage != nil) != (name == keyNamed("b")) {
				t.Errorf("%s has become %q, outdated %t, damage %v", name, object.Data, object.Outdated, object.Damage)
			}
		}
	})
}
