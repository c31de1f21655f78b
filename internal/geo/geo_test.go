package geo

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
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
	d, _ := openLogged(t, path)
	return d
}

func openLogged(t *testing.T, path string) (*Database, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	d, err := Open(path, zap.New(core))
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	return d, logs
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
	for i, name := range []string{"country.mmdb", "flat.mmdb", "bare.mmdb", "updated.mmdb"} {
		d := openTestDatabase(t, testdata+name)
		for range 2 {
			for _, tc := range knownAddresses {
				want := []string{tc.country, tc.country, tc.bare, tc.updated}[i]
				if got := countryIn(t, d, tc.addr); got != want {
					t.Errorf("%s: country of %s in %s = %q, want %q", tc.name, tc.addr, name, got, want)
				}
			}
		}
	}
}

// A country that cannot be read is an error, also when it is looked up again. A rule could
// admit an unknown country.
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

// With a database that has no countries, country rules would match nobody.
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
		{"S10 the metadata alone", write("meta.mmdb", good[bytes.LastIndex(good, metadataMarker):]), ""},
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

// loadBytes opens a database. If it is accepted, looking up addresses in it must not end
// the process.
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

// While somebody copies a file over the database, the server may read any prefix of it. No
// prefix of a good file is accepted, nor a file with an overwritten section, also if its
// metadata has no description. A flipped bit may change a country, but must not end the
// process.
func TestDamagedDatabases(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"country.mmdb", "flat.mmdb", "bare.mmdb"} {
		data := readFile(t, testdata+name)
		db, err := openVerified(data)
		if err != nil {
			t.Fatal(err)
		}
		const separator = 16
		tree := int(db.Metadata.NodeCount * db.Metadata.RecordSize / 4)
		metadata := bytes.LastIndex(data, metadataMarker)
		flippedTrees := 0
		for i := range data {
			if loadBytes(data[:i]) == nil {
				t.Errorf("the first %d of the %d bytes of %s are accepted", i, len(data), name)
			}
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << (i % 8)
			if loadBytes(flipped) == nil && i < tree {
				flippedTrees++
			}
		}
		if flippedTrees > tree/2 { // the tree consists of pointers
			t.Errorf("%s: %d of %d databases with a bit flipped in the tree are accepted", name, flippedTrees, tree)
		}
		for section, bounds := range map[string][2]int{
			"search tree": {0, tree}, "last node of the tree": {tree - 6, tree}, "separator": {tree, tree + separator}, "data": {tree + separator, metadata},
		} {
			for _, fill := range []string{"\xff", "A"} {
				corrupt := bytes.Clone(data)
				copy(corrupt[bounds[0]:bounds[1]], strings.Repeat(fill, len(data)))
				if loadBytes(corrupt) == nil {
					t.Errorf("%s with %q in its %s is accepted", name, fill, section)
				}
			}
		}
	}
}

// replaceFile writes a file over a database. Its modification time depends on the version.
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
	return openLogged(t, path)
}

// An updater replaces the file while the server runs. A good version comes into force. A
// damaged version is logged once, and the last good version stays in force.
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
		{"of the wrong type", func() { replaceFile(t, d.path, readFile(t, testdata+"asn.mmdb"), 5) }, "FR", true, zapcore.ErrorLevel},
		{"removed", func() { check(os.Remove(d.path)) }, "FR", true, zapcore.ErrorLevel},
		{"still removed", func() {}, "FR", true, none},
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

// The version of a file does not change with its permissions, so an unreadable file is tried
// again.
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

// A lookup reads whole records while the database is replaced.
func TestDatabaseIsReplacedUnderLookups(t *testing.T) {
	t.Parallel()
	country, updated := readFile(t, testdata+"country.mmdb"), readFile(t, testdata+"updated.mmdb")
	d, _ := watched(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			code, err := d.Country(netip.MustParseAddr("203.0.113.7"))
			if got := code.String(); err != nil || got != "GB" && got != "FR" {
				t.Errorf("Country = %q, %v, want GB or FR", got, err)
				return
			}
		}
	})
	for i := range 50 {
		replaceFile(t, d.path, [][]byte{updated, country, nil}[i%3], i+1)
		d.refresh()
	}
	stop()
	wg.Wait()
}
