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
	return must(filepath.Abs(filepath.Join("..", "testdata", name)))(t)
}

// onlyFrom returns the path of a segment that plays only for clients at these addresses.
func onlyFrom(t testing.TB, prefixes ...string) string {
	t.Helper()
	return ruled(t, "ip.src", "ip", "allow", prefixes)
}

// notFrom returns the path of a segment that plays for all other clients.
func notFrom(t testing.TB, prefixes ...string) string {
	t.Helper()
	return ruled(t, "ip.src", "ip", "block", prefixes)
}

// onlyIn and notIn are the same for countries.
func onlyIn(t testing.TB, countries ...string) string {
	t.Helper()
	return ruled(t, "ip.geoip.country", "country", "allow", countries)
}

func notIn(t testing.TB, countries ...string) string {
	t.Helper()
	return ruled(t, "ip.geoip.country", "country", "block", countries)
}

func ruled(t testing.TB, kind, member, action string, list []string) string {
	t.Helper()
	rules := fmt.Sprintf(`{"type":%q,"action":%q,%q:["%s"]}`, kind, action, member, strings.Join(list, `","`))
	if action == "allow" {
		rules += `,{"type":"any","action":"block"}`
	}
	return "/" + mint(t, "vidA", withRules("["+rules+"]")) + "/seg.ts"
}

// rawFrom is raw for a client with another address than 127.0.0.1.
func (g *gateway) rawFrom(t testing.TB, client, request string) *response {
	t.Helper()
	conn := must((&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}).Dial("tcp", g.addr))(t)
	defer conn.Close()
	return rawOn(t, conn, request)
}

// tryAddresses sends requests of clients who name another address than their own, or
// write it in another way than the rules. TestRefusals and TestRequestsThatPass have
// more addresses.
func (h *hostileServer) tryAddresses(t *testing.T) {
	const spoof, real = "203.0.113.7", "198.51.100.9" // the first is in GB
	forwarded := func(list string) []string { return []string{"X-Forwarded-For: " + list} }
	claims := []string{"x-forwarded-for: " + spoof + "," + spoof, "Forwarded: for=" + spoof, "Via: 1.1 " + spoof, "CF-IPCountry: GB"}
	for _, name := range []string{
		"X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "Client-IP", "X-Cluster-Client-IP", "Fastly-Client-IP", "X_Forwarded_For",
		"X.Forwarded.For", "X-Original-Forwarded-For",
	} {
		claims = append(claims, name+": "+spoof)
	}
	const local = "127.0.0.1"
	moving := onlyFrom(t, "127.0.0.2")
	for _, row := range []struct {
		name   string
		at     *gateway
		from   string // the peer's address
		target string
		header []string
		plays  bool
	}{
		{"N1 allowed elsewhere", h.plain, local, onlyFrom(t, spoof, "127.0.0.2"), claims, false},
		{"N1 blocked here", h.plain, local, notFrom(t, local), claims, false},
		{"N1 allowed here", h.plain, local, onlyFrom(t, local), claims, true},
		{"N1 allowed in another country", h.plain, local, onlyIn(t, "GB"), claims, false},
		{"N8 allowed country", h.plain, "127.0.0.2", onlyIn(t, "gb"), nil, true},
		{"N8 blocked country", h.plain, "127.0.0.2", notIn(t, "GB"), nil, false},
		{"N8 unknown country", h.plain, "127.0.0.4", onlyIn(t, "US", "GB", "DE", "XX"), nil, false},
		{"N9 a URL that a client passes on", h.plain, "127.0.0.2", moving, nil, true},
		{"N9 to a client elsewhere", h.plain, "127.0.0.3", moving, nil, false},

		// What a trusted proxy has appended counts, and not what the client wrote.
		{"N2 spoof, real, trusted proxy", h.behindProxy, local, onlyFrom(t, real), forwarded(spoof + "," + real + ", 10.0.0.1"), true},
		{"N2 two lines", h.behindProxy, local, onlyFrom(t, real), []string{"X-Forwarded-For: " + spoof, "X-Forwarded-For: " + real}, true},
		{"N2 a thousand spoofs", h.behindProxy, local, onlyFrom(t, real), forwarded(strings.Repeat(spoof+",", 1000) + real), true},
		{"N2 garbage before it", h.behindProxy, local, onlyFrom(t, real), forwarded(`,,unknown,"` + spoof + `",  ,` + real + ":443"), true},
		{"N2 other headers as well", h.behindProxy, local, onlyFrom(t, real), append(claims[1:], "X-Forwarded-For: "+real), true},
		{"N2 no header, the proxy itself", h.behindProxy, local, onlyFrom(t, local), nil, true},
		{"N2 from a peer that is not trusted", h.behindProxy, "127.0.0.2", onlyFrom(t, spoof), forwarded(spoof), false},
		{"N2 proxies alone", h.behindProxy, local, onlyFrom(t, spoof), forwarded("10.0.0.1, 10.0.0.2"), false},
		{"N3 a server that trusts everybody", h.trustsAll, "127.0.0.2", onlyFrom(t, spoof, "::1"), forwarded(spoof + ", 127.0.0.1"), false},
		{"N3 its peer", h.trustsAll, "127.0.0.2", onlyFrom(t, "127.0.0.2"), forwarded(spoof), true},

		{"N4 IPv4 in IPv6", h.behindProxy, local, onlyFrom(t, spoof), forwarded("[::ffff:203.0.113.7]:443"), true},
		{"N4 IPv4 in IPv6 with a zone", h.behindProxy, local, onlyIn(t, "GB"), forwarded("::ffff:cb00:7107%eth0"), true},
		{"N4 a rule in IPv6 for IPv4", h.plain, local, notFrom(t, "::ffff:127.0.0.0/120"), nil, false},
		{"N4 IPv6 in full", h.behindProxy, local, onlyFrom(t, "2001:db8::1"), forwarded("2001:0DB8:0000:0000:0000:0000:0000:0001"), true},
		{"N4 IPv4 rules are not for IPv6", h.behindProxy, local, onlyFrom(t, "0.0.0.0/0"), forwarded("2001:db8::1"), false},
		{"N5 a zone", h.behindProxy, local, notFrom(t, "fe80::/10"), forwarded("fe80::1%25eth0"), false},
		// Caddy takes the proxy's own address where there is no other.
		{"N5 no address", h.behindProxy, local, onlyFrom(t, local), forwarded(`"203.0.113.7"`), true},
		{"N5 no decimal numbers", h.behindProxy, local, onlyFrom(t, local), forwarded("0xcb.0.113.7"), true},
		{"N5 a network", h.behindProxy, local, onlyFrom(t, local), forwarded("203.0.113.7/32"), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			reason := "rule_blocked"
			if row.plays {
				reason = ""
			}
			h.want(t, row.at.rawFrom(t, row.from, rawGet(row.target, row.header...)), reason, "/vidA/seg.ts")
		})
	}
	t.Run("N2 10,000 entries", func(t *testing.T) {
		h.wantRejected(t, h.behindProxy.addr, rawGet("/", forwarded(strings.Repeat(spoof+",", 10_000)+real)...), http.StatusRequestHeaderFieldsTooLarge)
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

// tryUnixSockets sends requests of clients without an address. A rule about addresses or
// countries cannot match them, so it must refuse them.
func (h *hostileServer) tryUnixSockets(t *testing.T) {
	unreached := "/" + mint(t, "vidA", withRules(`[{"type":"any","action":"allow"},{"type":"ip.src","action":"block","ip":["::/0"]}]`)) + "/seg.ts"
	for _, row := range []struct{ name, socket, target, header, reason string }{
		{"allowed addresses", h.socket, onlyFrom(t, "0.0.0.0/0", "::/0"), "X-Forwarded-For: 127.0.0.1", "client_ip_unknown"},
		{"blocked addresses", h.socket, notFrom(t, "203.0.113.7"), "X-Test: 1", "client_ip_unknown"},
		{"allowed countries", h.socket, onlyIn(t, "US"), "X-Test: 1", "client_ip_unknown"},
		{"blocked countries, and a proxy that names no address", h.trusted, notIn(t, "US"), "X-Forwarded-For: unknown", "client_ip_unknown"},
		{"rules that need no address", h.socket, unreached, "X-Test: 1", ""},
		{"a trusted proxy", h.trusted, onlyFrom(t, "203.0.113.7"), "X-Forwarded-For: ::ffff:203.0.113.7", ""},
	} {
		t.Run("N7 "+row.name, func(t *testing.T) {
			conn := must(net.Dial("unix", row.socket))(t)
			defer conn.Close()
			host := map[string]string{h.socket: "Host: unix.test", h.trusted: "Host: trusted.test"}[row.socket]
			h.want(t, rawOn(t, conn, rawRequest("GET", row.target, host, row.header)), row.reason, "/vidA/seg.ts")
		})
	}
}

// tryProxyProtocol sends addresses in the PROXY protocol, IPv4 in IPv6 among them.
func (h *hostileServer) tryProxyProtocol(t *testing.T) {
	mapped := proxyHeader(0x21, "::ffff:203.0.113.7", "::ffff:127.0.0.1")
	for _, row := range []struct {
		name, header, target, reason string
	}{
		{"IPv4 as IPv6", mapped, onlyFrom(t, "203.0.113.0/24"), ""},
		{"IPv4 as IPv6, blocked", mapped, notFrom(t, "203.0.113.0/24"), "rule_blocked"},
		{"IPv4 as IPv6, country", mapped, onlyIn(t, "GB"), ""},
		{"IPv4", proxyHeader(0x11, "203.0.113.7", "127.0.0.1"), onlyFrom(t, "::ffff:203.0.113.0/120"), ""},
		{"IPv6", proxyHeader(0x21, "2001:db8:2::1", "::1"), notIn(t, "US"), "rule_blocked"},
		{"version 1", "PROXY TCP6 ::ffff:203.0.113.7 ::ffff:127.0.0.1 1234 80\r\n", notFrom(t, "203.0.113.0/24"), "rule_blocked"},
		{"no address", "PROXY UNKNOWN\r\n", onlyFrom(t, "203.0.113.7"), "rule_blocked"},
	} {
		t.Run("N7 "+row.name, func(t *testing.T) {
			h.want(t, rawTo(t, h.proxyProtocol.addr, row.header+rawGet(row.target)), row.reason, "/vidA/seg.ts")
		})
	}
	t.Run("N7 a peer that may not speak it", func(t *testing.T) {
		conn := must((&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", h.proxyProtocol.addr))(t)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(startTimeout))
		_, _ = io.WriteString(conn, proxyHeader(0x11, "203.0.113.7", "127.0.0.1")+rawGet(onlyFrom(t, "203.0.113.7")))
		_, _ = io.Copy(io.Discard, conn)
		h.wantUntouched(t)
	})
}

// proxyHeader is a header of version 2 of the PROXY protocol, for TCP.
func proxyHeader(family byte, from, to string) string {
	var addresses []byte
	for _, text := range []string{from, to} {
		addresses = append(addresses, netip.MustParseAddr(text).AsSlice()...)
	}
	addresses = append(addresses, 4, 210, 0, 80) // ports
	return "\r\n\r\n\x00\r\nQUIT\n" + string(append([]byte{0x21, family, 0, byte(len(addresses))}, addresses...))
}
