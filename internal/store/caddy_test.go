package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// memStorage is a storage whose operations a test can watch, fail and hold up. It
// behaves as certmagic.FileStorage does: what is listed may be a folder, and
// Delete takes along all that is below.
type memStorage struct {
	mu    sync.Mutex
	files map[string]memFile
	locks map[string]chan struct{}

	// May be nil. It is called before each operation, which its error ends.
	step func(operation, key string) error

	// What a storage without folders does: it lists everything below.
	flat bool

	// How often Lock looks whether the lock has been given up. 0: it knows.
	lockPoll time.Duration
}

type memFile struct {
	data     []byte
	modified time.Time
}

func newMemStorage() *memStorage {
	return &memStorage{files: make(map[string]memFile), locks: make(map[string]chan struct{})}
}

func (m *memStorage) intercept(step func(operation, key string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step = step
}

func (m *memStorage) begin(operation, key string) error {
	m.mu.Lock()
	step := m.step
	m.mu.Unlock()
	if step == nil {
		return nil
	}
	return step(operation, key)
}

func (m *memStorage) Store(_ context.Context, key string, value []byte) error {
	if err := m.begin("store", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[key] = memFile{slices.Clone(value), time.Now()}
	return nil
}

func (m *memStorage) Load(_ context.Context, key string) ([]byte, error) {
	if err := m.begin("load", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	file, ok := m.files[key]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: key, Err: fs.ErrNotExist}
	}
	return slices.Clone(file.data), nil
}

func (m *memStorage) Delete(_ context.Context, key string) error {
	if err := m.begin("delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.files, func(file string, _ memFile) bool { return file == key || strings.HasPrefix(file, key+"/") })
	return nil
}

func (m *memStorage) Exists(_ context.Context, key string) bool {
	_, err := m.Stat(context.Background(), key)
	return err == nil
}

func (m *memStorage) List(_ context.Context, folder string, recursive bool) ([]string, error) {
	if err := m.begin("list", folder); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	listed := make(map[string]bool)
	for file := range m.files {
		rest, ok := strings.CutPrefix(file, folder+"/")
		if !ok {
			continue
		}
		if !recursive && !m.flat {
			rest, _, _ = strings.Cut(rest, "/")
		}
		listed[folder+"/"+rest] = true
	}
	if len(listed) == 0 {
		return nil, &fs.PathError{Op: "lstat", Path: folder, Err: fs.ErrNotExist}
	}
	return slices.Sorted(maps.Keys(listed)), nil
}

func (m *memStorage) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	if err := m.begin("stat", key); err != nil {
		return certmagic.KeyInfo{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if file, ok := m.files[key]; ok {
		return certmagic.KeyInfo{Key: key, Modified: file.modified, Size: int64(len(file.data)), IsTerminal: true}, nil
	}
	for file := range m.files {
		if strings.HasPrefix(file, key+"/") {
			return certmagic.KeyInfo{Key: key}, nil
		}
	}
	return certmagic.KeyInfo{}, &fs.PathError{Op: "stat", Path: key, Err: fs.ErrNotExist}
}

func (m *memStorage) Lock(ctx context.Context, name string) error {
	if err := m.begin("lock", name); err != nil {
		return err
	}
	m.mu.Lock()
	lock, ok := m.locks[name]
	if !ok {
		lock = make(chan struct{}, 1)
		m.locks[name] = lock
	}
	m.mu.Unlock()
	for m.lockPoll > 0 {
		select {
		case lock <- struct{}{}:
			return nil
		default:
		}
		select {
		case <-time.After(m.lockPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *memStorage) Unlock(_ context.Context, name string) error {
	if err := m.begin("unlock", name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.locks[name]:
		return nil
	default:
		return fmt.Errorf("the lock %q is not held", name)
	}
}

// age makes a file look as if it had last been written so long ago.
func (m *memStorage) age(file string, by time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[file] = memFile{m.files[file].data, time.Now().Add(-by)}
}

// put is a file that the store has not written.
func (m *memStorage) put(file string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[file] = memFile{data, time.Now()}
}

func (m *memStorage) has(file string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.files[file]
	return ok
}

// content returns all files but journals.
func (m *memStorage) content() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	content := make(map[string]string)
	for file, f := range m.files {
		if !strings.HasPrefix(file, root+"/changes/") {
			content[file] = string(f.data)
		}
	}
	return content
}

// failOn makes a step that fails operations of a kind on paths that contain
// part.
func failOn(operation, part string, err error) func(string, string) error {
	return func(op, key string) error {
		if op == operation && strings.Contains(key, part) {
			return err
		}
		return nil
	}
}

// quiet opens a store whose log goes nowhere.
func quiet(storage certmagic.Storage) *Caddy { return NewCaddy(storage, zap.NewNop()) }

// storages are those on which the store has to do the same.
func storages(t *testing.T) map[string]certmagic.Storage {
	flat := newMemStorage()
	flat.flat = true
	return map[string]certmagic.Storage{
		"files":  &certmagic.FileStorage{Path: t.TempDir()},
		"memory": newMemStorage(),
		"flat":   flat,
	}
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

// wantObject holds what an object's content is, "" if there is to be none.
func wantObject(t *testing.T, s Store, name Name, data string) {
	t.Helper()
	object, err := s.Get(t.Context(), name)
	if err != nil || object.Damage != nil || object.Name != name || string(object.Data) != data || (object.Data == nil) != (data == "") {
		t.Errorf("Get(%s) = %q, damage %v, %v, want %q", name, object.Data, object.Damage, err, data)
	}
}

func wantDamage(t *testing.T, s Store, name Name) {
	t.Helper()
	object, err := s.Get(t.Context(), name)
	if err != nil || !errors.Is(object.Damage, ErrDamaged) || object.Data != nil || object.Name != name {
		t.Errorf("Get(%s) = %q, damage %v, %v, want damage", name, object.Data, object.Damage, err)
	}
}

// all collects a collection; what is damaged counts as "damaged".
func all(t *testing.T, s Store, collection Collection) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for object, err := range s.All(t.Context(), collection) {
		if err != nil {
			t.Fatalf("All(%s) = %v", collection, err)
		}
		if _, twice := found[object.Name.ID()]; twice || object.Name.Collection() != collection {
			t.Errorf("All(%s) tells of %s twice, or of another collection", collection, object.Name)
		}
		found[object.Name.ID()] = string(object.Data)
		if object.Damage != nil {
			found[object.Name.ID()] = "damaged"
		}
	}
	return found
}

func wantAll(t *testing.T, s Store, collection Collection, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, all(t, s, collection)); diff != "" {
		t.Errorf("All(%s) (-want +got):\n%s", collection, diff)
	}
}

func wantUnavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%s = %v, want ErrUnavailable", what, err)
	}
}

func TestCaddyRoundTrip(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			s, other := quiet(storage), quiet(storage)
			names := []Name{
				named(Keys, "a"), named(Keys, "A"), named(Videos, "a"), named(Videos, "A"), named(Signing, "a"), named(Keys, "..."),
				named(Keys, "x-a"), named(Videos, strings.Repeat("Z", 64)),
			}
			for _, name := range names {
				wantObject(t, s, name, "")
			}
			for i, name := range names {
				err := s.Update(t.Context(), name, func(present Object) ([]byte, error) {
					if present.Data != nil || present.Damage != nil || present.Name != name {
						t.Errorf("a new object is %q, %v", present.Data, present.Damage)
					}
					return strconv.AppendInt(nil, int64(i), 10), nil
				})
				if err != nil {
					t.Fatalf("Update(%s) = %v", name, err)
				}
			}
			for i, name := range names {
				wantObject(t, other, name, strconv.Itoa(i))
				err := other.Update(t.Context(), name, func(present Object) ([]byte, error) {
					return slices.Concat([]byte("1"), present.Data), nil
				})
				if err != nil {
					t.Fatalf("Update(%s) = %v", name, err)
				}
				wantObject(t, s, name, "1"+strconv.Itoa(i))
			}
			for i, name := range names {
				write(t, s, name, "")
				wantObject(t, other, name, "")
				for j, rest := range names[i+1:] {
					wantObject(t, other, rest, "1"+strconv.Itoa(i+1+j))
				}
			}
		})
	}
}

// A collection is all of its objects, the damaged ones among them, and nothing
// that others have put there. Nothing of that is touched either.
func TestCaddyAll(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			s := quiet(storage)
			for _, collection := range []Collection{Keys, Videos, Signing} {
				wantAll(t, s, collection, map[string]string{}) // before there is anything
			}
			want := make(map[Collection]map[string]string)
			for _, collection := range []Collection{Keys, Videos, Signing} {
				want[collection] = make(map[string]string)
				for i := range 20 {
					id := fmt.Sprintf("Id-%d", i)
					write(t, s, named(collection, id), strconv.Itoa(i))
					want[collection][id] = strconv.Itoa(i)
				}
			}
			foreign := []string{
				"keys/README.txt", "keys/x-a", "keys/x-a.json.bak", "keys/X-A.json", "keys/x-%61.json", "keys/x-%2e%2e.json", "keys/a.json", "keys/.x-a.json.swp",
				"keys/987654321", "keys/folder/x-a.json", "videos/x-a.json", "videos/zz/x-a.json", "videos/000/x-a.json", "videos/00/x-nosuch.json.1", "videos/987654321",
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
			for _, file := range foreign {
				if data, err := storage.Load(t.Context(), root+"/"+file); err != nil || string(data) != "somebody's" {
					t.Errorf("%s is %q, %v after the listing", file, data, err)
				}
			}
		})
	}
}

// All ends with the first error, and when nobody wants more: a collection that
// is cut short without a word is one without some of its revocations.
func TestCaddyAllEnds(t *testing.T) {
	storage := newMemStorage()
	s := quiet(storage)
	for i := range 10 {
		write(t, s, named(Keys, fmt.Sprint("k", i)), "1")
		write(t, s, named(Videos, fmt.Sprint("k", i)), "1")
	}
	broken := errors.New("broken")
	for _, tc := range []struct {
		name       string
		collection Collection
		step       func(string, string) error
		before     int // objects before the error
	}{
		{"the list fails", Keys, failOn("list", "keys", broken), 0},
		{"the list of the folders fails", Videos, failOn("list", "videos", broken), 0},
		{"the list of the last folder fails", Videos, failOn("list", "videos/"+lastShard(10), broken), -1},
		{"an object cannot be read", Keys, failOn("load", "x-k5", broken), 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storage.intercept(tc.step)
			defer storage.intercept(nil)
			objects, failures := 0, 0
			for object, err := range s.All(t.Context(), tc.collection) {
				if failures > 0 {
					t.Error("All goes on after its error")
				}
				if err == nil {
					objects++
					continue
				}
				failures++
				wantUnavailable(t, "All", err)
				if !errors.Is(err, broken) || object.Data != nil {
					t.Errorf("All = %v, %v, want the storage's error", object, err)
				}
			}
			if failures != 1 || tc.before >= 0 && objects != tc.before || objects == 10 {
				t.Errorf("All yields %d objects and %d errors, want %d and 1", objects, failures, tc.before)
			}
		})
	}
	for _, collection := range []Collection{Keys, Videos} {
		objects := 0
		for range s.All(t.Context(), collection) {
			if objects++; objects == 3 {
				break
			}
		}
		if objects != 3 {
			t.Errorf("All(%s) stopped after %d objects", collection, objects)
		}
	}
}

// lastShard is the last folder of the videos k0, k1, … so many.
func lastShard(n int) string {
	var shards []string
	for i := range n {
		shards = append(shards, path.Base(path.Dir(objectPath(named(Videos, fmt.Sprint("k", i))))))
	}
	return slices.Max(shards)
}

// A file that is renamed while a folder is listed ends the listing of
// certmagic.FileStorage with fs.ErrNotExist, and temporary files sort first. To
// take that for an empty folder would forget every key and every revocation.
func TestFileThatVanishesWhileItsFolderIsListed(t *testing.T) {
	vanished := &fs.PathError{Op: "lstat", Path: "/storage/signed_playback/keys/1827364509", Err: syscall.ENOENT}
	for _, collection := range []Collection{Keys, Videos} {
		for _, tc := range []struct {
			name  string
			times int
		}{{"once", 1}, {"again and again", 1 << 30}} {
			t.Run(string(collection)+" "+tc.name, func(t *testing.T) {
				storage := newMemStorage()
				s := quiet(storage)
				want := make(map[string]string)
				for i := range 10 {
					id := fmt.Sprint("k", i)
					write(t, s, named(collection, id), "1")
					want[id] = "1"
				}
				left := tc.times
				storage.intercept(func(operation, _ string) error {
					if operation == "list" && left > 0 {
						left--
						return vanished
					}
					return nil
				})
				found := make(map[string]string)
				for object, err := range s.All(t.Context(), collection) {
					if err != nil {
						return // that something is missing is said
					}
					found[object.Name.ID()] = string(object.Data)
				}
				if diff := cmp.Diff(want, found); diff != "" {
					t.Errorf("All(%s) says nothing of what is missing (-want +got):\n%s", collection, diff)
				}
			})
		}
	}
}

// The same on a real file system: while one node writes, another one that lists
// the keys finds all of them, each time.
func TestListingBesideWrites(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	writer, reader := quiet(storage), quiet(storage)
	for i := range 20 {
		write(t, writer, named(Keys, fmt.Sprint("k", i)), "0")
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				_ = tryWrite(context.WithoutCancel(ctx), writer, named(Keys, fmt.Sprint("k", w)), strconv.Itoa(n))
			}
		})
	}
	for range 300 {
		found := 0
		for _, err := range reader.All(t.Context(), Keys) {
			if err != nil {
				found = 20 // that something is missing is said
				break
			}
			found++
		}
		if found != 20 {
			t.Errorf("a listing beside writes finds %d of 20 keys and no error", found)
			break
		}
	}
	stop()
	wg.Wait()
}

// What a process that was killed has left half written is removed when it is
// old enough to belong to nobody, and nothing else is.
func TestAbandonedTemporaryFilesAreSwept(t *testing.T) {
	for kind, storage := range storages(t) {
		t.Run(kind, func(t *testing.T) {
			s := quiet(storage)
			write(t, s, named(Keys, "k"), "1")
			write(t, s, named(Videos, "v"), "1")
			shard := path.Dir(objectPath(named(Videos, "v")))
			files := map[string]struct {
				age  time.Duration
				kept bool
			}{
				root + "/keys/1827364509":     {2 * time.Hour, false},
				shard + "/99":                 {2 * time.Hour, false},
				root + "/changes/55":          {2 * time.Hour, false},
				root + "/keys/123":            {59 * time.Minute, true},
				root + "/keys/123.json":       {2 * time.Hour, true},
				root + "/keys/x123":           {2 * time.Hour, true},
				root + "/keys/README":         {2 * time.Hour, true},
				root + "/keys/777/x-a.json":   {2 * time.Hour, true}, // in a folder
				"certificates/1827364509":     {2 * time.Hour, true},
				root + "/other/1827364509":    {2 * time.Hour, true},
				objectPath(named(Keys, "12")): {2 * time.Hour, true},
			}
			for file, f := range files {
				if err := storage.Store(t.Context(), file, []byte("x")); err != nil {
					t.Fatal(err)
				}
				if m, ok := storage.(*memStorage); ok {
					m.age(file, f.age)
					continue
				}
				old := time.Now().Add(-f.age)
				if err := os.Chtimes(storage.(*certmagic.FileStorage).Filename(file), old, old); err != nil {
					t.Fatal(err)
				}
			}
			all(t, s, Keys)
			all(t, s, Videos)
			if _, _, err := s.Changes(t.Context()); err != nil {
				t.Fatal(err)
			}
			for file, f := range files {
				if storage.Exists(t.Context(), file) != f.kept {
					t.Errorf("%s of %s is kept: %t, want %t", file, f.age, !f.kept, f.kept)
				}
			}
		})
	}
}

// A file that cannot be swept is somebody else's trouble: the collection is
// read all the same.
func TestSweepingMayFail(t *testing.T) {
	for _, operation := range []string{"stat", "delete"} {
		storage := newMemStorage()
		core, logs := observer.New(zapcore.WarnLevel)
		s := NewCaddy(storage, zap.New(core))
		write(t, s, named(Keys, "k"), "1")
		storage.put(root+"/keys/1827364509", nil)
		storage.age(root+"/keys/1827364509", 2*time.Hour)
		storage.intercept(failOn(operation, "1827364509", errors.New("read-only")))
		wantAll(t, s, Keys, map[string]string{"k": "1"})
		if want := map[string]int{"stat": 0, "delete": 1}[operation]; logs.Len() != want {
			t.Errorf("%s fails: %d warnings, want %d", operation, logs.Len(), want)
		}
	}
}

// tree returns a digest of every file below a folder.
func tree(t *testing.T, folder string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(folder, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(file)
		name := strings.TrimPrefix(file, folder+"/")
		if !strings.HasPrefix(name, root+"/changes/") && !strings.HasPrefix(name, "locks/") {
			found[name] = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A4: Caddy's file storage removes whole trees. Removing an object removes its
// file, whatever the object is called, and Caddy's own files stay.
func TestDeleteRemovesOneFile(t *testing.T) {
	folder := t.TempDir()
	storage := &certmagic.FileStorage{Path: folder}
	s := quiet(storage)
	for _, file := range []string{"certificates/a/a.crt", "acme/x.json", "last_clean.json", "signed_playback.json", root + "/keys.json"} {
		if err := storage.Store(t.Context(), file, []byte("Caddy's")); err != nil {
			t.Fatal(err)
		}
	}
	var names []Name
	for _, collection := range []Collection{Keys, Videos, Signing} {
		for _, id := range []string{"a", "A", "ab", "...", ".a", "locks", "x-a", "CON", "keys", "..a"} {
			names = append(names, named(collection, id))
		}
	}
	for _, name := range names {
		write(t, s, name, `"`+name.String()+`"`)
	}
	before := tree(t, folder)
	for _, name := range names {
		delete(before, objectPath(name))
		write(t, s, name, "")
		write(t, s, name, "") // of what is not there
		if diff := cmp.Diff(before, tree(t, folder)); diff != "" {
			t.Fatalf("removing %s has changed other files (-want +got):\n%s", name, diff)
		}
	}
}

// A change that changes nothing must not cost a write, nor wake the fleet.
func TestUnchangedDataIsNotWritten(t *testing.T) {
	storage := newMemStorage()
	s := quiet(storage)
	for _, collection := range []Collection{Keys, Videos} {
		write(t, s, named(collection, "there"), `{"a":1}`)
	}
	if _, _, err := s.Changes(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-s.Wake()
	writes := 0
	storage.intercept(func(operation, _ string) error {
		if operation == "store" || operation == "delete" {
			writes++
		}
		return nil
	})
	refused := errors.New("refused")
	for _, collection := range []Collection{Keys, Videos} {
		write(t, s, named(collection, "there"), `{"a":1}`)
		write(t, s, named(collection, "gone"), "")
		for _, id := range []string{"there", "gone"} {
			err := s.Update(t.Context(), named(collection, id), func(Object) ([]byte, error) { return []byte("2"), refused })
			if err != refused { //nolint:errorlint // as it is
				t.Errorf("Update = %v, want the error of the change as it is", err)
			}
		}
	}
	if writes != 0 {
		t.Errorf("%d writes, want none", writes)
	}
	wantChanges(t, s, true)
	wantNoWake(t, s)
	for _, data := range []string{"no JSON", ""} {
		err := s.Update(t.Context(), named(Keys, "k"), func(Object) ([]byte, error) { return []byte(data), nil })
		if err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("Update with %q, which is no JSON = %v", data, err)
		}
	}
	wantObject(t, s, named(Keys, "k"), "")
}

// What is gone already is removed: some storages say so.
func TestRemovingWhatHasJustVanished(t *testing.T) {
	storage := newMemStorage()
	s := quiet(storage)
	write(t, s, named(Videos, "v"), "1")
	storage.intercept(failOn("delete", "x-v", &fs.PathError{Op: "remove", Path: "x", Err: fs.ErrNotExist}))
	write(t, s, named(Videos, "v"), "")
}

// S5: a full disk must not change anything, neither what is read nor what is
// told.
func TestFailedWriteChangesNothing(t *testing.T) {
	for _, collection := range []Collection{Keys, Videos} {
		storage := newMemStorage()
		s, other := quiet(storage), quiet(storage)
		there, gone := named(collection, "there"), named(collection, "gone")
		write(t, s, there, "1")
		for _, store := range []*Caddy{s, other} {
			if _, _, err := store.Changes(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
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
		wantChanges(t, s, true)
		wantChanges(t, other, true)
		storage.intercept(nil)
		write(t, s, there, "3") // nothing holds a place or a lock
		wantObject(t, other, there, "3")
		wantChanges(t, other, true, there)
	}
}

// A change that other nodes will not hear of must not be one: it is taken back,
// and the caller is told that it has failed.
func TestChangeThatCannotBeAnnouncedIsUndone(t *testing.T) {
	full := func(operation, key string) error {
		if operation == "store" && strings.Contains(key, "/changes/") {
			return syscall.ENOSPC
		}
		return nil
	}
	for _, tc := range []struct {
		name          string
		collection    Collection
		before, after string
	}{
		{"creation", Videos, "", "2"},
		{"change", Videos, "1", "2"},
		{"removal", Videos, "1", ""},
		{"creation of a key", Keys, "", "2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storage := newMemStorage()
			s := quiet(storage)
			name := named(tc.collection, "x")
			write(t, s, name, tc.before)
			before := storage.content()
			storage.intercept(full)
			wantUnavailable(t, "Update that cannot be announced", tryWrite(t.Context(), s, name, tc.after))
			storage.intercept(nil)
			if diff := cmp.Diff(before, storage.content()); diff != "" {
				t.Errorf("the change is not undone (-want +got):\n%s", diff)
			}
			wantObject(t, quiet(storage), name, tc.before)
			write(t, s, name, "3")
			wantObject(t, quiet(storage), name, "3")
		})
	}
}

// What was damaged before such a change does not become an object that does not
// exist, for that would open a private video.
func TestUndoingDoesNotRemoveWhatWasDamaged(t *testing.T) {
	storage := newMemStorage()
	s := quiet(storage)
	name := named(Videos, "v")
	storage.put(objectPath(name), []byte("broken"))
	storage.intercept(failOn("store", "/changes/", syscall.ENOSPC))
	wantUnavailable(t, "Update", tryWrite(t.Context(), s, name, `{"private":true}`))
	storage.intercept(nil)
	if !storage.has(objectPath(name)) {
		t.Error("the damaged object is gone")
	}
}

// A change that can be neither announced nor undone is one that an operator has
// to hear of, by its name.
func TestChangeThatCannotBeUndoneIsLogged(t *testing.T) {
	storage := newMemStorage()
	core, logs := observer.New(zapcore.ErrorLevel)
	s := NewCaddy(storage, zap.New(core))
	failing := false
	storage.intercept(func(operation, key string) error {
		if operation == "store" && strings.Contains(key, "/changes/") {
			failing = true
		}
		if failing && (operation == "store" || operation == "delete") {
			return syscall.EROFS
		}
		return nil
	})
	wantUnavailable(t, "Update", tryWrite(t.Context(), s, named(Videos, "v"), "1"))
	if logs.Len() != 1 || logs.All()[0].ContextMap()["object"] != "videos/v" {
		t.Errorf("the log says %v, want one entry of videos/v", logs.All())
	}
}

// Keys are not locked for the whole fleet, so the node that undoes its change
// may undo another node's that was acknowledged meanwhile. A revocation that
// was acknowledged is never taken back.
func TestUndoingTakesBackNoAcknowledgedRevocation(t *testing.T) {
	for _, tc := range []struct{ name, second string }{
		{"the same revocation on both nodes", `"revoked"`},
		{"two revocations", `"revoked later"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storage := newMemStorage()
			a, b := quiet(storage), quiet(storage)
			key := named(Keys, "k")
			write(t, a, key, `"live"`)
			storage.intercept(func(operation, file string) error {
				if operation != "store" || file != a.journal.path() {
					return nil
				}
				// The other node's call, while this one cannot announce its own.
				if err := tryWrite(t.Context(), b, key, tc.second); err != nil {
					t.Errorf("Update on the other node = %v", err)
				}
				return syscall.EIO
			})
			wantUnavailable(t, "Update that cannot be announced", tryWrite(t.Context(), a, key, `"revoked"`))
			storage.intercept(nil)
			object, err := b.Get(t.Context(), key)
			if err != nil || !strings.HasPrefix(string(object.Data), `"revoked`) {
				t.Errorf("the key is %s, %v after its revocation was acknowledged", object.Data, err)
			}
		})
	}
}

// S4: what is under an object's name and cannot be read is this object's damage
// alone. It can be replaced and removed.
func TestDamagedObjectsInFiles(t *testing.T) {
	damage := map[string]func(file string) error{
		"empty":           func(file string) error { return os.WriteFile(file, nil, 0o600) },
		"cut off":         func(file string) error { return os.Truncate(file, 30) },
		"a bit flipped":   func(file string) error { return flip(file, 100) },
		"of another name": func(file string) error { return os.Rename(filepath.Join(filepath.Dir(file), "x-other.json"), file) },
		"a folder": func(file string) error {
			return errors.Join(os.Remove(file), os.Mkdir(file, 0o700), os.WriteFile(filepath.Join(file, "x"), nil, 0o600))
		},
		"a link to itself": func(file string) error { return errors.Join(os.Remove(file), os.Symlink(file, file)) },
	}
	for what, damage := range damage {
		t.Run(what, func(t *testing.T) {
			storage := &certmagic.FileStorage{Path: t.TempDir()}
			s := quiet(storage)
			broken, other, good := named(Keys, "broken"), named(Keys, "other"), named(Keys, "good")
			for _, name := range []Name{broken, other, good} {
				write(t, s, name, `{"id":"`+name.ID()+`","padding":"................................"}`)
			}
			want := all(t, s, Keys)
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

func flip(file string, position int) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	data[position] ^= 4
	return os.WriteFile(file, data, 0o600)
}

// Which errors of a storage are of one object, and which of all of it: the
// first must not take the store down, the second must not count as "there is no
// such object".
func TestErrorsOfTheStorage(t *testing.T) {
	for _, tc := range []struct {
		err    error
		damage bool
	}{
		{fs.ErrPermission, true},
		{syscall.EACCES, true},
		{syscall.EISDIR, true},
		{syscall.ENOTDIR, false}, // something is in the place of the folder
		{syscall.ELOOP, true},
		{syscall.EIO, true},
		{syscall.EMFILE, false},
		{syscall.ESTALE, false},
		{syscall.ETIMEDOUT, false},
		{context.DeadlineExceeded, false},
		{errors.New("connection refused"), false},
	} {
		t.Run(tc.err.Error(), func(t *testing.T) {
			storage := newMemStorage()
			s := quiet(storage)
			name := named(Videos, "v")
			write(t, s, name, "1")
			storage.intercept(failOn("load", "x-v", &fs.PathError{Op: "open", Path: "x", Err: tc.err}))
			object, err := s.Get(t.Context(), name)
			switch {
			case object.Data != nil || !errors.Is(errors.Join(object.Damage, err), tc.err):
				t.Errorf("Get = %q, %v, %v", object.Data, object.Damage, err)
			case tc.damage && (!errors.Is(object.Damage, ErrDamaged) || err != nil):
				t.Errorf("Get = damage %v, %v, want the object damaged", object.Damage, err)
			case !tc.damage && (object.Damage != nil || !errors.Is(err, ErrUnavailable)):
				t.Errorf("Get = damage %v, %v, want ErrUnavailable", object.Damage, err)
			}
			called := false
			err = s.Update(t.Context(), name, func(Object) ([]byte, error) { called = true; return []byte("2"), nil })
			if called != tc.damage || (err == nil) != tc.damage {
				t.Errorf("Update = %v, change called: %t", err, called)
			}
		})
	}
}

// held are operations of the storage that hang until the test lets them go on.
type held struct {
	mu      sync.Mutex
	release chan struct{}
	present int
	most    int
}

// hold makes a storage hang in the operations that match says.
func hold(m *memStorage, match func(operation, key string) bool) *held {
	h := &held{release: make(chan struct{})}
	m.intercept(func(operation, key string) error {
		if !match(operation, key) {
			return nil
		}
		h.count(1)
		defer h.count(-1)
		<-h.release
		return nil
	})
	return h
}

// peak returns how many have hung at once.
func (h *held) peak() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most
}

func (h *held) count(by int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.present += by
	h.most = max(h.most, h.present)
}

// S6: a storage on a network file system that hangs and heeds no context. Each
// call ends when its caller's patience does.
func TestHangingStorage(t *testing.T) {
	get := func(ctx context.Context, s *Caddy) error { _, err := s.Get(ctx, named(Videos, "v")); return err }
	update := func(ctx context.Context, s *Caddy) error { return tryWrite(ctx, s, named(Videos, "v"), "2") }
	remove := func(ctx context.Context, s *Caddy) error { return tryWrite(ctx, s, named(Videos, "v"), "") }
	list := func(collection Collection) func(context.Context, *Caddy) error {
		return func(ctx context.Context, s *Caddy) error {
			for _, err := range s.All(ctx, collection) {
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	changes := func(ctx context.Context, s *Caddy) error { _, _, err := s.Changes(ctx); return err }
	for _, tc := range []struct {
		name, operation, key string
		call                 func(context.Context, *Caddy) error
	}{
		{"Get", "load", "x-v", get},
		{"Update waits for the lock", "lock", "", update},
		{"Update reads", "load", "x-v", update},
		{"Update writes", "store", "x-v", update},
		{"Update announces", "store", "changes", update},
		{"Update gives up the lock", "unlock", "", update},
		{"removal", "delete", "x-v", remove},
		{"All lists", "list", "keys", list(Keys)},
		{"All lists the folders", "list", "videos", list(Videos)},
		{"All reads", "load", "x-v", list(Videos)},
		{"Changes lists", "list", "changes", changes},
		{"Changes reads", "load", "changes", changes},
		{"Changes looks at an old journal", "stat", "changes", changes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := newMemStorage()
				write(t, quiet(storage), named(Videos, "v"), "1") // by another node
				s := quiet(storage)
				h := hold(storage, func(operation, key string) bool { return operation == tc.operation && strings.Contains(key, tc.key) })
				const patience = 800 * time.Millisecond
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				err := tc.call(ctx, s)
				if tc.operation == "stat" && err == nil {
					err = ErrUnavailable // what cannot be swept is not what was asked for
				}
				wantUnavailable(t, tc.name, err)
				if waited := time.Since(start); waited != patience {
					t.Errorf("%s took %s, want %s", tc.name, waited, patience)
				}
				if h.peak() == 0 {
					t.Errorf("%s does not do what the test holds up", tc.name)
				}
				storage.intercept(nil)
				close(h.release)
				synctest.Wait()
				if err := tc.call(t.Context(), s); err != nil {
					t.Errorf("%s after the storage goes on = %v", tc.name, err)
				}
			})
		})
	}
}

// A write that the storage ends late is announced all the same, though nobody
// waits for it any more: what is changed must become known.
func TestLateWriteIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		a, b := quiet(storage), quiet(storage)
		write(t, a, named(Videos, "other"), "1")
		if _, _, err := b.Changes(t.Context()); err != nil {
			t.Fatal(err)
		}
		h := hold(storage, func(operation, key string) bool { return operation == "store" && strings.Contains(key, "x-v.json") })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantUnavailable(t, "Update", tryWrite(ctx, a, named(Videos, "v"), "1"))
		wantChanges(t, b, true)
		storage.intercept(nil)
		close(h.release)
		synctest.Wait()
		wantObject(t, b, named(Videos, "v"), "1")
		wantChanges(t, b, true, named(Videos, "v"))
	})
}

// A storage that hangs for good costs a bounded number of goroutines, however
// many ask, and writes cannot take the places of reads.
func TestHangingStorageCostsFewGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		s := quiet(storage)
		write(t, s, named(Keys, "k"), "1")
		reads := hold(storage, func(operation, _ string) bool { return operation == "load" })
		var wg sync.WaitGroup
		failed := make(chan error, 300)
		for i := range 300 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if i < 200 {
					_, err := s.Get(ctx, named(Keys, fmt.Sprint("k", i)))
					failed <- err
					return
				}
				failed <- tryWrite(ctx, s, named(Keys, fmt.Sprint("k", i)), "1")
			})
		}
		wg.Wait()
		close(failed)
		for err := range failed {
			wantUnavailable(t, "a call of a storage that hangs", err)
		}
		// Nobody gets a place, and whoever waits for one gives up in time.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Get(ctx, named(Keys, "k"))
		wantUnavailable(t, "Get", err)
		if got := reads.peak(); got > maxReads+maxWrites || got <= maxReads {
			t.Errorf("%d operations hang, want those of %d reads and %d writes at most", got, maxReads, maxWrites)
		}
		storage.intercept(nil)
		close(reads.release)
		synctest.Wait()
		wantObject(t, s, named(Keys, "k"), "1") // every place is given back
		for i := range 2 * (maxReads + maxWrites) {
			write(t, s, named(Keys, "k"), strconv.Itoa(i))
		}
	})
}

// S2: another node holds the lock of an object, or has died holding it. The
// caller hears in time that it is this object alone, and revocations of keys do
// not wait for any lock.
func TestLockHeldByAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		s := quiet(storage)
		holding := make(chan struct{})
		storage.intercept(func(operation, name string) error {
			if operation == "lock" {
				<-holding
			}
			return nil
		})
		close(holding)
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
		write(t, s, named(Videos, "w"), "1") // others are not concerned
		write(t, s, named(Keys, "v"), `"revoked"`)
		if err := storage.Unlock(t.Context(), "signed_playback_videos_v"); err != nil {
			t.Fatal(err)
		}
		write(t, s, named(Videos, "v"), "2")
		wantObject(t, s, named(Videos, "v"), "2")
	})
}

// The lock of one key's object, in whatever shape a dead node has left it, does
// not hold up its revocation.
func TestRevocationsWaitForNoLock(t *testing.T) {
	storage := newMemStorage()
	s := quiet(storage)
	storage.intercept(func(operation, name string) error {
		if operation == "lock" {
			t.Errorf("writing a key takes the lock %q", name)
		}
		return nil
	})
	write(t, s, named(Keys, "k"), `"live"`)
	write(t, s, named(Keys, "k"), `"revoked"`)
}

// The lock is taken soon after it has been given up, though some storages look
// only once a second, and an error over a lock that is just being written is not
// the end.
func TestLockIsAskedForAgain(t *testing.T) {
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
			t.Errorf("Update took %s, and the lock was given up after %s", waited, busy)
		}
		// An error that stays is reported for what it is.
		storage.intercept(failOn("lock", "", errors.New("locks are broken")))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantUnavailable(t, "Update", tryWrite(ctx, s, named(Videos, "v"), "3"))
		wantObject(t, s, named(Videos, "v"), "2")
		<-time.After(2 * finishTimeout) // until nobody tries any more
	})
}

// S3: waiting for a lock in vain must not end in taking it from a node that
// holds it and is alive: then two would write at once, and one acknowledged
// change would be lost. An error over a lock that is just being refreshed says
// nothing about its owner.
func TestLockOfALivingNodeIsNotBroken(t *testing.T) {
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
			if operation == "lock" {
				if attempts.Add(1)%4 != 0 {
					return errors.New("decoding lockfile contents: unexpected EOF")
				}
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

// A lock file of FileStorage whose owner is alive, or has died a moment ago, is
// respected.
func TestLockFileIsRespected(t *testing.T) {
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

// The lock is given up however a change ends, and one that cannot be given up
// is logged: nobody else can change the object until it has run out.
func TestLockIsGivenUp(t *testing.T) {
	storage := newMemStorage()
	core, logs := observer.New(zapcore.WarnLevel)
	s := NewCaddy(storage, zap.New(core))
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
		"after an error of the log":   failOn("store", "changes", broken),
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
	if logs.Len() != 1 || logs.All()[0].ContextMap()["object"] != "videos/v" {
		t.Errorf("the log says %v, want one entry of videos/v", logs.All())
	}
}

// S3: two nodes on one file storage that change the same object at the same
// time. Each sees what the other has written.
func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	name := named(Videos, "counter")
	var wg sync.WaitGroup
	const writers, rounds = 4, 8
	nodes := []*Caddy{quiet(storage), quiet(storage)}
	for i := range writers {
		wg.Go(func() {
			for range rounds {
				err := nodes[i%len(nodes)].Update(t.Context(), name, func(present Object) ([]byte, error) {
					n := 0
					if present.Data != nil {
						if err := json.Unmarshal(present.Data, &n); err != nil {
							return nil, err
						}
					}
					return strconv.AppendInt(nil, int64(n+1), 10), present.Damage
				})
				if err != nil {
					t.Errorf("Update = %v", err)
				}
			}
		})
	}
	wg.Wait()
	wantObject(t, nodes[0], name, strconv.Itoa(writers*rounds))
	for _, node := range nodes {
		if _, _, err := node.Changes(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// On one node, two changes of a key see each other too, though keys are not
// locked for the fleet.
func TestConcurrentUpdatesOfAKeyOnOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemStorage()
		storage.intercept(func(string, string) error { <-time.After(time.Millisecond); return nil })
		s := quiet(storage)
		name := named(Keys, "counter")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				err := s.Update(t.Context(), name, func(present Object) ([]byte, error) {
					n, _ := strconv.Atoi(string(present.Data))
					return strconv.AppendInt(nil, int64(n+1), 10), nil
				})
				if err != nil {
					t.Errorf("Update = %v", err)
				}
			})
		}
		wg.Wait()
		wantObject(t, s, name, "20")
	})
}

// A caller who has left before anything began changes nothing.
func TestCallsOfWhoHasLeft(t *testing.T) {
	storage := newMemStorage()
	s := quiet(storage)
	write(t, s, named(Keys, "k"), "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 { // either end of a select may come first
		if _, err := s.Get(ctx, named(Keys, "k")); err != nil {
			wantUnavailable(t, "Get", err)
		}
		if err := tryWrite(ctx, s, named(Videos, "v"), "1"); err != nil {
			wantUnavailable(t, "Update", err)
		}
	}
}

// A network folder that is no longer mounted leaves an empty one behind. Taken
// for a store without settings, it would open private videos; taken for one
// without keys, it would be an outage that nobody is told of.
func TestHostileStorageVanishes(t *testing.T) {
	for name, know := range map[string]func(t *testing.T, storage *memStorage, s *Caddy){
		"a node that has written":       func(t *testing.T, _ *memStorage, s *Caddy) { write(t, s, named(Videos, "private"), "1") },
		"a node that has read":          func(t *testing.T, _ *memStorage, s *Caddy) { _, _ = s.Get(t.Context(), named(Videos, "private")) },
		"a node that knows of journals": func(t *testing.T, _ *memStorage, s *Caddy) { _, _, _ = s.Changes(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			storage := newMemStorage()
			write(t, quiet(storage), named(Videos, "private"), "1")
			s := quiet(storage)
			know(t, storage, s)
			storage.mu.Lock()
			files := storage.files
			storage.files = make(map[string]memFile)
			storage.mu.Unlock()
			if object, err := s.Get(t.Context(), named(Videos, "private")); !errors.Is(err, ErrUnavailable) {
				t.Errorf("Get = %v, %v, want %v", object, err, ErrUnavailable)
			}
			if _, _, err := s.Changes(t.Context()); !errors.Is(err, ErrUnavailable) {
				t.Errorf("Changes fails with %v, want %v", err, ErrUnavailable)
			}
			for _, err := range s.All(t.Context(), Videos) {
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("All fails with %v, want %v", err, ErrUnavailable)
				}
			}
			storage.mu.Lock()
			storage.files = files
			storage.mu.Unlock()
			if object, err := s.Get(t.Context(), named(Videos, "private")); err != nil || object.Data == nil {
				t.Errorf("Get = %v, %v when it is mounted again", object, err)
			}
			if _, _, err := s.Changes(t.Context()); err != nil {
				t.Errorf("Changes fails with %v when it is mounted again", err)
			}
		})
	}
	t.Run("a new storage", func(t *testing.T) {
		s := quiet(newMemStorage())
		for range 2 {
			if _, _, err := s.Changes(t.Context()); err != nil {
				t.Errorf("Changes fails with %v, want nothing", err)
			}
			if object, err := s.Get(t.Context(), named(Keys, "none")); err != nil || object.Data != nil {
				t.Errorf("Get = %v, %v, want nothing", object, err)
			}
		}
	})
}
