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

func openLogged(t *testing.T, path string) (*Databases, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	d := New(zap.New(core))
	if err := d.Open(Country, path); err != nil {
		t.Fatalf("Open = %v", err)
	}
	return d, logs
}

func countryIn(d *Databases, addr string) string {
	return d.Lookup(netip.MustParseAddr(addr)).Country.String()
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
		d, _ := openLogged(t, testdata+name)
		for range 2 {
			for _, tc := range knownAddresses {
				want := []string{tc.country, tc.country, tc.bare, tc.updated}[i]
				if got := countryIn(d, tc.addr); got != want {
					t.Errorf("%s: country of %s in %s = %q, want %q", tc.name, tc.addr, name, got, want)
				}
			}
		}
	}
}

// databaseFiles are a database for each fact, and a later version of it.
var databaseFiles = [FactCount]struct{ file, updated string }{
	Country: {"country.mmdb", "updated.mmdb"}, ASN: {"asn.mmdb", "updated_asn.mmdb"}, Anonymous: {"anonymous.mmdb", "updated_anonymous.mmdb"},
}

// knownNetworks are addresses with their autonomous system and anonymous network in the
// test databases.
var knownNetworks = []struct {
	addr  string
	asn   uint32
	kinds string
}{
	{"203.0.113.7", 64496, "vpn"},
	{"198.51.100.1", 64497, "public_proxy tor"},
	{"2001:db8:1::1", 64496, "residential_proxy"},
	{"2001:db8:2::1", 4200000000, "hosting"},
	{"127.0.0.1", 4200000000, "hosting"},
	{"127.0.0.2", 64496, "vpn"},
	{"127.0.0.3", 64497, "anonymous"},
	{"8.8.8.8", 0, ""},
	{"2001:db8:3::1", 0, ""},
}

// The schemas of MaxMind and the flat ones give the same facts, and one lookup gives all.
func TestNetworks(t *testing.T) {
	t.Parallel()
	for _, files := range [][FactCount]string{
		{"country.mmdb", "asn.mmdb", "anonymous.mmdb"}, {"flat.mmdb", "flat_asn.mmdb", "anonymous_plus.mmdb"}, {"flat_asn.mmdb", "flat_asn.mmdb", "anonymous.mmdb"},
	} {
		d := New(zap.NewNop())
		for fact, file := range files {
			if err := d.Open(Fact(fact), testdata+file); err != nil || !d.Has(Fact(fact)) {
				t.Fatalf("Open(%s) = %v", file, err)
			}
		}
		for range 2 {
			for _, tc := range knownNetworks {
				got := d.Lookup(netip.MustParseAddr(tc.addr))
				if got.ASN != tc.asn || got.Anonymous.String() != tc.kinds {
					t.Errorf("%v: %s is in AS%d, %q, want AS%d, %q", files, tc.addr, got.ASN, got.Anonymous, tc.asn, tc.kinds)
				}
			}
		}
	}
}

// A record that cannot be read is an error, also when it is looked up again: a rule could
// admit an unknown fact. It says nothing about the other facts.
func TestRecordThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for opened := range FactCount {
		d := New(zap.NewNop())
		if err := d.Open(opened, testdata+databaseFiles[opened].file); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			facts := d.Lookup(netip.MustParseAddr("198.18.0.1"))
			for fact := range FactCount {
				if got, want := facts.Readable(fact), fact != opened; got != want || facts.Country != (CountryCode{}) || facts.ASN != 0 || facts.Anonymous != 0 {
					t.Errorf("with %s alone, %+v, and %s is readable %t, want %t", opened.Option(), facts, fact.Option(), got, want)
				}
			}
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
		d := New(zap.NewNop())
		err := d.Open(Country, tc.path)
		if err == nil || d.Has(Country) {
			t.Errorf("%s: Open = %v, want an error", tc.name, err)
			continue
		}
		if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("%s: Open = %v, want an error with %q and the path", tc.name, err, tc.want)
		}
	}
}

var metadataMarker = []byte("\xab\xcd\xefMaxMind.com")

// loadBytes opens a database of a fact. If it is accepted, looking up addresses in it must not end
// the process.
func loadBytes(data []byte, fact Fact) error {
	db, err := openVerified(data)
	if err != nil {
		return err
	}
	r, err := newReader(db, fact)
	if err != nil {
		return err
	}
	for _, tc := range knownAddresses {
		_ = r.read(netip.MustParseAddr(tc.addr), new(Facts))
	}
	return nil
}

// While somebody copies a file over the database, the server may read any prefix of it. No
// prefix of a good file is accepted, nor a file with an overwritten section, also if its
// metadata has no description. A flipped bit may change a country, but must not end the
// process.
func TestDamagedDatabases(t *testing.T) {
	t.Parallel()
	for name, fact := range map[string]Fact{
		"country.mmdb": Country, "flat.mmdb": Country, "bare.mmdb": Country, "asn.mmdb": ASN, "flat_asn.mmdb": ASN, "anonymous.mmdb": Anonymous,
	} {
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
			if loadBytes(data[:i], fact) == nil {
				t.Errorf("the first %d of the %d bytes of %s are accepted", i, len(data), name)
			}
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << (i % 8)
			if loadBytes(flipped, fact) == nil && i < tree {
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
				if loadBytes(corrupt, fact) == nil {
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

// watched returns the country database, its path and its log.
func watched(t *testing.T) (d *Databases, path string, logs *observer.ObservedLogs) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db.mmdb")
	replaceFile(t, path, readFile(t, testdata+"country.mmdb"), 0)
	d, logs = openLogged(t, path)
	return d, path, logs
}

// An updater replaces the file while the server runs. A good version comes into force. A
// damaged version is logged once, and the last good version stays in force.
func TestDatabaseIsReplaced(t *testing.T) {
	t.Parallel()
	country, updated := readFile(t, testdata+"country.mmdb"), readFile(t, testdata+"updated.mmdb")
	sameSize := bytes.ReplaceAll(country, []byte("BGB"), []byte("BFR")) // each text begins with its type and length
	d, path, logs := watched(t)
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
		{"updated", func() { replaceFile(t, path, updated, 1) }, "FR", false, zapcore.InfoLevel},
		{"unchanged after the update", func() {}, "FR", false, none},
		{"another size at the same time", func() { replaceFile(t, path, country, 1) }, "GB", false, zapcore.InfoLevel},
		{"updated again", func() { replaceFile(t, path, updated, 2) }, "FR", false, zapcore.InfoLevel},
		{"cut off", func() { replaceFile(t, path, country[:len(country)/2], 2) }, "FR", true, zapcore.ErrorLevel},
		{"still cut off", func() {}, "FR", true, none},
		{"cut off elsewhere", func() { replaceFile(t, path, country[:len(country)/3], 3) }, "FR", true, zapcore.ErrorLevel},
		{"of the wrong type", func() { replaceFile(t, path, readFile(t, testdata+"asn.mmdb"), 5) }, "FR", true, zapcore.ErrorLevel},
		{"removed", func() { check(os.Remove(path)) }, "FR", true, zapcore.ErrorLevel},
		{"still removed", func() {}, "FR", true, none},
		{"back", func() { replaceFile(t, path, country, 6) }, "GB", false, zapcore.InfoLevel},
		{"renamed over it", func() {
			replaceFile(t, path+".new", sameSize, 6)
			check(os.Rename(path+".new", path))
		}, "FR", false, zapcore.InfoLevel},
		{"touched", func() { replaceFile(t, path, sameSize, 7) }, "FR", false, zapcore.InfoLevel},
		{"an older file", func() { replaceFile(t, path, country, -100) }, "GB", false, zapcore.InfoLevel},
	} {
		step.change()
		d.refresh(Country)
		if got := countryIn(d, "203.0.113.7"); got != step.country || d.Stale(Country) != step.stale {
			t.Errorf("step %d, %s: country %q, stale %t, want %q, %t", i, step.name, got, d.Stale(Country), step.country, step.stale)
		}
		d.refresh(Country) // adds nothing
		entries := logs.TakeAll()
		if step.level == none {
			if len(entries) != 0 {
				t.Errorf("step %d, %s: logged %v, want nothing", i, step.name, entries)
			}
			continue
		}
		if len(entries) != 1 || entries[0].Level != step.level || entries[0].ContextMap()["path"] != path {
			t.Errorf("step %d, %s: logged %v, want one line of level %s with the path", i, step.name, entries, step.level)
		}
	}
}

// The version of a file does not change with its permissions, so an unreadable file is tried
// again.
func TestUnreadableFileIsTriedAgain(t *testing.T) {
	t.Parallel()
	d, path, _ := watched(t)
	replaceFile(t, path, readFile(t, testdata+"updated.mmdb"), 1)
	d.files[Country].version, _ = os.Stat(path) // as after a read that failed
	for _, want := range []string{"GB", "FR"} {
		d.refresh(Country)
		if got := countryIn(d, "203.0.113.7"); got != want {
			t.Errorf("unreadable %t: country = %q, want %q", d.files[Country].unreadable, got, want)
		}
		d.files[Country].unreadable = true
	}
}

// Watch looks at the file every second until its context is done. The test owns
// the clock.
func TestDatabaseIsWatched(t *testing.T) {
	t.Parallel()
	country, updated := readFile(t, testdata+"country.mmdb"), readFile(t, testdata+"updated.mmdb")
	d, path, _ := watched(t)
	synctest.Test(t, func(t *testing.T) {
		look := func(want string) {
			t.Helper()
			<-time.After(watchInterval + 1)
			synctest.Wait()
			if got := countryIn(d, "203.0.113.7"); got != want {
				t.Errorf("country = %q, want %q", got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go d.Watch(ctx)
		look("GB")
		replaceFile(t, path, updated, 1)
		look("FR")
		replaceFile(t, path, country, 2)
		look("GB")
		cancel()
		synctest.Wait()
		replaceFile(t, path, updated, 3)
		look("GB")
	})
}

// A lookup reads whole records while databases are replaced, and an address that has been
// looked up has the facts of the new version at once.
func TestDatabasesAreReplacedUnderLookups(t *testing.T) {
	t.Parallel()
	const viewer = "203.0.113.7"
	before, after := Facts{CountryCode{'G', 'B'}, 64496, otherAnonymous | 1, 0}, Facts{CountryCode{'F', 'R'}, 64499, 1 << 4, 0}
	d := New(zap.NewNop())
	var versions [FactCount][2][]byte
	var paths [FactCount]string
	for fact, files := range databaseFiles {
		versions[fact] = [...][]byte{readFile(t, testdata+files.file), readFile(t, testdata+files.updated)}
		paths[fact] = filepath.Join(t.TempDir(), files.file)
		replaceFile(t, paths[fact], versions[fact][0], 0)
		if err := d.Open(Fact(fact), paths[fact]); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			got := d.Lookup(netip.MustParseAddr(viewer))
			if got.Country != before.Country && got.Country != after.Country || got.ASN != before.ASN && got.ASN != after.ASN ||
				got.Anonymous != before.Anonymous && got.Anonymous != after.Anonymous || got.unreadable != 0 {
				t.Errorf("Lookup = %+v, want facts of %+v or %+v", got, before, after)
				return
			}
		}
	})
	want := before
	for i := range 90 {
		fact, version := Fact(i)%FactCount, i/int(FactCount)%3
		if version == 2 { // a damaged one changes nothing
			replaceFile(t, paths[fact], nil, i+1)
		} else {
			replaceFile(t, paths[fact], versions[fact][version], i+1)
			from := []Facts{before, after}[version]
			switch fact {
			case Country:
				want.Country = from.Country
			case ASN:
				want.ASN = from.ASN
			case Anonymous, FactCount:
				want.Anonymous = from.Anonymous
			}
		}
		d.refresh(fact)
		if got := d.Lookup(netip.MustParseAddr(viewer)); got != want || d.Stale(fact) != (version == 2) {
			t.Fatalf("step %d: Lookup = %+v, want %+v; stale %t", i, got, want, d.Stale(fact))
		}
	}
	stop()
	wg.Wait()
}
