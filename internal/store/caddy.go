package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
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

	// maxReads is how many reads of a storage may be under way at once, for the callers
	// of each kind.
	maxReads = 64

	// finishTimeout is how long a write that has begun may take, also if its caller has
	// less time left.
	finishTimeout = 30 * time.Second
)

// Caddy keeps objects in Caddy's own storage: files, or what a storage plugin
// offers. Every object is a file of its own:
//
//	signed_playback/keys/<id>.json
//	signed_playback/videos/<2 hexadecimal digits>/<id>.json
//	signed_playback/signing/<id>.json
//	signed_playback/revocations/<id>.json
//	signed_playback/extensions/<id>.json
//	signed_playback/stamps/<collection>
//
// A Caddy storage has no notifications and cannot append. So each write ends with a new
// stamp of its collection, and a node that finds an unknown stamp reads the collection
// again.
type Caddy struct {
	*start
	storage func() certmagic.Storage
	logger  func() *zap.Logger
	secrets *Secrets
	calls   calls
	stuck   sync.Map    // locks that are being cleared, by name
	seen    atomic.Bool // there has been something in the storage
}

// NewCaddy returns a Store on a Caddy storage, which it does not touch yet. The
// store outlives configs, so it asks for the storage and the logger of the
// config in force each time that it needs them.
func NewCaddy(storage func() certmagic.Storage, logger func() *zap.Logger, secrets *Secrets) *Caddy {
	return &Caddy{start: newStart(), storage: storage, logger: logger, secrets: secrets, calls: newCalls(maxReads)}
}

// Get implements Store.
func (s *Caddy) Get(ctx context.Context, name Name, caller Caller) (Object, error) {
	return await(ctx, s.calls, caller, func() (Object, error) { return s.load(ctx, name) })
}

func (s *Caddy) load(ctx context.Context, name Name) (Object, error) {
	raw, err := s.storage().Load(ctx, objectPath(name))
	switch {
	case err == nil:
		s.seen.Store(true)
		if raw == nil {
			raw = []byte{} // an empty file is damage
		}
		return s.secrets.decode(name, raw), nil
	case errors.Is(err, fs.ErrNotExist):
		return Object{Name: name}, s.stillThere(ctx)
	case concernsOneFile(err):
		return Object{Name: name, Damage: fmt.Errorf("%w: %s: %w", ErrDamaged, name, err)}, nil
	}
	return Object{}, fmt.Errorf("%w: reading %s: %w", ErrUnavailable, name, err)
}

// stillThere returns an error if the storage has vanished, like a network folder that is
// no longer mounted. In the empty folder that remains, every video would be without
// settings.
func (s *Caddy) stillThere(ctx context.Context) error {
	if !s.seen.Load() {
		return nil
	}
	entries, err := s.storage().List(ctx, root, false)
	if len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // the caller has met any other failure, or will meet it
	}
	return errVanished
}

var errVanished = fmt.Errorf("%w: the storage was not empty before, and is now; if it is no longer mounted, mount it, and if it was emptied on purpose, restart the server", ErrUnavailable)

// concernsOneFile reports whether an error of a file system concerns one file
// rather than all of them.
func concernsOneFile(err error) bool {
	for _, own := range []error{fs.ErrPermission, syscall.EISDIR, syscall.ELOOP, syscall.EIO} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// Update implements Store.
func (s *Caddy) Update(ctx context.Context, name Name, change Change) error {
	if err := s.start.await(ctx); err != nil {
		return err
	}
	_, err := await(ctx, s.calls, writer, func() (struct{}, error) { return struct{}{}, s.update(ctx, name, change) })
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
	if err != nil {
		return err
	}
	// A change that is made must be announced, so the caller's context does not
	// count from here on. An unchanged object is announced too: an earlier call may
	// have changed it and failed to announce that.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	if err := s.write(ctx, name, data); err != nil {
		return err
	}
	return s.announce(ctx, name)
}

// write makes data the content of an object, durably; nil removes it.
func (s *Caddy) write(ctx context.Context, name Name, data []byte) error {
	if data == nil {
		if err := s.storage().Delete(ctx, objectPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: removing %s: %w", ErrUnavailable, name, err)
		}
		return nil
	}
	raw, err := s.secrets.encode(name, data)
	if err != nil {
		return err
	}
	if err := s.storage().Store(ctx, objectPath(name), raw); err != nil {
		return fmt.Errorf("%w: writing %s: %w", ErrUnavailable, name, err)
	}
	return nil
}

// announce replaces the stamp of an object's collection.
func (s *Caddy) announce(ctx context.Context, name Name) error {
	if err := s.storage().Store(ctx, stampPath(name.collection), []byte(rand.Text())); err != nil {
		return fmt.Errorf("%w: announcing %s: %w", ErrUnavailable, name, err)
	}
	s.seen.Store(true)
	return nil
}

func stampPath(collection Collection) string { return path.Join(root, "stamps", string(collection)) }

// Stamps implements Store.
func (s *Caddy) Stamps(ctx context.Context) (map[Collection]string, error) {
	stamps := make(map[Collection]string)
	for _, collection := range collections {
		stamp, err := await(ctx, s.calls, Server, func() (string, error) { return s.stamp(ctx, collection) })
		if err != nil {
			return nil, err
		}
		stamps[collection] = stamp
	}
	return stamps, nil
}

// stamp reads a stamp, or returns "" if it is missing.
func (s *Caddy) stamp(ctx context.Context, collection Collection) (string, error) {
	raw, err := s.storage().Load(ctx, stampPath(collection))
	switch {
	case err == nil:
		s.seen.Store(true)
		return string(raw), nil
	case errors.Is(err, fs.ErrNotExist):
		return "", s.stillThere(ctx)
	case concernsOneFile(err):
		return rand.Text(), nil // meanwhile the collection counts as changed
	}
	return "", fmt.Errorf("%w: reading the stamp of %s: %w", ErrUnavailable, collection, err)
}

// Wake implements Store. Nodes hear of changes by polling.
func (*Caddy) Wake() <-chan struct{} { return nil }

// Close implements Store.
func (*Caddy) Close() {}

// objectPath returns the path of an object's file.
func objectPath(name Name) string {
	folder := path.Join(root, string(name.collection))
	if name.collection == Videos {
		// One folder with very many files is slow to list on some systems.
		sum := sha256.Sum256([]byte(name.id))
		folder = path.Join(folder, hex.EncodeToString(sum[:1]))
	}
	return path.Join(folder, escape(name.id)+".json")
}

// nameOfPath is the inverse of objectPath; ok is false for a path that it does
// not return.
func nameOfPath(collection Collection, file string) (name Name, ok bool) {
	escaped := strings.TrimSuffix(strings.TrimPrefix(path.Base(file), escapePrefix), ".json")
	id, err := url.PathUnescape(escaped)
	if err != nil {
		return Name{}, false
	}
	name, err = NewName(collection, id)
	return name, err == nil && objectPath(name) == file
}

const escapePrefix = "x-"

// escape turns an id into a file name that means the same on every file system:
// some fold case, reserve names (con, nul), or hide files that start with a dot.
// Capitals and punctuation become % and two digits, after a prefix.
func escape(id string) string {
	var b strings.Builder
	b.WriteString(escapePrefix)
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

// Interface guards
var _ Store = (*Caddy)(nil)
