package signedplayback

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// viewersCountries are the countries that the test databases know.
var viewersCountries = []struct{ name, addr, country, flat, updated string }{
	{"IPv4", "203.0.113.7", "GB", "GB", "FR"},
	{"IPv4, first of its network", "203.0.113.0", "GB", "GB", "FR"},
	{"IPv4, last of its network", "203.0.113.255", "GB", "GB", "FR"},
	{"IPv4, another network", "198.51.100.1", "DE", "DE", "DE"},
	{"IPv6", "2001:db8:1::1", "GB", "GB", "GB"},
	{"IPv6, another network", "2001:db8:2:ffff::1", "US", "US", "US"},
	{"loopback", "127.0.0.1", "US", "US", "US"},
	{"IPv6 loopback", "::1", "US", "US", "US"},
	{"N8 not in the database", "8.8.8.8", "", "", ""},
	{"N8 IPv6 not in the database", "2001:db8:3::1", "", "", ""},
	{"N8 beside a network", "203.0.114.0", "", "", ""},
	{"N8 registered country alone", "192.0.2.1", "", "", ""},
	{"N8 unspecified", "0.0.0.0", "", "", ""},
	{"N8 last of all", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", "", ""},
}

func openTestDatabase(t *testing.T, path string) *countryDatabase {
	t.Helper()
	d, err := openCountryDatabase(path, zap.NewNop())
	if err != nil {
		t.Fatalf("openCountryDatabase(%q) = %v", path, err)
	}
	return d
}

func countryIn(t *testing.T, d *countryDatabase, addr string) string {
	t.Helper()
	code, err := d.lookup(netip.MustParseAddr(addr))
	if err != nil {
		t.Fatalf("lookup(%s) = %v", addr, err)
	}
	return code.String()
}

func TestCountries(t *testing.T) {
	country, flat := openTestDatabase(t, "testdata/country.mmdb"), openTestDatabase(t, "testdata/flat.mmdb")
	updated := openTestDatabase(t, "testdata/updated.mmdb")
	for _, tc := range viewersCountries {
		t.Run(tc.name, func(t *testing.T) {
			if got := countryIn(t, country, tc.addr); got != tc.country {
				t.Errorf("country of %s = %q, want %q", tc.addr, got, tc.country)
			}
			if got := countryIn(t, flat, tc.addr); got != tc.flat {
				t.Errorf("country of %s in the flat database = %q, want %q", tc.addr, got, tc.flat)
			}
			if got := countryIn(t, updated, tc.addr); got != tc.updated {
				t.Errorf("country of %s in the updated database = %q, want %q", tc.addr, got, tc.updated)
			}
		})
	}
}

// A viewer's address is looked up as IPv4 if it is IPv4 in any of its forms.
func TestCountryOfAMappedAddress(t *testing.T) {
	g := newGate(t, testApp(), new(Gate))
	for _, ip := range []string{"203.0.113.7", "::ffff:203.0.113.7", "::ffff:cb00:7107", "::ffff:203.0.113.7%eth0"} {
		r := requestFor(t, "/public/x.ts", from(ip))
		ask(t, g, r)
		if got := placeholder(r, "country"); got != "GB" {
			t.Errorf("country of %s = %q, want GB", ip, got)
		}
	}
}

// A database that does not hold countries, or not whole ones, would have every
// country rule match nobody. It is refused when it is loaded.
func TestDatabasesThatAreRefused(t *testing.T) {
	good := string(must(os.ReadFile("testdata/country.mmdb")))
	for _, tc := range []struct{ name, path, want string }{
		{"S10 missing", filepath.Join(t.TempDir(), "none.mmdb"), "no such file"},
		{"S10 empty", writeFile(t, "empty.mmdb", ""), "empty.mmdb"},
		{"S10 a folder", t.TempDir(), "directory"},
		{"S10 networks and no countries", "testdata/asn.mmdb", `"GeoLite2-ASN" database has a country.iso_code or a country_code`},
		{"S10 text", writeFile(t, "text.mmdb", strings.Repeat("country ", 1000)), "text.mmdb"},
		{"S10 zeros", writeFile(t, "zeros.mmdb", strings.Repeat("\x00", len(good))), "zeros.mmdb"},
		{"S10 the metadata alone", writeFile(t, "meta.mmdb", good[strings.LastIndex(good, "\xab\xcd\xefMaxMind.com"):]), "meta.mmdb"},
		{"S10 the metadata's marker alone", writeFile(t, "marker.mmdb", "\xab\xcd\xefMaxMind.com"), "marker.mmdb"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := openCountryDatabase(tc.path, zap.NewNop())
			if err == nil || d != nil {
				t.Fatalf("openCountryDatabase(%q) = %v, want an error", tc.path, err)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
				t.Errorf("openCountryDatabase(%q) = %v, want an error with %q and the path", tc.path, err, tc.want)
			}
		})
	}
}

// loadBytes loads a database from bytes and, if it is accepted, looks up
// addresses in it, none of which may end the process.
func loadBytes(t *testing.T, path string, data []byte) error {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openCountryDatabase(path, zap.NewNop())
	if err != nil {
		return err
	}
	for _, tc := range viewersCountries {
		_, _ = d.lookup(netip.MustParseAddr(tc.addr))
	}
	return nil
}

// A file that is copied over the database while it is read is seen cut off at
// any length. No prefix of a good file is a good file.
func TestTruncatedDatabasesAreRefused(t *testing.T) {
	for _, name := range []string{"testdata/country.mmdb", "testdata/flat.mmdb"} {
		data := must(os.ReadFile(name))
		path := filepath.Join(t.TempDir(), "cut.mmdb")
		for length := range len(data) {
			if loadBytes(t, path, data[:length]) == nil {
				t.Errorf("the first %d of the %d bytes of %s are accepted", length, len(data), name)
			}
		}
		if err := loadBytes(t, path, data); err != nil {
			t.Errorf("%s = %v, want it accepted", name, err)
		}
	}
}

// A bit that has flipped may change a country, which nobody can tell, but not
// end the process, neither on loading nor on looking up. In the search tree,
// which is pointers, most are found.
func TestDatabasesWithAFlippedBit(t *testing.T) {
	data := must(os.ReadFile("testdata/country.mmdb"))
	path := filepath.Join(t.TempDir(), "flipped.mmdb")
	tree := bytes.Index(data, make([]byte, 16)) // the zeros between tree and data
	var accepted int
	for i := range data {
		flipped := bytes.Clone(data)
		flipped[i] ^= 1 << (i % 8)
		if loadBytes(t, path, flipped) == nil && i < tree {
			accepted++
		}
	}
	if accepted > tree/2 {
		t.Errorf("%d of %d databases with a bit flipped in the tree are accepted", accepted, tree)
	}
}

// replaceFile writes a file over a database, later than all before.
func replaceFile(t *testing.T, path string, data []byte, version int) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	at := testTime.Add(time.Duration(version) * time.Second)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// An updater replaces the file while the server runs. What is good comes into
// force, what is not is reported once and leaves the last good one.
func TestDatabaseIsReplaced(t *testing.T) {
	country, updated := must(os.ReadFile("testdata/country.mmdb")), must(os.ReadFile("testdata/updated.mmdb"))
	path := filepath.Join(t.TempDir(), "db.mmdb")
	replaceFile(t, path, country, 0)
	log, logs := observedLog()
	d, err := openCountryDatabase(path, log)
	if err != nil {
		t.Fatal(err)
	}
	if logs.Len() != 0 {
		t.Errorf("opening logged %v", logs.All())
	}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct {
		name    string
		change  func()
		country string
		level   zapcore.Level // of the one line, or invalid for none
	}{
		{"unchanged", func() {}, "GB", zapcore.InvalidLevel},
		{"updated", func() { replaceFile(t, path, updated, 1) }, "FR", zapcore.InfoLevel},
		{"unchanged after the update", func() {}, "FR", zapcore.InvalidLevel},
		{"cut off", func() { replaceFile(t, path, country[:len(country)/2], 2) }, "FR", zapcore.ErrorLevel},
		{"still cut off", func() {}, "FR", zapcore.InvalidLevel},
		{"cut off elsewhere", func() { replaceFile(t, path, country[:len(country)/3], 3) }, "FR", zapcore.ErrorLevel},
		{"empty", func() { replaceFile(t, path, nil, 4) }, "FR", zapcore.ErrorLevel},
		{"of the wrong type", func() { replaceFile(t, path, must(os.ReadFile("testdata/asn.mmdb")), 5) }, "FR", zapcore.ErrorLevel},
		{"removed", func() { check(os.Remove(path)) }, "FR", zapcore.ErrorLevel},
		{"still removed", func() {}, "FR", zapcore.InvalidLevel},
		{"a folder in its place", func() { check(os.Mkdir(path, 0o700)) }, "FR", zapcore.ErrorLevel},
		{"removed again", func() { check(os.Remove(path)) }, "FR", zapcore.ErrorLevel},
		{"back", func() { replaceFile(t, path, country, 6) }, "GB", zapcore.InfoLevel},
		{"renamed over it", func() {
			replaceFile(t, path+".new", updated, 6)
			check(os.Rename(path+".new", path))
		}, "FR", zapcore.InfoLevel},
		{"touched", func() { replaceFile(t, path, updated, 7) }, "FR", zapcore.InfoLevel},
		{"an older file", func() { replaceFile(t, path, country, -100) }, "GB", zapcore.InfoLevel},
	} {
		step.change()
		d.refresh()
		if got := countryIn(t, d, "203.0.113.7"); got != step.country {
			t.Errorf("step %d, %s: country is %q, want %q", i, step.name, got, step.country)
		}
		d.refresh() // says nothing new
		entries := logs.TakeAll()
		if step.level == zapcore.InvalidLevel {
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

// The file is looked at every second while the app runs, and not after.
// The clock is that of the test.
func TestDatabaseIsWatched(t *testing.T) {
	country, updated := must(os.ReadFile("testdata/country.mmdb")), must(os.ReadFile("testdata/updated.mmdb"))
	path := filepath.Join(t.TempDir(), "db.mmdb")
	replaceFile(t, path, country, 0)
	app, _, err := provisioned(t, &App{GeoIPDatabase: path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	app.state.started.Do(func() {}) // following the store does not end with the app
	synctest.Test(t, func(t *testing.T) {
		look := func(want string) {
			t.Helper()
			<-time.After(geoWatchInterval + 1)
			synctest.Wait()
			if got := countryIn(t, app.countries, "203.0.113.7"); got != want {
				t.Errorf("country = %q, want %q", got, want)
			}
		}
		if err := app.Start(); err != nil {
			t.Fatal(err)
		}
		look("GB")
		replaceFile(t, path, updated, 1)
		look("FR")
		replaceFile(t, path, country, 2)
		look("GB")
		if err := app.Stop(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		replaceFile(t, path, updated, 3)
		look("GB")
	})
}

// The records in which a lookup is under way stay whole while the database is
// replaced.
func TestDatabaseIsReplacedUnderLookups(t *testing.T) {
	country, updated := must(os.ReadFile("testdata/country.mmdb")), must(os.ReadFile("testdata/updated.mmdb"))
	path := filepath.Join(t.TempDir(), "db.mmdb")
	replaceFile(t, path, country, 0)
	d := openTestDatabase(t, path)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			code, err := d.lookup(netip.MustParseAddr("203.0.113.7"))
			if got := code.String(); err != nil || got != "GB" && got != "FR" {
				t.Errorf("lookup = %q, %v, want GB or FR", got, err)
				return
			}
		}
	}()
	for i := range 50 {
		replaceFile(t, path, [][]byte{updated, country, nil}[i%3], i+1)
		d.refresh()
	}
	close(stop)
	<-stopped
}

func TestDatabasePathIsResolved(t *testing.T) {
	t.Setenv("TEST_GEOIP_DATABASE", "testdata/country.mmdb")
	app, _, err := provisioned(t, &App{GeoIPDatabase: "{env.TEST_GEOIP_DATABASE}"}, nil)
	if err != nil {
		t.Fatalf("provisioning: %v", err)
	}
	if got := countryIn(t, app.countries, "203.0.113.7"); got != "GB" {
		t.Errorf("country = %q, want GB", got)
	}
}

// A config with a database that is no good does not come into force.
func TestConfigWithABrokenDatabaseIsRefused(t *testing.T) {
	path := writeFile(t, "broken.mmdb", "broken")
	cfg := &caddy.Config{AppsRaw: caddy.ModuleMap{appID: caddyconfig.JSON(&App{GeoIPDatabase: path}, nil)}}
	if err := caddy.Validate(cfg); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Validate = %v, want an error that names %s", err, path)
	}
}
