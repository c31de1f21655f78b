package integration

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// geoFile is the file of a geo database that is changed while it is in use.
type geoFile struct {
	t    *testing.T
	path string
}

func (f geoFile) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// replace renames a new file over the old one.
func (f geoFile) replace(data string) {
	f.t.Helper()
	writeFile(f.t, f.path+".next", []byte(data))
	f.must(os.Rename(f.path+".next", f.path))
}

// overwrite does what cp does: it empties the file and fills it bit by bit.
func (f geoFile) overwrite(data string) {
	f.t.Helper()
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	f.must(err)
	for ; data != ""; data = data[min(512, len(data)):] {
		_, err := file.WriteString(data[:min(512, len(data))])
		f.must(err)
	}
	f.must(file.Close())
}

// S10 Whatever happens to the file of a geo database while viewers are judged by their
// country, the server keeps serving, and nobody is let in or kept out except by the
// last good database. Package geo knows many more ways to damage one.
func TestGeoDatabaseFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	british, french := readText(t, testdata(t, "country.mmdb")), readText(t, testdata(t, "updated.mmdb")) // 203.0.113.0/24
	o, admin := startOrigin(t, nil), freeAddr(t)
	f := geoFile{t, filepath.Join(t.TempDir(), "geo.mmdb")}
	writeFile(t, f.path, []byte(british))
	g := start(t, o, config{log: "level INFO", app: "geoip_database " + f.path, global: "admin " + admin + "\n" + trusting("127.0.0.1/32")})
	stop := g.judge(t)
	inForce := "GB"
	for _, change := range []struct {
		name    string
		do      func()
		country string // of the database that is there now, if it is a good one
	}{
		{"updated", func() { f.replace(french) }, "FR"},
		{"replaced by a database of networks", func() { f.replace(readText(t, testdata(t, "asn.mmdb"))) }, ""},
		{"overwritten", func() { f.overwrite(british) }, "GB"},
		{"cut in half", func() { f.must(os.Truncate(f.path, int64(len(british)/2))) }, ""},
		{"overwritten by an update", func() { f.overwrite(french) }, "FR"},
		{"removed", func() { f.must(os.Remove(f.path)) }, ""},
		{"back", func() { f.overwrite(british) }, "GB"},
	} {
		seen, successful := "loading the changed geo database failed", 0.0
		if change.country != "" {
			seen, successful, inForce = "loaded the changed geo database", 1, change.country
		}
		before := len(g.log.String())
		change.do()
		eventually(t, "the gate sees the database "+change.name, func() bool {
			return strings.Contains(g.log.String()[before:], seen) && g.metric(t, admin, "geoip_last_reload_successful") == successful
		})
		for country, want := range map[string]string{inForce: "", "DE": "rule_blocked"} {
			if got := g.get(t, onlyIn(t, country), "X-Forwarded-For: 203.0.113.7").reason(); got != want {
				t.Errorf("%s: a viewer who must be in %s got %q, want %q", change.name, country, got, want)
			}
		}
	}
	stop()
}

// judge has viewers ask, over and over, whose decisions no good database changes.
func (g *gateway) judge(t *testing.T) (stop func()) {
	t.Helper()
	var (
		decisions atomic.Int64
		all       sync.WaitGroup
		over      = make(chan struct{})
	)
	for _, v := range []struct{ target, address, reason string }{
		{onlyIn(t, "DE"), "198.51.100.7", ""},
		{notIn(t, "DE"), "198.51.100.7", "rule_blocked"},
		{onlyIn(t, "GB", "FR"), "203.0.113.7", ""}, // the good databases say one or the other
		{notIn(t, "GB", "FR"), "203.0.113.7", "rule_blocked"},
		{onlyIn(t, "GB", "FR", "DE"), "8.8.8.8", "rule_blocked"}, // unknown to all
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
	return func() {
		close(over)
		all.Wait()
		if decisions.Load() == 0 {
			t.Error("nobody was judged")
		}
	}
}
