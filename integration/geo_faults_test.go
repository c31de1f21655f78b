package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// S10 The last good geo database stays in force, whatever happens to its file, and viewers
// are served meanwhile. Package geo has many more ways to damage a database.
func TestGeoDatabaseFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	british, french := readText(t, testdata(t, "country.mmdb")), readText(t, testdata(t, "updated.mmdb")) // say so of 203.0.113.0/24
	path, admin := filepath.Join(t.TempDir(), "geo.mmdb"), freeAddr(t)
	write := func(data string) func() error { return func() error { return os.WriteFile(path, []byte(data), 0o600) } }
	replace := func(data string) func() error {
		return func() error {
			return errors.Join(os.WriteFile(path+".next", []byte(data), 0o600), os.Rename(path+".next", path))
		}
	}
	writeFile(t, path, []byte(british))
	g := start(t, startOrigin(t, nil), config{
		log: quiet, app: "geoip_database " + path, global: "admin " + admin + "\n" + trusting("127.0.0.1/32"),
	})
	const viewer = "X-Forwarded-For: 203.0.113.7"
	audience := seat(t, []*gateway{g}, map[string]string{"a viewer whose country is unknown": notIn(t, "GB", "FR", "DE")})
	inForce := "GB"
	for _, change := range []struct {
		name    string
		do      func() error
		country string // of the database that is there now, if it is a good one
	}{
		{"updated", replace(french), "FR"},
		{"replaced by a database of networks", replace(readText(t, testdata(t, "asn.mmdb"))), ""},
		{"overwritten", write(british), "GB"},
		{"cut in half", func() error { return os.Truncate(path, int64(len(british)/2)) }, ""},
		{"overwritten by an update", write(french), "FR"},
		{"removed", func() error { return os.Remove(path) }, ""},
	} {
		seen, successful := "loading the changed geo database failed", 0.0
		if change.country != "" {
			seen, successful, inForce = "loaded the changed geo database", 1, change.country
		}
		before := len(g.log.String())
		if err := change.do(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the gate sees the database "+change.name, func() bool {
			return strings.Contains(g.log.String()[before:], seen) && g.metric(t, admin, "geoip_last_reload_successful") == successful
		})
		wantVerdict(t, g, onlyIn(t, inForce), plays, viewer)
		wantVerdict(t, g, onlyIn(t, "DE"), refusedFor("rule_blocked"), viewer)
	}
	audience.leave(t)
}
