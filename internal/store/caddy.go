package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"iter"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

const (
	root = "signed_playback"

	// How many operations of a storage may be under way at once. One that
	// hangs holds its place, so a storage that hangs for good costs this many
	// goroutines and no more.
	maxReads  = 64
	maxWrites = 16

	// finishTimeout is how long a write that has begun may take to end, however
	// little time its caller has left.
	finishTimeout = 30 * time.Second

	lockRetry = 50 * time.Millisecond

	// maxListings is how often a folder is listed again because it changed
	// meanwhile.
	maxListings = 100
)

// Caddy keeps objects in Caddy's own storage, be it files or what a plugin
// offers. Every object is a file of its own:
//
//	signed_playback/keys/<id>.json
//	signed_playback/videos/<2 hexadecimal digits>/<id>.json
//	signed_playback/signing/<id>.json
//	signed_playback/changes/<node>.json
//
// A storage tells nobody what changes in it. So each node writes down what it
// has changed in a file of its own, where no two writers meet, and reads those
// of the others.
type Caddy struct {
	storage certmagic.Storage
	logger  *zap.Logger
	reads   slots
	writes  slots
	writers [64]slots // one writer at a time for the names of one hash
	seed    maphash.Seed
	journal *journal
	stuck   sync.Map                // locks that are being cleared, by name
	seen    atomic.Bool             // that there is something in the storage
	others  map[string]otherJournal // by path; for the caller of Changes only
}

// NewCaddy returns a Store on a Caddy storage. It does not touch the storage.
func NewCaddy(storage certmagic.Storage, logger *zap.Logger) *Caddy {
	s := &Caddy{
		storage: storage,
		logger:  logger,
		reads:   make(slots, maxReads),
		writes:  make(slots, maxWrites),
		seed:    maphash.MakeSeed(),
	}
	for i := range s.writers {
		s.writers[i] = make(slots, 1)
	}
	node := make([]byte, 8)
	_, _ = rand.Read(node) // never fails
	s.journal = newJournal(hex.EncodeToString(node))
	return s
}

// Get implements Store.
func (s *Caddy) Get(ctx context.Context, name Name) (Object, error) {
	return await(ctx, s.reads, func() (Object, error) { return s.load(ctx, name) })
}

func (s *Caddy) load(ctx context.Context, name Name) (Object, error) {
	raw, err := s.storage.Load(ctx, objectPath(name))
	switch {
	case err == nil:
		s.seen.Store(true)
		return unseal(name, raw), nil
	case errors.Is(err, fs.ErrNotExist):
		return Object{Name: name}, s.stillThere(ctx)
	case ofOneFile(err):
		return Object{Name: name, Damage: fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)}, nil
	}
	return Object{}, fmt.Errorf("%w: reading %s: %w", ErrUnavailable, name, err)
}

// stillThere tells a storage that has nothing of a name from one that has
// vanished, as a network folder does that is no longer mounted: the empty folder
// in its place would make every video one without settings.
func (s *Caddy) stillThere(ctx context.Context) error {
	if !s.seen.Load() {
		return nil
	}
	entries, err := s.storage.List(ctx, root, false)
	if len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // what else is wrong, the caller has met or will meet
	}
	return errVanished
}

var errVanished = fmt.Errorf("%w: the storage was not empty before, and is now; if it is no longer mounted, mount it, and if it was emptied on purpose, restart the server", ErrUnavailable)

// ofOneFile reports whether an error of a file system says something about one
// file rather than about all of them.
func ofOneFile(err error) bool {
	for _, own := range []error{fs.ErrPermission, syscall.EISDIR, syscall.ELOOP, syscall.EIO} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// Update implements Store.
func (s *Caddy) Update(ctx context.Context, name Name, change Change) error {
	_, err := await(ctx, s.writes, func() (struct{}, error) { return struct{}{}, s.update(ctx, name, change) })
	return err
}

func (s *Caddy) update(ctx context.Context, name Name, change Change) error {
	release, err := s.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	present, err := s.load(ctx, name)
	if err != nil {
		return err
	}
	data, err := change(present)
	if err != nil || unchanged(present, data) {
		return err
	}
	// From here on the caller's patience does not count: a change that is made
	// has to be announced.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	if err := s.write(ctx, name, data); err != nil {
		return err
	}
	if err := s.announce(ctx, name); err != nil {
		s.undo(ctx, present)
		return err
	}
	return nil
}

// undo takes back a change that could not be announced, as far as that is
// possible. What was damaged before stays overwritten: it must not become an
// object that does not exist, which would mean something else. And a key that
// was there before stays revoked, for another node may have revoked it, too,
// and said so.
func (s *Caddy) undo(ctx context.Context, present Object) {
	if present.Damage != nil || present.Name.collection == Keys && present.Data != nil {
		return
	}
	if err := s.write(ctx, present.Name, present.Data); err != nil {
		s.logger.Error("a change is made, but could neither be announced nor undone; other nodes learn of it with the next change",
			zap.Stringer("object", present.Name), zap.Error(err))
	}
}

// unchanged reports whether there is nothing to write.
func unchanged(present Object, data []byte) bool {
	return present.Damage == nil && (present.Data == nil) == (data == nil) && bytes.Equal(present.Data, data)
}

// write makes data the content of an object, durably; nil removes it.
func (s *Caddy) write(ctx context.Context, name Name, data []byte) error {
	if data == nil {
		if err := s.storage.Delete(ctx, objectPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: removing %s: %w", ErrUnavailable, name, err)
		}
		return nil
	}
	raw, err := seal(name, data)
	if err != nil {
		return err
	}
	if err := s.storage.Store(ctx, objectPath(name), raw); err != nil {
		return fmt.Errorf("%w: writing %s: %w", ErrUnavailable, name, err)
	}
	return nil
}

// acquire makes the caller the only writer of an object: first on this node,
// then on all.
//
// Keys are not locked on all nodes. Their objects are made once, under an id
// that nobody else has, and then only ever revoked, which nobody takes back: two
// writers cannot lose anything. And a revocation must not wait for the lock of
// a node that has died.
func (s *Caddy) acquire(ctx context.Context, name Name) (release func(), err error) {
	here := s.writers[maphash.Comparable(s.seed, name)%uint64(len(s.writers))]
	if err := here.take(ctx); err != nil {
		return nil, err
	}
	if name.collection == Keys {
		return here.give, nil
	}
	lock := root + "_" + string(name.collection) + "_" + name.id
	if err := s.lock(ctx, lock); err != nil {
		here.give()
		return nil, err
	}
	return func() {
		defer here.give()
		if err := s.storage.Unlock(context.WithoutCancel(ctx), lock); err != nil {
			s.logger.Warn("could not give up a lock", zap.Stringer("object", name), zap.Error(err))
		}
	}, nil
}

// lock asks again and again: some storages look only once a second whether a
// lock has been given up, and fail over one that is just being written.
func (s *Caddy) lock(ctx context.Context, lock string) error {
	if deadline, ok := ctx.Deadline(); ok {
		// The caller is to hear why, before there is no time left for it.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-lockRetry))
		defer cancel()
	}
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, lockRetry)
		err := s.storage.Lock(attempt, lock)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			go s.clearLock(context.WithoutCancel(ctx), lock)
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%w, or has died doing so; the lock %q ends by itself within a minute", ErrBusy, lock)
			}
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// clearLock takes a lock with the patience that a storage needs to find out that
// its owner has died, and gives it up. File storage breaks an empty lock, which a
// full disk leaves, after two seconds of waiting. And it goes on refreshing a
// lock for seconds after giving it up, even if it is then somebody else's who
// has died; but no write takes longer than this waits.
func (s *Caddy) clearLock(ctx context.Context, lock string) {
	if _, already := s.stuck.LoadOrStore(lock, struct{}{}); already {
		return
	}
	defer s.stuck.Delete(lock)
	ctx, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	for err := s.storage.Lock(ctx, lock); err != nil; err = s.storage.Lock(ctx, lock) {
		// Another error says nothing about the owner, who may be alive.
		if ctx.Err() != nil {
			s.logger.Warn("breaking a lock that nobody has given up in time", zap.String("lock", lock), zap.Error(err))
			break
		}
		select {
		case <-time.After(lockRetry):
		case <-ctx.Done():
		}
	}
	if err := s.storage.Unlock(context.WithoutCancel(ctx), lock); err != nil {
		s.logger.Warn("could not give up a lock", zap.String("lock", lock), zap.Error(err))
	}
}

// All implements Store.
func (s *Caddy) All(ctx context.Context, collection Collection) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		folders, err := s.folders(ctx, collection)
		if err != nil {
			yield(Object{}, err)
			return
		}
		for _, folder := range folders {
			if !s.allIn(ctx, collection, folder, yield) {
				return
			}
		}
	}
}

// folders returns where the objects of a collection are.
func (s *Caddy) folders(ctx context.Context, collection Collection) ([]string, error) {
	folder := path.Join(root, string(collection))
	if collection != Videos {
		return []string{folder}, nil
	}
	entries, err := s.list(ctx, folder)
	if err != nil {
		return nil, err
	}
	// Some storages list what is in the folders, rather than them.
	known := make(map[string]bool)
	var folders []string
	for _, entry := range entries {
		shard, _, _ := strings.Cut(strings.TrimPrefix(entry, folder+"/"), "/")
		if shardName.MatchString(shard) && !known[shard] {
			known[shard] = true
			folders = append(folders, path.Join(folder, shard))
		}
	}
	return folders, nil
}

var shardName = regexp.MustCompile(`^[0-9a-f]{2}$`)

func (s *Caddy) allIn(ctx context.Context, collection Collection, folder string, yield func(Object, error) bool) bool {
	files, err := s.list(ctx, folder)
	if err != nil {
		return yield(Object{}, err)
	}
	for _, file := range files {
		name, ok := nameOfPath(collection, file)
		if !ok {
			s.sweep(ctx, file)
			continue
		}
		object, err := s.Get(ctx, name)
		if !yield(object, err) || err != nil {
			return false
		}
	}
	return true
}

// list returns what is in a folder, which need not exist.
func (s *Caddy) list(ctx context.Context, folder string) ([]string, error) {
	return await(ctx, s.reads, func() ([]string, error) {
		for attempt := 1; ; attempt++ {
			entries, err := s.storage.List(ctx, folder, false)
			switch {
			case err == nil && len(entries) > 0:
				s.seen.Store(true)
				return entries, nil
			case err == nil:
				return nil, s.stillThere(ctx)
			case !errors.Is(err, fs.ErrNotExist), attempt == maxListings, ctx.Err() != nil:
				return nil, fmt.Errorf("%w: listing %s: %w", ErrUnavailable, folder, err)
			}
			// File storage also says so, and returns a part of the list, when
			// a file vanishes meanwhile: one that somebody is just writing
			// under a temporary name. What is missing then may be a revocation.
			_, err = s.storage.Stat(ctx, folder)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil, s.stillThere(ctx)
			case err != nil:
				return nil, fmt.Errorf("%w: looking for %s: %w", ErrUnavailable, folder, err)
			}
		}
	})
}

// abandoned is the age from which on a file that nobody has finished writing,
// or a journal that nobody continues, is removed.
const abandoned = time.Hour

var temporaryName = regexp.MustCompile(`^[0-9]+$`)

// sweep removes what a process that was killed has left behind: files that
// have not got their names yet.
func (s *Caddy) sweep(ctx context.Context, file string) {
	if temporaryName.MatchString(path.Base(file)) {
		s.removeAbandoned(ctx, file)
	}
}

func (s *Caddy) removeAbandoned(ctx context.Context, file string) {
	_, err := await(ctx, s.reads, func() (struct{}, error) {
		info, err := s.storage.Stat(ctx, file)
		if err != nil || !info.IsTerminal || time.Since(info.Modified) < abandoned {
			return struct{}{}, nil
		}
		return struct{}{}, s.storage.Delete(ctx, file)
	})
	if err != nil {
		s.logger.Warn("could not remove an abandoned file", zap.String("file", file), zap.Error(err))
	}
}

// Close implements Store.
func (s *Caddy) Close() {}

// Wake implements Store. A change that this node has made is worth looking at
// once; of the others' it hears by polling.
func (s *Caddy) Wake() <-chan struct{} { return s.journal.wake }

// objectPath returns where an object is kept.
func objectPath(name Name) string {
	folder := path.Join(root, string(name.collection))
	if name.collection == Videos {
		// One folder with a million files is slow to list on some systems.
		sum := sha256.Sum256([]byte(name.id))
		folder = path.Join(folder, hex.EncodeToString(sum[:1]))
	}
	return path.Join(folder, escape(name.id)+".json")
}

// nameOfPath is the inverse of objectPath; ok is false for a path that it does
// not return.
func nameOfPath(collection Collection, file string) (name Name, ok bool) {
	base, isJSON := strings.CutSuffix(path.Base(file), ".json")
	id, err := unescape(base)
	if err != nil || !isJSON {
		return Name{}, false
	}
	name, err = NewName(collection, id)
	return name, err == nil && objectPath(name) == file
}

// escape turns an id into a file name that means the same on every file system:
// some of them fold case, have names of their own (con, nul), or hide what
// starts with a dot. Capitals and punctuation become % and two digits, and a
// first letter is put in front.
func escape(id string) string {
	var b strings.Builder
	b.WriteString("x-")
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

var errEscape = errors.New("not an escaped id")

func unescape(s string) (string, error) {
	s, ok := strings.CutPrefix(s, "x-")
	if !ok {
		return "", errEscape
	}
	var b strings.Builder
	for len(s) > 0 {
		literal, rest, escaped := strings.Cut(s, "%")
		b.WriteString(literal)
		if !escaped {
			break
		}
		if len(rest) < 2 {
			return "", errEscape
		}
		c, err := hex.DecodeString(rest[:2])
		if err != nil {
			return "", errEscape
		}
		b.Write(c)
		s = rest[2:]
	}
	return b.String(), nil
}

// slots bounds how much is under way at once.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	default:
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: too much to do: %w", ErrUnavailable, ctx.Err())
	}
}

func (s slots) give() { <-s }

// await runs work in one of the slots and waits for it no longer than the
// context allows, because storages on network file systems hang and heed no
// context.
func await[T any](ctx context.Context, s slots, work func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if err := s.take(ctx); err != nil {
		return none, err
	}
	done := make(chan result, 1)
	go func() {
		defer s.give()
		value, err := work()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("%w: no answer: %w", ErrUnavailable, ctx.Err())
	}
}

// Interface guards
var _ Store = (*Caddy)(nil)
