package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// logged opens a store and returns its log, too.
func logged(storage certmagic.Storage, level zapcore.Level) (*Caddy, *observer.ObservedLogs) {
	core, logs := observer.New(level)
	s := NewCaddy(as(storage), as(zap.New(core)), nil)
	s.Start()
	return s, logs
}

// memCaddy opens a store on a storage in memory.
func memCaddy() (*memStorage, *Caddy) {
	storage := newMemStorage()
	return storage, quiet(storage)
}

// onEachStorage runs a test on each kind of Caddy storage.
func onEachStorage(t *testing.T, test func(t *testing.T, storage certmagic.Storage)) {
	t.Helper()
	flat := newMemStorage()
	flat.flat = true
	for kind, storage := range map[string]certmagic.Storage{
		"files": &certmagic.FileStorage{Path: t.TempDir()}, "memory": newMemStorage(), "flat": flat,
	} {
		t.Run(kind, func(t *testing.T) { t.Parallel(); test(t, storage) })
	}
}

// A collection has all of its objects, also damaged ones, and no other file. Other files do
// not change.
func TestCaddyAll(t *testing.T) {
	t.Parallel()
	onEachStorage(t, func(t *testing.T, storage certmagic.Storage) {
		s := quiet(storage)
		want := make(map[Collection]map[string]string)
		for _, collection := range collections {
			wantAll(t, s, collection, map[string]string{}) // before there is anything
			want[collection] = make(map[string]string)
			for i := range 2 * readsAtOnce {
				id := fmt.Sprintf("Id-%d", i)
				write(t, s, named(collection, id), strconv.Itoa(i))
				want[collection][id] = strconv.Itoa(i)
			}
		}
		foreign := []string{
			"keys/README.txt", "keys/x-a", "keys/x-a.json.bak", "keys/X-A.json", "keys/x-%61.json", "keys/x-%2e%2e.json", "keys/a.json", "keys/.x-a.json.swp",
			"keys/987654321", "keys/folder/x-a.json", "videos/x-a.json", "videos/zz/x-a.json", "videos/000/x-a.json", "videos/00/x-nosuch.json.1", "videos/987654321",
			"changes/0123456789abcdef.json", // a journal of an earlier version
		}
		for _, file := range foreign {
			if err := storage.Store(t.Context(), root+"/"+file, []byte("somebody's")); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []Name{named(Keys, "broken"), named(Videos, "broken"), named(Videos, "Id-3")} {
			if err := storage.Store(t.Context(), objectPath(name), []byte(`{"sign`)); err != nil {
				t.Fatal(err)
			}
			want[name.Collection()][name.ID()] = "damaged"
		}
		for collection := range want {
			wantAll(t, s, collection, want[collection])
		}
		follow(t, s)
		for _, file := range foreign {
			if data, err := storage.Load(t.Context(), root+"/"+file); err != nil || string(data) != "somebody's" {
				t.Errorf("%s is %q, %v after the listing", file, data, err)
			}
		}
	})
}

// All ends with the first error of the storage, and continues after an error of one object:
// a collection that ends early without an error may lack revocations.
func TestCaddyAllEnds(t *testing.T) {
	t.Parallel()
	storage, s := memCaddy()
	for i := range 10 {
		write(t, s, named(Keys, fmt.Sprint("k", i)), "1")
		write(t, s, named(Videos, fmt.Sprint("k", i)), "1")
	}
	broken := errors.New("broken")
	for _, tc := range []struct {
		name       string
		collection Collection
		step       func(string, string) error
		objects    int
		failed     string
	}{
		{"the list fails", Keys, failOn("list", "keys", broken), 0, ""},
		{"the list of the folders fails", Videos, failOn("list", "videos", broken), 0, ""},
		{"the list of the last folder fails", Videos, failOn("list", "videos/"+lastShard(10), broken), 0, ""},
		{"no object can be read, nor a stamp", Keys, failOn("load", "", broken), 0, ""},
		{"one object cannot be read", Keys, failOn("load", "x-k5", broken), 9, "k5"},
		{"one object of a folder cannot be read", Videos, failOn("load", "x-k5", broken), 9, "k5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storage.intercept(tc.step)
			defer storage.intercept(nil)
			objects, failures, ended := 0, 0, false
			for object, err := range All(t.Context(), s, tc.collection) {
				if ended {
					t.Error("All continues after its error")
				}
				if err == nil {
					objects++
					continue
				}
				failures++
				ended = object.Name == Name{}
				wantUnavailable(t, "All", err)
				if !errors.Is(err, broken) || object.Exists() || object.Name.ID() != tc.failed {
					t.Errorf("All = %v, %v, want the storage's error", object, err)
				}
			}
			if failures != 1 || ended != (tc.failed == "") || objects != tc.objects {
				t.Errorf("All yields %d objects and %d errors, want %d and 1", objects, failures, tc.objects)
			}
		})
	}
	for _, collection := range []Collection{Keys, Videos} {
		objects := 0
		for range All(t.Context(), s, collection) {
			if objects++; objects == 3 {
				break
			}
		}
		if objects != 3 {
			t.Errorf("All(%s) stopped after %d objects", collection, objects)
		}
	}
}

// lastShard returns the last folder of the videos k0, k1, ...
func lastShard(n int) string {
	var shards []string
	for i := range n {
		shards = append(shards, path.Base(path.Dir(objectPath(named(Videos, fmt.Sprint("k", i))))))
	}
	return slices.Max(shards)
}

// A file that is renamed while a folder is listed ends the listing of
// certmagic.FileStorage with fs.ErrNotExist, and temporary files sort first. An empty
// result would forget every key and every revocation. TestAcknowledgedChangesAreFound lists
// real files during writes.
func TestFileThatVanishesWhileItsFolderIsListed(t *testing.T) {
	t.Parallel()
	vanished := &fs.PathError{Op: "lstat", Path: "/storage/signed_playback/keys/1827364509", Err: syscall.ENOENT}
	for _, collection := range []Collection{Keys, Videos} {
		for _, times := range []int{1, 1 << 30} {
			storage, s := memCaddy()
			want := make(map[string]string)
			for i := range 10 {
				id := fmt.Sprint("k", i)
				write(t, s, named(collection, id), "1")
				want[id] = "1"
			}
			left := times
			storage.intercept(func(operation, _ string) error {
				if operation == "list" && left > 0 {
					left--
					return vanished
				}
				return nil
			})
			found, err := readAll(t.Context(), s, collection)
			if diff := cmp.Diff(want, found); err == nil && diff != "" {
				t.Errorf("%d times: All(%s) does not say that something is missing (-want +got):\n%s", times, collection, diff)
			}
			if times == 1 && err != nil {
				t.Errorf("All(%s) = %v after one file has vanished", collection, err)
			}
		}
	}
}

// A4: Caddy's file storage removes whole trees, and so does memStorage. Removing an object
// removes its file alone, under every name of the object.
func TestDeleteRemovesOneFile(t *testing.T) {
	t.Parallel()
	storage, s := memCaddy()
	for _, file := range []string{"certificates/a/a.crt", "acme/x.json", "last_clean.json", "signed_playback.json", root + "/keys.json"} {
		storage.put(file, []byte("Caddy's"))
	}
	var names []Name
	for _, collection := range collections {
		for _, id := range []string{"a", "A", "ab", "...", ".a", "locks", "x-a", "CON", "keys", "..a"} {
			names = append(names, named(collection, id))
		}
	}
	for _, name := range names {
		write(t, s, name, `"`+name.String()+`"`)
	}
	want := storage.content()
	for _, name := range names {
		delete(want, objectPath(name))
		write(t, s, name, "")
		write(t, s, name, "") // of a missing object
		if diff := cmp.Diff(want, storage.content()); diff != "" {
			t.Fatalf("removing %s has changed other files (-want +got):\n%s", name, diff)
		}
	}
	// Some storages return fs.ErrNotExist for a file that they remove.
	write(t, s, named(Videos, "v"), "1")
	storage.intercept(failOn("delete", "x-v", &fs.PathError{Op: "remove", Path: "x", Err: fs.ErrNotExist}))
	write(t, s, named(Videos, "v"), "")
}

// S5: on a full disk, a call changes no object and announces nothing.
func TestFailedWriteChangesNothing(t *testing.T) {
	t.Parallel()
	for _, collection := range []Collection{Keys, Videos} {
		storage, s := memCaddy()
		other := quiet(storage)
		there, gone := named(collection, "there"), named(collection, "gone")
		write(t, s, there, "1")
		follow(t, s, other)
		before := storage.content()
		storage.intercept(func(operation, _ string) error {
			if operation == "store" || operation == "delete" {
				return syscall.ENOSPC
			}
			return nil
		})
		for name, data := range map[Name]string{there: "2", gone: "1"} {
			err := tryWrite(t.Context(), s, name, data)
			wantUnavailable(t, "Update on a full disk", err)
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("Update on a full disk = %v, want the storage's error in it", err)
			}
		}
		wantUnavailable(t, "removal on a full disk", tryWrite(t.Context(), s, there, ""))
		if diff := cmp.Diff(before, storage.content()); diff != "" {
			t.Errorf("a failed write has changed the storage (-want +got):\n%s", diff)
		}
		wantChanges(t, s)
		wantChanges(t, other)
		storage.intercept(nil)
		write(t, s, there, "3") // the failed calls hold no turn and no lock
		wantObject(t, other, there, "3")
		wantChanges(t, other, collection)
	}
}

// A call fails if it cannot announce its change, and announces it when the client repeats
// the call. The attack: a revocation that is acknowledged, and that other nodes find only
// by chance, because its object was written by a call that failed.
func TestRepeatedCallAnnouncesTheChange(t *testing.T) {
	t.Parallel()
	for _, name := range []Name{named(Keys, "x"), named(Videos, "x")} {
		for _, data := range []string{`"new"`, ""} {
			storage := newMemStorage()
			s, repeating, other := quiet(storage), quiet(storage), quiet(storage)
			write(t, s, name, `"old"`)
			follow(t, other)
			storage.intercept(failOn("store", "/stamps/", syscall.ENOSPC))
			wantUnavailable(t, "Update that cannot be announced", tryWrite(t.Context(), s, name, data))
			wantUnavailable(t, "the repeated Update", tryWrite(t.Context(), repeating, name, data))
			storage.intercept(nil)
			wantChanges(t, other)
			write(t, repeating, name, data)
			wantChanges(t, other, name.Collection())
			wantObject(t, other, name, data)
		}
	}
}

// A stamp is written after its object. Otherwise a node could read the new stamp and the old
// object, and never look again.
func TestStampFollowsItsObject(t *testing.T) {
	t.Parallel()
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), `"live"`)
	follow(t, b)
	told := false
	storage.intercept(func(operation, file string) error {
		if operation == "store" && file == stampPath(Keys) {
			told = true
			wantObject(t, b, named(Keys, "k"), `"revoked"`)
			wantChanges(t, b)
		}
		return nil
	})
	write(t, a, named(Keys, "k"), `"revoked"`)
	storage.intercept(nil)
	if !told {
		t.Error("the change is not announced")
	}
	wantChanges(t, b, Keys)
}

// If a stamp is damaged, older or missing, its collection counts as changed, once. If it
// cannot be read, the collection counts as changed each time.
func TestStampThatIsNotTheLastOne(t *testing.T) {
	t.Parallel()
	storage, s := memCaddy()
	write(t, s, named(Videos, "v"), "1")
	follow(t, s)
	for _, content := range []string{"", "ABC", "OLDER"} {
		storage.put(stampPath(Videos), []byte(content))
		wantChanges(t, s, Videos)
		wantChanges(t, s)
	}
	if err := storage.Delete(t.Context(), stampPath(Videos)); err != nil {
		t.Fatal(err)
	}
	wantChanges(t, s, Videos)
	wantChanges(t, s)
	for _, failure := range []error{fs.ErrPermission, syscall.EISDIR, syscall.EIO} {
		storage.intercept(failOn("load", stampPath(Videos), &fs.PathError{Op: "open", Path: "x", Err: failure}))
		for range 3 {
			wantChanges(t, s, Videos)
		}
		storage.intercept(nil)
		wantChanges(t, s, Videos)
		wantChanges(t, s)
	}
}

// If one stamp cannot be read, there are none: a collection without one would look unchanged.
func TestStampsOfAFailingStorage(t *testing.T) {
	t.Parallel()
	storage, s := memCaddy()
	write(t, s, named(Keys, "a"), "1")
	for _, stamp := range []string{"stamps", "stamps/signing"} {
		storage.intercept(failOn("load", stamp, errors.New("connection reset")))
		stamps, err := s.Stamps(t.Context())
		if wantUnavailable(t, "Stamps", err); stamps != nil {
			t.Errorf("Stamps = %q and an error", stamps)
		}
	}
}

// S4: an object that cannot be read is damaged, and other objects are not. A call can
// replace and remove it.
func TestDamagedObjectsInFiles(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]func(file string) error{ // TestForeignBytesAreDamage has more
		"empty":           func(file string) error { return os.WriteFile(file, nil, 0o600) },
		"cut off":         func(file string) error { return os.Truncate(file, 30) },
		"of another name": func(file string) error { return os.Rename(filepath.Join(filepath.Dir(file), "x-other.json"), file) },
		"a folder": func(file string) error {
			return errors.Join(os.Remove(file), os.Mkdir(file, 0o700), os.WriteFile(filepath.Join(file, "x"), nil, 0o600))
		},
		"a link to itself": func(file string) error { return errors.Join(os.Remove(file), os.Symlink(file, file)) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			storage := &certmagic.FileStorage{Path: t.TempDir()}
			s := quiet(storage)
			want := make(map[string]string)
			for _, id := range []string{"broken", "other", "good"} {
				want[id] = `{"id":"` + id + `","padding":"................................"}`
				write(t, s, named(Keys, id), want[id])
			}
			broken := named(Keys, "broken")
			if err := damage(storage.Filename(objectPath(broken))); err != nil {
				t.Fatal(err)
			}
			want["broken"] = "damaged"
			if what == "of another name" {
				delete(want, "other")
			}
			wantDamage(t, s, broken)
			wantAll(t, s, Keys, want)
			refused := errors.New("refused")
			err := s.Update(t.Context(), broken, func(present Object) ([]byte, error) {
				if !errors.Is(present.Damage, ErrDamaged) || present.Data != nil {
					t.Errorf("the change sees %q, %v, want damage", present.Data, present.Damage)
				}
				return nil, refused
			})
			if !errors.Is(err, refused) {
				t.Errorf("Update = %v", err)
			}
			wantDamage(t, s, broken)
			write(t, s, broken, "")
			wantObject(t, s, broken, "")
			write(t, s, broken, "1")
			wantObject(t, s, broken, "1")
		})
	}
}

// Some errors of a storage concern one object, others the whole storage. An error of one
// object must not make the store unavailable, and an error of the storage must not look like
// a missing object.
func TestErrorsOfTheStorage(t *testing.T) {
	t.Parallel()
	damaging := []error{fs.ErrPermission, syscall.EACCES, syscall.EISDIR, syscall.ELOOP, syscall.EIO}
	others := []error{ // ENOTDIR: a file is in the place of the folder
		syscall.ENOTDIR, syscall.EMFILE, syscall.ESTALE, syscall.ETIMEDOUT, context.DeadlineExceeded, errors.New("connection refused"),
	}
	for i, failure := range slices.Concat(damaging, others) {
		storage, s := memCaddy()
		name := named(Videos, "v")
		write(t, s, name, "1")
		storage.intercept(failOn("load", "x-v", &fs.PathError{Op: "open", Path: "x", Err: failure}))
		damage := i < len(damaging)
		object, err := s.Get(t.Context(), name, Server)
		if object.Data != nil || !errors.Is(errors.Join(object.Damage, err), failure) || errors.Is(object.Damage, ErrDamaged) != damage || errors.Is(err, ErrUnavailable) == damage {
			t.Errorf("%v: Get = %q, damage %v, %v, want damage: %t, or else ErrUnavailable", failure, object.Data, object.Damage, err, damage)
		}
		called := false
		err = s.Update(t.Context(), name, func(Object) ([]byte, error) { called = true; return []byte("2"), nil })
		if called != damage || (err == nil) != damage {
			t.Errorf("%v: Update = %v, change called: %t", failure, err, called)
		}
	}
}

// S6: a storage on a network file system hangs and ignores contexts. Each call ends with its
// context.
func TestHangingStorage(t *testing.T) {
	t.Parallel()
	get := func(ctx context.Context, s *Caddy) error {
		_, err := s.Get(ctx, named(Videos, "v"), Server)
		return err
	}
	update := func(ctx context.Context, s *Caddy) error { return tryWrite(ctx, s, named(Videos, "v"), "2") }
	remove := func(ctx context.Context, s *Caddy) error { return tryWrite(ctx, s, named(Videos, "v"), "") }
	list := func(collection Collection) func(context.Context, *Caddy) error {
		return func(ctx context.Context, s *Caddy) error { _, err := readAll(ctx, s, collection); return err }
	}
	stamps := func(ctx context.Context, s *Caddy) error { _, err := s.Stamps(ctx); return err }
	for _, tc := range []struct {
		name, operation, key string
		call                 func(context.Context, *Caddy) error
	}{
		{"Get", "load", "x-v", get},
		{"Update waits for the lock", "lock", "", update},
		{"Update reads", "load", "x-v", update},
		{"Update writes", "store", "x-v", update},
		{"Update announces", "store", "stamps", update},
		{"Update releases the lock", "unlock", "", update},
		{"removal", "delete", "x-v", remove},
		{"All lists", "list", "keys", list(Keys)},
		{"All lists the folders", "list", "videos", list(Videos)},
		{"All reads one object", "load", "x-v", list(Videos)},
		{"All reads", "load", "", list(Videos)},
		{"Stamps", "load", "stamps", stamps},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := newMemStorage()
				write(t, quiet(storage), named(Videos, "v"), "1") // by another node
				s := quiet(storage)
				h := hold(storage, tc.operation, tc.key)
				const patience = objectTimeout
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				wantUnavailable(t, tc.name, tc.call(ctx, s))
				if waited := time.Since(start); waited != patience {
					t.Errorf("%s took %s, want %s", tc.name, waited, patience)
				}
				if h.peak() == 0 {
					t.Errorf("%s does not reach the operation that hangs", tc.name)
				}
				storage.intercept(nil)
				close(h.release)
				synctest.Wait()
				if err := tc.call(t.Context(), s); err != nil {
					t.Errorf("%s when the storage answers again = %v", tc.name, err)
				}
			})
		})
	}
}

// One object that hangs delays the others by objectTimeout, and not until their reader gives
// up: one of them may be a revocation.
func TestHangingObjectHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		storage, s := memCaddy()
		for i := range 2 * readsAtOnce {
			write(t, s, named(Keys, fmt.Sprint("k", i)), "1")
		}
		h := hold(storage, "load", "x-k10.")
		defer close(h.release)
		start, read, failed := time.Now(), 0, ""
		for object, err := range All(t.Context(), s, Keys) {
			if err == nil {
				read++
				continue
			}
			wantUnavailable(t, "All", err)
			failed += object.Name.ID()
		}
		if waited := time.Since(start); read != 2*readsAtOnce-1 || failed != "k10" || waited != objectTimeout {
			t.Errorf("All reads %d objects in %s, and not %q", read, waited, failed)
		}
	})
}

// A write that the storage ends late is announced, though its caller no longer waits.
func TestLateWriteIsAnnounced(t *testing.T) {
	t.Parallel()
	for _, hanging := range []string{"x-v.json", "stamps"} {
		synctest.Test(t, func(t *testing.T) {
			storage := newMemStorage()
			a, b := quiet(storage), quiet(storage)
			write(t, a, named(Videos, "other"), "1")
			follow(t, b)
			h := hold(storage, "store", hanging)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			wantUnavailable(t, "Update", tryWrite(ctx, a, named(Videos, "v"), "1"))
			wantChanges(t, b)
			storage.intercept(nil)
			close(h.release)
			synctest.Wait()
			wantObject(t, b, named(Videos, "v"), "1")
			wantChanges(t, b, Videos)
		})
	}
}

// A storage that hangs for good costs a bounded number of goroutines, for any number of
// calls, and writes do not take the turns of reads.
func TestHangingStorageCostsFewGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		storage, s := memCaddy()
		write(t, s, named(Keys, "k"), "1")
		reads := hold(storage, "load", "")
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				name := named(Keys, fmt.Sprint("k", i))
				if i < 200 {
					_, err := s.Get(ctx, name, Server)
					wantUnavailable(t, "Get", err)
					return
				}
				wantUnavailable(t, "Update", tryWrite(ctx, s, name, "1"))
			})
		}
		wg.Wait()
		// No call gets a turn, and a waiting call ends with its context.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Get(ctx, named(Keys, "k"), Server)
		wantUnavailable(t, "Get", err)
		if got := reads.peak(); got > maxReads+maxWrites || got <= maxReads {
			t.Errorf("%d operations hang, want those of %d reads and %d writes at most", got, maxReads, maxWrites)
		}
		storage.intercept(nil)
		close(reads.release)
		synctest.Wait()
		wantObject(t, s, named(Keys, "k"), "1") // every turn is given back
		for i := range 2 * (maxReads + maxWrites) {
			write(t, s, named(Keys, "k"), strconv.Itoa(i))
		}
	})
}

// An unmounted network folder is an empty folder. As a store without settings it would make
// private videos public; as a store without keys it would be an outage without an error.
func TestHostileStorageVanishes(t *testing.T) {
	t.Parallel()
	for name, know := range map[string]func(t *testing.T, s *Caddy){
		"a node that has written":     func(t *testing.T, s *Caddy) { write(t, s, named(Videos, "private"), "1") },
		"a node that has read":        func(t *testing.T, s *Caddy) { _, _ = s.Get(t.Context(), named(Videos, "private"), Server) },
		"a node that knows of stamps": func(t *testing.T, s *Caddy) { _, _ = s.Stamps(t.Context()) },
		"a node that has listed":      func(t *testing.T, s *Caddy) { _, _ = readAll(t.Context(), s, Videos) },
	} {
		t.Run(name, func(t *testing.T) {
			storage := newMemStorage()
			write(t, quiet(storage), named(Videos, "private"), "1")
			s := quiet(storage)
			know(t, s)
			files := maps.Clone(storage.files)
			clear(storage.files)
			wantAllUnavailable(t, "mount it", s, named(Videos, "private"))
			maps.Copy(storage.files, files)
			wantObject(t, s, named(Videos, "private"), "1")
			if _, err := s.Stamps(t.Context()); err != nil {
				t.Errorf("Changes = %v after the storage is mounted again", err)
			}
		})
	}
	t.Run("a new storage", func(t *testing.T) {
		s := quiet(newMemStorage())
		follow(t, s)
		wantObject(t, s, named(Keys, "none"), "")
	})
}
