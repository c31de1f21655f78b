package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testdata returns the path of a file of the product's test data.
func testdata(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// onlyFrom is a target that plays for some addresses and for nobody else.
func onlyFrom(t testing.TB, prefixes ...string) string {
	t.Helper()
	list := `"` + strings.Join(prefixes, `","`) + `"`
	return "/" + mint(t, "vidA", withRules(`[{"type":"ip.src","action":"allow","ip":[`+list+`]},{"type":"any","action":"block"}]`)) + "/seg.ts"
}

// notFrom is a target that plays for everybody but some addresses.
func notFrom(t testing.TB, prefixes ...string) string {
	t.Helper()
	list := `"` + strings.Join(prefixes, `","`) + `"`
	return "/" + mint(t, "vidA", withRules(`[{"type":"ip.src","action":"block","ip":[`+list+`]}]`)) + "/seg.ts"
}

// onlyIn and notIn are the same for countries.
func onlyIn(t testing.TB, countries ...string) string {
	t.Helper()
	list := `"` + strings.Join(countries, `","`) + `"`
	return "/" + mint(t, "vidA", withRules(`[{"type":"ip.geoip.country","action":"allow","country":[`+list+`]},{"type":"any","action":"block"}]`)) + "/seg.ts"
}

func notIn(t testing.TB, countries ...string) string {
	t.Helper()
	list := `"` + strings.Join(countries, `","`) + `"`
	return "/" + mint(t, "vidA", withRules(`[{"type":"ip.geoip.country","action":"block","country":[`+list+`]}]`)) + "/seg.ts"
}

// trusting is a global option: whose word about the viewer's address counts.
func trusting(prefixes string) string {
	return "servers {\ntrusted_proxies static " + prefixes + "\ntrusted_proxies_strict\n}"
}

// rawFrom is raw for a viewer with another address than 127.0.0.1.
func (g *gateway) rawFrom(t testing.TB, viewer, request string) *response {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(viewer)}}).Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return rawOn(t, conn, request)
}

// viewing is a request with what the viewer is for the gate: the target either
// plays or the rules block.
type viewing struct {
	name   string
	target string
	header []string
	from   string // default: 127.0.0.1
	plays  bool
}

func (g *gateway) view(t *testing.T, o *origin, rows []viewing) {
	t.Helper()
	if len(rows) == 0 {
		t.Fatal("no rows")
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			from := row.from
			if from == "" {
				from = "127.0.0.1"
			}
			res := g.rawFrom(t, from, rawGet(row.target, row.header...))
			if row.plays {
				o.wantPassed(t, res, "/vidA/seg.ts")
			} else {
				o.wantRefused(t, res, http.StatusForbidden, "rule_blocked")
			}
		})
	}
}

// Where no proxy is trusted, a viewer who names another address for himself
// must not be believed.
func TestHostileAddressHeaders(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: withCountries(t)})
	var rows []viewing
	for _, header := range []string{
		"X-Forwarded-For: 203.0.113.7", "X-Real-IP: 203.0.113.7", "Forwarded: for=203.0.113.7", "CF-Connecting-IP: 203.0.113.7",
		"True-Client-IP: 203.0.113.7", "X-Client-IP: 203.0.113.7", "Client-IP: 203.0.113.7", "X-Cluster-Client-IP: 203.0.113.7",
		"Fastly-Client-IP: 203.0.113.7", "X_Forwarded_For: 203.0.113.7", "X.Forwarded.For: 203.0.113.7", "x-forwarded-for: 203.0.113.7,203.0.113.7",
		"X-Forwarded-For: 127.0.0.2", "Via: 1.1 203.0.113.7", "X-Original-Forwarded-For: 203.0.113.7", "CF-IPCountry: GB",
	} {
		rows = append(rows,
			viewing{name: "N1 allowed elsewhere, " + header, target: onlyFrom(t, "203.0.113.7", "127.0.0.2"), header: []string{header}},
			viewing{name: "N1 blocked here, " + header, target: notFrom(t, "127.0.0.1"), header: []string{header}},
			viewing{name: "N1 allowed in GB, " + header, target: onlyIn(t, "GB"), header: []string{header}},
			viewing{name: "N1 allowed here, " + header, target: onlyFrom(t, "127.0.0.1"), header: []string{header}, plays: true},
		)
	}
	g.view(t, o, rows)
}

// Behind a trusted proxy, what the proxy appended counts, and not what the
// viewer wrote in front of it.
func TestHostileForwardedFor(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{global: trusting("127.0.0.1/32 10.0.0.0/8")})
	spoof, real := "203.0.113.7", "198.51.100.9"
	allow, block := onlyFrom(t, real), onlyFrom(t, spoof)
	var rows []viewing
	for name, header := range map[string][]string{
		"spoof, real":                {"X-Forwarded-For: " + spoof + ", " + real},
		"spoof, real, trusted proxy": {"X-Forwarded-For: " + spoof + ", " + real + ", 10.0.0.1"},
		"without spaces":             {"X-Forwarded-For: " + spoof + "," + real + ",10.0.0.1,10.1.2.3"},
		"two lines":                  {"X-Forwarded-For: " + spoof, "X-Forwarded-For: " + real},
		"two lines, proxy in second": {"X-Forwarded-For: " + spoof + ", " + real, "X-Forwarded-For: 10.0.0.1"},
		"a thousand spoofs":          {"X-Forwarded-For: " + strings.Repeat(spoof+",", 1000) + real},
		"garbage in front":           {"X-Forwarded-For: ,,unknown,\"" + spoof + "\",  ," + spoof + ", " + real},
		"with a port":                {"X-Forwarded-For: " + spoof + ":80, " + real + ":443"},
		"another header as well":     {"X-Forwarded-For: " + real, "X-Real-IP: " + spoof, "Forwarded: for=" + spoof, "CF-Connecting-IP: " + spoof},
		"a spelling with _ as well":  {"X_Forwarded_For: " + spoof, "X-Forwarded-For: " + real},
	} {
		rows = append(rows,
			viewing{name: "N2 " + name, target: allow, header: header, plays: true},
			viewing{name: "N2 " + name + ", for the spoof", target: block, header: header})
	}
	rows = append(rows,
		viewing{name: "N2 no header, the proxy itself", target: onlyFrom(t, "127.0.0.1"), plays: true},
		viewing{name: "N2 from a peer that is not trusted", target: block, header: []string{"X-Forwarded-For: " + spoof}, from: "127.0.0.2"},
		viewing{name: "N2 from a peer that is not trusted, itself", target: onlyFrom(t, "127.0.0.2"), header: []string{"X-Forwarded-For: " + spoof}, from: "127.0.0.2", plays: true},
		viewing{name: "N2 nobody but proxies", target: block, header: []string{"X-Forwarded-For: 10.0.0.1, 10.0.0.2"}},
	)
	g.view(t, o, rows)
	t.Run("N2 10,000 entries", func(t *testing.T) {
		o.wantRejected(t, g.addr, rawGet(allow, "X-Forwarded-For: "+strings.Repeat(spoof+",", 10_000)+real), http.StatusRequestHeaderFieldsTooLarge)
	})
	t.Run("N9 a viewer who moves behind the proxy, on one connection", func(t *testing.T) {
		conn := &keepAlive{addr: g.addr}
		defer conn.close()
		for range 2 {
			o.wantPassed(t, conn.exchange(t, "GET "+allow+" HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: "+real+"\r\n\r\n"), "/vidA/seg.ts")
			o.wantRefused(t, conn.exchange(t, "GET "+allow+" HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: "+spoof+"\r\n\r\n"), http.StatusForbidden, "rule_blocked")
		}
	})
}

// An operator who trusts everybody must at least not have every viewer choose
// his own address, if the option says strict.
func TestHostileEverybodyTrusted(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{global: trusting("0.0.0.0/0 ::/0")})
	var rows []viewing
	for _, header := range []string{"X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 203.0.113.7, 127.0.0.1", "X-Forwarded-For: ::1"} {
		rows = append(rows,
			viewing{name: "N3 the spoof, " + header, target: onlyFrom(t, "203.0.113.7", "::1"), header: []string{header}},
			viewing{name: "N3 the peer, " + header, target: onlyFrom(t, "127.0.0.2"), header: []string{header}, from: "127.0.0.2", plays: true})
	}
	g.view(t, o, rows)
}

// An address has several spellings. A rule must find its viewer under each,
// and a spelling that is none must not be a viewer of its own.
func TestHostileAddressSpellings(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{global: trusting("127.0.0.1/32")})
	as := func(address string) []string { return []string{"X-Forwarded-For: " + address} }
	var rows []viewing
	for _, spelling := range []string{"203.0.113.7", "::ffff:203.0.113.7", "::FFFF:203.0.113.7", "::ffff:cb00:7107", "0:0:0:0:0:ffff:203.0.113.7", "[::ffff:203.0.113.7]:443", "203.0.113.7:443", "::ffff:203.0.113.7%eth0", " 203.0.113.7 "} {
		for _, rule := range []string{"203.0.113.0/24", "::ffff:203.0.113.0/120", "203.0.113.7", "::ffff:203.0.113.7", "::ffff:cb00:7107", "0.0.0.0/0", "::ffff:0:0/96", "203.0.113.99/24"} {
			name := fmt.Sprintf("N4 viewer %s, rule %s", spelling, rule)
			rows = append(rows,
				viewing{name: name + ", block", target: notFrom(t, rule), header: as(spelling)},
				viewing{name: name + ", allow", target: onlyFrom(t, rule), header: as(spelling), plays: true})
		}
	}
	rows = append(rows,
		viewing{name: "N4 the neighbours", target: notFrom(t, "::ffff:203.0.113.0/120"), header: as("203.0.114.7"), plays: true},
		viewing{name: "N4 IPv6 rules are not for IPv4", target: onlyFrom(t, "2000::/3", "64:ff9b::/96"), header: as("203.0.113.7")},
		viewing{name: "N4 IPv4 rules are not for IPv6", target: onlyFrom(t, "0.0.0.0/0"), header: as("2001:db8::1")},
		viewing{name: "N4 IPv6 in full", target: onlyFrom(t, "2001:db8::/32"), header: as("2001:0DB8:0000:0000:0000:0000:0000:0001"), plays: true},
		viewing{name: "N5 a zone", target: onlyFrom(t, "fe80::1"), header: as("fe80::1%eth0"), plays: true},
		viewing{name: "N5 a zone, blocked", target: notFrom(t, "fe80::/10"), header: as("fe80::1%eth0")},
		viewing{name: "N5 an encoded zone", target: notFrom(t, "fe80::/10"), header: as("fe80::1%25eth0")},
		viewing{name: "N5 IPv6 with a port", target: onlyFrom(t, "2001:db8::1"), header: as("[2001:db8::1]:443"), plays: true},
	)
	// Caddy takes the address of the proxy for what is none.
	for _, none := range []string{`"203.0.113.7"`, "unknown", "_hidden", "203.0.113", "203.0.113.007", "0xcb.0.113.7", "203.0.113.7/32", "3405803783", "", "for=203.0.113.7", "::ffff:203.0.113.7::", strings.Repeat("9", 5000)} {
		rows = append(rows,
			viewing{name: fmt.Sprintf("N5 %.20q", none), target: onlyFrom(t, "203.0.113.0/24"), header: as(none)},
			viewing{name: fmt.Sprintf("N5 %.20q, blocked as the proxy", none), target: notFrom(t, "127.0.0.1"), header: as(none)})
	}
	g.view(t, o, rows)
}

// A rule with an address that is read in two ways, or not at all, spoils its
// token: it may be the rule that blocks.
func TestHostileRuleAddresses(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	for _, address := range []string{
		"010.0.0.1", "1.2.3", "0x7f.1", "127.1", "2130706433", "1.2.3.4/33", "1.2.3.4/08", "1.2.3.4/+8", "1.2.3.4/-1", "1.2.3.4/", "1.2.3.4/24/24", "1.2.3.4/255.255.255.0",
		" 1.2.3.4", "1.2.3.4 ", "1.2.3.4\\n", "1.2.3.256", "1.2.3.4.5", "1.2.3.4:80", "1.2.3.0-1.2.3.9", "1.2.3.*", "*", "", "localhost", "private_ranges",
		"::/129", "::1%lo", "fe80::1%eth0/64", "[::1]", ":::1", "1::2::3", "12345::", "::ffff:1.2.3", "::ffff:1.2.3.4/129", "\\u0661.2.3.4", "١.2.3.4",
	} {
		t.Run("N6 "+address, func(t *testing.T) {
			for _, action := range []string{"allow", "block"} {
				rules := `[{"type":"ip.src","action":"` + action + `","ip":["127.0.0.1","` + address + `"]}]`
				compact := genuine(goodHeader(), payloadWith(goodExp()+`,"accessRules":`+rules))
				o.wantRefused(t, g.raw(t, rawGet("/"+compact+"/seg.ts")), http.StatusUnauthorized, "rules_invalid")
			}
		})
	}
}

// A viewer without an address matches no rule about addresses, so such a rule
// must refuse him and not pass over him.
func TestHostileUnixSocket(t *testing.T) {
	folder, err := os.MkdirTemp("", "") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	o := startOrigin(t, nil)
	socket, trusted := filepath.Join(folder, "a"), filepath.Join(folder, "b")
	start(t, o, config{app: withCountries(t), site: "bind unix/" + socket + "\nreverse_proxy " + o.addr()})
	start(t, o, config{
		app: withCountries(t), global: "servers {\ntrusted_proxies_unix\ntrusted_proxies_strict\n}", site: "bind unix/" + trusted + "\nreverse_proxy " + o.addr(),
	})
	ask := func(t *testing.T, socket, target string, header ...string) *response {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return rawOn(t, conn, rawGet(target, header...))
	}
	for name, target := range map[string]string{
		"allowed addresses": onlyFrom(t, "0.0.0.0/0", "::/0"), "blocked addresses": notFrom(t, "203.0.113.7"), "allowed countries": onlyIn(t, "US"), "blocked countries": notIn(t, "US"),
	} {
		t.Run("N7 "+name, func(t *testing.T) {
			o.wantRefused(t, ask(t, socket, target), http.StatusForbidden, "client_ip_unknown")
			o.wantRefused(t, ask(t, socket, target, "X-Forwarded-For: 127.0.0.1"), http.StatusForbidden, "client_ip_unknown")
			o.wantRefused(t, ask(t, trusted, target), http.StatusForbidden, "client_ip_unknown")
			o.wantRefused(t, ask(t, trusted, target, "X-Forwarded-For: unknown"), http.StatusForbidden, "client_ip_unknown")
		})
	}
	t.Run("N7 rules that need no address", func(t *testing.T) {
		o.wantPassed(t, ask(t, socket, "/"+mint(t, "vidA", nil)+"/seg.ts"), "/vidA/seg.ts")
		any := "/" + mint(t, "vidA", withRules(`[{"type":"any","action":"allow"},{"type":"ip.src","action":"block","ip":["::/0"]}]`)) + "/seg.ts"
		o.wantPassed(t, ask(t, socket, any), "/vidA/seg.ts")
	})
	t.Run("N7 a trusted proxy on the socket", func(t *testing.T) {
		o.wantPassed(t, ask(t, trusted, onlyFrom(t, "203.0.113.7"), "X-Forwarded-For: 203.0.113.7"), "/vidA/seg.ts")
		o.wantPassed(t, ask(t, trusted, onlyIn(t, "GB"), "X-Forwarded-For: 203.0.113.7"), "/vidA/seg.ts")
		o.wantRefused(t, ask(t, trusted, notFrom(t, "203.0.113.0/24"), "X-Forwarded-For: ::ffff:203.0.113.7"), http.StatusForbidden, "rule_blocked")
	})
}

// The PROXY protocol brings addresses in a binary form, IPv4 ones as IPv6 among
// them: rules must meet them there too, and nothing in that header may crash.
func TestHostileProxyProtocol(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{
		app:    withCountries(t),
		global: "servers {\nlistener_wrappers {\nproxy_protocol {\ntimeout 10s\nallow 127.0.0.1/32\n}\n}\n}",
	})
	ask := func(t *testing.T, header []byte, target string) *response {
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return rawOn(t, conn, string(header)+rawGet(target))
	}
	for name, header := range map[string][]byte{
		"IPv4 as IPv6":            proxyHeader(0x21, "::ffff:203.0.113.7", "::ffff:127.0.0.1"),
		"IPv4":                    proxyHeader(0x11, "203.0.113.7", "127.0.0.1"),
		"version 1":               []byte("PROXY TCP4 203.0.113.7 127.0.0.1 1234 80\r\n"),
		"version 1, IPv4 as IPv6": []byte("PROXY TCP6 ::ffff:203.0.113.7 ::ffff:127.0.0.1 1234 80\r\n"),
	} {
		t.Run("N7 "+name, func(t *testing.T) {
			for _, rule := range []string{"203.0.113.0/24", "::ffff:203.0.113.0/120"} {
				o.wantRefused(t, ask(t, header, notFrom(t, rule)), http.StatusForbidden, "rule_blocked")
				o.wantPassed(t, ask(t, header, onlyFrom(t, rule)), "/vidA/seg.ts")
			}
			o.wantPassed(t, ask(t, header, onlyIn(t, "GB")), "/vidA/seg.ts")
			o.wantRefused(t, ask(t, header, onlyFrom(t, "127.0.0.1")), http.StatusForbidden, "rule_blocked")
		})
	}
	t.Run("N7 IPv6", func(t *testing.T) {
		header := proxyHeader(0x21, "2001:db8:2::1", "::1")
		o.wantPassed(t, ask(t, header, onlyFrom(t, "2001:db8:2::/48")), "/vidA/seg.ts")
		o.wantPassed(t, ask(t, header, onlyIn(t, "US")), "/vidA/seg.ts")
		o.wantRefused(t, ask(t, header, notIn(t, "US")), http.StatusForbidden, "rule_blocked")
	})
	for name, header := range map[string][]byte{
		"a local connection":      append([]byte(proxySignature), 0x20, 0, 0, 0),
		"an unspecified protocol": append([]byte(proxySignature), 0x21, 0, 0, 0),
		"a unix socket":           append(append([]byte(proxySignature), 0x21, 0x31, 0, 216), make([]byte, 216)...),
		"too few bytes":           append([]byte(proxySignature), 0x21, 0x11, 0, 4, 1, 2, 3, 4),
		"too many bytes":          append(append([]byte(proxySignature), 0x21, 0x11, 0xff, 0xff), make([]byte, 0xffff)...),
		"an unknown version":      append([]byte(proxySignature), 0x31, 0x11, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		"version 1 without any":   []byte("PROXY UNKNOWN\r\n"),
		"version 1, garbage":      []byte("PROXY TCP4 unknown 127.0.0.1 99999 -1\r\n"),
		"no header":               nil,
	} {
		t.Run("N7 "+name, func(t *testing.T) {
			conn, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(startTimeout))
			_, _ = io.WriteString(conn, string(header)+rawGet(onlyFrom(t, "203.0.113.7")))
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil {
				defer res.Body.Close()
				if res.StatusCode < 400 || res.StatusCode >= 500 {
					t.Errorf("got %d", res.StatusCode)
				}
			}
			o.wantUntouched(t)
		})
	}
	t.Run("N7 a peer that may not speak it", func(t *testing.T) {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(startTimeout))
		_, _ = io.WriteString(conn, string(proxyHeader(0x11, "203.0.113.7", "127.0.0.1"))+rawGet(onlyFrom(t, "203.0.113.7")))
		_, _ = io.Copy(io.Discard, conn)
		o.wantUntouched(t)
	})
}

// proxySignature starts a header of version 2 of the PROXY protocol.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is such a header, for TCP.
func proxyHeader(family byte, from, to string) []byte {
	var addresses []byte
	for _, text := range []string{from, to} {
		addr := netip.MustParseAddr(text)
		addresses = append(addresses, addr.AsSlice()...)
	}
	addresses = append(addresses, 4, 210, 0, 80) // ports
	return append(append([]byte(proxySignature), 0x21, family, 0, byte(len(addresses))), addresses...)
}

// A viewer from a country that is not allowed must stay out with either form of
// database, and one whose country nobody knows must match no rule at all.
func TestHostileCountries(t *testing.T) {
	for _, file := range []string{"country.mmdb", "flat.mmdb"} {
		o := startOrigin(t, nil)
		g := start(t, o, config{app: "geoip_database " + testdata(t, file), global: trusting("127.0.0.9/32")})
		// 127.0.0.1 is in the US, .2 in GB, .3 in DE, and .4 nobody knows where.
		rows := []viewing{
			{name: "allowed", target: onlyIn(t, "GB"), from: "127.0.0.2", plays: true},
			{name: "allowed in small letters", target: onlyIn(t, "us", "gb"), from: "127.0.0.2", plays: true},
			{name: "blocked in small letters", target: notIn(t, "Gb"), from: "127.0.0.2"},
			{name: "not allowed", target: onlyIn(t, "GB"), from: "127.0.0.3"},
			{name: "blocked", target: notIn(t, "US", "GB"), from: "127.0.0.2"},
			{name: "not blocked", target: notIn(t, "US", "GB"), from: "127.0.0.3", plays: true},
			{name: "unknown, not allowed", target: onlyIn(t, "US", "GB", "DE"), from: "127.0.0.4"},
			{name: "unknown, not blocked", target: notIn(t, "US", "GB", "DE"), from: "127.0.0.4", plays: true},
			{name: "XK is nowhere, not allowed", target: onlyIn(t, "XK"), from: "127.0.0.1"},
			{name: "XK is nowhere, not blocked", target: notIn(t, "XK"), from: "127.0.0.1", plays: true},
			{name: "EU is no country, not allowed", target: onlyIn(t, "EU"), from: "127.0.0.3"},
			{name: "EU is no country, not blocked", target: notIn(t, "EU"), from: "127.0.0.3", plays: true},
			{name: "unknown is not XX, ZZ or AA", target: onlyIn(t, "XX", "ZZ", "AA"), from: "127.0.0.4"},
			{name: "a country of an IPv6 address", target: onlyIn(t, "US"), from: "127.0.0.9", header: []string{"X-Forwarded-For: 2001:db8:2::1"}, plays: true},
			{name: "a country of an IPv4 address in IPv6", target: notIn(t, "GB"), from: "127.0.0.9", header: []string{"X-Forwarded-For: ::ffff:203.0.113.7"}},
			{name: "only registered in a country", target: onlyIn(t, "FR"), from: "127.0.0.9", header: []string{"X-Forwarded-For: 192.0.2.1"}},
			{name: "unknown IPv6 address", target: onlyIn(t, "US", "GB", "DE"), from: "127.0.0.9", header: []string{"X-Forwarded-For: 2001:db8:9::1"}},
		}
		for i := range rows {
			rows[i].name = "N8 " + file + ": " + rows[i].name
		}
		g.view(t, o, rows)
		for _, code := range []string{"T1", "USA", "U", "", `U\u017f`, `\u0130S`, "1", "U ", " US", "*"} {
			t.Run("N8 "+file+": code "+code, func(t *testing.T) {
				compact := genuine(goodHeader(), payloadWith(goodExp()+`,"accessRules":[{"type":"ip.geoip.country","action":"block","country":["`+code+`"]}]`))
				o.wantRefused(t, g.rawFrom(t, "127.0.0.1", rawGet("/"+compact+"/seg.ts")), http.StatusUnauthorized, "rules_invalid")
			})
		}
	}
}

// Without a database nobody knows who is blocked, so nobody gets in on the word
// of a country rule.
func TestHostileCountryWithoutDatabase(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	for name, target := range map[string]string{"allowed": onlyIn(t, "US"), "blocked": notIn(t, "DE")} {
		t.Run("N8 no database, "+name, func(t *testing.T) {
			o.wantRefused(t, g.raw(t, rawGet(target)), http.StatusServiceUnavailable, "country_unavailable")
		})
	}
	t.Run("N8 no database, a rule that is not reached", func(t *testing.T) {
		compact := mint(t, "vidA", withRules(`[{"type":"ip.src","action":"allow","ip":["127.0.0.1"]},{"type":"ip.geoip.country","action":"block","country":["US"]}]`))
		o.wantPassed(t, g.raw(t, rawGet("/"+compact+"/seg.ts")), "/vidA/seg.ts")
	})
	folder := t.TempDir()
	writeFile(t, filepath.Join(folder, "empty.mmdb"), nil)
	writeFile(t, filepath.Join(folder, "text.mmdb"), []byte("not a database"))
	for name, path := range map[string]string{
		"missing": "/nonexistent.mmdb", "of another sort": testdata(t, "asn.mmdb"), "empty": filepath.Join(folder, "empty.mmdb"), "text": filepath.Join(folder, "text.mmdb"), "a folder": folder,
	} {
		t.Run("N8 a database that is "+name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nadmin off\nsigned_playback {\ngeoip_database "+path+"\n}\n}\n"))
			output, ok := caddyIn(t, dir, "validate", "--config", "Caddyfile")
			if ok || !strings.Contains(output, path) {
				t.Errorf("accepted: %t, and the message is %s", ok, lastLine(output))
			}
		})
	}
}

// A database is replaced while viewers watch. The new one must come into force,
// and one that is broken or gone must not take the old one with it: everybody
// would be let in, or nobody.
func TestHostileDatabaseReplaced(t *testing.T) {
	const loaded, failed = "loaded the changed geo database", "loading the changed geo database failed"
	folder := t.TempDir()
	path := filepath.Join(folder, "geo.mmdb")
	read := func(name string) []byte {
		data, err := os.ReadFile(testdata(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	writeFile(t, path, read("country.mmdb"))
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "geoip_database " + path, global: trusting("127.0.0.1/32")})
	header := "X-Forwarded-For: 203.0.113.7" // in GB, and in FR when updated
	targets := map[string]string{"GB": onlyIn(t, "GB"), "FR": onlyIn(t, "FR")}
	wantCountry := func(t *testing.T, country string) {
		t.Helper()
		for code, target := range targets {
			res := g.raw(t, rawGet(target, header))
			if code == country {
				o.wantPassed(t, res, "/vidA/seg.ts")
			} else {
				o.wantRefused(t, res, http.StatusForbidden, "rule_blocked")
			}
		}
	}
	wantCountry(t, "GB")

	replace := func(data []byte) {
		next := filepath.Join(folder, "next")
		writeFile(t, next, data)
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	overwrite := func(data []byte) { writeFile(t, path, data) }
	good, updated := read("country.mmdb"), read("updated.mmdb")
	times := map[string]int{}
	for _, step := range []struct {
		name    string
		change  func()
		logged  string
		country string
	}{
		{"replaced", func() { replace(updated) }, loaded, "FR"},
		{"replaced by text", func() { replace([]byte("not a database")) }, failed, "FR"},
		{"replaced by a database of another sort", func() { replace(read("asn.mmdb")) }, failed, "FR"},
		{"overwritten", func() { overwrite(good) }, loaded, "GB"},
		{"truncated", func() { overwrite(updated[:len(updated)/2]) }, failed, "GB"},
		{"emptied", func() { overwrite(nil) }, failed, "GB"},
		{"removed", func() { _ = os.Remove(path) }, failed, "GB"},
		{"back again", func() { replace(updated) }, loaded, "FR"},
	} {
		t.Run("N8 "+step.name, func(t *testing.T) {
			step.change()
			times[step.logged]++
			if !g.log.awaitTimes(step.logged, times[step.logged]) {
				t.Fatalf("the server has not logged %q", step.logged)
			}
			wantCountry(t, step.country)
		})
	}
	if bytes.Count([]byte(g.log.String()), []byte(failed)) != times[failed] {
		t.Errorf("N8 a broken file is reported more than once for each of its states:\n%s", g.log)
	}
}

// awaitTimes is await for a text that is written several times.
func (b *logBuffer) awaitTimes(text string, times int) bool {
	deadline := time.Now().Add(startTimeout)
	timer := time.AfterFunc(startTimeout, b.grown.Broadcast)
	defer timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	for bytes.Count(b.written.Bytes(), []byte(text)) < times {
		if !time.Now().Before(deadline) {
			return false
		}
		b.grown.Wait()
	}
	return true
}

// A decision is about one request. Whoever hands a URL on, or moves, is judged
// anew on the next segment.
func TestHostileViewerMoves(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: withCountries(t)})
	address, country := onlyFrom(t, "127.0.0.2"), onlyIn(t, "GB")
	for _, target := range []string{address, country} {
		for range 3 {
			o.wantPassed(t, g.rawFrom(t, "127.0.0.2", rawGet(target)), "/vidA/seg.ts")
			o.wantRefused(t, g.rawFrom(t, "127.0.0.3", rawGet(target)), http.StatusForbidden, "rule_blocked")
		}
	}
}
