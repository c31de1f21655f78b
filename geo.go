package signedplayback

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

// geoWatchInterval is how often the file of a geo database is looked at. A look
// is one stat, which works on every file system and sees a file that is
// replaced, written over or mounted anew alike.
const geoWatchInterval = time.Second

// countryDatabase maps addresses to countries. Lookups read the last good
// database from memory; watch replaces it when the file changes.
type countryDatabase struct {
	path    string
	logger  *zap.Logger
	current atomic.Pointer[countryReader]
	stale   atomic.Bool // the file is another one than that in force, and not a good one
	version fileVersion // of the file that was tried last; watch's own
	unread  bool        // that file could not be read at all; watch's own
}

// countryReader is a database, where in its records the country stands, and the
// countries that were looked up last. With the database, they are dropped.
type countryReader struct {
	db    *maxminddb.Reader
	path  []any
	known *otter.Cache[netip.Addr, countryCode]
}

// maxKnownCountries bounds the memory for countries that were looked up, to a
// few MiB.
const maxKnownCountries = 20_000

// countryPaths are the schemas that are understood, MaxMind's and the flat one.
var countryPaths = [][]any{{"country", "iso_code"}, {"country_code"}}

// fileVersion tells one state of a file from another.
type fileVersion struct {
	info    os.FileInfo
	missing bool
}

func (v fileVersion) same(other fileVersion) bool {
	if v.missing || other.missing {
		return v.missing == other.missing
	}
	return os.SameFile(v.info, other.info) &&
		v.info.Size() == other.info.Size() && v.info.ModTime().Equal(other.info.ModTime())
}

func statVersion(path string) fileVersion {
	info, err := os.Stat(path)
	return fileVersion{info, err != nil}
}

// openCountryDatabase loads a database, and fails if it is not a good one.
func openCountryDatabase(path string, logger *zap.Logger) (*countryDatabase, error) {
	d := &countryDatabase{path: path, logger: logger, version: statVersion(path)}
	if err := d.load(); err != nil {
		return nil, fmt.Errorf("geoip_database %q: %w", path, err)
	}
	return d, nil
}

// load reads the file into memory, checks it and puts it into force. A mapped
// file would do for less memory, but crashes the server when somebody truncates
// it in place.
func (d *countryDatabase) load() error {
	data, err := os.ReadFile(d.path)
	if err != nil {
		return err
	}
	db, err := maxminddb.OpenBytes(data)
	if err != nil {
		return err
	}
	if err := db.Verify(); err != nil {
		return err
	}
	path, err := findCountryPath(db)
	if err != nil {
		return err
	}
	d.current.Store(newCountryReader(db, path))
	return nil
}

func newCountryReader(db *maxminddb.Reader, path []any) *countryReader {
	return &countryReader{db, path, otter.Must(&otter.Options[netip.Addr, countryCode]{MaximumSize: maxKnownCountries})}
}

// findCountryPath tells the schema by the first record that has a country. A
// database of networks or cities without one would otherwise make every country
// rule match nobody.
func findCountryPath(db *maxminddb.Reader) ([]any, error) {
	for network := range db.Networks() {
		for _, path := range countryPaths {
			var code string
			if err := network.DecodePath(&code, path...); err == nil && code != "" {
				return path, nil
			}
		}
	}
	return nil, fmt.Errorf("no record of this %q database has a country.iso_code or a country_code", db.Metadata.DatabaseType)
}

var errNoCountry = errors.New("the record's country cannot be read")

// lookup returns the country of an address, the zero code if the database does
// not know it.
func (d *countryDatabase) lookup(addr netip.Addr) (countryCode, error) {
	reader := d.current.Load()
	if country, ok := reader.known.GetIfPresent(addr); ok {
		return country, nil
	}
	country, err := reader.lookup(addr)
	if err == nil {
		reader.known.Set(addr, country)
	}
	return country, err
}

func (r *countryReader) lookup(addr netip.Addr) (countryCode, error) {
	if addr.Is6() && r.db.Metadata.IPVersion == 4 {
		return countryCode{}, nil
	}
	var code string
	if err := r.db.Lookup(addr).DecodePath(&code, r.path...); err != nil {
		return countryCode{}, fmt.Errorf("%w: %w", errNoCountry, err)
	}
	country, _ := parseCountryCode(code)
	return country, nil
}

// watch loads the database again whenever its file changes, until ctx is done.
func (d *countryDatabase) watch(ctx context.Context) {
	ticker := time.NewTicker(geoWatchInterval)
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

// refresh looks at the file once. A file that is missing or not a good database
// is reported once for each of its states, and changes nothing.
func (d *countryDatabase) refresh() {
	// Before reading, so that a file that changes meanwhile is read again.
	version := statVersion(d.path)
	same := version.same(d.version)
	if same && !d.unread {
		return
	}
	d.version = version
	err := d.load()
	d.stale.Store(err != nil)
	// Permissions may be given back without a trace in what stat tells.
	_, d.unread = errors.AsType[*fs.PathError](err)
	if err != nil && same {
		return
	}
	if err != nil {
		d.logger.Error("loading the changed geo database failed; the last good one stays in force",
			zap.String("path", d.path), zap.Error(err))
		return
	}
	d.logger.Info("loaded the changed geo database", zap.String("path", d.path),
		zap.Time("built", d.current.Load().db.Metadata.BuildTime()))
}
