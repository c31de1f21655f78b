package store

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"
)

// wantChanges holds what a node is told, in whatever order.
func wantChanges(t *testing.T, s Store, complete bool, names ...Name) {
	t.Helper()
	changed, all, err := s.Changes(t.Context())
	if err != nil {
		t.Fatalf("Changes = %v", err)
	}
	if all != complete {
		t.Errorf("Changes says that it is complete: %t, want %t", all, complete)
	}
	if !complete {
		return // then everything is read anew
	}
	if diff := cmp.Diff(texts(names), texts(changed)); diff != "" {
		t.Errorf("Changes (-want +got):\n%s", diff)
	}
}

func texts(names []Name) []string {
	var list []string
	for _, name := range names {
		list = append(list, name.String())
	}
	slices.Sort(list)
	return list
}

func wantWake(t *testing.T, s Store) {
	t.Helper()
	select {
	case <-s.Wake():
	default:
		t.Error("nothing wakes this node")
	}
}

func wantNoWake(t *testing.T, s Store) {
	t.Helper()
	select {
	case <-s.Wake():
		t.Error("this node is woken for nothing")
	default:
	}
}

// follows brings a node up to date and checks that it hears of nothing more.
func follows(t *testing.T, nodes ...*Caddy) {
	t.Helper()
	for _, s := range nodes {
		if _, _, err := s.Changes(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantChanges(t, s, true)
	}
}

// What one node changes, all are told: itself too, for its own snapshots, and
// once.
func TestChangesAreTold(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			a, b := quiet(storage), quiet(storage)
			wantChanges(t, a, false) // the first call
			wantChanges(t, a, true)
			write(t, a, named(Keys, "k"), "1")
			wantWake(t, a)
			wantNoWake(t, b)
			wantChanges(t, a, true, named(Keys, "k"))
			wantChanges(t, a, true)
			wantChanges(t, b, false) // the first call
			wantChanges(t, b, true)
			write(t, a, named(Videos, "V"), "1")
			write(t, a, named(Signing, "current"), "1")
			write(t, a, named(Videos, "V"), "2")
			write(t, a, named(Keys, "k"), "")
			told := []Name{named(Videos, "V"), named(Signing, "current"), named(Videos, "V"), named(Keys, "k")}
			wantChanges(t, b, true, told...)
			wantChanges(t, b, true)
			wantChanges(t, a, true, told...)
			write(t, b, named(Keys, "...~"), "1")
			wantChanges(t, a, false) // a journal that is new to it
			write(t, b, named(Keys, "...~"), "2")
			wantChanges(t, a, true, named(Keys, "...~"))
			write(t, a, named(Keys, "x"), "1")
			write(t, b, named(Keys, "y"), "1")
			wantChanges(t, a, true, named(Keys, "x"), named(Keys, "y"))
		})
	}
}

// A node that has missed more changes than a journal holds is told so, and one
// that has missed as many as it holds is told them all.
func TestChangesOverAGap(t *testing.T) {
	for _, n := range []int{1, journalLength - 1, journalLength, journalLength + 1, 3 * journalLength} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			storage := newMemStorage()
			a, b := quiet(storage), quiet(storage)
			write(t, a, named(Keys, "first"), "1")
			follows(t, a, b)
			var names []Name
			for i := range n {
				names = append(names, named(Keys, fmt.Sprint("k", i)))
				write(t, a, names[i], "1")
			}
			complete := n <= journalLength
			wantChanges(t, a, complete, names...) // of its own it forgets the oldest too
			wantChanges(t, b, complete, names...)
			wantChanges(t, b, true)
			write(t, a, named(Keys, "last"), "1")
			wantChanges(t, b, true, named(Keys, "last"))
		})
	}
}

// A journal that is damaged may say anything, so everything may have changed;
// once, for reading it all again each second would take the node down.
func TestDamagedJournal(t *testing.T) {
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), "1")
	follows(t, b)
	good := storage.files[a.journal.path()].data
	for what, raw := range map[string][]byte{
		"empty":               {},
		"cut off":             good[:len(good)/2],
		"changed":             []byte(strings.Replace(string(good), "keys/k", "keys/l", 1)),
		"of another node":     sealedJournal(t, b.journal.node, journalDocument{9, []string{"keys/k"}}),
		"fewer than were":     sealedJournal(t, a.journal.node, journalDocument{0, nil}),
		"of other documents":  must(seal(Name{journals, a.journal.node}, []byte(`[1]`))),
		"a name that is none": sealedJournal(t, a.journal.node, journalDocument{2, []string{"keys/k", "keys/../videos/a"}}),
		"no name at all":      sealedJournal(t, a.journal.node, journalDocument{2, []string{"keys/k", ""}}),
		"unknown collection":  sealedJournal(t, a.journal.node, journalDocument{2, []string{"keys/k", "users/a"}}),
		"a list cut off":      sealedJournal(t, a.journal.node, journalDocument{3, []string{"keys/k"}}),
		"no list":             sealedJournal(t, a.journal.node, journalDocument{2, nil}),
	} {
		t.Run(what, func(t *testing.T) {
			storage.put(a.journal.path(), good)
			if _, _, err := b.Changes(t.Context()); err != nil {
				t.Fatal(err)
			}
			storage.put(a.journal.path(), raw)
			wantChanges(t, b, false)
			wantChanges(t, b, true)
		})
	}
	for _, raw := range [][]byte{{}, good[:20]} {
		storage.put(a.journal.path(), good)
		follows(t, b)
		storage.put(a.journal.path(), raw)
		wantChanges(t, b, false)
		name := named(Keys, fmt.Sprint("after-", len(raw)))
		write(t, a, name, "1") // the node writes its journal anew
		if changed, complete, err := b.Changes(t.Context()); err != nil || complete && !slices.Contains(changed, name) {
			t.Errorf("Changes = %v, %t, %v: the change after the damage is not told", changed, complete, err)
		}
		write(t, a, name, "2")
		wantChanges(t, b, true, name)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func sealedJournal(t *testing.T, node string, document journalDocument) []byte {
	t.Helper()
	return must(document.encode(node))
}

// A longer list than the number of changes, as nobody writes it, breaks nothing.
func TestJournalWithMoreNamesThanChanges(t *testing.T) {
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), "1")
	follows(t, b)
	storage.put(a.journal.path(), sealedJournal(t, a.journal.node, journalDocument{2, []string{"keys/a", "keys/b", "keys/c", "keys/d"}}))
	wantChanges(t, b, true, named(Keys, "d"))
	storage.put(a.journal.path(), sealedJournal(t, a.journal.node, journalDocument{1 << 63, []string{"keys/a"}}))
	wantChanges(t, b, false)
}

// What is not a journal is left alone, whoever has put it there.
func TestForeignFilesAmongJournals(t *testing.T) {
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), "1")
	foreign := []string{"README", "0123456789ABCDEF.json", "0123456789abcde.json", "0123456789abcdef.json.bak", "0123456789abcdef", "folder/0123456789abcdeX.json"}
	for _, file := range foreign {
		storage.put(root+"/changes/"+file, []byte("somebody's"))
		storage.age(root+"/changes/"+file, 100*time.Hour)
	}
	follows(t, a, b)
	write(t, a, named(Keys, "k"), "2")
	wantChanges(t, b, true, named(Keys, "k"))
	for _, file := range foreign {
		if !storage.has(root + "/changes/" + file) {
			t.Errorf("%s is gone", file)
		}
	}
}

// A node that starts removes the journals of nodes that ended long ago. One
// that runs on, and merely had nothing to say, is heard all the same when it
// has.
func TestOldJournalsAreSwept(t *testing.T) {
	storage := newMemStorage()
	ended, silent, follower := quiet(storage), quiet(storage), quiet(storage)
	for _, s := range []*Caddy{ended, silent} {
		write(t, s, named(Keys, "k-"+s.journal.node), "1")
	}
	follows(t, follower)
	storage.age(ended.journal.path(), 2*time.Hour)
	storage.age(silent.journal.path(), 2*time.Hour)
	follows(t, follower) // who follows already sweeps nothing
	if !storage.has(ended.journal.path()) {
		t.Error("a journal is removed by a node that has not just started")
	}

	recent := quiet(storage)
	write(t, recent, named(Keys, "recent"), "1")
	starting := quiet(storage)
	write(t, starting, named(Keys, "own"), "1")
	storage.age(starting.journal.path(), 2*time.Hour)
	wantChanges(t, starting, false)
	for s, kept := range map[*Caddy]bool{ended: false, silent: false, recent: true, starting: true} {
		if storage.has(s.journal.path()) != kept {
			t.Errorf("the journal of %s is kept: %t, want %t", s.journal.node, !kept, kept)
		}
	}
	follows(t, follower)
	write(t, silent, named(Keys, "spoken"), "1")
	wantChanges(t, follower, false) // its journal is as good as new
	write(t, silent, named(Keys, "again"), "1")
	wantChanges(t, follower, true, named(Keys, "again"))
	if _, _, err := starting.Changes(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, silent, named(Keys, "more"), "1")
	wantChanges(t, starting, true, named(Keys, "more"))
}

// A journal that has vanished may have told of a change a moment before: the
// node that sweeps looks at its age and removes it in two steps, and its owner
// may write between them. Whoever followed it has to read everything.
func TestVanishedJournalMayHaveToldOfAChange(t *testing.T) {
	storage := newMemStorage()
	a, follower := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), `"live"`)
	follows(t, follower)
	storage.age(a.journal.path(), 2*time.Hour)
	revoked := false
	storage.intercept(func(operation, file string) error {
		if operation == "delete" && file == a.journal.path() && !revoked {
			revoked = true
			write(t, a, named(Keys, "k"), `"revoked"`)
		}
		return nil
	})
	follows(t, quiet(storage)) // a node that starts
	storage.intercept(nil)
	if !revoked {
		t.Fatal("nobody sweeps the journal")
	}
	changed, complete, err := follower.Changes(t.Context())
	if err != nil || complete && !slices.Contains(changed, named(Keys, "k")) {
		t.Errorf("Changes = %v, %t, %v: a revocation that was acknowledged is not told", changed, complete, err)
	}
}

// A listing that ends early must not hide a change: see
// TestFileThatVanishesWhileItsFolderIsListed.
func TestChangesBesideWrites(t *testing.T) {
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), "1")
	follows(t, b)
	write(t, a, named(Keys, "k"), "2")
	once := true
	storage.intercept(func(operation, file string) error {
		if operation == "list" && once {
			once = false
			return &fs.PathError{Op: "lstat", Path: "/storage/" + file + "/1827364509", Err: syscall.ENOENT}
		}
		return nil
	})
	changed, complete, err := b.Changes(t.Context())
	if err == nil && complete && !slices.Contains(changed, named(Keys, "k")) {
		t.Errorf("Changes = %v, %t: the change is not told", changed, complete)
	}
}

// A failure of Changes loses nothing: the next call tells what this one would
// have.
func TestChangesAfterAFailure(t *testing.T) {
	for _, operation := range []string{"list", "load"} {
		storage := newMemStorage()
		a, b := quiet(storage), quiet(storage)
		write(t, a, named(Keys, "a"), "1")
		write(t, b, named(Keys, "b"), "1")
		follows(t, a, b)
		write(t, a, named(Keys, "a"), "2")
		write(t, b, named(Keys, "b"), "2")
		storage.intercept(failOn(operation, "changes", errors.New("connection reset")))
		for range 2 {
			changed, complete, err := b.Changes(t.Context())
			wantUnavailable(t, "Changes", err)
			if changed != nil || complete {
				t.Errorf("Changes = %v, %t beside its error", changed, complete)
			}
		}
		storage.intercept(nil)
		wantChanges(t, b, true, named(Keys, "a"), named(Keys, "b"))
	}
}

// The first call that succeeds is the first call.
func TestFirstChangesAfterAFailure(t *testing.T) {
	storage := newMemStorage()
	write(t, quiet(storage), named(Keys, "k"), "1")
	s := quiet(storage)
	storage.intercept(failOn("list", "changes", errors.New("connection reset")))
	_, _, err := s.Changes(t.Context())
	wantUnavailable(t, "Changes", err)
	storage.intercept(nil)
	wantChanges(t, s, false)
	wantChanges(t, s, true)
}

// S4: one journal that cannot be read, because it is a folder or somebody
// else's, is that node's trouble and not the end of the store: everything may
// have changed, and is read as long as that lasts.
func TestJournalThatCannotBeRead(t *testing.T) {
	for _, failure := range []error{fs.ErrPermission, syscall.EISDIR, syscall.EIO} {
		for _, met := range []bool{true, false} { // before
			storage := newMemStorage()
			a, b := quiet(storage), quiet(storage)
			write(t, a, named(Keys, "k"), "1")
			if met {
				follows(t, b)
			}
			storage.intercept(failOn("load", "changes", &fs.PathError{Op: "open", Path: "x", Err: failure}))
			for range 2 {
				if changed, complete, err := b.Changes(t.Context()); err != nil || complete {
					t.Errorf("%v: Changes = %v, %t, %v, want an incomplete list and no error", failure, changed, complete, err)
				}
			}
			write(t, a, named(Keys, "meanwhile"), "1")
			storage.intercept(nil)
			changed, complete, err := b.Changes(t.Context())
			if err != nil || complete && !slices.Contains(changed, named(Keys, "meanwhile")) {
				t.Errorf("%v: Changes = %v, %t, %v: a change is not told when the journal can be read again", failure, changed, complete, err)
			}
			write(t, a, named(Keys, "later"), "1")
			wantChanges(t, b, true, named(Keys, "later"))
		}
	}
}

// A journal never tells of a change before there is something to read.
func TestChangesAreToldAfterTheyAreMade(t *testing.T) {
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), `"live"`)
	follows(t, b)
	told := false
	storage.intercept(func(operation, file string) error {
		if operation == "store" && file == a.journal.path() {
			told = true
			wantObject(t, b, named(Keys, "k"), `"revoked"`)
			wantChanges(t, b, true)
		}
		return nil
	})
	write(t, a, named(Keys, "k"), `"revoked"`)
	storage.intercept(nil)
	if !told {
		t.Error("the change is not written into the journal")
	}
	wantChanges(t, b, true, named(Keys, "k"))
}

// A change whose announcement has failed goes along with the next one: others
// read once too often rather than once too rarely.
func TestFailedAnnouncementGoesWithTheNext(t *testing.T) {
	storage := newMemStorage()
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "k"), "1")
	follows(t, a, b)
	<-a.Wake()
	storage.intercept(failOn("store", "changes", syscall.ENOSPC))
	wantUnavailable(t, "Update", tryWrite(t.Context(), a, named(Keys, "failed"), "1"))
	storage.intercept(nil)
	wantNoWake(t, a)
	wantChanges(t, b, true)
	write(t, a, named(Keys, "next"), "1")
	wantChanges(t, b, true, named(Keys, "failed"), named(Keys, "next"))
}

// Changes that wait while the journal is written share the next writing: a
// journal on a slow disk must not make each change wait for all before it.
func TestChangesShareAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		a, b := quiet(storage), quiet(storage)
		write(t, a, named(Keys, "first"), "1")
		follows(t, a, b)
		writings := 0
		first := make(chan struct{})
		storage.intercept(func(operation, file string) error {
			if operation == "store" && file == a.journal.path() {
				if writings++; writings == 1 {
					<-first
				}
			}
			return nil
		})
		names := namesOfTheirOwnWriters(a, maxWrites)
		var wg sync.WaitGroup
		for i := range names {
			wg.Go(func() {
				if err := tryWrite(t.Context(), a, names[i], "1"); err != nil {
					t.Errorf("Update = %v", err)
				}
			})
			synctest.Wait()
		}
		wantChanges(t, b, true)
		close(first)
		wg.Wait()
		wantChanges(t, b, true, names...)
		if writings != 2 {
			t.Errorf("the journal was written %d times for %d changes, want 2", writings, maxWrites)
		}
	})
}

// namesOfTheirOwnWriters are names of which none waits for another's writer.
func namesOfTheirOwnWriters(s *Caddy, n int) (names []Name) {
	taken := make(map[uint64]bool)
	for i := 0; len(names) < n; i++ {
		name := named(Keys, fmt.Sprint("k", i))
		if writer := maphash.Comparable(s.seed, name) % uint64(len(s.writers)); !taken[writer] {
			taken[writer] = true
			names = append(names, name)
		}
	}
	return names
}

// A change that was acknowledged stands in the journal by then, also if another
// one is the writer.
func TestAcknowledgedChangesAreInTheJournal(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	a, b := quiet(storage), quiet(storage)
	write(t, a, named(Keys, "first"), "1")
	follows(t, b)
	var mu sync.Mutex // b.Changes has one caller
	told := make(map[Name]bool)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 5 {
				name := named(Keys, fmt.Sprintf("k-%d-%d", w, i))
				if err := tryWrite(t.Context(), a, name, "1"); err != nil {
					t.Errorf("Update = %v", err)
				}
				mu.Lock()
				changed, complete, err := b.Changes(t.Context())
				for _, name := range changed {
					told[name] = true
				}
				if err != nil || complete && !told[name] {
					t.Errorf("%s is acknowledged and not told: Changes = %v, %t, %v", name, changed, complete, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// Nobody needs to listen for a node to be able to write.
func TestWakingNobody(t *testing.T) {
	s := quiet(newMemStorage())
	for i := range 5 {
		write(t, s, named(Keys, fmt.Sprint("k", i)), "1")
	}
	wantWake(t, s)
	wantNoWake(t, s)
	wantChanges(t, s, false)
}

// The journal does not touch the storage before there is something to write,
// and each process has one of its own.
func TestJournalsOfTwoProcesses(t *testing.T) {
	storage := newMemStorage()
	touched := 0
	storage.intercept(func(string, string) error { touched++; return nil })
	a, b := quiet(storage), quiet(storage)
	if touched != 0 {
		t.Errorf("opening a store takes %d operations", touched)
	}
	if a.journal.path() == b.journal.path() || !journalName.MatchString(path.Base(a.journal.path())) {
		t.Errorf("the journals are %s and %s", a.journal.path(), b.journal.path())
	}
	if _, ok := nameOfPath(Keys, a.journal.path()); ok {
		t.Error("a journal is an object")
	}
}

// A caller who gives up while the journal hangs is told that the change may
// have been made.
func TestAnnouncementThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		a, b := quiet(storage), quiet(storage)
		write(t, a, named(Keys, "first"), "1")
		follows(t, b)
		h := hold(storage, func(operation, file string) bool { return operation == "store" && file == a.journal.path() })
		names := namesOfTheirOwnWriters(a, 3)
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				wantUnavailable(t, "Update", tryWrite(ctx, a, name, "1"))
			})
		}
		wg.Wait()
		storage.intercept(nil)
		close(h.release)
		synctest.Wait()
		wantChanges(t, b, true, names...)
		for _, name := range names {
			wantObject(t, b, name, "1")
		}
	})
}
