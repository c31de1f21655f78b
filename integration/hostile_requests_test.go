package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/signed-playback/caddy-signed-playback/token"
)

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

// A host that is two hosts, or one and something else, must not get to choose
// between sites.
func TestHostileHost(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{listen: "http://gw.test"})
	T := mint(t, "vidA", nil)
	target := "/" + T + "/seg.ts"

	for name, header := range map[string][]string{
		"H1 two lines":           {"Host: gw.test", "Host: evil.test"},
		"H1 two equal lines":     {"Host: gw.test", "Host: gw.test"},
		"H1 two lines in cases":  {"Host: gw.test", "hOsT: evil.test"},
		"H1 a list with a space": {"Host: gw.test, evil.test"},
		"H1 userinfo":            {"Host: gw@evil.test"},
		"H1 a path":              {"Host: gw.test/x"},
		"H1 a backslash":         {`Host: gw.test\x`},
		"H1 a space":             {"Host: gw.test evil"},
		"H1 NUL":                 {"Host: gw.test\x00"},
		"H1 empty":               {"Host:"},
	} {
		t.Run(name, func(t *testing.T) {
			o.wantRejected(t, g.addr, rawRequest("GET", target, header...), http.StatusBadRequest)
		})
	}
	t.Run("H1 none", func(t *testing.T) {
		o.wantRejected(t, g.addr, "GET "+target+" HTTP/1.1\r\nConnection: close\r\n\r\n", http.StatusBadRequest)
	})
	for _, host := range []string{"gw.test", "GW.TEST", "Gw.Test", "gw.test:80", "gw.test:99999"} {
		t.Run("H2 "+host+" is the site", func(t *testing.T) {
			o.wantPassed(t, g.raw(t, rawRequest("GET", target, "Host: "+host)), "/vidA/seg.ts")
			o.wantRefused(t, g.raw(t, rawRequest("GET", "/vidA/seg.ts", "Host: "+host)), http.StatusUnauthorized, "token_required")
		})
	}
	for _, header := range [][]string{
		{"Host: evil.test"},
		{"Host: gw.test.evil.test"},
		{"Host: xgw.test"},
		{"Host: [::1]"},
		{"Host: 127.0.0.1"},
		{"Host: gw.test,evil.test"},
		{"Host: evil.test", "X-Forwarded-Host: gw.test"},
		{"Host: evil.test", "Forwarded: host=gw.test"},
		{"Host: evil.test", "X-Host: gw.test"},
	} {
		t.Run("H2 "+strings.Join(header, ", ")+" is not the site", func(t *testing.T) {
			res := g.raw(t, rawRequest("GET", target, header...))
			if len(res.body) != 0 || res.StatusCode >= http.StatusInternalServerError {
				t.Errorf("got %d and %q", res.StatusCode, res.body)
			}
			o.wantUntouched(t)
		})
	}
}

// A site with so many names that Caddy looks them up in another way must be
// guarded under each of them, in any case (CVE-2026-27588).
func TestHostileHostOfMany(t *testing.T) {
	o := startOrigin(t, nil)
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	var names []string
	for i := range 150 {
		names = append(names, fmt.Sprintf("http://Host%d.Example.com:%s", i, port))
	}
	start(t, o, config{sites: strings.Join(names, ", ") + " {\nsigned_playback\nreverse_proxy " + o.addr() + "\n}\n"})
	T := mint(t, "vidA", nil)
	for _, host := range []string{"host0.example.com", "HOST0.EXAMPLE.COM", "hOsT99.eXample.com", "Host100.example.com", "HOST149.example.com"} {
		t.Run("H3 "+host, func(t *testing.T) {
			o.wantRefused(t, rawTo(t, addr, rawRequest("GET", "/vidA/seg.ts", "Host: "+host)), http.StatusUnauthorized, "token_required")
			o.wantPassed(t, rawTo(t, addr, rawRequest("GET", "/"+T+"/seg.ts", "Host: "+host)), "/vidA/seg.ts")
		})
	}
}

// HEAD asks the same question as GET, so it gets the same decision, and may not
// be a way around it.
func TestHostileHead(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "video vidO {\nallowed_origins example.com\n}"})
	T := mint(t, "vidA", nil)
	for _, target := range []string{
		"/" + T + "/seg.ts", "/" + T, "/" + T + "/manifest/../x", "/vidA/seg.ts", "/" + sampleToken + "/seg.ts",
		"/" + mint(t, "vidA", withRules(`[{"type":"any","action":"block"}]`)) + "/seg.ts",
		"/" + mint(t, "vidA", nil) + "/downloads/x.mp4", "/" + mint(t, "vidO", nil) + "/seg.ts",
	} {
		t.Run("H4 "+target[max(0, len(target)-12):], func(t *testing.T) {
			get := g.raw(t, rawRequest("GET", target))
			asked := o.take()
			head := g.raw(t, rawRequest("HEAD", target))
			again := o.take()
			if head.StatusCode != get.StatusCode || head.reason() != get.reason() || len(head.body) != 0 {
				t.Errorf("HEAD got %d %q and %d bytes, GET %d %q", head.StatusCode, head.reason(), len(head.body), get.StatusCode, get.reason())
			}
			if len(again) != len(asked) || len(again) == 1 && (again[0].uri != asked[0].uri || again[0].method != http.MethodHead) {
				t.Errorf("HEAD became %v, GET %v", again, asked)
			}
			for _, name := range []string{"Date", "Content-Length", "Content-Type"} { // the origin says these of a body
				get.Header.Del(name)
				head.Header.Del(name)
			}
			if diff := cmp.Diff(get.Header, head.Header); diff != "" {
				t.Errorf("headers (-GET +HEAD):\n%s", diff)
			}
		})
	}
}

// A preflight is answered here: the origin server, which may grant more than
// reading, never sees one, and what it asks for is not repeated to it.
func TestHostilePreflight(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "video open {\nrequire_signed_urls off\n}\nvideo vidO {\nallowed_origins example.com\n}"})
	T := mint(t, "vidA", nil)
	expired := mint(t, "vidA", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Hour) })
	targets := map[string]string{
		"a token": "/" + T + "/seg.ts", "an expired token": "/" + expired + "/seg.ts", "no token": "/vidA/seg.ts",
		"an open video": "/open/seg.ts", "a video with allowed origins": "/vidO/seg.ts", "a forged token": "/" + sampleToken + "/seg.ts",
	}
	asks := map[string][]string{
		"GET":              {"Access-Control-Request-Method: GET"},
		"PUT":              {"Access-Control-Request-Method: PUT"},
		"DELETE, a header": {"Access-Control-Request-Method: DELETE", "Access-Control-Request-Headers: authorization,x-evil"},
		"10,000 commas":    {"Access-Control-Request-Method: GET", "Access-Control-Request-Headers: " + strings.Repeat(",", 10_000)},
		"5,000 headers":    {"Access-Control-Request-Method: GET", "Access-Control-Request-Headers: " + strings.Repeat("x,", 5_000)},
		"private network":  {"Access-Control-Request-Method: GET", "Access-Control-Request-Private-Network: true"},
		"nothing":          nil,
	}
	for what, target := range targets {
		for ask, header := range asks {
			t.Run("H5 "+ask+" for "+what, func(t *testing.T) {
				res := g.raw(t, rawRequest("OPTIONS", target, append([]string{"Origin: https://evil.example"}, header...)...))
				o.wantUntouched(t)
				if res.StatusCode != http.StatusNoContent || len(res.body) != 0 {
					t.Errorf("got %d and %q", res.StatusCode, res.body)
				}
				wantNoCredentials(t, res)
				if len(header) == 0 {
					return
				}
				if got := res.Header.Get("Access-Control-Allow-Methods"); got != "GET, HEAD" {
					t.Errorf("the methods granted are %q", got)
				}
				granted := strings.ToLower(strings.Join(res.Header.Values("Access-Control-Allow-Headers"), ","))
				if len(granted) > 1024 || strings.Contains(granted, "authorization") || strings.Contains(granted, "evil") || strings.Contains(granted, "*") {
					t.Errorf("the headers granted are %.200q", granted)
				}
				if got := res.Header.Get("Access-Control-Allow-Private-Network"); got != "" {
					t.Errorf("access to the private network is granted: %q", got)
				}
			})
		}
	}
	t.Run("H5 OPTIONS *", func(t *testing.T) {
		if res := g.raw(t, rawRequest("OPTIONS", "*")); res.StatusCode >= http.StatusInternalServerError {
			t.Errorf("got %d", res.StatusCode)
		}
		o.wantUntouched(t)
	})
	for _, target := range []string{"/" + T + "/../x", "/" + T + "/%2e%2e/x", "/a.b/x", "/"} {
		t.Run("H5 a path that is not one", func(t *testing.T) {
			o.wantRefused(t, g.raw(t, rawRequest("OPTIONS", target, "Access-Control-Request-Method: GET")), http.StatusBadRequest, "path_invalid")
		})
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

// A viewer reads. No other method gets through, however it is spelt or
// disguised.
func TestHostileMethods(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "video open {\nrequire_signed_urls off\n}"})
	T := mint(t, "vidA", nil)
	for _, method := range []string{
		"POST", "PUT", "DELETE", "PATCH", "TRACE", "get", "Get", "head", "options", "FOO", "PURGE", "PROPFIND", "MOVE", "SEARCH", "QUERY",
		"GETT", "GE", "G", "GET_0RTT", "!", "X-GET",
	} {
		for _, target := range []string{"/" + T + "/seg.ts", "/open/seg.ts", "/vidA/seg.ts", "/" + T + "/../x"} {
			t.Run("H6 "+method, func(t *testing.T) {
				res := g.raw(t, rawRequest(method, target, "Content-Length: 0"))
				o.wantRefused(t, res, http.StatusMethodNotAllowed, "method_not_allowed")
				if got := res.Header.Get("Allow"); got != "GET, HEAD, OPTIONS" {
					t.Errorf("Allow is %q", got)
				}
			})
		}
	}
	for _, name := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-Method", "X-Forwarded-Method"} {
		t.Run("H6 "+name, func(t *testing.T) {
			o.wantRefused(t, g.raw(t, rawRequest("POST", "/"+T+"/seg.ts", name+": GET", "Content-Length: 0")), http.StatusMethodNotAllowed, "method_not_allowed")
			res := g.raw(t, rawRequest("GET", "/"+T+"/seg.ts", name+": DELETE"))
			if requests := o.take(); res.StatusCode != http.StatusOK || len(requests) != 1 || len(requests[0].header[http.CanonicalHeaderKey(name)]) != 0 {
				t.Errorf("got %d, the origin saw %v", res.StatusCode, requests)
			}
		})
	}
	t.Run("H6 a method of 33 letters", func(t *testing.T) {
		if res := g.raw(t, rawRequest(strings.Repeat("G", 33), "/"+T+"/seg.ts")); res.StatusCode < 400 {
			t.Errorf("got %d", res.StatusCode)
		}
		o.wantUntouched(t)
	})
}

// A tunnel outlives the token and escapes every check on the next request, so
// none is opened, whatever the viewer asks and the origin answers.
func TestHostileUpgrades(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	eager := startOrigin(t, http.HandlerFunc(switchProtocols))
	tunnel := start(t, eager, config{})
	T := mint(t, "vidA", nil)
	target := "/" + T + "/seg.ts"

	for name, header := range map[string][]string{
		"a WebSocket": {
			"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
		},
		"h2c":                       {"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"},
		"TLS":                       {"Connection: Upgrade", "Upgrade: TLS/1.0"},
		"anything":                  {"Connection: keep-alive, Upgrade", "Upgrade: foo"},
		"two protocols":             {"Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"},
		"no Connection header":      {"Upgrade: websocket"},
		"Connection in two lines":   {"Connection: close", "Connection: Upgrade", "Upgrade: websocket"},
		"Upgrade in other case":     {"connection: uPGRADE", "uPGRADE: WebSocket"},
		"headers named in hop list": {"Connection: Upgrade, X-Forwarded-For, Host", "Upgrade: websocket"},
	} {
		t.Run("H7 "+name, func(t *testing.T) {
			request := strings.Join(append([]string{"GET " + target + " HTTP/1.1", "Host: media.example.com"}, header...), "\r\n") + "\r\n\r\n"
			res := g.raw(t, request)
			if res.StatusCode != http.StatusOK {
				t.Errorf("got %d, want 200", res.StatusCode)
			}
			for _, seen := range o.take() {
				for _, hop := range []string{"Upgrade", "Http2-Settings"} {
					if got := seen.header[hop]; len(got) != 0 {
						t.Errorf("the origin saw %s: %q", hop, got)
					}
				}
				if got := strings.ToLower(strings.Join(seen.header["Connection"], ",")); strings.Contains(got, "upgrade") {
					t.Errorf("the origin saw Connection: %q", got)
				}
			}
			if res := tunnel.raw(t, request); res.StatusCode == http.StatusSwitchingProtocols || strings.Contains(string(res.body), "tunnelled") {
				t.Errorf("a tunnel was opened: %d %q", res.StatusCode, res.body)
			}
			eager.take()
		})
	}
	for path, reason := range map[string]string{target: "", "/vidA/seg.ts": "token_required", "/" + T + "/../x": "path_invalid"} {
		t.Run("H7 HTTP/2 without TLS, "+reason, func(t *testing.T) {
			conn, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			res := http2On(t, conn, []string{":method", "GET", ":scheme", "http", ":authority", "media.example.com", ":path", path})
			switch {
			case res == nil:
				t.Error("the server resets the stream")
			case reason == "":
				o.wantPassed(t, res, "/vidA/seg.ts")
			default:
				o.wantRefused(t, res, statusOf(reason), reason)
			}
		})
	}
}

// switchProtocols is an origin that opens a tunnel whether it was asked to or
// not.
func switchProtocols(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\ntunnelled")
}

// What two servers disagree about, where one request ends and the next begins,
// is a request that no gate has seen (RFC 9112 section 11.2). A body ends here,
// and with it the connection.
func TestHostileBodies(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	T := mint(t, "vidA", nil)
	smuggled := "GET /" + T + "/smuggled.ts HTTP/1.1\r\nHost: media.example.com\r\n\r\n"
	length := fmt.Sprintf("Content-Length: %d", len(smuggled))
	chunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)

	for _, row := range []struct {
		name   string
		method string
		header []string
		body   string
		want   int // status
	}{
		{"Content-Length", "GET", []string{length}, smuggled, 200},
		{"chunked", "GET", []string{"Transfer-Encoding: chunked"}, chunk, 200},
		{"chunked in capitals", "GET", []string{"Transfer-Encoding: CHUNKED"}, chunk, 200},
		{"HEAD", "HEAD", []string{length}, smuggled, 200},
		{"OPTIONS", "OPTIONS", []string{length}, smuggled, 204},
		{"POST", "POST", []string{length}, smuggled, 405},
		{"POST, chunked", "POST", []string{"Transfer-Encoding: chunked"}, chunk, 405},
		{"both lengths, the short one in Content-Length", "GET", []string{"Content-Length: 5", "Transfer-Encoding: chunked"}, "0\r\n\r\n" + smuggled, 200},
		{"both lengths, the short one chunked", "GET", []string{length, "Transfer-Encoding: chunked"}, "0\r\n\r\n" + smuggled, 200},
		{"both lengths, the other way round", "GET", []string{"Transfer-Encoding: chunked", length}, chunk, 200},
		{"100-continue", "GET", []string{"Expect: 100-continue", length}, smuggled, 200},
		{"another expectation", "GET", []string{"Expect: 200-ok", length}, smuggled, 417},
		{"trailers", "GET", []string{"Transfer-Encoding: chunked", "Trailer: X-Evil"}, "0\r\nX-Evil: 1\r\n\r\n" + smuggled, 200},
		{"a chunk extension", "GET", []string{"Transfer-Encoding: chunked"}, "5;\n=x\r\nhello\r\n0\r\n\r\n" + smuggled, 200},
		{"a chunk that is none", "GET", []string{"Transfer-Encoding: chunked"}, "0x5\r\n" + smuggled, 200},
		{"two encodings", "GET", []string{"Transfer-Encoding: chunked, identity"}, chunk, 501},
		{"identity", "GET", []string{"Transfer-Encoding: identity"}, smuggled, 501},
		{"an empty encoding first", "GET", []string{"Transfer-Encoding: ,chunked"}, chunk, 501},
		{"an encoding that is not one", "GET", []string{"Transfer-Encoding: xchunked"}, chunk, 501},
		{"two encoding lines", "GET", []string{"Transfer-Encoding: chunked", "Transfer-Encoding: chunked"}, chunk, 501},
		{"gzip, chunked", "GET", []string{"Transfer-Encoding: gzip, chunked"}, chunk, 501},
		{"a vertical tab", "GET", []string{"Transfer-Encoding:\vchunked"}, chunk, 400},
		{"a space before the colon", "GET", []string{"Transfer-Encoding : chunked"}, chunk, 400},
		{"a plus sign", "GET", []string{"Content-Length: +5"}, smuggled, 400},
		{"a negative length", "GET", []string{"Content-Length: -1"}, smuggled, 400},
		{"two lengths", "GET", []string{"Content-Length: 5", "Content-Length: 6"}, smuggled, 400},
		{"a list of lengths", "GET", []string{"Content-Length: 5, 6"}, smuggled, 400},
		{"a hexadecimal length", "GET", []string{"Content-Length: 0x5"}, smuggled, 400},
		{"a folded header", "GET", []string{"X-Test: a\r\n Transfer-Encoding: chunked", length}, smuggled, 200},
		{"a line break in a header", "GET", []string{"X-Test: a\rTransfer-Encoding: chunked", length}, smuggled, 400},
		{"a header without a name", "GET", []string{": x", length}, smuggled, 400},
	} {
		t.Run("H8 "+row.name, func(t *testing.T) {
			lines := append([]string{row.method + " /" + T + "/seg.ts HTTP/1.1", "Host: media.example.com"}, row.header...)
			statuses := converse(t, g.addr, row.method, strings.Join(lines, "\r\n")+"\r\n\r\n"+row.body)
			if diff := cmp.Diff([]int{row.want}, statuses); diff != "" {
				t.Errorf("the answers are not one (-want +got):\n%s", diff)
			}
			o.wantOneRead(t)
		})
	}
	t.Run("H8 a body behind a refusal", func(t *testing.T) {
		statuses := converse(t, g.addr, "GET", "GET /vidA/seg.ts HTTP/1.1\r\nHost: media.example.com\r\n"+length+"\r\n\r\n"+smuggled)
		if diff := cmp.Diff([]int{http.StatusUnauthorized}, statuses); diff != "" {
			t.Errorf("the answers are not one (-want +got):\n%s", diff)
		}
		o.wantUntouched(t)
	})
	for name, header := range map[string]string{
		"a chunk that never ends": "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", "a body that never ends": "Content-Length: 100000\r\n\r\n",
	} {
		t.Run("H8 "+name, func(t *testing.T) {
			res := g.raw(t, "GET /"+T+"/seg.ts HTTP/1.1\r\nHost: media.example.com\r\n"+header+smuggled)
			if res.StatusCode != http.StatusOK || !res.Close {
				t.Errorf("got %d, and the connection is kept: %t", res.StatusCode, !res.Close)
			}
			o.wantOneRead(t)
		})
	}
	t.Run("H8 bare line feeds", func(t *testing.T) {
		statuses := converse(t, g.addr, "GET", "GET /"+T+"/seg.ts HTTP/1.1\nHost: media.example.com\n"+length+"\n\n"+smuggled)
		if diff := cmp.Diff([]int{http.StatusOK}, statuses); diff != "" {
			t.Errorf("the answers are not one (-want +got):\n%s", diff)
		}
		o.wantOneRead(t)
	})
	t.Run("H8 HTTP/1.0 with a body", func(t *testing.T) {
		statuses := converse(t, g.addr, "GET", "GET /"+T+"/seg.ts HTTP/1.0\r\nHost: media.example.com\r\nConnection: keep-alive\r\n"+length+"\r\n\r\n"+smuggled)
		if diff := cmp.Diff([]int{http.StatusOK}, statuses); diff != "" {
			t.Errorf("the answers are not one (-want +got):\n%s", diff)
		}
		o.wantOneRead(t)
	})
}

// converse sends bytes and reads responses until the server closes. If it would
// rather go on, it is asked to close.
func converse(t testing.TB, addr, method, request string) (statuses []int) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	for reader := bufio.NewReader(conn); ; {
		res, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the server neither answers nor closes")
			}
			return statuses
		}
		if res.StatusCode == http.StatusContinue {
			continue
		}
		statuses = append(statuses, res.StatusCode)
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if !res.Close {
			_, _ = io.WriteString(conn, "GET /goodbye HTTP/1.1\r\nHost: media.example.com\r\nConnection: close\r\n\r\n")
		}
	}
}

// wantOneRead checks that the origin has seen one read of the segment at the
// most, and no body with it.
func (o *origin) wantOneRead(t testing.TB) {
	t.Helper()
	requests := o.take()
	if len(requests) > 1 {
		t.Errorf("one request became %d", len(requests))
	}
	for _, seen := range requests {
		if seen.uri != "/vidA/seg.ts" || seen.method != http.MethodGet && seen.method != http.MethodHead {
			t.Errorf("the origin saw %s %s", seen.method, seen.uri)
		}
		if seen.body != "" {
			t.Errorf("the origin got a body: %q", seen.body)
		}
		for _, name := range []string{"Content-Length", "Transfer-Encoding", "Trailer", "Expect"} {
			if got := seen.header[name]; len(got) != 0 {
				t.Errorf("the origin saw %s: %q", name, got)
			}
		}
	}
}

// Seeking in a segment is the origin's affair: the gate must neither break it
// nor answer in its place.
func TestHostileRanges(t *testing.T) {
	content := "0123456789abcdef"
	modified := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "seg.ts", modified, strings.NewReader(content))
	}))
	g := start(t, o, config{})
	T := mint(t, "vidA", nil)
	whole := map[string]bool{"H9 1,000 ranges": true, "H9 two lines": true} // they are answered with all of it
	for name, header := range map[string][]string{
		"H9 the whole":            {"Range: bytes=0-"},
		"H9 the start":            {"Range: bytes=0-3"},
		"H9 the end":              {"Range: bytes=-4"},
		"H9 nothing of the end":   {"Range: bytes=-0"},
		"H9 behind the end":       {"Range: bytes=16-"},
		"H9 backwards":            {"Range: bytes=5-1"},
		"H9 another unit":         {"Range: items=0-3"},
		"H9 no number":            {"Range: bytes=a-b"},
		"H9 two ranges":           {"Range: bytes=0-1,4-5"},
		"H9 overlapping ranges":   {"Range: bytes=0-9,1-9,2-9"},
		"H9 1,000 ranges":         {"Range: bytes=" + strings.TrimSuffix(strings.Repeat("0-0,", 1000), ",")},
		"H9 a number too large":   {"Range: bytes=99999999999999999999-"},
		"H9 two lines":            {"Range: bytes=0-1", "Range: bytes=4-5"},
		"H9 If-Range that holds":  {"Range: bytes=0-3", `If-Range: "v1"`},
		"H9 If-Range that is off": {"Range: bytes=0-3", `If-Range: "v0"`},
		"H9 If-Range that is old": {"Range: bytes=0-3", "If-Range: " + modified.Add(-time.Hour).Format(http.TimeFormat)},
		"H10 If-None-Match":       {`If-None-Match: "v1"`},
		"H10 another entity":      {`If-None-Match: "v0"`},
		"H10 If-Modified-Since":   {"If-Modified-Since: " + modified.Format(http.TimeFormat)},
		"H10 If-Match":            {`If-Match: "v0"`},
	} {
		t.Run(name, func(t *testing.T) {
			asked := header
			if whole[name] {
				asked = nil
			}
			want := rawTo(t, o.addr(), rawRequest("GET", "/vidA/seg.ts", asked...))
			got := g.raw(t, rawRequest("GET", "/"+T+"/seg.ts", header...))
			requests := o.take()
			if len(requests) != 2 {
				t.Fatalf("the origin was asked %d times, want twice", len(requests))
			}
			type answer struct {
				Status                                       int
				Body, ContentRange, ETag, Modified, Accepted string
			}
			of := func(res *response) answer {
				body := string(res.body)
				if boundary, ok := strings.CutPrefix(res.Header.Get("Content-Type"), "multipart/byteranges; boundary="); ok {
					body = strings.ReplaceAll(body, boundary, "boundary")
				}
				return answer{
					res.StatusCode, body, res.Header.Get("Content-Range"), res.Header.Get("ETag"), res.Header.Get("Last-Modified"), res.Header.Get("Accept-Ranges"),
				}
			}
			if diff := cmp.Diff(of(want), of(got)); diff != "" {
				t.Errorf("the gate changes the answer (-origin +gate):\n%s", diff)
			}
			for _, header := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match"} {
				if diff := cmp.Diff(requests[0].header[header], requests[1].header[header]); diff != "" {
					t.Errorf("%s (-viewer +origin):\n%s", header, diff)
				}
			}
		})
	}
}

// Headers by which some servers let a request name another path, method or
// host than its own must neither move the decision nor reach an origin that
// believes them.
func TestHostileOverrideHeaders(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{site: "reverse_proxy " + o.addr() + " {\nheader_up X-Gate-Video {http.signed_playback.video}\n}"})
	T := mint(t, "vidA", nil)
	names := []string{
		"X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Forwarded-Host", "X-Original-URL", "X-Original-URI",
		"X-Original-Method", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "Referer", "Origin",
	}
	for _, name := range names {
		t.Run("H12 "+name, func(t *testing.T) {
			for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.ReplaceAll(name, "-", ".")} {
				o.wantRefused(t, g.raw(t, rawRequest("GET", "/vidB/evil.ts", spelling+": /"+T+"/seg.ts")), http.StatusUnauthorized, "token_required")
				res := g.raw(t, rawRequest("GET", "/"+T+"/seg.ts", spelling+": https://evil.example/vidB/evil"))
				requests := o.take()
				if res.StatusCode != http.StatusOK || len(requests) != 1 || requests[0].uri != "/vidA/seg.ts" {
					t.Errorf("%s: got %d, the origin saw %v", spelling, res.StatusCode, requests)
				}
				for _, seen := range requests {
					for name, values := range seen.header {
						if strings.Contains(strings.Join(values, ","), "evil") {
							t.Errorf("%s: the origin saw %s: %q", spelling, name, values)
						}
					}
				}
			}
		})
	}
	for _, name := range []string{"X-Gate-Video", "X_Gate_Video", "X.Gate.Video", "x_gate-video", "X-Gate.Video", "X_Forwarded_For", "X.Forwarded.For", "X_Forwarded-For"} {
		t.Run("H13 "+name, func(t *testing.T) {
			res := g.raw(t, rawRequest("GET", "/"+T+"/seg.ts", name+": evil"))
			requests := o.take()
			if res.StatusCode != http.StatusOK || len(requests) != 1 {
				t.Fatalf("got %d, the origin saw %v", res.StatusCode, requests)
			}
			if got := requests[0].header["X-Gate-Video"]; len(got) != 1 || got[0] != "vidA" {
				t.Errorf("X-Gate-Video is %q, want one vidA", got)
			}
			for name, values := range requests[0].header {
				if strings.ContainsAny(name, "_.") || strings.Contains(strings.Join(values, ","), "evil") {
					t.Errorf("the origin saw %s: %q", name, values)
				}
			}
		})
	}
}

// Early data can be replayed, and comes from an address that nobody has
// confirmed (RFC 8470): what turns on the address must wait for the handshake.
func TestHostileEarlyData(t *testing.T) {
	reached := make(chan string, 16)
	o := startOrigin(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.URL.Path }))
	g := startTLS(t, o, config{app: "geoip_database " + testdata(t, "country.mmdb")})
	tickets := &ticketCache{ClientSessionCache: tls.NewLRUClientSessionCache(4), filled: make(chan struct{}, 16)}

	first := dialQUIC(t, g, tickets)
	address := "/" + mint(t, "vidA", withRules(`[{"type":"ip.src","action":"allow","ip":["127.0.0.1"]},{"type":"any","action":"block"}]`)) + "/"
	if res := first.get(t, http.MethodGet, address+"seg.ts"); res.StatusCode != http.StatusOK {
		t.Fatalf("H11 with a finished handshake: got %d %q, want 200", res.StatusCode, res.reason())
	}
	<-reached
	o.take()
	await(t, tickets.filled, "a session ticket")

	for _, row := range []struct {
		name, path string
		early      bool
	}{
		{"H11 a rule about the address", address, true},
		{"H11 a rule about the country", "/" + mint(t, "vidA", withRules(`[{"type":"ip.geoip.country","action":"block","country":["DE"]}]`)) + "/", true},
		{"H11 a rule about anybody", "/" + mint(t, "vidA", withRules(`[{"type":"any","action":"allow"}]`)) + "/", false},
		{"H11 a rule about the address that is not reached", "/" + mint(t, "vidA", withRules(`[{"type":"any","action":"allow"},{"type":"ip.src","action":"block","ip":["127.0.0.1"]}]`)) + "/", false},
		{"H11 no rule", "/" + mint(t, "vidA", nil) + "/", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			suffix := strings.NewReplacer(" ", "-").Replace(row.name) + ".ts"
			c := dialQUIC(t, g, tickets)
			c.relay.hold()
			answered := make(chan *response, 1)
			go func() { answered <- c.get(t, http3.MethodGet0RTT, row.path+suffix) }()
			// Nothing of the server has reached the client yet, so nothing that
			// the client sends can finish the handshake.
			if row.early {
				if !g.log.await(suffix, startTimeout) {
					t.Error("the server has not answered the early data")
				}
			} else if got := await(t, reached, "the request at the origin"); got != "/vidA/"+suffix {
				t.Errorf("the origin was asked for %q", got)
			}
			c.relay.release()
			res := await(t, answered, "the response")
			if !c.usedEarlyData() {
				t.Fatal("the request was not sent as early data")
			}
			await(t, tickets.filled, "a session ticket") // for the next row
			if !row.early {
				o.wantPassed(t, res, "/vidA/"+suffix)
				return
			}
			o.wantRefused(t, res, http.StatusTooEarly, "too_early")
			o.wantPassed(t, c.get(t, http.MethodGet, row.path+"again.ts"), "/vidA/again.ts")
			<-reached
		})
	}
}

// await returns what a channel delivers.
func await[T any](t testing.TB, from <-chan T, what string) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(startTimeout):
		t.Fatalf("%s has not come", what)
	}
	return value
}

// ticketCache tells when a session ticket has come.
type ticketCache struct {
	tls.ClientSessionCache
	filled chan struct{}
}

func (c *ticketCache) Put(key string, session *tls.ClientSessionState) {
	c.ClientSessionCache.Put(key, session)
	if session != nil {
		select {
		case c.filled <- struct{}{}:
		default:
		}
	}
}

// quicClient speaks HTTP/3 through a relay of its own.
type quicClient struct {
	gateway   *tlsGateway
	relay     *udpRelay
	transport *http3.Transport

	mu   sync.Mutex
	conn *quic.Conn
}

func dialQUIC(t testing.TB, g *tlsGateway, tickets tls.ClientSessionCache) *quicClient {
	t.Helper()
	c := &quicClient{gateway: g, relay: startRelay(t, g.addr)}
	trust := g.trust.Clone()
	trust.ClientSessionCache = tickets
	c.transport = &http3.Transport{
		TLSClientConfig: trust,
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			conn, err := quic.DialAddrEarly(ctx, c.relay.addr(), tlsConfig, config)
			c.mu.Lock()
			c.conn = conn
			c.mu.Unlock()
			return conn, err
		},
	}
	t.Cleanup(func() { _ = c.transport.Close() })
	return c
}

func (c *quicClient) usedEarlyData() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn.ConnectionState().Used0RTT
}

// get may run on another goroutine than the test's.
func (c *quicClient) get(t testing.TB, method, path string) *response {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	_, port, _ := net.SplitHostPort(c.gateway.addr)
	req, err := http.NewRequestWithContext(ctx, method, "https://localhost:"+port+path, nil)
	if err == nil {
		var res *http.Response
		if res, err = c.transport.RoundTrip(req); err == nil {
			defer res.Body.Close()
			var body []byte
			if body, err = io.ReadAll(res.Body); err == nil {
				return &response{res, body}
			}
		}
	}
	t.Errorf("%s over HTTP/3: %v", method, err)
	return &response{Response: &http.Response{Header: make(http.Header)}}
}

// udpRelay stands between one client and a server, and can keep back what the
// server says.
type udpRelay struct {
	facing *net.UDPConn // the client
	server *net.UDPConn

	mu      sync.Mutex
	client  netip.AddrPort
	holding bool
	held    [][]byte
}

func startRelay(t testing.TB, server string) *udpRelay {
	t.Helper()
	facing, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := net.DialUDP("udp", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	r := &udpRelay{facing: facing, server: upstream}
	var running sync.WaitGroup
	running.Go(r.forward)
	running.Go(r.back)
	t.Cleanup(func() {
		// Behind everything that the client has sent, or the server would wait
		// for a connection that is closed.
		if conn, err := net.Dial("udp", r.addr()); err == nil {
			_, _ = io.WriteString(conn, relayStop)
			_ = conn.Close()
		}
		_ = upstream.SetReadDeadline(time.Now())
		running.Wait()
		_ = facing.Close()
		_ = upstream.Close()
	})
	return r
}

// relayStop is what ends a relay.
const relayStop = "stop"

func (r *udpRelay) addr() string { return r.facing.LocalAddr().String() }

func (r *udpRelay) forward() {
	packet := make([]byte, 1<<16)
	for {
		n, from, err := r.facing.ReadFromUDPAddrPort(packet)
		if err != nil || string(packet[:n]) == relayStop {
			return
		}
		r.mu.Lock()
		r.client = from
		r.mu.Unlock()
		_, _ = r.server.Write(packet[:n])
	}
}

func (r *udpRelay) back() {
	packet := make([]byte, 1<<16)
	for {
		n, err := r.server.Read(packet)
		if err != nil {
			return
		}
		r.mu.Lock()
		if r.holding {
			r.held = append(r.held, bytes.Clone(packet[:n]))
		} else {
			_, _ = r.facing.WriteToUDPAddrPort(packet[:n], r.client)
		}
		r.mu.Unlock()
	}
}

func (r *udpRelay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = true
}

func (r *udpRelay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = false
	for _, packet := range r.held {
		_, _ = r.facing.WriteToUDPAddrPort(packet, r.client)
	}
	r.held = nil
}
