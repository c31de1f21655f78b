// Package geo looks up countries in MaxMind DB files and reloads a file when it
// changes.
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

	"github.com/oschwald/maxminddb-golang/v2"
	"go.uber.org/zap"
)

// watchInterval is the time between two looks at the file. A look is one stat,
// which works on every file system and notices a file that was replaced,
// overwritten or remounted.
const watchInterval = time.Second

// Database maps addresses to countries. Lookups read the last good version of
// the file from memory; Watch replaces it when the file changes. All methods
// are safe for concurrent use, but Watch may run only once.
type Database struct {
	path    string
	logger  *zap.Logger
	current atomic.Pointer[countries]
	stale   atomic.Bool

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

// Open loads the database at path. It fails if the file cannot be read, is
// damaged, or has no record with a country. Errors name the path. The logger
// reports later reloads.
func Open(path string, logger *zap.Logger) (*Database, error) {
	d := &Database{path: path, logger: logger}
	d.version, _ = os.Stat(path)
	if err := d.load(); err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return d, nil
}

// Country returns the country of an address, or the zero code if the database
// does not know it. It fails if the record of the address cannot be decoded.
// An IPv4 address must not be mapped to IPv6, and an IPv6 address must have no
// zone.
func (d *Database) Country(addr netip.Addr) (CountryCode, error) {
	country, err := d.current.Load().lookup(addr)
	if err != nil {
		return CountryCode{}, fmt.Errorf("decoding the record of %s: %w", addr, err)
	}
	return country, nil
}

// BuildTime returns the time at which the database in force was built, as its
// metadata has it.
func (d *Database) BuildTime() time.Time { return d.current.Load().db.Metadata.BuildTime() }

// Stale reports whether the file has changed and its new version could not be
// loaded, so that an older version is still in force.
func (d *Database) Stale() bool { return d.stale.Load() }

// load reads the whole file into memory. A mapped file would need less, but
// crashes the server when it is truncated in place.
func (d *Database) load() error {
	data, err := os.ReadFile(d.path)
	if err != nil {
		return err
	}
	db, err := openVerified(data)
	if err != nil {
		return err
	}
	loaded, err := newCountries(db)
	if err != nil {
		return err
	}
	d.current.Store(loaded)
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

// Watch reloads the database whenever its file changes, until ctx is done.
func (d *Database) Watch(ctx context.Context) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			d.refresh()
		case <-ctx.Done():
			return
		}
	}
}

// refresh looks at the file once. It reports each version of the file that is
// missing or damaged once, and keeps the last good one in force.
func (d *Database) refresh() {
	// The stat comes first: a file that changes while it is read is read again.
	version, _ := os.Stat(d.path)
	same := sameVersion(version, d.version)
	if same && !d.unreadable {
		return
	}
	d.version = version
	err := d.load()
	d.stale.Store(err != nil)
	// A change of permissions is not visible in the version.
	_, d.unreadable = errors.AsType[*fs.PathError](err)
	if err != nil && same {
		return
	}
	if err != nil {
		d.logger.Error("loading the changed geo database failed; the last good one stays in force",
			zap.String("path", d.path), zap.Error(err))
		return
	}
	d.logger.Info("loaded the changed geo database", zap.String("path", d.path), zap.Time("built", d.BuildTime()))
}
