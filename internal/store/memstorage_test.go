package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// memStorage is a storage whose operations a test can watch, fail and delay. Like in
// certmagic.FileStorage, List also returns folders, and Delete removes a folder with its
// content.
type memStorage struct {
	mu    sync.Mutex
	files map[string][]byte
	locks map[string]chan struct{}

	// May be nil. It is called before each operation, and its error ends it.
	step func(operation, key string) error

	// A storage without folders: it lists everything below.
	flat bool

	// How often Lock looks whether the lock has been released. 0: it knows.
	lockPoll time.Duration
}

func newMemStorage() *memStorage {
	return &memStorage{files: make(map[string][]byte), locks: make(map[string]chan struct{})}
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

func (m *memStorage) Store(ctx context.Context, key string, value []byte) error {
	if err := m.begin("store", key); err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[key] = slices.Clone(value)
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
	return slices.Clone(file), nil
}

func (m *memStorage) Delete(_ context.Context, key string) error {
	if err := m.begin("delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.files, func(file string, _ []byte) bool { return file == key || strings.HasPrefix(file, key+"/") })
	return nil
}

func (m *memStorage) Exists(_ context.Context, key string) bool {
	_, err := m.Stat(context.Background(), key)
	return err == nil
}

// List returns a part of the list with an error, as file storage does.
func (m *memStorage) List(_ context.Context, folder string, recursive bool) ([]string, error) {
	err := m.begin("list", folder)
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
	entries := slices.Sorted(maps.Keys(listed))
	switch {
	case err != nil:
		return entries[:len(entries)/2], err
	case len(entries) == 0:
		return nil, &fs.PathError{Op: "lstat", Path: folder, Err: fs.ErrNotExist}
	}
	return entries, nil
}

func (m *memStorage) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	if err := m.begin("stat", key); err != nil {
		return certmagic.KeyInfo{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if file, ok := m.files[key]; ok {
		return certmagic.KeyInfo{Key: key, Size: int64(len(file)), IsTerminal: true}, nil
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

// put makes a file that the store has not written.
func (m *memStorage) put(file string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[file] = data
}

// content returns all files but stamps.
func (m *memStorage) content() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	content := make(map[string]string)
	for file, f := range m.files {
		if !strings.HasPrefix(file, root+"/stamps/") {
			content[file] = string(f)
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

// held are operations of the storage that hang until the test releases them.
type held struct {
	mu            sync.Mutex
	release       chan struct{}
	present, most int
}

// hold makes a storage hang in operations of a kind on paths that contain part.
func hold(m *memStorage, operation, part string) *held {
	h := &held{release: make(chan struct{})}
	m.intercept(func(op, key string) error {
		if op != operation || !strings.Contains(key, part) {
			return nil
		}
		h.count(1)
		defer h.count(-1)
		<-h.release
		return nil
	})
	return h
}

// peak returns how many operations have hung at the same time.
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
