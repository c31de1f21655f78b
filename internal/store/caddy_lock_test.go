package store

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap/zapcore"
)

// S2: another node holds the lock of an object, or has died with it. The caller gets ErrBusy
// in time, which concerns this object alone. Revocations of keys wait for no lock.
func TestLockHeldByAnotherNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		storage, s := memCaddy()
		if err := storage.Lock(t.Context(), "signed_playback_videos_v"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := tryWrite(ctx, s, named(Videos, "v"), "1")
		wantUnavailable(t, "Update of a locked object", err)
		if waited := time.Since(start); waited > 800*time.Millisecond {
			t.Errorf("Update of a locked object took %s, and its caller had 800ms", waited)
		}
		if !errors.Is(err, ErrBusy) {
			t.Errorf("Update of a locked object = %v, want ErrBusy", err)
		}
		synctest.Wait()
		write(t, s, named(Videos, "w"), "1")
		storage.intercept(func(operation, name string) error {
			if operation == "lock" && !strings.HasSuffix(name, "_videos_v") {
				t.Errorf("writing a key takes the lock %q", name)
			}
			return nil
		})
		write(t, s, named(Keys, "v"), `"live"`)
		write(t, s, named(Keys, "v"), `"revoked"`)
		storage.intercept(nil)
		if err := storage.Unlock(t.Context(), "signed_playback_videos_v"); err != nil {
			t.Fatal(err)
		}
		write(t, s, named(Videos, "v"), "2")
		wantObject(t, s, named(Videos, "v"), "2")
	})
}

// A call takes the lock soon after its release, though some storages look only once a
// second, and tries again after an error of a lock that another node is writing.
func TestLockIsAskedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		storage.lockPoll = time.Second
		s := quiet(storage)
		failures := 3
		storage.intercept(func(operation, _ string) error {
			if operation == "lock" && failures > 0 {
				failures--
				return errors.New("decoding lockfile contents")
			}
			return nil
		})
		start := time.Now()
		write(t, s, named(Videos, "v"), "1")
		if waited := time.Since(start); waited > 4*lockRetry {
			t.Errorf("Update took %s", waited)
		}
		if err := storage.Lock(t.Context(), "signed_playback_videos_v"); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		const busy = 1010 * time.Millisecond
		time.AfterFunc(busy, func() { _ = storage.Unlock(t.Context(), "signed_playback_videos_v") })
		write(t, s, named(Videos, "v"), "2")
		if waited := time.Since(start); waited > busy+2*lockRetry {
			t.Errorf("Update took %s, and the lock was released after %s", waited, busy)
		}
		// An error that stays is reported for what it is.
		storage.intercept(failOn("lock", "", errors.New("locks are broken")))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantUnavailable(t, "Update", tryWrite(ctx, s, named(Videos, "v"), "3"))
		wantObject(t, s, named(Videos, "v"), "2")
		<-time.After(2 * finishTimeout) // until no goroutine clears the lock
	})
}

// S3: a call that waits for a lock in vain must not take it from a node that is alive: two
// nodes would write at the same time, and an acknowledged change would be lost. An error of
// a lock that its owner refreshes says nothing about the owner.
func TestLockOfALivingNodeIsNotBroken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		holder, s := quiet(storage), quiet(storage)
		name := named(Videos, "v")
		proceed := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := holder.Update(t.Context(), name, func(Object) ([]byte, error) {
				<-proceed
				return []byte(`"the holder's"`), nil
			})
			if err != nil {
				t.Errorf("Update of the holder = %v", err)
			}
		})
		synctest.Wait()
		var attempts atomic.Int64
		storage.intercept(func(operation, _ string) error {
			if operation == "lock" && attempts.Add(1)%4 != 0 {
				return errors.New("decoding lockfile contents: unexpected EOF")
			}
			return nil
		})
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
			wantUnavailable(t, "Update of a locked object", tryWrite(ctx, s, name, `"another's"`))
			cancel()
		}
		close(proceed)
		wg.Wait()
		storage.intercept(nil)
		wantObject(t, s, name, `"the holder's"`)
		<-time.After(2 * finishTimeout)
		write(t, s, name, `"another's"`)
		wantObject(t, holder, name, `"another's"`)
	})
}

// A call respects a lock file of FileStorage whose owner is alive or has just died.
func TestLockFileIsRespected(t *testing.T) {
	t.Parallel()
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	s := quiet(storage)
	write(t, s, named(Videos, "v"), "1")
	now, err := json.Marshal(map[string]time.Time{"created": time.Now(), "updated": time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(storage.Path, "locks", "signed_playback_videos_v.lock")
	if err := os.WriteFile(lock, now, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockRetry)
	defer cancel()
	wantUnavailable(t, "Update of a locked object", tryWrite(ctx, s, named(Videos, "v"), "2"))
	wantObject(t, s, named(Videos, "v"), "1")
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	write(t, s, named(Videos, "v"), "3")
	wantObject(t, s, named(Videos, "v"), "3")
	if _, err := os.Stat(lock); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock remains after the change: %v", err)
	}
}

// Each change releases its lock, also a change that fails. A lock that cannot be released is
// logged: no other node can change the object until the lock expires.
func TestLockIsReleased(t *testing.T) {
	t.Parallel()
	storage := newMemStorage()
	s, logs := logged(storage, zapcore.WarnLevel)
	name := named(Videos, "v")
	lockedAfter := func() bool {
		storage.mu.Lock()
		defer storage.mu.Unlock()
		return len(storage.locks["signed_playback_videos_v"]) > 0
	}
	broken := errors.New("broken")
	steps := map[string]func(string, string) error{
		"after success":               nil,
		"after an error of the read":  failOn("load", "x-v", broken),
		"after an error of the write": failOn("store", "x-v", broken),
		"after an error of the stamp": failOn("store", "stamps", broken),
	}
	for what, step := range steps {
		storage.intercept(step)
		_ = tryWrite(t.Context(), s, name, "1")
		if lockedAfter() {
			t.Fatalf("the lock is held %s", what)
		}
	}
	storage.intercept(failOn("unlock", "", broken))
	write(t, s, name, "2") // the change itself is made
	if logs.Len() != 1 || logs.All()[0].ContextMap()["lock"] != "signed_playback_videos_v" {
		t.Errorf("the log says %v, want one entry of videos/v", logs.All())
	}
}
