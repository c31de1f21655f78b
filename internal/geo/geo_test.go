package geo

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const testdata = "../../testdata/"

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openTestDatabase(t *testing.T, path string) *Database {
	t.Helper()
	d, err := Open(path, zap.NewNop())
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	return d
}

func countryIn(t *testing.T, d *Database, addr string) string {
	t.Helper()
	code, err := d.Country(netip.MustParseAddr(addr))
	if err != nil {
		t.Fatalf("Country(%s) = %v", addr, err)
	}
	return code.String()
}

// knownAddresses are addresses and their countries in the test databases:
// bare.mmdb has no IPv6, and updated.mmdb differs in one network.
var knownAddresses = []struct{ name, addr, country, bare, updated string }{
	{"IPv4", "203.0.113.7", "GB", "GB", "FR"},
	{"IPv4, first of its network", "203.0.113.0", "GB", "GB", "FR"},
	{"IPv4, last of its network", "203.0.113.255", "GB", "GB", "FR"},
	{"IPv4, another network", "198.51.100.1", "DE", "DE", "DE"},
	{"IPv6", "2001:db8:1::1", "GB", "", "GB"},
	{"IPv6, another network", "2001:db8:2:ffff::1", "US", "", "US"},
	{"loopback", "127.0.0.1", "US", "US", "US"},
	{"IPv6 loopback", "::1", "US", "", "US"},
	{"N8 not in the database", "8.8.8.8", "", "", ""},
	{"N8 IPv6 not in the database", "2001:db8:3::1", "", "", ""},
	{"N8 beside a network", "203.0.114.0", "", "", ""},
	{"N8 registered country alone", "192.0.2.1", "", "", ""},
	{"N8 unspecified", "0.0.0.0", "", "", ""},
	{"N8 last of all", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", "", ""},
}

// Each address is looked up twice: in the file, then in the cache.
func TestCountries(t *testing.T) {
	t.Parallel()
	country, flat := openTestDatabase(t, testdata+"country.mmdb"), openTestDatabase(t, testdata+"flat.mmdb")
	bare, updated := openTestDatabase(t, testdata+"bare.mmdb"), openTestDatabase(t, testdata+"updated.mmdb")
	for range 2 {
		for _, tc := range knownAddresses {
			for _, in := range []struct {
				name string
				db   *Database
				want string
			}{
				{"country.mmdb", country, tc.country},
				{"flat.mmdb", flat, tc.country},
				{"bare.mmdb", bare, tc.bare},
				{"updated.mmdb", updated, tc.updated},
			} {
				if got := countryIn(t, in.db, tc.addr); got != in.want {
					t.Errorf("%s: country of %s in %s = %q, want %q", tc.name, tc.addr, in.name, got, in.want)
				}
			}
		}
	}
}

// A country that cannot be read is not an unknown one, which rules would let
// pass. It stays an error when it is looked up again.
func TestCountryThatCannotBeRead(t *testing.T) {
	t.Parallel()
	d := openTestDatabase(t, testdata+"country.mmdb")
	for range 2 {
		if got, err := d.Country(netip.MustParseAddr("198.18.0.1")); err == nil || got != (CountryCode{}) {
			t.Errorf("Country = %q, %v, want an error", got, err)
		}
	}
}

func TestCountryCodes(t *testing.T) {
	t.Parallel()
	letters := regexp.MustCompile(`^[A-Za-z]{2}$`)
	texts := []string{"", "G", "GBR"}
	for pair := range 1 << 16 {
		texts = append(texts, string([]byte{byte(pair >> 8), byte(pair)}))
	}
	for _, text := range texts {
		code, ok := ParseCountryCode(text)
		if want := letters.MatchString(text); ok != want || ok && code.String() != strings.ToUpper(text) || !ok && code.String() != "" {
			t.Fatalf("ParseCountryCode(%q) = %q, %t, want ok = %t", text, code, ok, want)
		}
	}
}

// With a database that has no countries, or not all of its own, every country
// rule would match nobody.
func TestFilesThatAreRefused(t *testing.T) {
	t.Parallel()
	good := readFile(t, testdata+"country.mmdb")
	write := func(name string, data []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct{ name, path, want string }{
		{"S10 missing", filepath.Join(t.TempDir(), "none.mmdb"), "no such file"},
		{"S10 empty", write("empty.mmdb", nil), ""},
		{"S10 a folder", t.TempDir(), "directory"},
		{"S10 networks and no countries", testdata + "asn.mmdb", `"GeoLite2-ASN"`},
		{"S10 text", write("text.mmdb", bytes.Repeat([]byte("country "), 1000)), ""},
		{"S10 zeros", write("zeros.mmdb", make([]byte, len(good))), ""},
		{"S10 the metadata alone", write("meta.mmdb", good[bytes.LastIndex(good, metadataMarker):]), ""},
		{"S10 the metadata's marker alone", write("marker.mmdb", metadataMarker), ""},
	} {
		d, err := Open(tc.path, zap.NewNop())
		if err == nil || d != nil {
			t.Errorf("%s: Open = %v, want an error", tc.name, err)
			continue
		}
		if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("%s: Open = %v, want an error with %q and the path", tc.name, err, tc.want)
		}
	}
}

var metadataMarker = []byte("\xab\xcd\xefMaxMind.com")

// loadBytes opens a database and, if it is accepted, looks up addresses in it,
// none of which may end the process.
func loadBytes(data []byte) error {
	db, err := openVerified(data)
	if err != nil {
		return err
	}
	c, err := newCountries(db)
	if err != nil {
		return err
	}
	for _, tc := range knownAddresses {
		_, _ = c.lookup(netip.MustParseAddr(tc.addr))
	}
	return nil
}

// damagedFiles are the databases that the tests of damaged files begin with.
// That the metadata of one has no description must not spare it any check.
var damagedFiles = []string{"country.mmdb", "flat.mmdb", "bare.mmdb"}

// A file that is copied over the database while it is read is seen cut off at
// any length. No prefix of a good file is a good file.
func TestTruncatedDatabasesAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range damagedFiles {
		data := readFile(t, testdata+name)
		for length := range len(data) {
			if loadBytes(data[:length]) == nil {
				t.Errorf("the first %d of the %d bytes of %s are accepted", length, len(data), name)
			}
		}
		if err := loadBytes(data); err != nil {
			t.Errorf("%s = %v, want it accepted", name, err)
		}
	}
}

// Data, search tree and separator are verified even if the metadata lacks a
// description.
func TestCorruptSectionsAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range damagedFiles {
		data := readFile(t, testdata+name)
		db, err := openVerified(data)
		if err != nil {
			t.Fatal(err)
		}
		const separator = 16
		tree := int(db.Metadata.NodeCount * db.Metadata.RecordSize / 4)
		metadata := bytes.LastIndex(data, metadataMarker)
		for _, tc := range []struct {
			section  string
			from, to int
		}{
			{"search tree", 0, tree},
			{"last node of the search tree", tree - 6, tree},
			{"separator", tree, tree + separator},
			{"data", tree + separator, metadata},
		} {
			for _, fill := range []byte{0xff, 0x41} {
				corrupt := bytes.Clone(data)
				for i := tc.from; i < tc.to; i++ {
					corrupt[i] = fill
				}
				if loadBytes(corrupt) == nil {
					t.Errorf("%s with %x in its %s is accepted", name, fill, tc.section)
				}
			}
		}
	}
}

// A flipped bit may change a country unnoticed, but must not end the process,
// neither on loading nor on looking up. In the search tree, which consists of
// pointers, most are found.
func TestDatabasesWithAFlippedBit(t *testing.T) {
	t.Parallel()
	for _, name := range damagedFiles {
		data := readFile(t, testdata+name)
		tree := bytes.Index(data, make([]byte, 16)) // the zeros between tree and data
		var accepted int
		for i := range data {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << (i % 8)
			if loadBytes(flipped) == nil && i < tree {
				accepted++
			}
		}
		if accepted > tree/2 {
			t.Errorf("%s: %d of %d databases with a bit flipped in the tree are accepted", name, accepted, tree)
		}
	}
}

// replaceFile writes a file over a database, with a modification time by its
// version.
func replaceFile(t *testing.T, path string, data []byte, version int) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_800_000_000+int64(version), 0)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// watched returns the country database at a path and its log.
func watched(t *testing.T) (*Database, *observer.ObservedLogs) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db.mmdb")
	replaceFile(t, path, readFile(t, testdata+"country.mmdb"), 0)
	core, logs := observer.New(zapcore.DebugLevel)
	d, err := Open(path, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	return d, logs
}

// An updater replaces the file while the server runs. A good version comes into
// force; a damaged one is reported once and leaves the last good one in force.
func TestDatabaseIsReplaced(t *testing.T) {
	t.Parallel()
	country, updated := readFile(t, testdata+"country.mmdb"), readFile(t, testdata+"updated.mmdb")
	sameSize := bytes.ReplaceAll(country, []byte("BGB"), []byte("BFR")) // each text begins with its type and length
	d, logs := watched(t)
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	none := zapcore.InvalidLevel
	for i, step := range []struct {
		name    string
		change  func()
		country string
		stale   bool
		level   zapcore.Level // of the one line, or none
	}{
		{"unchanged", func() {}, "GB", false, none},
		{"updated", func() { replaceFile(t, d.path, updated, 1) }, "FR", false, zapcore.InfoLevel},
		{"unchanged after the update", func() {}, "FR", false, none},
		{"another size at the same time", func() { replaceFile(t, d.path, country, 1) }, "GB", false, zapcore.InfoLevel},
		{"updated again", func() { replaceFile(t, d.path, updated, 2) }, "FR", false, zapcore.InfoLevel},
		{"cut off", func() { replaceFile(t, d.path, country[:len(country)/2], 2) }, "FR", true, zapcore.ErrorLevel},
		{"still cut off", func() {}, "FR", true, none},
		{"cut off elsewhere", func() { replaceFile(t, d.path, country[:len(country)/3], 3) }, "FR", true, zapcore.ErrorLevel},
		{"empty", func() { replaceFile(t, d.path, nil, 4) }, "FR", true, zapcore.ErrorLevel},
		{"of the wrong type", func() { replaceFile(t, d.path, readFile(t, testdata+"asn.mmdb"), 5) }, "FR", true, zapcore.ErrorLevel},
		{"removed", func() { check(os.Remove(d.path)) }, "FR", true, zapcore.ErrorLevel},
		{"still removed", func() {}, "FR", true, none},
		{"a folder in its place", func() { check(os.Mkdir(d.path, 0o700)) }, "FR", true, zapcore.ErrorLevel},
		{"removed again", func() { check(os.Remove(d.path)) }, "FR", true, zapcore.ErrorLevel},
		{"back", func() { replaceFile(t, d.path, country, 6) }, "GB", false, zapcore.InfoLevel},
		{"renamed over it", func() {
			replaceFile(t, d.path+".new", sameSize, 6)
			check(os.Rename(d.path+".new", d.path))
		}, "FR", false, zapcore.InfoLevel},
		{"touched", func() { replaceFile(t, d.path, sameSize, 7) }, "FR", false, zapcore.InfoLevel},
		{"an older file", func() { replaceFile(t, d.path, country, -100) }, "GB", false, zapcore.InfoLevel},
	} {
		step.change()
		d.refresh()
		if got := countryIn(t, d, "203.0.113.7"); got != step.country || d.Stale() != step.stale {
			t.Errorf("step %d, %s: country %q, stale %t, want %q, %t", i, step.name, got, d.Stale(), step.country, step.stale)
		}
		d.refresh() // adds nothing
		entries := logs.TakeAll()
		if step.level == none {
			if len(entries) != 0 {
				t.Errorf("step %d, %s: logged %v, want nothing", i, step.name, entries)
			}
			continue
		}
		if len(entries) != 1 || entries[0].Level != step.level || entries[0].ContextMap()["path"] != d.path {
			t.Errorf("step %d, %s: logged %v, want one line of level %s with the path", i, step.name, entries, step.level)
		}
	}
}

// A file that becomes readable again has no new version: permissions are no part
// of it.
func TestUnreadableFileIsTriedAgain(t *testing.T) {
	t.Parallel()
	d, _ := watched(t)
	replaceFile(t, d.path, readFile(t, testdata+"updated.mmdb"), 1)
	d.version, _ = os.Stat(d.path) // as after a read that failed
	for _, want := range []string{"GB", "FR"} {
		d.refresh()
		if got := countryIn(t, d, "203.0.113.7"); got != want {
			t.Errorf("unreadable %t: country = %q, want %q", d.unreadable, got, want)
		}
		d.unreadable = true
	}
}

// Watch looks at the file every second until its context is done. The test owns
// the clock.
func TestDatabaseIsWatched(t *testing.T) {
	t.Parallel()
	country, updated := readFile(t, testdata+"country.mmdb"), readFile(t, testdata+"updated.mmdb")
	d, _ := watched(t)
	synctest.Test(t, func(t *testing.T) {
		look := func(want string) {
			t.Helper()
			<-time.After(watchInterval + 1)
			synctest.Wait()
			if got := countryIn(t, d, "203.0.113.7"); got != want {
				t.Errorf("country = %q, want %q", got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go d.Watch(ctx)
		look("GB")
		replaceFile(t, d.path, updated, 1)
		look("FR")
		replaceFile(t, d.path, country, 2)
		look("GB")
		cancel()
		synctest.Wait()
		replaceFile(t, d.path, updated, 3)
		look("GB")
	})
}

// The records that a lookup reads stay whole while the database is replaced.
func TestDatabaseIsReplacedUnderLookups(t *testing.T) {
	t.Parallel()
	country, updated := readFile(t, testdata+"country.mmdb"), readFile(t, testdata+"updated.mmdb")
	d, _ := watched(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			code, err := d.Country(netip.MustParseAddr("203.0.113.7"))
			if got := code.String(); err != nil || got != "GB" && got != "FR" {
				t.Errorf("Country = %q, %v, want GB or FR", got, err)
				return
			}
		}
	}()
	for i := range 50 {
		replaceFile(t, d.path, [][]byte{updated, country, nil}[i%3], i+1)
		d.refresh()
	}
	close(stop)
	<-stopped
}
