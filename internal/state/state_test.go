package state

import (
	"context"
	"errors"
	"fmt"
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
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	f.plant(keyNamed("b"), revokedKey("b"))
	f.damage(keyNamed("c"))
	f.plant(videoNamed("v"), publicVideo)
	n := f.node()
	s := newTestState(t, n)
	for id, want := range map[string]string{"a": "live", "b": "revoked", "c": "damaged", "d": "none"} {
		wantKey(t, s, id, want)
	}
	if s.Unavailable() || n.count("get") != 0 {
		t.Errorf("unavailable: %t, %d objects read one by one; want false and none: videos are read when somebody asks", s.Unavailable(), n.count("get"))
	}
}

// S7: a store that is down, or hangs, when the server starts. Nothing is known,
// so nothing that depends on it is let in. The server starts in time, and
// recovers by itself. One object that cannot be read closes that object only.
func TestStoreIsDownAtStart(t *testing.T) {
	t.Parallel()
	for operation, fails := range map[string]step{
		"everything": down, "changes": on("changes", "", down), "list": on("list", "", down),
		"everything hangs": hang, "the list hangs": on("list", "", hang), "one object": on("read", "b", down),
	} {
		t.Run(operation, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(keyNamed("a"), liveKey("a"))
				f.plant(keyNamed("b"), revokedKey("b"))
				n := f.node()
				n.intercept(fails, nil)
				start := time.Now()
				s := newTestState(t, n)
				if waited := time.Since(start); waited > time.Second {
					t.Errorf("opening the state took %s", waited)
				}
				if operation == "one object" {
					wantKey(t, s, "a", "live")
					wantKey(t, s, "b", "damaged")
				} else {
					wantKey(t, s, "a", "unknown")
					wantKey(t, s, "k1", "unknown")
				}
				wantVideo(t, s, "unavailable")
				if !s.Unavailable() {
					t.Error("the store counts as available")
				}
				n.intercept(nil, nil)
				s.Sync(t.Context())
				wantKey(t, s, "a", "live")
				wantKey(t, s, "b", "revoked")
				if s.Unavailable() {
					t.Error("the state does not recover")
				}
			})
		})
	}
}

// The changes of other nodes are in force here with the next poll, without
// anybody asking.
func TestChangesAreFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(keyNamed("a"), liveKey("a"))
		n := f.node()
		s := newTestState(t, n)
		s.Start()
		s.Start() // as each reload does
		poll := func() {
			<-time.After(pollInterval)
			synctest.Wait()
		}
		f.write(keyNamed("b"), liveKey("b"))
		poll()
		wantKey(t, s, "b", "live")
		f.write(keyNamed("a"), revokedKey("a"))
		poll()
		wantKey(t, s, "a", "revoked")
		wantKey(t, s, "b", "live")
		f.write(videoNamed("v"), privateVideo)
		wantVideo(t, s, "private")
		f.write(videoNamed("v"), publicVideo)
		poll()
		wantVideo(t, s, "public")
		if polls := n.count("changes"); polls > 6 {
			t.Errorf("the store was polled %d times in 3 s", polls)
		}
		// A store that can tell wakes the node at once, but not again and again.
		<-time.After(minInterval)
		before := n.count("changes")
		if err := s.Revoke(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		wantKey(t, s, "b", "revoked")
		synctest.Wait()
		if n.count("changes") != before+1 {
			t.Error("a change does not wake the node")
		}
	})
}

// Nothing is left running at the end, and an end in the middle of a reading does
// not count as a store that is unavailable.
func TestStateEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newTestState(t, n)
		s.Start()
		synctest.Wait()
		n.intercept(func(context.Context, string, store.Name) error { s.Close(); return store.ErrUnavailable }, nil)
		s.Sync(t.Context())
		if s.Unavailable() {
			t.Error("the store counts as unavailable")
		}
		n.intercept(nil, nil)
		synctest.Wait()
		polls := n.count("changes")
		<-time.After(10 * pollInterval)
		if n.count("changes") != polls || n.closed != 1 {
			t.Errorf("%d polls after the end, closed %d times; want none and once", n.count("changes")-polls, n.closed)
		}
	})
}

// A change that nobody has announced, because its author was killed or it was
// made by hand, is found after five minutes. Nobody waits for that.
func TestEverythingIsReadAgainNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(videoNamed("v"), publicVideo)
		f.plantSigningKey("own", testTime)
		n := f.node()
		s := newTestState(t, n)
		clock := s.setTime()
		wantVideo(t, s, "public")
		signingKey(t, s)
		f.plant(videoNamed("v"), privateVideo)
		*clock = clock.Add(rereadInterval)
		lists := n.count("list")
		s.Sync(t.Context())
		if n.count("list") != lists {
			t.Error("everything is read again too early")
		}
		f.write(keyNamed("b"), liveKey("b")) // a change of keys does not put it off
		s.Sync(t.Context())
		wantVideo(t, s, "public")
		f.plant(keyNamed("a"), revokedKey("a"))
		*clock = clock.Add(1)
		s.Sync(t.Context())
		wantKey(t, s, "a", "revoked")
		if !s.signer.stale.Load() {
			t.Error("the signing key is not read again")
		}
		wantVideo(t, s, "public") // has it read
		synctest.Wait()
		wantVideo(t, s, "private")
		lists = n.count("list")
		s.Sync(t.Context())
		if n.count("list") != lists {
			t.Error("everything is read each time")
		}
	})
}

// A failure between the news of a change and the reading loses nothing: the next
// look reads it, though it hears of no further change.
func TestChangeThatCannotBeReadIsReadLater(t *testing.T) {
	t.Parallel()
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	f.plant(keyNamed("b"), liveKey("b"))
	f.plant(keyNamed("c"), liveKey("c"))
	n := f.node()
	s := newTestState(t, n)
	f.write(keyNamed("a"), revokedKey("a"))
	f.write(keyNamed("c"), revokedKey("c"))
	n.intercept(on("list", "", down), nil)
	s.Sync(t.Context())
	wantKey(t, s, "a", "live") // as it was known
	if !s.Unavailable() {
		t.Error("the store counts as available")
	}
	// The store goes away while the keys are read: a revocation that has been read
	// is in force.
	n.intercept(func(ctx context.Context, operation string, name store.Name) error {
		if name.ID() == "b" {
			n.intercept(down, nil)
			return down(ctx, operation, name)
		}
		return nil
	}, nil)
	s.Sync(t.Context())
	wantKey(t, s, "a", "revoked")
	wantKey(t, s, "b", "live")
	wantKey(t, s, "c", "live")
	n.intercept(nil, nil)
	s.Sync(t.Context())
	wantKey(t, s, "b", "live")
	wantKey(t, s, "c", "revoked")
}

// A key that cannot be read, although the store answers, is not used: it may have
// been revoked. It holds up no other key, and is read as soon as it can be.
func TestKeyThatCannotBeReadIsNotUsed(t *testing.T) {
	t.Parallel()
	for what, fails := range map[string]step{"fails": down, "hangs": hang} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(keyNamed("a"), liveKey("a"))
				f.plant(keyNamed("b"), liveKey("b"))
				n := f.node()
				s := newTestState(t, n)
				f.write(keyNamed("a"), revokedKey("a"))
				f.write(keyNamed("b"), revokedKey("b"))
				n.intercept(on("read", "a", fails), nil)
				start := time.Now()
				s.Sync(t.Context())
				if waited := time.Since(start); waited > readTimeout {
					t.Errorf("one object holds up the others for %s", waited)
				}
				wantKey(t, s, "a", "damaged")
				wantKey(t, s, "b", "revoked")
				if !s.Unavailable() {
					t.Error("the failure of the store goes unnoticed")
				}
				n.intercept(on("changes", "", down), nil)
				s.Sync(t.Context())
				wantKey(t, s, "a", "damaged")
				n.intercept(nil, nil)
				s.Sync(t.Context())
				wantKey(t, s, "a", "revoked")
			})
		})
	}
}

// S6: without the store, the last known state stays in force for as long as the
// longest token of the gateway's own key lives, and not a moment longer.
func TestStaleStateIsForgotten(t *testing.T) {
	t.Parallel()
	f := newFleet()
	f.plant(keyNamed("a"), liveKey("a"))
	f.plant(keyNamed("b"), revokedKey("b"))
	f.plant(videoNamed("v"), publicVideo)
	n := f.node()
	s := newTestState(t, n)
	clock := s.setTime()
	s.Sync(t.Context())
	wantVideo(t, s, "public")
	s.signer.own.Store(&ownKey{testKey(), testTime})
	n.intercept(down, nil)
	*clock = clock.Add(maxStale)
	s.Sync(t.Context())
	wantKey(t, s, "a", "live")
	wantVideo(t, s, "public")
	if s.signer.own.Load() == nil {
		t.Error("the signing key is forgotten too early")
	}
	*clock = clock.Add(1)
	for range 2 {
		s.Sync(t.Context())
		wantKey(t, s, "a", "unknown")
		wantKey(t, s, "b", "unknown")
		wantVideo(t, s, "unavailable")
		if s.signer.own.Load() != nil || s.KeysKnown() || s.LiveKeys() != nil {
			t.Error("a key is used though nobody knows whether it is revoked")
		}
	}
	n.intercept(nil, nil)
	s.Sync(t.Context())
	wantKey(t, s, "a", "live")
	wantKey(t, s, "b", "revoked")
	wantVideo(t, s, "public")
	// The 24 hours begin again.
	n.intercept(down, nil)
	*clock = clock.Add(maxStale)
	s.Sync(t.Context())
	wantKey(t, s, "a", "live")
	if maxStale < MaxTokenLifetime || retirement < MaxTokenLifetime+time.Minute {
		t.Errorf("the state is kept for %s, keys are retired for %s, and tokens live for %s", maxStale, retirement, MaxTokenLifetime)
	}
}

// While the store is unavailable nobody waits for it: what is not known is
// refused at once, and so is a change.
func TestNobodyWaitsForAnUnavailableStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newTestState(t, n)
		n.intercept(down, nil)
		s.Sync(t.Context())
		calls := func() int { return n.count("get", "update", "changes", "list") }
		before, start := calls(), time.Now()
		wantVideo(t, s, "unavailable")
		for what, err := range map[string]error{
			"Revoke":     s.Revoke(t.Context(), "a"),
			"storeKey":   errorOf(s.storeKey(t.Context(), keyOf("a").Public(), false, "")),
			"EditVideo":  errorOf(s.EditVideo(t.Context(), "v", func(*VideoDocument) {})),
			"SigningKey": errorOf(s.SigningKey(t.Context())),
		} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s = %v, want ErrUnavailable", what, err)
			}
		}
		s.CatchUp(t.Context()) // nobody would end its waiting
		if waited := time.Since(start); calls() > before+1 || waited != 0 {
			t.Errorf("%d calls of a store that is unavailable, and somebody waited for %s", calls()-before, waited)
		}
		wantKey(t, s, "a", "none") // nothing is revoked that is not stored
		n.intercept(nil, nil)
		s.Sync(t.Context())
		if err := s.Revoke(t.Context(), "a"); err != nil {
			t.Errorf("Revoke = %v after the store is back", err)
		}
	})
}

func errorOf[T any](_ T, err error) error { return err }

// Failures are counted by the operation that has failed, and a mistake of a
// client is none.
func TestStoreErrorsAreCounted(t *testing.T) {
	t.Parallel()
	n := newFleet().node()
	s := newTestState(t, n)
	for operation, call := range map[string]func(){
		"changes": func() { s.Sync(t.Context()); s.unavailable.Store(false) },
		"get":     func() { _, _ = s.VideoDocument(t.Context(), "v") },
		"update":  func() { _ = s.Revoke(t.Context(), "a") },
		"list": func() {
			for range s.VideoDocuments(t.Context()) {
			}
		},
	} {
		n.intercept(down, nil)
		call()
		n.intercept(nil, nil)
		if got := s.errors(operation); got != 1 {
			t.Errorf("%d failures of %s are counted, want 1", got, operation)
		}
	}
	mistake := errors.New("a mistake")
	if err := s.update(t.Context(), keyNamed("a"), func(store.Object) ([]byte, error) { return nil, mistake }); !errors.Is(err, mistake) {
		t.Errorf("update = %v", err)
	}
	if s.errors("update") != 1 {
		t.Error("a mistake of a client counts as a failure of the store")
	}
}

// A change that has begun is made, whether or not its client is still there, and
// ends in time if the store hangs.
func TestUpdatesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newTestState(t, n)
		ctx, cancel := context.WithCancel(t.Context())
		n.intercept(on("update", "", func(ctx context.Context, _ string, _ store.Name) error { cancel(); return ctx.Err() }), nil)
		if err := s.Revoke(ctx, "a"); err != nil {
			t.Errorf("Revoke = %v for a client that has left", err)
		}
		n.intercept(hang, nil)
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
		wantKey(t, s, "b", "none")
	})
}

// A10: a key that another node has made a moment ago is found by the first token
// that names it, and many such tokens cost one look.
func TestCatchingUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		s.Start()
		<-time.After(pollInterval)
		synctest.Wait() // the store has just been asked
		f.write(keyNamed("a"), liveKey("a"))
		before, start := n.count("changes"), time.Now()
		var wg sync.WaitGroup
		for range maxCatchingUp {
			wg.Go(func() {
				s.CatchUp(t.Context())
				wantKey(t, s, "a", "live")
			})
		}
		wg.Wait()
		if got := n.count("changes") - before; got != 1 {
			t.Errorf("%d looks for many requests, want 1", got)
		}
		if waited := time.Since(start); waited > minInterval {
			t.Errorf("the first token of a new key waited for %s", waited)
		}
	})
}

// A look that began before the request may have missed the key, so the request
// waits for the next one.
func TestCatchingUpWithALookUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		n := f.node()
		s := newTestState(t, n)
		s.Start()
		slow := make(chan struct{})
		n.intercept(on("changes", "", func(context.Context, string, store.Name) error {
			n.intercept(nil, nil)
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
			t.Error("the request went on with the look that began before it")
		default:
		}
		f.write(keyNamed("a"), liveKey("a"))
		<-done
		wantKey(t, s, "a", "live")
	})
}

// D1: anybody can send tokens of unknown keys. A flood of them costs the store a
// look each minInterval, however long it lasts, and so do writes that wake nodes.
func TestFloodCostsFewLooks(t *testing.T) {
	t.Parallel()
	for what, flood := range map[string]func(context.Context, *testState, *node){
		"unknown keys": func(ctx context.Context, s *testState, _ *node) { s.CatchUp(ctx) },
		"writes": func(ctx context.Context, _ *testState, n *node) {
			select {
			case n.wake <- struct{}{}:
			case <-ctx.Done():
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newFleet().node()
				s := newTestState(t, n)
				s.Start()
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
							flood(ctx, s, n)
						}
					})
				}
				wg.Wait()
				got := n.count("changes") - before
				if most := int(long/minInterval) + 2*int(long/pollInterval); got > most || got < most/2 {
					t.Errorf("%d looks in %s, want at most %d", got, long, most)
				}
			})
		})
	}
}

// Few requests wait at a time, and none of them for long: a store that hangs must
// not pile up requests.
func TestFewWaitForAStoreThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newFleet().node()
		s := newTestState(t, n)
		s.Start()
		n.intercept(hang, nil)
		start := time.Now()
		wantWaited := func(what string, want time.Duration) {
			t.Helper()
			if waited := time.Since(start); waited != want {
				t.Errorf("%s waited for %s, want %s", what, waited, want)
			}
		}
		var wg sync.WaitGroup
		for range maxCatchingUp {
			wg.Go(func() {
				s.CatchUp(t.Context())
				wantWaited("a request", catchUpTimeout)
			})
		}
		synctest.Wait()
		for range 100 {
			s.CatchUp(t.Context())
		}
		wantWaited("one request too many", 0)
		wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.CatchUp(ctx)
		wantWaited("a client that has left", catchUpTimeout)
	})
}

// A revocation that the store has lost is written again, so that it outlives this
// process and reaches nodes that start: once, and as soon as the store can be
// written, which may be later than it can be read.
func TestLostRevocationIsWrittenAgain(t *testing.T) {
	t.Parallel()
	for backup, old := range map[string]string{"the key is live again": liveKey("a"), "the key never was": "", "the key is damaged": "broken"} {
		t.Run(backup, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet()
				f.plant(keyNamed("a"), revokedKey("a"))
				f.plant(keyNamed("b"), revokedKey("b"))
				n := f.node()
				s := newTestState(t, n)
				f.restore(nil)
				if old != "" {
					f.plant(keyNamed("a"), old)
				}
				before := f.data(keyNamed("a"))
				for _, fails := range []step{down, hang} {
					n.intercept(on("update", "", fails), nil)
					s.Sync(t.Context())
					wantKey(t, s, "a", "revoked")
					wantKey(t, s, "b", "revoked")
					if f.data(keyNamed("a")) != before || f.data(keyNamed("b")) != "" {
						t.Fatal("something is written")
					}
				}
				n.intercept(nil, nil)
				updates := n.count("update")
				for range 3 {
					s.Sync(t.Context())
					f.restore(f.backup())
				}
				if got := n.count("update") - updates; got != 2 {
					t.Errorf("the revocations are written %d times, want once each", got)
				}
				other := newTestState(t, f.node())
				wantKey(t, other, "a", "revoked")
				wantKey(t, other, "b", "revoked")
			})
		})
	}
}

// The same when the store has been unavailable meanwhile, which is when backups
// are restored. This node may not live to the next time that it reads everything.
func TestLostRevocationIsWrittenAgainAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		f.plant(keyNamed("a"), revokedKey("a"))
		f.plant(keyNamed("b"), liveKey("b"))
		n := f.node()
		s := newTestState(t, n)
		s.Start()
		n.intercept(down, nil)
		<-time.After(3 * pollInterval)
		if !s.Unavailable() {
			t.Fatal("the store counts as available")
		}
		f.plant(keyNamed("a"), liveKey("a"))
		f.restore(f.backup())
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

// Requests read while the store is read again and again: a data race would show
// here.
func TestStateUnderConcurrentUse(t *testing.T) {
	t.Parallel()
	f := newFleet()
	f.plant(videoNamed("v"), publicVideo)
	f.plant(keyNamed("a"), liveKey("a"))
	s := newTestState(t, f.node())
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = s.Video(ctx, "v")
				_, _ = s.Key("a")
				s.LiveKeys()
				s.Unavailable()
			}
		})
	}
	for i := range 100 {
		f.write(videoNamed("v"), publicVideo)
		f.write(keyNamed(fmt.Sprint("k", i)), revokedKey(fmt.Sprint("k", i)))
		s.Sync(t.Context())
	}
	stop()
	wg.Wait()
}

// clockJumps are steps by which somebody sets the clock.
var clockJumps = map[string]time.Duration{
	"an hour ahead": time.Hour, "an hour back": -time.Hour, "ten years ahead": 87600 * time.Hour, "ten years back": -87600 * time.Hour,
}

// afterJump is what time.Now returns at a time after somebody has set the clock:
// the date has moved, and the monotonic clock has not.
func afterJump(now time.Time, by time.Duration) time.Time {
	const hasMonotonic, nanosecondBits = 1 << 63, 30
	wall := (*uint64)(unsafe.Pointer(&now)) // there is no other way to make such a time
	if *wall&hasMonotonic == 0 {
		panic("the time has no monotonic part")
	}
	*wall += uint64(int64(by/time.Second)) << nanosecondBits
	return now
}

// S9: the store is unavailable for a moment while the clock is set: that is no
// reason to forget the state, nor to keep it for longer. And a clock that is wrong
// for a while may have the gateway make a new signing key, but the tokens of the
// one before play on.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	for name, by := range clockJumps {
		f := newFleet()
		f.plant(keyNamed("a"), liveKey("a"))
		n := f.node()
		s := newTestState(t, n)
		now := time.Now()
		s.clock = &now
		s.Sync(t.Context())
		begun := now
		n.intercept(down, nil)
		now = afterJump(begun.Add(time.Second), by)
		s.Sync(t.Context())
		wantKey(t, s, "a", "live")
		now = afterJump(begun.Add(maxStale+1), by)
		s.Sync(t.Context())
		wantKey(t, s, "a", "unknown")

		s = newTestState(t, newFleet().node())
		clock := s.setTime()
		first := signingKey(t, s)
		*clock = testTime.Add(by)
		second := signingKey(t, s)
		*clock = testTime.Add(time.Minute)
		if third := signingKey(t, s); third != second {
			t.Errorf("%s: the key %s of a moment ago signs no more", name, second)
		}
		for _, id := range []string{first, second} {
			wantKey(t, s, id, "live")
		}
	}
}
