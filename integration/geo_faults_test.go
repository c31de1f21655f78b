package integration

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
func geoChanges(t testing.TB, f geoFile) map[string]func() {
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
	return map[string]func(){
		"replaced":                    func() { f.replace(british, 0o600) },
		"replaced by an update":       func() { f.replace(french, 0o600) },
		"overwritten":                 func() { f.overwrite(british) },
		"overwritten by an update":    func() { f.overwrite(french) },
		"replaced by a City database": func() { f.replace(city, 0o600) },
		"replaced by an older build":  func() { f.replace(older, 0o600) },
		"replaced by an ASN database": func() { f.replace(asn, 0o600) },
		"overwritten by one":          func() { f.overwrite(asn) },
		"overwritten by /dev/null":    func() { f.truncate(british, 0) },
		"cut in half":                 func() { f.truncate(french, int64(len(french)/2)) },
		"less its last byte":          func() { f.truncate(french, int64(len(french)-1)) },
		"replaced by an empty file":   func() { f.replace(nil, 0o600) },
		"replaced by garbage":         func() { f.replace(garbage, 0o600) },
		"overwritten by garbage":      func() { f.overwrite(garbage) },
		"broken inside":               func() { f.replace(broken, 0o600) },
		"removed":                     func() { f.must(os.RemoveAll(f.path)) },
		"not readable":                func() { f.replace(french, 0) },
		"replaced by a directory":     f.mkdir,
	}
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
	g.gateway = start(t, g.origin, config{app: "geoip_database " + g.file.path, global: "admin " + g.admin + "\n" + trusting("127.0.0.1/32")})
	return g
}

// Viewers who are judged by their country while somebody does to the database
// whatever can be done to a file, five times a second: the server lives, nobody
// is let in or kept out who is not by the last good one, and a good one that
// comes back is in force.
func TestGeoDatabaseFaultsUnderLoad(t *testing.T) {
	const while = 6 * time.Second
	g := startWithGeoFile(t)
	viewers := []struct{ target, address, reason string }{
		{onlyIn(t, "DE"), "198.51.100.7", ""},
		{notIn(t, "GB", "FR", "US"), "198.51.100.7", ""},
		{notIn(t, "DE"), "198.51.100.7", "rule_blocked"},
		{onlyIn(t, "GB", "FR"), "203.0.113.7", ""}, // the good databases say one or the other
		{notIn(t, "GB", "FR"), "203.0.113.7", "rule_blocked"},
		{onlyIn(t, "DE"), "203.0.113.7", "rule_blocked"},
		{onlyIn(t, "GB", "FR", "DE"), "192.0.2.7", "rule_blocked"}, // none of them knows it
	}
	var (
		decisions atomic.Int64
		all       sync.WaitGroup
		over      = make(chan struct{})
	)
	for _, v := range viewers {
		all.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if got := g.get(t, v.target, "X-Forwarded-For: "+v.address).reason(); got != v.reason {
					t.Errorf("%s got %q, want %q", v.address, got, v.reason)
				}
				decisions.Add(1)
			}
		})
	}
	changes := geoChanges(t, g.file)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(while); time.Now().Before(end); {
		for _, change := range changes { // in random order
			<-tick.C
			change()
		}
	}
	close(over)
	all.Wait()
	if n := decisions.Load(); n < 100 {
		t.Errorf("only %d decisions", n)
	}
	changes["replaced by an update"]()
	france := onlyIn(t, "FR")
	eventually(t, "the good database is in force", func() bool {
		return g.get(t, france, "X-Forwarded-For: 203.0.113.7").StatusCode == http.StatusOK && g.metric(t, g.admin, "geoip_last_reload_successful") == 1
	})
	t.Logf("%d decisions", decisions.Load())
}

// Each change alone: what is not a good database is logged and can be alerted
// on, and leaves the last good one in force; what is one is in force and tells
// its age, be it older.
func TestGeoDatabaseFaultsAreSeen(t *testing.T) {
	const loaded, failed = "loaded the changed geo database", "loading the changed geo database failed"
	g := startWithGeoFile(t)
	changes := geoChanges(t, g.file)
	changes["readable again"] = func() { g.file.must(os.Chmod(g.file.path, 0o600)) }
	times := make(map[string]int)
	for _, step := range []struct {
		name    string
		good    bool
		country string
		built   float64
	}{
		{"replaced by a directory", false, "GB", geoBuilt},
		{"replaced by a City database", true, "FR", geoBuilt},
		{"broken inside", false, "FR", geoBuilt},
		{"replaced by an older build", true, "GB", geoBuilt - 86400},
		{"not readable", false, "GB", geoBuilt - 86400},
		// As after a `chmod`, which is how such a thing is mended.
		{"readable again", true, "FR", geoBuilt},
	} {
		t.Run(step.name, func(t *testing.T) {
			changes[step.name]()
			message, successful := failed, 0.0
			if step.good {
				message, successful = loaded, 1
			}
			times[message]++
			if !g.log.awaitTimes(message, times[message]) {
				t.Errorf("the server has not logged %q", message)
			}
			if got := g.metric(t, g.admin, "geoip_last_reload_successful"); got != successful {
				t.Errorf("geoip_last_reload_successful is %v", got)
			}
			if got := g.metric(t, g.admin, "geoip_build_timestamp_seconds"); got != step.built {
				t.Errorf("geoip_build_timestamp_seconds is %.0f, want %.0f", got, step.built)
			}
			g.origin.take()
			g.origin.wantPassed(t, g.get(t, onlyIn(t, step.country), "X-Forwarded-For: 203.0.113.7"), "/vidA/seg.ts")
			g.origin.wantPassed(t, g.get(t, onlyIn(t, "DE"), "X-Forwarded-For: 198.51.100.7"), "/vidA/seg.ts")
		})
	}
}
