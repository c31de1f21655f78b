// Package geo looks up countries, autonomous systems and anonymous networks in MaxMind
// DB files, and reloads a file when it changes.
package geo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/oschwald/maxminddb-golang/v2"
	"go.uber.org/zap"
)

// watchInterval is the time between two looks at the file. A look is one stat,
// which works on every file system and notices a file that was replaced,
// overwritten or remounted.
const watchInterval = time.Second

// maxCachedFacts bounds the cache of lookups to a few MiB.
const maxCachedFacts = 20_000

// Databases tell facts about addresses. Lookups read the last good versions of the
// files from memory; Watch replaces one when its file changes. Open comes first. Then
// all methods are safe for concurrent use, but Watch may run only once.
type Databases struct {
	logger  *zap.Logger
	files   [FactCount]*file // nil without a database
	current atomic.Pointer[snapshot]
}

// New returns Databases without any. The logger reports reloads.
func New(logger *zap.Logger) *Databases {
	d := &Databases{logger: logger}
	d.current.Store(new(snapshot))
	return d
}

// snapshot has the loaded versions of the databases, and the facts found in them. A new
// database makes a new snapshot, so nobody gets facts of a replaced database.
type snapshot struct {
	readers [FactCount]*reader // nil without a database
	cache   *otter.Cache[netip.Addr, Facts]
}

// file is the file of a database.
type file struct {
	path  string
	stale atomic.Bool

	// Only Watch uses these after Open.
	version    os.FileInfo // of the file that was tried last, nil if it was missing
	unreadable bool        // reading that file failed
}

// sameVersion reports whether a file has not changed. The info of a missing file is
// nil.
func sameVersion(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// Open loads the database of a fact. It fails if the file cannot be read, is damaged,
// or has no record with the fact. Errors name the path.
func (d *Databases) Open(fact Fact, path string) error {
	f := &file{path: path}
	f.version, _ = os.Stat(path)
	if err := d.load(fact, path); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	d.files[fact] = f
	return nil
}

// Has reports whether there is a database of a fact.
func (d *Databases) Has(fact Fact) bool { return d.files[fact] != nil }

// Lookup returns all facts about an address. An IPv4 address must not be mapped to
// IPv6, and an IPv6 address must have no zone.
func (d *Databases) Lookup(addr netip.Addr) Facts {
	s := d.current.Load()
	if s.cache == nil {
		return Facts{}
	}
	if facts, ok := s.cache.GetIfPresent(addr); ok {
		return facts
	}
	facts := s.read(addr)
	s.cache.Set(addr, facts)
	return facts
}

func (s *snapshot) read(addr netip.Addr) (facts Facts) {
	for fact, r := range s.readers {
		if r != nil && r.read(addr, &facts) != nil {
			facts.unreadable |= 1 << fact
		}
	}
	return facts
}

// BuildTime returns the time at which the database in force was built, as its
// metadata has it. The fact must have a database.
func (d *Databases) BuildTime(fact Fact) time.Time {
	return d.current.Load().readers[fact].db.Metadata.BuildTime()
}

// Stale reports whether the file of a fact has changed and its new version could not
// be loaded, so that an older version is still in force.
func (d *Databases) Stale(fact Fact) bool { return d.files[fact].stale.Load() }

// load reads the whole file into memory. A mapped file would need less, but
// crashes the server when it is truncated in place.
func (d *Databases) load(fact Fact, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	db, err := openVerified(data)
	if err != nil {
		return err
	}
	loaded, err := newReader(db, fact)
	if err != nil {
		return err
	}
	next := &snapshot{readers: d.current.Load().readers, cache: otter.Must(&otter.Options[netip.Addr, Facts]{MaximumSize: maxCachedFacts})}
	next.readers[fact] = loaded
	d.current.Store(next)
	return nil
}

// openVerified checks the search tree, the data and the metadata that lookups use.
// Verify also requires a description and a type. No lookup depends on them, and
// the public ip-location-db files have no description.
func openVerified(data []byte) (*maxminddb.Reader, error) {
	db, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, err
	}
	original := db.Metadata
	defer func() { db.Metadata = original }()
	db.Metadata.Description = map[string]string{"en": "none"}
	db.Metadata.DatabaseType = "any"
	db.Metadata.Languages = nil
	return db, db.Verify()
}

// Watch reloads a database whenever its file changes, until ctx is done.
func (d *Databases) Watch(ctx context.Context) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for fact := range FactCount {
				if d.Has(fact) {
					d.refresh(fact)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// refresh looks at the file of a fact once. It reports each version of the file that is
// missing or damaged once, and keeps the last good one in force.
func (d *Databases) refresh(fact Fact) {
	f := d.files[fact]
	// The stat comes first: a file that changes while it is read is read again.
	version, _ := os.Stat(f.path)
	same := sameVersion(version, f.version)
	if same && !f.unreadable {
		return
	}
	f.version = version
	err := d.load(fact, f.path)
	f.stale.Store(err != nil)
	// A change of permissions is not visible in the version.
	_, f.unreadable = errors.AsType[*fs.PathError](err)
	if err != nil && same {
		return
	}
	if err != nil {
		d.logger.Error("loading the changed geo database failed; the last good one stays in force",
			zap.String("path", f.path), zap.Error(err))
		return
	}
	d.logger.Info("loaded the changed geo database", zap.String("path", f.path), zap.Time("built", d.BuildTime(fact)))
}
