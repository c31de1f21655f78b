package integration

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// hostileServer is one server for all attacks on the gate, because starting a
// server takes longer than a hundred requests.
type hostileServer struct {
	*tlsGateway // a site over TLS
	*origin
	plain           *gateway // the same without TLS; it trusts no proxy
	second          string   // address of another site of the process
	named           string   // address of a site for the host gw.test alone
	manyNames       string   // address of a site for host0.example.com to host149.example.com
	handlePath      string   // address of a site whose gate is behind handle_path /play/*
	stripPrefix     string   // address of a site whose gate is behind uri strip_prefix /play
	tunnel          string   // address of a site whose origin answers 101 to every request
	behindProxy     *gateway // trusts the proxies 127.0.0.1 and 10.0.0.0/8
	trustsAll       *gateway // trusts every proxy
	proxyProtocol   *gateway // takes the PROXY protocol from 127.0.0.1
	socket, trusted string   // unix sockets; the second trusts its peer
}

func startHostileServer(t *testing.T) *hostileServer {
	t.Helper()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Every answer is a playlist that the gate must rewrite.
		_, _ = io.WriteString(w, "#EXTM3U\n#EXTINF:4,\n"+r.URL.Path[:strings.LastIndexByte(r.URL.Path, '/')+1]+"next.ts\n")
	}))
	eager := startOrigin(t, http.HandlerFunc(switchProtocols))
	folder := must(os.MkdirTemp("", ""))(t) // t.TempDir is too long for a socket's name
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	h := &hostileServer{
		origin: o, plain: &gateway{addr: freeAddr(t)}, second: freeAddr(t), named: freeAddr(t), manyNames: freeAddr(t),
		handlePath: freeAddr(t), stripPrefix: freeAddr(t), tunnel: freeAddr(t),
		behindProxy: &gateway{addr: freeAddr(t)}, trustsAll: &gateway{addr: freeAddr(t)}, proxyProtocol: &gateway{addr: freeAddr(t)},
		socket: filepath.Join(folder, "a"), trusted: filepath.Join(folder, "b"),
	}
	proxy := "reverse_proxy " + o.addr() + " {\nheader_up X-Gate-Video {http.signed_playback.video}\n}"
	gate := "signed_playback\n" + proxy
	var names []string
	for i := range 150 {
		names = append(names, fmt.Sprintf("http://Host%d.Example.com:%s", i, port(h.manyNames)))
	}
	servers := func(listener, options string) string { return "servers " + listener + " {\n" + options + "\n}\n" }
	strictly := func(proxies string) string { return "trusted_proxies " + proxies + "\ntrusted_proxies_strict" }
	h.tlsGateway = startTLS(t, o, config{
		app: withCountries(t) + "\nvideo open {\nrequire_signed_urls off\n}\n" + allowing("site", "example.com", "*.example.org") +
			allowing("port", "localhost:3000") + allowing("app", "capacitor://localhost") + allowing("cyrillic", "пример.example"),
		site: proxy,
		global: servers(h.behindProxy.addr, strictly("static 127.0.0.1/32 10.0.0.0/8")) + servers(h.trustsAll.addr, strictly("static 0.0.0.0/0 ::/0")) +
			servers(h.proxyProtocol.addr, "listener_wrappers {\nproxy_protocol {\ntimeout 10s\nallow 127.0.0.1/32\n}\n}") +
			servers("unix/"+h.trusted, "trusted_proxies_unix\ntrusted_proxies_strict"),
		sites: site(h.plain.addr, gate) + site(h.second, gate) + site(h.behindProxy.addr, gate) + site(h.trustsAll.addr, gate) + site(h.proxyProtocol.addr, gate) +
			site(h.handlePath, "handle_path /play/* {\n"+gate+"\n}") + site(h.stripPrefix, "route {\nuri strip_prefix /play\n"+gate+"\n}") +
			site(h.tunnel, "signed_playback\nreverse_proxy "+eager.addr()) +
			"http://gw.test:" + port(h.named) + " {\n" + gate + "\n}\n" + strings.Join(names, ", ") + " {\n" + gate + "\n}\n" +
			"http://unix.test:80 {\nbind unix/" + h.socket + "\n" + gate + "\n}\n" + "http://trusted.test:80 {\nbind unix/" + h.trusted + "\n" + gate + "\n}\n",
	})
	return h
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// site is one more site block, for any host on an address.
func site(addr, directives string) string {
	return "http://:" + port(addr) + " {\n" + directives + "\n}\n"
}

// allowing is a video block with allowed origins.
func allowing(video string, patterns ...string) string {
	return "video " + video + " {\nallowed_origins " + strings.Join(patterns, " ") + "\n}\n"
}

// trusting is a global option: the proxies that may say what the client's
// address is.
func trusting(prefixes string) string {
	return "servers {\ntrusted_proxies static " + prefixes + "\ntrusted_proxies_strict\n}"
}

// TestHostileRequests sends attacks on the gate as bytes. The full tables are in
// the unit tests; here each threat of the threat model has one row, and attacks
// that exist on sockets alone have all of theirs.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	h := startHostileServer(t)
	for _, area := range []struct {
		name string
		run  func(*hostileServer, *testing.T)
	}{
		{"threats", (*hostileServer).tryThreats},
		{"rejected by the server", (*hostileServer).tryUnreadable},
		{"answers", (*hostileServer).checkAnswers},
		{"headers for the origin", (*hostileServer).checkOriginHeaders},
		{"hosts", (*hostileServer).tryHosts},
		{"bodies", (*hostileServer).tryBodies},
		{"upgrades", (*hostileServer).tryUpgrades},
		{"HTTP/2", (*hostileServer).tryHTTP2},
		{"early data", (*hostileServer).tryEarlyData},
		{"mounts", (*hostileServer).tryMounts},
		{"addresses", (*hostileServer).tryAddresses},
		{"unix sockets", (*hostileServer).tryUnixSockets},
		{"PROXY protocol", (*hostileServer).tryProxyProtocol},
	} {
		t.Run(area.name, func(t *testing.T) { area.run(h, t) })
	}
}

// threat is one request that stands for a row of the threat model.
type threat struct {
	name    string
	request string
	reason  string // of the refusal; "" if the request passes
	uri     string // what the origin is asked for, if it passes
}

// try sends each request and checks what became of it.
func (h *hostileServer) try(t *testing.T, g *gateway, rows []threat) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			res := g.raw(t, row.request)
			h.want(t, res, row.reason, row.uri)
			_, target, _ := strings.Cut(row.request, " /")
			first, _, _ := strings.Cut(target, "/")
			wantNotEchoed(t, res, first)
		})
	}
}

// want checks an answer: refused for a reason, or passed with every path of the
// origin rewritten.
func (h *hostileServer) want(t testing.TB, res *response, reason, uri string) {
	t.Helper()
	if reason != "" {
		h.wantRefused(t, res, reason)
		return
	}
	h.wantPassed(t, res, uri)
	if bytes.Contains(res.body, []byte("\n/")) {
		t.Errorf("the playlist has the origin's paths: %q", res.body)
	}
}

// tryThreats has one row for each threat about tokens (J), paths (P), methods
// (H), addresses (N) and origins (R).
func (h *hostileServer) tryThreats(t *testing.T) {
	h.try(t, h.plain, slices.Concat(tokenThreats(t, h.origin.server.URL), pathThreats(t), originThreats(t)))
}

// tokenThreats returns tokens that must open nothing. Some name an address that
// nobody must ask.
func tokenThreats(t *testing.T, address string) []threat {
	good := mint(t, "vidA", nil)
	parts := strings.Split(good, ".")
	attacker := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	jwk := must(newSigningKey(keyID, attacker).Public().JWK())(t)
	mac := hmac.New(sha256.New, publicPEM(t, &privateKey().PublicKey))
	hs256 := b64(`{"alg":"HS256","kid":"main"}`) + "." + b64(goodPayload("vidA"))
	mac.Write([]byte(hs256))
	of := func(compact string) string { return rawGet("/" + compact + "/seg.ts") }
	header := func(header string) string { return of(genuine(header, goodPayload("vidA"))) }
	claims := func(members string) string { return of(genuine(goodHeader(), payloadWith(members))) }
	return []threat{
		{"J1 unsigned, alg none", of(b64(`{"alg":"none","kid":"main"}`) + "." + parts[1] + "."), "algorithm_not_allowed", ""},
		{"J2 HMAC with the public key as its secret", of(hs256 + "." + b64(string(mac.Sum(nil)))), "algorithm_not_allowed", ""},
		{"J3 genuine signature under HS256", header(`{"alg":"HS256","kid":"main"}`), "algorithm_not_allowed", ""},
		{"J4 rs256", header(`{"alg":"rs256","kid":"main"}`), "algorithm_not_allowed", ""},
		{"J5 genuine PS256 posing as RS256", of(parts[0] + "." + parts[1] + "." + b64(string(signPSS([]byte(parts[0]+"."+parts[1]))))), "signature_invalid", ""},
		{"J6 jwk of the attacker", of(signRaw(attacker, headerWith(`"jwk":`+string(jwk)), goodPayload("vidA"))), "token_malformed", ""},
		{"J7 jku", of(signRaw(attacker, headerWith(`"jku":"`+address+`/k.json"`), goodPayload("vidA"))), "token_malformed", ""},
		{"J7 kid that is an address", of(signRaw(attacker, `{"alg":"RS256","kid":"`+address+`/k.json"}`, `{"sub":"vidA",`+goodExp()+`}`)), "key_unknown", ""},
		{"J8 crit", header(headerWith(`"crit":["x"],"x":1`)), "token_malformed", ""},
		{"J9 b64 false", header(headerWith(`"b64":false,"crit":["b64"]`)), "token_malformed", ""},
		{"J10 alg twice", header(`{"alg":"none","alg":"RS256","kid":"main"}`), "token_malformed", ""},
		{"J11 kid that is a path", of(genuine(`{"alg":"RS256","kid":"../main.jwks.json"}`, `{"sub":"vidA",`+goodExp()+`}`)), "key_unknown", ""},
		{"J12 typ of another protocol", header(headerWith(`"typ":"secevent+jwt"`)), "token_malformed", ""},
		{"J13 unused bits of the last character", of(withUnusedBit(good)), "token_malformed", ""},
		{"J14 padding", of(good + "%3D"), "token_malformed", ""},
		{"J15 the other alphabet", of(good[:len(good)-2] + "%2B" + good[len(good)-2:]), "token_malformed", ""},
		{"J16 line feed", of(good[:30] + "%0A" + good[30:]), "token_malformed", ""},
		{"J17 four segments", of(good + "." + parts[2]), "path_invalid", ""},
		{"J18 JSON serialization", of("%7B%22protected%22:%22" + parts[0] + "%22,%22payload%22:%22" + parts[1] + "%22,%22signature%22:%22" + parts[2] + "%22%7D"), "path_invalid", ""},
		{"J19 a token within a token", of(genuine(goodHeader(), good)), "token_malformed", ""},
		{"J20 a second object", of(genuine(goodHeader(), payloadWith(goodExp())+`{"sub":"vidB"}`)), "token_malformed", ""},
		{"J21 sub twice", claims(goodExp() + `,"sub":"vidB"`), "token_malformed", ""},
		{"J22 EXP in capitals", claims(`"EXP":` + in(time.Hour)), "token_malformed", ""},
		{"J22 rules that block everybody, misspelt", claims(goodExp() + `,"accessrules":[{"type":"any","action":"block"}]`), "token_malformed", ""},
		{"J22 claims of an identity provider", claims(goodExp() + `,"iss":"https://id.example","aud":["a"],"azp":"a","sid":"b","jti":"c","iat":1,"email":"d"`), "", "/vidA/seg.ts"},
		{"J23 sub that is a path", of(genuine(goodHeader(), `{"sub":"../vidB",`+goodExp()+`}`)), "token_malformed", ""},
		{"J24 nested deeply", claims(goodExp() + `,"x":` + strings.Repeat("[", 2500) + strings.Repeat("]", 2500)), "token_malformed", ""},
		{"J25 no exp", claims(`"nbf":0`), "token_malformed", ""},
		{"J26 exp 0", claims(`"exp":0`), "token_expired", ""},
		{"J27 exp as text", claims(`"exp":"2999-01-01T00:00:00Z"`), "token_malformed", ""},
		{"J27 exp as digits, as Cloudflare sends it", claims(`"exp":"` + in(time.Hour) + `"`), "", "/vidA/seg.ts"},
		{"J28 exp in milliseconds", claims(`"exp":` + in(time.Hour) + "000"), "token_lifetime_exceeded", ""},
		{"J29 exp -1", claims(`"exp":-1`), "token_malformed", ""},
		{"J30 exp is now", claims(`"exp":` + in(0)), "token_expired", ""},
		{"J30 nbf beyond the leeway", claims(goodExp() + `,"nbf":` + in(time.Minute)), "token_not_yet_valid", ""},
		{"J32 a zero byte in front of the signature", of(parts[0] + "." + parts[1] + "." + b64("\x00"+string(signature(privateKey(), parts[0]+"."+parts[1])))), "signature_invalid", ""},
		{"J34 a key of another installation", rawGet(stranger()), "key_unknown", ""},
		{"J35 a rule that is not understood", claims(goodExp() + `,"accessRules":[{"type":"ip.geoip.continent","action":"block"}]`), "rules_invalid", ""},
		{"J35 the ip and country that Cloudflare's SDKs send", claims(goodExp() + `,"accessRules":[{"type":"any","action":"allow","ip":["0.0.0.0/0"],"country":[]}]`), "", "/vidA/seg.ts"},
	}
}

func pathThreats(t *testing.T) []threat {
	T := mint(t, "vidA", nil)
	download := mint(t, "vidA", func(c *token.Claims) { c.Downloadable = true })
	expired := mint(t, "vidB", func(c *token.Claims) { c.ExpiresAt = time.Unix(1, 0) })
	return []threat{
		{"P1 dot segments", rawGet("/" + T + "/../vidB/x"), "path_invalid", ""},
		{"P2 encoded dots", rawGet("/" + T + "/%2e%2e/vidB/x"), "path_invalid", ""},
		{"P3 dots encoded twice", rawGet("/" + T + "/%252e%252e/vidB/x"), "path_invalid", ""},
		{"P4 encoded slash", rawGet("/" + T + "/manifest%2Fvideo.m3u8"), "path_invalid", ""},
		{"P5 backslash", rawGet("/" + T + `/..\vidB`), "path_invalid", ""},
		{"P6 empty segment", rawGet("//" + T + "/x"), "path_invalid", ""},
		{"P7 path parameter", rawGet("/" + T + "/..;/vidB"), "path_invalid", ""},
		{"P8 NUL", rawGet("/" + T + "/seg%00.ts"), "path_invalid", ""},
		{"P9 fragment", rawGet("/" + T + "/x#y"), "path_invalid", ""},
		{"P9 a query that looks like a path", rawGet("/" + T + "/x?/../vidB#y;%zz"), "", "/vidA/x?/../vidB#y;%zz"},
		{"P10 a token below an id", rawGet("/open/" + T + "/x"), "path_invalid", ""},
		{"P10 a token below a token", rawGet("/" + T + "/" + expired + "/x"), "path_invalid", ""},
		{"P11 a video id alone", rawGet("/vidA/x"), "token_required", ""},
		{"P12 a token cut off", rawGet("/" + strings.Join(strings.Split(T, ".")[:2], ".") + "/x"), "path_invalid", ""},
		{"P13 almost a manifest's name", rawGet("/" + T + "/manifest/video.m3u8_"), "", "/vidA/manifest/video.m3u8_"},
		{"P19 downloads as a stream of NTFS", rawGet("/" + T + "/downloads::$INDEX_ALLOCATION/a.mp4"), "path_invalid", ""},
		{"P14 absolute form of another host", rawGet("http://u:p@evil.example/" + T + "/x"), "", "/vidA/x"},
		{"P14 absolute form with dots", rawGet("http://media.example.com/" + T + "/../x"), "path_invalid", ""},
		{"P14 opaque form", rawGet("http:" + T), "path_invalid", ""},
		{"P15 CONNECT to a host", "CONNECT media.example.com:443 HTTP/1.1\r\nHost: media.example.com:443\r\n\r\n", "method_not_allowed", ""},
		{"P15 CONNECT to a path", rawRequest("CONNECT", "/"+T+"/x"), "method_not_allowed", ""},
		{"P17 4,000 segments", rawGet("/" + T + strings.Repeat("/a", 4000)), "", "/vidA" + strings.Repeat("/a", 4000)},
		{"H4 HEAD", rawRequest("HEAD", "/vidA/seg.ts"), "token_required", ""},
		{"H6 POST", rawRequest("POST", "/"+T+"/x", "Content-Length: 0"), "method_not_allowed", ""},
		{"H6 get", rawRequest("get", "/open/x", "Content-Length: 0"), "method_not_allowed", ""},
		{"H6 POST that says it is GET", rawRequest("POST", "/"+T+"/x", "X-HTTP-Method-Override: GET", "Content-Length: 0"), "method_not_allowed", ""},
		{"a download", rawGet("/" + T + "/downloads/x.mp4"), "download_not_allowed", ""},
		{"a download with the claim", rawGet("/" + download + "/downloads/x.mp4"), "", "/vidA/downloads/x.mp4"},
		{"an open video", rawGet("/open/x"), "", "/open/x"},
	}
}

func originThreats(t *testing.T) []threat {
	from := func(video string, header ...string) string {
		return rawGet("/"+mint(t, video, nil)+"/seg.ts", header...)
	}
	iframe := func(header ...string) string { return rawGet("/"+mint(t, "site", nil)+"/iframe", header...) }
	T := mint(t, "port", nil)
	return []threat{
		{"R1 a name behind a hyphen", from("site", "Referer: https://evil-example.com/"), "origin_not_allowed", ""},
		{"R2 a name that ends like a wildcard's", from("site", "Origin: https://evilexample.org"), "origin_not_allowed", ""},
		{"R2 a subdomain", from("site", "Origin: https://a.b.example.org"), "", "/site/seg.ts"},
		{"R2 an app", from("app", "Origin: capacitor://localhost"), "", "/app/seg.ts"},
		{"R2 another app", from("app", "Origin: tauri://localhost"), "origin_not_allowed", ""},
		{"R3 userinfo", from("site", "Referer: https://example.com@evil.com/"), "origin_not_allowed", ""},
		{"R4 capitals, a dot and a default port", from("site", "Origin: https://EXAMPLE.com.:443"), "", "/site/seg.ts"},
		{"R6 A-label of a pattern in Cyrillic", from("cyrillic", "Origin: https://xn--e1afmkfd.example"), "", "/cyrillic/seg.ts"},
		{"R7 null", from("site", "Origin: null", "Referer: https://example.com/"), "origin_not_allowed", ""},
		{"R8 neither header", from("site"), "origin_required", ""},
		{"R8 neither header, within an iframe", iframe("Sec-Fetch-Dest: iframe"), "", "/site/iframe"},
		{"R9 other Origin, good Referer", from("site", "Origin: https://evil.com", "Referer: https://example.com/"), "origin_not_allowed", ""},
		{"R11 the host that X-Forwarded-Host names", from("port", "Origin: https://evil.com", "X-Forwarded-Host: evil.com"), "origin_not_allowed", ""},
		{"R11 the gate's own page, a segment", rawGet("/"+T+"/seg.ts", "Referer: https://media.example.com/"+T+"/iframe"), "", "/port/seg.ts"},
		{"R12 a page of another video on the gate's host", rawGet("/"+T+"/seg.ts", "Referer: https://media.example.com/vidA/iframe"), "origin_not_allowed", ""},
		{"R12 the gate's host alone", rawGet("/"+T+"/seg.ts", "Origin: https://media.example.com"), "origin_not_allowed", ""},
	}
}

// tryUnreadable has requests that the server itself must refuse: nothing of them
// may get as far as the gate.
func (h *hostileServer) tryUnreadable(t *testing.T) {
	good := mint(t, "vidA", nil)
	for _, row := range []struct {
		name, target string
		status       int
	}{
		{"J11 kid of 1 MiB", "/" + genuine(`{"alg":"RS256","kid":"`+strings.Repeat("k", 1<<20)+`"}`, `{"sub":"vidA"}`) + "/x", http.StatusRequestHeaderFieldsTooLarge},
		{"P17 64 kB", "/" + good + "/" + strings.Repeat("a", 64_000), http.StatusRequestHeaderFieldsTooLarge},
		{"P17 a query of 10,001 parameters", "/" + good + "/x?" + strings.Repeat("a&", 10_001), http.StatusRequestHeaderFieldsTooLarge},
		{"J16 raw CRLF", "/\r\n" + good + "/x", http.StatusBadRequest},
		{"J16 raw space", "/" + good + " /x", http.StatusBadRequest},
		{"J16 raw NUL", "/" + good + "\x00/x", http.StatusBadRequest},
		{"P5 a backslash instead of the first slash", `\` + good + "/x", http.StatusBadRequest},
		{"P8 an escape that is none", "/" + good + "/%zz", http.StatusBadRequest},
		{"P16 no target", "", http.StatusBadRequest},
	} {
		t.Run(row.name, func(t *testing.T) { h.wantRejected(t, h.plain.addr, rawGet(row.target), row.status) })
	}
	t.Run("P15 a WebSocket's CONNECT in HTTP/1.1", func(t *testing.T) {
		h.wantRejected(t, h.plain.addr, rawRequest("CONNECT", "/"+good+"/x", "Upgrade: websocket", ":protocol: websocket"), http.StatusBadRequest)
	})
	t.Run("H6 a method of 33 letters", func(t *testing.T) {
		if res := h.plain.raw(t, rawRequest(strings.Repeat("G", 33), "/"+good+"/x")); res.StatusCode < 400 {
			t.Errorf("got %d", res.StatusCode)
		}
		h.wantUntouched(t)
	})
	t.Run("H5 OPTIONS *", func(t *testing.T) {
		if res := h.plain.raw(t, rawRequest("OPTIONS", "*")); res.StatusCode >= http.StatusInternalServerError {
			t.Errorf("got %d", res.StatusCode)
		}
		h.wantUntouched(t)
	})
}

// checkAnswers has what answers tell a page on another site, and somebody who
// has no token.
func (h *hostileServer) checkAnswers(t *testing.T) {
	t.Run("P11 whether a video exists", func(t *testing.T) {
		unknown, known := h.plain.raw(t, rawGet("/nosuch/x")), h.plain.raw(t, rawGet("/site/x"))
		for _, res := range []*response{unknown, known} {
			h.wantRefused(t, res, "token_required")
			res.Header.Del("Date")
		}
		if diff := gocmp.Diff(unknown.Header, known.Header); diff != "" {
			t.Errorf("the answer tells (-unknown +known):\n%s", diff)
		}
	})
	t.Run("H5 a preflight", func(t *testing.T) {
		res := h.plain.raw(t, rawRequest("OPTIONS", "/a.b.c/x", "Origin: https://evil.example", "Access-Control-Request-Method: PUT",
			"Access-Control-Request-Headers: "+strings.Repeat(",", 10_000)+"authorization", "Access-Control-Request-Private-Network: true"))
		h.wantUntouched(t)
		if res.StatusCode != http.StatusNoContent || len(res.body) != 0 || res.Header.Get("Access-Control-Allow-Methods") != "GET, HEAD" {
			t.Errorf("got %d %q and %v", res.StatusCode, res.body, res.Header)
		}
		if strings.Contains(strings.ToLower(fmt.Sprint(res.Header)), "authorization") || res.Header.Get("Access-Control-Allow-Private-Network") != "" {
			t.Errorf("too much is granted: %v", res.Header)
		}
		wantNoCredentials(t, res)
	})
	for _, row := range []struct{ name, origin, want string }{
		{"R13 an allowed site", "https://EXAMPLE.com", "https://EXAMPLE.com"},
		{"R13 another site", "https://evil.com", "*"},
	} {
		t.Run(row.name, func(t *testing.T) {
			res := h.plain.raw(t, rawGet("/"+mint(t, "site", nil)+"/iframe", "Origin: "+row.origin))
			h.take()
			if got := res.Header.Values("Access-Control-Allow-Origin"); !slices.Equal(got, []string{row.want}) || !strings.Contains(res.Header.Get("Vary"), "Origin") {
				t.Errorf("Access-Control-Allow-Origin is %q and Vary %q, want one %q and Origin", got, res.Header.Values("Vary"), row.want)
			}
			wantNoCredentials(t, res)
			const policy = "frame-ancestors http://example.com http://example.org http://*.example.org"
			if got := res.Header.Values("Content-Security-Policy"); res.StatusCode == http.StatusOK && !slices.Contains(got, policy) {
				t.Errorf("Content-Security-Policy is %q, want %q in it", got, policy)
			}
		})
	}
}

// overrides are headers by which some servers let a request name another path,
// method or host than its own, or that have the token in them.
var overrides = []string{
	"X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Original-URL", "X-Original-URI", "X-Original-Method",
	"X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "Referer", "Origin", "X-Gate-Video",
}

// checkOriginHeaders has headers that must neither move a decision nor reach an
// origin that would believe or log them.
func (h *hostileServer) checkOriginHeaders(t *testing.T) {
	T := mint(t, "vidA", nil)
	for name, spell := range map[string]func(string) string{
		"as they are":      func(s string) string { return s },
		"in small letters": strings.ToLower,
		"H13 with _":       func(s string) string { return strings.ReplaceAll(s, "-", "_") },
		"H13 with .":       func(s string) string { return strings.ReplaceAll(s, "-", ".") },
	} {
		t.Run("H12 "+name, func(t *testing.T) {
			var header []string
			for _, name := range overrides {
				header = append(header, spell(name)+": https://evil.example/"+T+"/evil")
			}
			h.want(t, h.plain.raw(t, rawGet("/vidB/evil.ts", header...)), "token_required", "")
			res := h.plain.raw(t, rawGet("/"+T+"/seg.ts?x", append(header, spell("X-Forwarded-For")+": 203.0.113.7")...))
			wantNotEchoed(t, res, T)
			requests := h.take()
			if res.StatusCode != http.StatusOK || len(requests) != 1 || requests[0].uri != "/vidA/seg.ts?x" {
				t.Fatalf("got %d, and the origin saw %v", res.StatusCode, requests)
			}
			for name, values := range requests[0].header {
				if text := strings.Join(values, ","); strings.Contains(text, "evil") || strings.Contains(text, T) || strings.ContainsAny(name, "_.") {
					t.Errorf("the origin saw %s: %q", name, values)
				}
			}
			if got := requests[0].header["X-Gate-Video"]; !slices.Equal(got, []string{"vidA"}) {
				t.Errorf("X-Gate-Video is %q, want one vidA", got)
			}
		})
	}
	t.Run("H14 headers and parameters that nobody has listed", func(t *testing.T) {
		header := []string{"Cookie: id=secret-1", "Authorization: Bearer secret-2", "X-Request-Id: " + T, "User-Agent: player", "CMCD-Session: sid=1"}
		for range 20 {
			header = append(header, fmt.Sprintf("X-%x: secret-%x", rand.Text(), rand.Text()))
		}
		for first, query := range map[string]string{T: "?a=1&CMCD=bl%3D2100&u=%2F" + T + "%2Fx&b", "open": "?CMCD=bl%3D2100&a=1&b"} {
			h.plain.raw(t, rawGet("/"+first+"/seg.ts"+query, header...))
			requests := h.take()
			if len(requests) != 1 || !strings.HasSuffix(requests[0].uri, "/seg.ts?a=1&b") {
				t.Fatalf("the origin saw %v", requests)
			}
			for name, values := range requests[0].header {
				if text := strings.Join(values, ","); strings.Contains(text, "secret") || first == T && strings.Contains(text, T) {
					t.Errorf("the origin saw %s: %q", name, values)
				}
			}
			if got := requests[0].header.Get("User-Agent") + requests[0].header.Get("CMCD-Session"); got != "playersid=1" {
				t.Errorf("the origin saw the listed headers %q", got)
			}
		}
	})
	t.Run("H9 1,000 ranges, H10 validators", func(t *testing.T) {
		request := rawGet("/"+T+"/seg.ts", "Range: bytes="+strings.TrimSuffix(strings.Repeat("0-0,", 1000), ","), `If-None-Match: "v1"`)
		h.plain.raw(t, request)
		for _, seen := range h.take() {
			if len(seen.header["Range"]) != 0 || !slices.Equal(seen.header["If-None-Match"], []string{`"v1"`}) {
				t.Errorf("the origin saw Range %.50q and If-None-Match %q", seen.header["Range"], seen.header["If-None-Match"])
			}
		}
	})
}

// rawRequest is a request of any method, with a Host of its own if the header
// names one.
func rawRequest(method, target string, header ...string) string {
	lines := []string{method + " " + target + " HTTP/1.1"}
	if !slices.ContainsFunc(header, func(line string) bool { return strings.HasPrefix(line, "Host:") }) {
		lines = append(lines, "Host: media.example.com")
	}
	lines = append(append(lines, "Connection: close"), header...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// wantUntouched checks that the origin has seen nothing.
func (o *origin) wantUntouched(t testing.TB) {
	t.Helper()
	for _, seen := range o.take() {
		t.Errorf("the origin was asked for %q", seen.uri)
	}
}

// wantRejected checks that the server itself refuses a request, before the gate
// could. It may stop reading before the request has ended.
func (o *origin) wantRejected(t testing.TB, addr, request string, status int) {
	t.Helper()
	conn := must(net.Dial("tcp", addr))(t)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	_, _ = io.WriteString(conn, request)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("reading the response to %.200q: %v", request, err)
	}
	defer res.Body.Close()
	if res.StatusCode != status || res.Header.Get("Signed-Playback-Reason") != "" {
		t.Errorf("got %d %q, want %d of the server itself", res.StatusCode, res.Header.Get("Signed-Playback-Reason"), status)
	}
	o.wantUntouched(t)
}

// wantNotEchoed checks that no part of a token that could be of use is in a
// response.
func wantNotEchoed(t testing.TB, res *response, compact string) {
	t.Helper()
	var dump bytes.Buffer
	_ = res.Header.Write(&dump)
	dump.Write(res.body)
	for part := range strings.SplitSeq(compact, ".") {
		if len(part) > 16 && strings.Contains(dump.String(), part[:16]) {
			t.Errorf("the response repeats a part of the token: %.100q", part)
		}
	}
}

// wantNoCredentials checks that no site may read a response with the viewer's
// cookies.
func wantNoCredentials(t testing.TB, res *response) {
	t.Helper()
	if got := res.Header.Values("Access-Control-Allow-Credentials"); len(got) != 0 {
		t.Errorf("credentials are allowed: %q", got)
	}
}

// genuine signs any two documents with the key that every gateway here knows.
func genuine(header, payload string) string { return signRaw(privateKey(), header, payload) }

// headerWith is a JOSE header that starts as that of a good token.
func headerWith(members string) string {
	return `{"alg":"RS256","kid":"` + keyID + `",` + members + `}`
}

// payloadWith is the claims of a good token without `exp`, and other members.
func payloadWith(members string) string {
	return `{"sub":"vidA","kid":"` + keyID + `",` + members + `}`
}

// in returns a date as a NumericDate.
func in(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).Unix()) }

// goodExp is the claim `exp` of a token that is good for an hour.
func goodExp() string { return `"exp":` + in(time.Hour) }

func signPSS(signed []byte) []byte {
	digest := sha256.Sum256(signed)
	sig, err := rsa.SignPSS(rand.Reader, privateKey(), crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		panic(err)
	}
	return sig
}

// withUnusedBit changes a bit of the last character that no byte is made of.
func withUnusedBit(compact string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(compact) - 1
	return compact[:last] + string(alphabet[strings.IndexByte(alphabet, compact[last])^1])
}
