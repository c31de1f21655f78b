package integration

import (
	"bytes"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// geoDatabase makes a database of a type and age. 203.0.113.0/24 is in the
// country, 198.51.100.0/24 in Germany.
func geoDatabase(t testing.TB, kind string, built int64, country string) []byte {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{
		BuildEpoch: built, DatabaseType: kind, Description: map[string]string{"en": "Test data"},
		IncludeReservedNetworks: true, RecordSize: 24,
	})
	if err != nil {
		t.Fatal(err)
	}
	for prefix, code := range map[string]string{"203.0.113.0/24": country, "198.51.100.0/24": "DE"} {
		_, network, err := net.ParseCIDR(prefix)
		if err != nil {
			t.Fatal(err)
		}
		record := mmdbtype.Map{
			"country": mmdbtype.Map{"iso_code": mmdbtype.String(code)},
			"city":    mmdbtype.Map{"names": mmdbtype.Map{"en": mmdbtype.String("Somewhere in " + code)}},
		}
		if err := tree.Insert(network, record); err != nil {
			t.Fatal(err)
		}
	}
	var file bytes.Buffer
	if _, err := tree.WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// geoFile is the file of a database that people do things to.
type geoFile struct {
	t    testing.TB
	path string
}

func (f geoFile) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// replace puts a file in the place of whatever is there, as careful people do.
func (f geoFile) replace(data []byte, mode os.FileMode) {
	f.t.Helper()
	next := f.path + ".next"
	writeFile(f.t, next, data)
	f.must(os.Chmod(next, mode))
	if info, err := os.Stat(f.path); err == nil && info.IsDir() {
		f.must(os.Remove(f.path))
	}
	f.must(os.Rename(next, f.path))
}

// overwrite is what `cp` does: it empties the file and fills it bit by bit.
func (f geoFile) overwrite(data []byte) {
	f.t.Helper()
	if info, err := os.Stat(f.path); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() == 0 {
		f.replace(data, 0o600)
		return
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_TRUNC, 0)
	f.must(err)
	for ; len(data) > 0; data = data[min(512, len(data)):] {
		_, err := file.Write(data[:min(512, len(data))])
		f.must(err)
	}
	f.must(file.Close())
}

// truncate cuts a good file off in its place.
func (f geoFile) truncate(good []byte, size int64) {
	f.t.Helper()
	f.overwrite(good)
	f.must(os.Truncate(f.path, size))
}

func (f geoFile) mkdir() {
	f.t.Helper()
	f.must(os.RemoveAll(f.path))
	f.must(os.Mkdir(f.path, 0o700))
}

// geoBuilt is when the newest database was built.
const geoBuilt = 1780000000

// geoChanges are what may happen to the file while viewers watch. Whatever is a
// database in them agrees on Germany.
func geoChanges(t testing.TB, f geoFile) map[string]geoChange {
	t.Helper()
	british, french := geoDatabase(t, "GeoLite2-Country", geoBuilt, "GB"), geoDatabase(t, "GeoLite2-Country", geoBuilt, "FR")
	city, older := geoDatabase(t, "GeoLite2-City", geoBuilt, "FR"), geoDatabase(t, "GeoLite2-Country", geoBuilt-86400, "GB")
	asn, err := os.ReadFile(testdata(t, "asn.mmdb"))
	f.must(err)
	garbage := make([]byte, len(british))
	for i := range garbage {
		garbage[i] = byte(rand.Uint32())
	}
	broken := bytes.Clone(british)
	for i := range len(broken) / 2 { // the metadata at the end are whole
		broken[i] = 0xff
	}
	good := func(do func(), country string, built float64) geoChange { return geoChange{do, country, built, ""} }
	bad := func(do func(), complaint string) geoChange { return geoChange{do, "", 0, complaint} }
	const noDatabase, noCountry = "invalid MaxMind DB file", "has a country.iso_code or a country_code"
	return map[string]geoChange{
		"replaced":                    good(func() { f.replace(british, 0o600) }, "GB", geoBuilt),
		"replaced by an update":       good(func() { f.replace(french, 0o600) }, "FR", geoBuilt),
		"overwritten":                 good(func() { f.overwrite(british) }, "GB", geoBuilt),
		"overwritten by an update":    good(func() { f.overwrite(french) }, "FR", geoBuilt),
		"replaced by a City database": good(func() { f.replace(city, 0o600) }, "FR", geoBuilt),
		"replaced by an older build":  good(func() { f.replace(older, 0o600) }, "GB", geoBuilt-86400),
		"replaced by an ASN database": bad(func() { f.replace(asn, 0o600) }, noCountry),
		"overwritten by one":          bad(func() { f.overwrite(asn) }, noCountry),
		"overwritten by /dev/null":    bad(func() { f.truncate(british, 0) }, noDatabase),
		"cut in half":                 bad(func() { f.truncate(french, int64(len(french)/2)) }, noDatabase),
		"less its last byte":          bad(func() { f.truncate(french, int64(len(french)-1)) }, "failed"),
		"replaced by an empty file":   bad(func() { f.replace(nil, 0o600) }, noDatabase),
		"replaced by garbage":         bad(func() { f.replace(garbage, 0o600) }, noDatabase),
		"overwritten by garbage":      bad(func() { f.overwrite(garbage) }, noDatabase),
		"broken inside":               bad(func() { f.replace(broken, 0o600) }, "failed"),
		"removed":                     bad(func() { f.must(os.RemoveAll(f.path)) }, "no such file"),
		"not readable":                bad(func() { f.replace(french, 0) }, "permission denied"),
		"replaced by a directory":     bad(f.mkdir, "is a directory"),
	}
}

// geoChange is what somebody does to the file, and what the gate makes of it.
type geoChange struct {
	do        func()
	country   string // of 203.0.113.0/24, if what is there now is a good database
	built     float64
	complaint string // in the log, if it is not
}

// withoutRootsRights has a test drive the binary without the right of root to
// read what the mode of a file forbids.
func withoutRootsRights(t *testing.T) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "caddy")
	text := "#!/bin/sh\nexec " + binary(t) + " \"$@\"\n"
	if os.Geteuid() == 0 {
		text = "#!/bin/sh\nexec " + tool(t, "setpriv") + " --bounding-set=-dac_override,-dac_read_search " + binary(t) + " \"$@\"\n"
	}
	writeFile(t, script, []byte(text))
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SIGNED_PLAYBACK_BINARY", script)
}

// geoGateway is a gateway with a geo database in a file, and what it says of it.
type geoGateway struct {
	*gateway
	origin *origin
	admin  string
	file   geoFile
}

func startWithGeoFile(t *testing.T) *geoGateway {
	t.Helper()
	withoutRootsRights(t)
	g := &geoGateway{origin: startOrigin(t, nil), admin: freeAddr(t), file: geoFile{t, filepath.Join(t.TempDir(), "geo.mmdb")}}
	writeFile(t, g.file.path, geoDatabase(t, "GeoLite2-Country", geoBuilt, "GB"))
	g.gateway = start(t, g.origin, config{log: "level INFO", app: "geoip_database " + g.file.path, global: "admin " + g.admin + "\n" + trusting("127.0.0.1/32")})
	return g
}

// S10 Viewers who are judged by their country while somebody does to the database
// whatever can be done to a file, each time as soon as the gate has seen what he
// did before, once a second: the server lives, and nobody is let in or kept out
// who is not by the last good one. What is none is logged and can be alerted on;
// what is one is in force and tells its age, be it older.
func TestGeoDatabaseFaultsUnderLoad(t *testing.T) {
	g := startWithGeoFile(t)
	stop := g.judge(t)
	changes := geoChanges(t, g.file)
	inForce := geoChange{country: "GB", built: geoBuilt}
	for name, change := range changes { // in random order
		inForce = g.wantSeen(t, name, change, inForce)
		if name == "not readable" { // mended as such a thing is
			readable := geoChange{func() { g.file.must(os.Chmod(g.file.path, 0o600)) }, "FR", geoBuilt, ""}
			inForce = g.wantSeen(t, "readable again", readable, inForce)
		}
	}
	if n := stop(); n < 1000 {
		t.Errorf("only %d decisions", n)
	}
}

// judge has viewers ask, each over and over, whose decisions no good database
// changes. stop returns how many decisions there were.
func (g *geoGateway) judge(t *testing.T) (stop func() int64) {
	var (
		decisions atomic.Int64
		all       sync.WaitGroup
		over      = make(chan struct{})
	)
	for _, v := range []struct{ target, address, reason string }{
		{onlyIn(t, "DE"), "198.51.100.7", ""},
		{notIn(t, "GB", "FR", "US"), "198.51.100.7", ""},
		{notIn(t, "DE"), "198.51.100.7", "rule_blocked"},
		{onlyIn(t, "GB", "FR"), "203.0.113.7", ""}, // the good databases say one or the other
		{notIn(t, "GB", "FR"), "203.0.113.7", "rule_blocked"},
		{onlyIn(t, "DE"), "203.0.113.7", "rule_blocked"},
		{onlyIn(t, "GB", "FR", "DE"), "192.0.2.7", "rule_blocked"}, // none of them knows it
	} {
		all.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-over:
					return
				case <-tick.C:
				}
				if got := g.get(t, v.target, "X-Forwarded-For: "+v.address).reason(); got != v.reason {
					t.Errorf("%s got %q, want %q", v.address, got, v.reason)
				}
				decisions.Add(1)
			}
		})
	}
	return func() int64 {
		close(over)
		all.Wait()
		return decisions.Load()
	}
}

// wantSeen makes a change, waits until the gate has seen it, and checks what it
// makes of it. It returns what must be in force from then on.
func (g *geoGateway) wantSeen(t *testing.T, name string, change, inForce geoChange) geoChange {
	t.Helper()
	const loaded, failed = "loaded the changed geo database", "loading the changed geo database failed"
	seen, successful := loaded, 1.0
	if change.complaint != "" {
		seen, successful = failed, 0
	} else {
		inForce = change
	}
	before := len(g.log.String())
	change.do()
	eventually(t, "the gate sees the database "+name, func() bool {
		for line := range strings.Lines(g.log.String()[before:]) {
			if strings.Contains(line, seen) && strings.Contains(line, change.complaint) {
				return true
			}
		}
		return false
	})
	if got := g.metric(t, g.admin, "geoip_last_reload_successful"); got != successful {
		t.Errorf("%s: geoip_last_reload_successful is %v, want %v", name, got, successful)
	}
	if got := g.metric(t, g.admin, "geoip_build_timestamp_seconds"); got != inForce.built {
		t.Errorf("%s: geoip_build_timestamp_seconds is %.0f, want %.0f", name, got, inForce.built)
	}
	for country, want := range map[string]string{inForce.country: "", "DE": "rule_blocked"} {
		if got := g.get(t, onlyIn(t, country), "X-Forwarded-For: 203.0.113.7").reason(); got != want {
			t.Errorf("%s: a viewer who must be in %s got %q, want %q", name, country, got, want)
		}
	}
	return inForce
}
