package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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

// onlyFrom is a target that plays for clients at some addresses and for no others.
func onlyFrom(t testing.TB, prefixes ...string) string {
	t.Helper()
	return ruled(t, "ip.src", "ip", "allow", prefixes) + "/seg.ts"
}

// notFrom is a target that plays for all clients but those at some addresses.
func notFrom(t testing.TB, prefixes ...string) string {
	t.Helper()
	return ruled(t, "ip.src", "ip", "block", prefixes) + "/seg.ts"
}

// onlyIn and notIn are the same for countries.
func onlyIn(t testing.TB, countries ...string) string {
	t.Helper()
	return ruled(t, "ip.geoip.country", "country", "allow", countries) + "/seg.ts"
}

func notIn(t testing.TB, countries ...string) string {
	t.Helper()
	return ruled(t, "ip.geoip.country", "country", "block", countries) + "/seg.ts"
}

func ruled(t testing.TB, kind, member, action string, list []string) string {
	t.Helper()
	rules := fmt.Sprintf(`{"type":%q,"action":%q,%q:["%s"]}`, kind, action, member, strings.Join(list, `","`))
	if action == "allow" {
		rules += `,{"type":"any","action":"block"}`
	}
	return "/" + mint(t, "vidA", withRules("["+rules+"]"))
}

// rawFrom is raw for a client with another address than 127.0.0.1.
func (g *gateway) rawFrom(t testing.TB, client, request string) *response {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}).Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return rawOn(t, conn, request)
}

// sighting is a request and where the gate must take its client to be: the target
// plays, or the rules block.
type sighting struct {
	name   string
	target string
	header []string
	from   string // the peer's address; default: 127.0.0.1
	plays  bool
}

func (h *hostileServer) see(t *testing.T, g *gateway, rows []sighting) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			from := row.from
			if from == "" {
				from = "127.0.0.1"
			}
			reason := "rule_blocked"
			if row.plays {
				reason = ""
			}
			h.want(t, g.rawFrom(t, from, rawGet(row.target, row.header...)), reason, "/vidA/seg.ts")
		})
	}
}

// tryAddresses has clients who name another address than their own, or name it in
// another way than the rules.
func (h *hostileServer) tryAddresses(t *testing.T) {
	const spoof, real = "203.0.113.7", "198.51.100.9" // the first is in GB
	claims := []string{"x-forwarded-for: " + spoof + "," + spoof, "Forwarded: for=" + spoof, "Via: 1.1 " + spoof, "CF-IPCountry: GB"}
	for _, name := range []string{
		"X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "Client-IP", "X-Cluster-Client-IP", "Fastly-Client-IP", "X_Forwarded_For",
		"X.Forwarded.For", "X-Original-Forwarded-For",
	} {
		claims = append(claims, name+": "+spoof)
	}
	h.see(t, h.plain, []sighting{
		{name: "N1 allowed elsewhere", target: onlyFrom(t, spoof, "127.0.0.2"), header: claims},
		{name: "N1 blocked here", target: notFrom(t, "127.0.0.1"), header: claims},
		{name: "N1 allowed here", target: onlyFrom(t, "127.0.0.1"), header: claims, plays: true},
		{name: "N1 allowed in another country", target: onlyIn(t, "GB"), header: claims},
		{name: "N4 a rule in IPv6 for IPv4", target: notFrom(t, "::ffff:127.0.0.0/120")},
		{name: "N8 allowed country", target: onlyIn(t, "gb"), from: "127.0.0.2", plays: true},
		{name: "N8 blocked country", target: notIn(t, "GB"), from: "127.0.0.2"},
		{name: "N8 unknown country matches no allow rule", target: onlyIn(t, "US", "GB", "DE", "XX"), from: "127.0.0.4"},
		{name: "N8 unknown country matches no block rule", target: notIn(t, "US", "GB", "DE", "XX"), from: "127.0.0.4", plays: true},
	})
	moving := onlyFrom(t, "127.0.0.2")
	h.see(t, h.plain, []sighting{
		{name: "N9 a URL that is handed on", target: moving, from: "127.0.0.2", plays: true},
		{name: "N9 to a client elsewhere", target: moving, from: "127.0.0.3"},
		{name: "N9 and back", target: moving, from: "127.0.0.2", plays: true},
	})
	h.tryForwarded(t, spoof, real)
	h.trySpellings(t)
	h.see(t, h.trustsAll, []sighting{ // who trusts everybody must at least get the peer
		{name: "N3 the spoof", target: onlyFrom(t, spoof, "::1"), header: []string{"X-Forwarded-For: " + spoof}},
		{name: "N3 the spoof in front of the peer", target: onlyFrom(t, spoof, "::1"), header: []string{"X-Forwarded-For: " + spoof + ", 127.0.0.1"}},
		{name: "N3 the peer", target: onlyFrom(t, "127.0.0.2"), header: []string{"X-Forwarded-For: " + spoof}, from: "127.0.0.2", plays: true},
	})
}

// tryForwarded has a trusted proxy: what it appended counts, and not what the
// client wrote in front of it.
func (h *hostileServer) tryForwarded(t *testing.T, spoof, real string) {
	var rows []sighting
	for name, header := range map[string][]string{
		"spoof, real":                {"X-Forwarded-For: " + spoof + ", " + real},
		"spoof, real, trusted proxy": {"X-Forwarded-For: " + spoof + ", " + real + ", 10.0.0.1"},
		"without spaces":             {"X-Forwarded-For: " + spoof + "," + real + ",10.0.0.1,10.1.2.3"},
		"two lines":                  {"X-Forwarded-For: " + spoof, "X-Forwarded-For: " + real},
		"two lines, proxy in second": {"X-Forwarded-For: " + spoof + ", " + real, "X-Forwarded-For: 10.0.0.1"},
		"a thousand spoofs":          {"X-Forwarded-For: " + strings.Repeat(spoof+",", 1000) + real},
		"garbage in front":           {"X-Forwarded-For: ,,unknown,\"" + spoof + "\",  ," + spoof + ", " + real},
		"with a port":                {"X-Forwarded-For: " + spoof + ":80, " + real + ":443"},
		"other headers as well":      {"X-Forwarded-For: " + real, "X-Real-IP: " + spoof, "Forwarded: for=" + spoof, "X_Forwarded_For: " + spoof},
	} {
		rows = append(rows, sighting{name: "N2 " + name, target: onlyFrom(t, real), header: header, plays: true})
	}
	h.see(t, h.behindProxy, append(rows,
		sighting{name: "N2 no header, the proxy itself", target: onlyFrom(t, "127.0.0.1"), plays: true},
		sighting{name: "N2 from a peer that is not trusted", target: onlyFrom(t, spoof), header: []string{"X-Forwarded-For: " + spoof}, from: "127.0.0.2"},
		sighting{name: "N2 nobody but proxies", target: onlyFrom(t, spoof), header: []string{"X-Forwarded-For: 10.0.0.1, 10.0.0.2"}},
	))
	t.Run("N2 10,000 entries", func(t *testing.T) {
		h.wantRejected(t, h.behindProxy.addr, rawGet("/", "X-Forwarded-For: "+strings.Repeat(spoof+",", 10_000)+real), http.StatusRequestHeaderFieldsTooLarge)
	})
	t.Run("N9 clients of a proxy on one connection", func(t *testing.T) {
		conn := &keepAlive{addr: h.behindProxy.addr}
		defer conn.close()
		target := onlyFrom(t, real)
		for range 2 {
			h.want(t, conn.exchange(t, requestFrom(target, real)), "", "/vidA/seg.ts")
			h.want(t, conn.exchange(t, requestFrom(target, spoof)), "rule_blocked", "")
		}
	})
}

// trySpellings has addresses in all their spellings, and what is no address,
// for which Caddy takes the proxy's own.
func (h *hostileServer) trySpellings(t *testing.T) {
	var rows []sighting
	as := func(address string) []string { return []string{"X-Forwarded-For: " + address} }
	for _, spelling := range []string{
		"::ffff:203.0.113.7", "::FFFF:203.0.113.7", "::ffff:cb00:7107", "0:0:0:0:0:ffff:203.0.113.7", "[::ffff:203.0.113.7]:443", "203.0.113.7:443",
		"::ffff:203.0.113.7%eth0", " 203.0.113.7 ",
	} {
		rows = append(rows, sighting{name: "N4 " + spelling, target: onlyFrom(t, "203.0.113.7"), header: as(spelling), plays: true})
	}
	for _, none := range []string{
		`"203.0.113.7"`, "unknown", "_hidden", "203.0.113", "203.0.113.007", "0xcb.0.113.7", "203.0.113.7/32", "3405803783", "", "for=203.0.113.7",
		"::ffff:203.0.113.7::", strings.Repeat("9", 5000),
	} {
		rows = append(rows, sighting{name: fmt.Sprintf("N5 %.20q", none), target: onlyFrom(t, "127.0.0.1"), header: as(none), plays: true})
	}
	h.see(t, h.behindProxy, append(rows,
		sighting{name: "N4 IPv6 in full", target: onlyFrom(t, "2001:db8::1"), header: as("2001:0DB8:0000:0000:0000:0000:0000:0001"), plays: true},
		sighting{name: "N4 a country of an IPv4 address in IPv6", target: onlyIn(t, "GB"), header: as("::ffff:203.0.113.7"), plays: true},
		sighting{name: "N4 IPv4 rules are not for IPv6", target: onlyFrom(t, "0.0.0.0/0"), header: as("2001:db8::1")},
		sighting{name: "N5 a zone", target: notFrom(t, "fe80::/10"), header: as("fe80::1%eth0")},
		sighting{name: "N5 an encoded zone", target: notFrom(t, "fe80::/10"), header: as("fe80::1%25eth0")},
		sighting{name: "N5 IPv6 with a port", target: onlyFrom(t, "2001:db8::1"), header: as("[2001:db8::1]:443"), plays: true},
	))
}

// tryUnixSockets has clients without an address: a rule about addresses must
// refuse them, because it cannot match them.
func (h *hostileServer) tryUnixSockets(t *testing.T) {
	ask := func(t *testing.T, socket, target string, header ...string) *response {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return rawOn(t, conn, strings.Replace(rawGet(target, header...), "media.example.com", map[string]string{h.socket: "unix.test", h.trusted: "trusted.test"}[socket], 1))
	}
	for name, target := range map[string]string{
		"allowed addresses": onlyFrom(t, "0.0.0.0/0", "::/0"), "blocked addresses": notFrom(t, "203.0.113.7"),
		"allowed countries": onlyIn(t, "US"), "blocked countries": notIn(t, "US"),
	} {
		t.Run("N7 "+name, func(t *testing.T) {
			h.want(t, ask(t, h.socket, target), "client_ip_unknown", "")
			h.want(t, ask(t, h.socket, target, "X-Forwarded-For: 127.0.0.1"), "client_ip_unknown", "")
			h.want(t, ask(t, h.trusted, target, "X-Forwarded-For: unknown"), "client_ip_unknown", "")
		})
	}
	t.Run("N7 rules that need no address", func(t *testing.T) {
		unreached := mint(t, "vidA", withRules(`[{"type":"any","action":"allow"},{"type":"ip.src","action":"block","ip":["::/0"]}]`))
		h.want(t, ask(t, h.socket, "/"+unreached+"/seg.ts"), "", "/vidA/seg.ts")
	})
	t.Run("N7 a trusted proxy on the socket", func(t *testing.T) {
		h.want(t, ask(t, h.trusted, onlyFrom(t, "203.0.113.7"), "X-Forwarded-For: ::ffff:203.0.113.7"), "", "/vidA/seg.ts")
	})
}

// tryProxyProtocol has addresses in the binary header of the PROXY protocol, IPv4
// in IPv6 among them, and headers that must not crash the server.
func (h *hostileServer) tryProxyProtocol(t *testing.T) {
	ask := func(t *testing.T, header []byte, target string) *response {
		return rawTo(t, h.proxyProtocol.addr, string(header)+rawGet(target))
	}
	for name, header := range map[string][]byte{
		"IPv4 as IPv6":            proxyHeader(0x21, "::ffff:203.0.113.7", "::ffff:127.0.0.1"),
		"IPv4":                    proxyHeader(0x11, "203.0.113.7", "127.0.0.1"),
		"version 1":               []byte("PROXY TCP4 203.0.113.7 127.0.0.1 1234 80\r\n"),
		"version 1, IPv4 as IPv6": []byte("PROXY TCP6 ::ffff:203.0.113.7 ::ffff:127.0.0.1 1234 80\r\n"),
	} {
		t.Run("N7 "+name, func(t *testing.T) {
			h.want(t, ask(t, header, onlyFrom(t, "::ffff:203.0.113.0/120")), "", "/vidA/seg.ts")
			h.want(t, ask(t, header, notFrom(t, "203.0.113.0/24")), "rule_blocked", "")
			h.want(t, ask(t, header, onlyIn(t, "GB")), "", "/vidA/seg.ts")
		})
	}
	t.Run("N7 IPv6", func(t *testing.T) {
		header := proxyHeader(0x21, "2001:db8:2::1", "::1")
		h.want(t, ask(t, header, onlyFrom(t, "2001:db8:2::/48")), "", "/vidA/seg.ts")
		h.want(t, ask(t, header, notIn(t, "US")), "rule_blocked", "")
	})
	t.Run("N7 a peer that may not speak it", func(t *testing.T) {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", h.proxyProtocol.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(startTimeout))
		_, _ = io.WriteString(conn, string(proxyHeader(0x11, "203.0.113.7", "127.0.0.1"))+rawGet(onlyFrom(t, "203.0.113.7")))
		_, _ = io.Copy(io.Discard, conn)
		h.wantUntouched(t)
	})
	t.Run("N7 a header without an address", func(t *testing.T) {
		h.want(t, ask(t, []byte("PROXY UNKNOWN\r\n"), onlyFrom(t, "203.0.113.7")), "rule_blocked", "")
	})
}

// proxySignature starts a header of version 2 of the PROXY protocol.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is such a header, for TCP.
func proxyHeader(family byte, from, to string) []byte {
	var addresses []byte
	for _, text := range []string{from, to} {
		addresses = append(addresses, netip.MustParseAddr(text).AsSlice()...)
	}
	addresses = append(addresses, 4, 210, 0, 80) // ports
	return append(append([]byte(proxySignature), 0x21, family, 0, byte(len(addresses))), addresses...)
}
