package integration

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// The operator's rules and schedules decide on requests through the sockets, with and without
// a token, from the config and from the control API, whose changes are in force at once.
func TestOperatorRulesAndSchedule(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	at := func(after time.Duration) string { return time.Now().Add(after).UTC().Format(time.RFC3339) }
	g := start(t, o, config{
		log: quiet, api: withAPI, global: trusting("127.0.0.1/32"), gate: "player",
		app: "geoip_database " + testdata(t, "country.mmdb") + "\nasn_database " + testdata(t, "asn.mmdb") +
			"\nanonymous_database " + testdata(t, "anonymous_plus.mmdb") + `
			require_signed_urls off
			access_rules {
				allow ip.src 203.0.113.200
				block ip.anonymous vpn tor
			}
			video free {
				access_rules {
				}
			}
			video coming {
				available_from ` + at(time.Hour) + `
			}
			video ended {
				access_rules {
				}
				available_until ` + at(-time.Second) + `
			}
			video ends {
				access_rules {
				}
				available_until ` + at(time.Minute) + `
			}`,
	})
	const vpn, hosting, tor, unknown = "203.0.113.7", "127.0.0.1", "198.51.100.1", "8.8.8.8"
	blocked := refusedFor("rule_blocked")
	token := func(rules string) string { return segment(mint(t, "open", withRules(rules))) }
	wanted := func(phase string, path, ip string, want verdict) {
		t.Helper()
		before := len(o.uris())
		if got := g.get(t, path, "X-Forwarded-For: "+ip).verdict(); got != want {
			t.Errorf("%s: %.40s from %s: %v, want %v", phase, path, ip, got, want)
		}
		if asked := len(o.uris()) - before; want != plays && asked != 0 {
			t.Errorf("%s: the origin is asked for %.40s from %s", phase, path, ip)
		}
	}
	const allowsAll, blocksDE = `[{"type":"any","action":"allow"}]`, `[{"type":"ip.geoip.country","country":["DE","GB"],"action":"block"}]`
	for _, tc := range []struct {
		path, ip string
		want     verdict
	}{
		{"/open/seg.ts", vpn, blocked},
		{"/open/seg.ts", tor, blocked},
		{"/open/seg.ts", hosting, plays},
		{"/open/seg.ts", unknown, plays},
		{"/open/seg.ts", "203.0.113.200", plays},
		{token(allowsAll), vpn, blocked},
		{token(allowsAll), hosting, plays},
		{token(blocksDE), "203.0.113.200", blocked}, // which the operator's first rule allows
		{"/free/seg.ts", vpn, plays},
		{"/coming/seg.ts", hosting, refusedFor("not_available_yet")},
		{"/coming/iframe", hosting, refusedFor("not_available_yet")},
		{"/ended/seg.ts", hosting, refusedFor("no_longer_available")},
		{"/ends/seg.ts", vpn, plays},
	} {
		wanted("config", tc.path, tc.ip, tc.want)
	}
	for _, path := range []string{"/ends/seg.ts", "/ends/iframe"} {
		if got := g.get(t, path).Header.Get("Cache-Control"); !strings.HasPrefix(got, "private, max-age=") || strings.Contains(got, "max-age=3600") {
			t.Errorf("%s: Cache-Control = %q, want it private and over in a minute", path, got)
		}
	}
	if got := string(g.get(t, "/coming/iframe").body); !strings.Contains(got, `data-refused="not_available_yet"`) {
		t.Errorf("the page before a premiere is %.200s", got)
	}
	for _, step := range []struct {
		edit     string
		vpn, own verdict // from the VPN, and from hosting in AS4200000000
	}{
		{`{"accessRules":[{"type":"ip.geoip.asnum","asn":[4200000000],"action":"block"}]}`, plays, blocked},
		{`{"accessRules":[]}`, plays, plays},
		{`{"accessRules":null}`, blocked, plays},
		{`{"availableUntil":"` + at(-time.Minute) + `"}`, refusedFor("no_longer_available"), refusedFor("no_longer_available")},
		{`{"availableUntil":null,"availableFrom":"` + at(time.Hour) + `"}`, refusedFor("not_available_yet"), refusedFor("not_available_yet")},
		{`{"availableFrom":null}`, blocked, plays},
	} {
		g.edit(t, "edited", step.edit)
		wanted(step.edit, "/edited/seg.ts", vpn, step.vpn)
		wanted(step.edit, "/edited/seg.ts", hosting, step.own)
	}
	if res := g.call(t, http.MethodPost, "stream/free", `{"accessRules":[]}`); res.StatusCode != http.StatusForbidden {
		t.Errorf("the API answers %d to an edit of a video of the config, want 403", res.StatusCode)
	}
}

// Real networks: the numbers of RouteViews, in MaxMind's schema. They belong to registries and
// large companies, which keep theirs. The database has half a million networks, and is
// replaced while the gate serves.
func TestLongPublicASNDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "asn.mmdb")
	writeASNDatabase(t, path, filepath.Join(npmInstall(t, "@ip-location-db/asn@2.3.2026061719"), "@ip-location-db", "asn"))
	g := start(t, nil, config{log: quiet, global: trusting("127.0.0.1/32"), site: "respond media", app: "asn_database " + path})
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
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", RecordSize: 28})
	if err != nil {
		t.Fatal(err)
	}
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
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := tree.WriteTo(file); err != nil {
		t.Fatal(err)
	}
}
