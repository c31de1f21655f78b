package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// tryHosts has hosts that are two hosts, or one and something else: they must not
// get to choose between sites.
func (h *hostileServer) tryHosts(t *testing.T) {
	target := "/" + mint(t, "vidA", nil) + "/seg.ts"
	for name, header := range map[string][]string{
		"H1 two lines":           {"Host: gw.test", "Host: evil.test"},
		"H1 two lines in cases":  {"Host: gw.test", "hOsT: evil.test"},
		"H1 a list with a space": {"Host: gw.test, evil.test"},
		"H1 NUL":                 {"Host: gw.test\x00"},
		"H1 empty":               {"Host:"},
	} {
		t.Run(name, func(t *testing.T) {
			h.wantRejected(t, h.named, rawRequest("GET", target, header...), http.StatusBadRequest)
		})
	}
	t.Run("H1 none", func(t *testing.T) {
		h.wantRejected(t, h.named, "GET "+target+" HTTP/1.1\r\nConnection: close\r\n\r\n", http.StatusBadRequest)
	})
	// Caddy looks hosts up in another way where a site has many (CVE-2026-27588).
	for host, addr := range map[string]string{
		"gw.test": h.named, "GW.TEST": h.named, "gw.test:80": h.named, "gw.test:99999": h.named,
		"HOST0.EXAMPLE.COM": h.manyNames, "hOsT99.eXample.com": h.manyNames, "host149.example.com": h.manyNames,
	} {
		t.Run("H2, H3 "+host+" is the site", func(t *testing.T) {
			h.want(t, rawTo(t, addr, rawRequest("GET", target, "Host: "+host)), "", "/vidA/seg.ts")
			h.want(t, rawTo(t, addr, rawRequest("GET", "/vidA/seg.ts", "Host: "+host)), "token_required", "")
		})
	}
	for _, header := range [][]string{
		{"Host: evil.test"},
		{"Host: gw.test.evil.test"},
		{"Host: xgw.test"},
		{"Host: [::1]"},
		{"Host: 127.0.0.1"},
		{"Host: gw.test,evil.test"},
		{"Host: evil.test", "X-Forwarded-Host: gw.test", "Forwarded: host=gw.test", "X-Host: gw.test"},
	} {
		t.Run("H2 "+header[0]+" is not the site", func(t *testing.T) {
			res := rawTo(t, h.named, rawRequest("GET", target, header...))
			if len(res.body) != 0 || res.StatusCode >= http.StatusInternalServerError {
				t.Errorf("got %d and %q", res.StatusCode, res.body)
			}
			h.wantUntouched(t)
		})
	}
	t.Run("J34 two sites of one process share its keys", func(t *testing.T) {
		h.want(t, rawTo(t, h.second, rawGet(target)), "", "/vidA/seg.ts")
		h.want(t, rawTo(t, h.second, rawGet(stranger())), "key_unknown", "")
	})
}

// tryUpgrades asks for tunnels. A tunnel outlives the token and escapes every check
// on the next request, so none is opened, whatever the client asks and the origin
// answers.
func (h *hostileServer) tryUpgrades(t *testing.T) {
	T := mint(t, "vidA", nil)
	for name, header := range map[string][]string{
		"a WebSocket": {
			"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
		},
		"h2c":                       {"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"},
		"two protocols":             {"Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"},
		"no Connection header":      {"Upgrade: websocket"},
		"Connection in two lines":   {"Connection: close", "Connection: Upgrade", "Upgrade: websocket"},
		"Upgrade in other case":     {"connection: uPGRADE", "uPGRADE: WebSocket"},
		"headers named in hop list": {"Connection: Upgrade, X-Forwarded-For, Host", "Upgrade: websocket"},
	} {
		t.Run("H7 "+name, func(t *testing.T) {
			request := strings.Join(append([]string{"GET /" + T + "/seg.ts HTTP/1.1", "Host: media.example.com"}, header...), "\r\n") + "\r\n\r\n"
			if res := h.plain.raw(t, request); res.StatusCode != http.StatusOK {
				t.Errorf("got %d, want 200", res.StatusCode)
			}
			for _, seen := range h.take() {
				if len(seen.header["Upgrade"])+len(seen.header["Http2-Settings"]) > 0 || strings.Contains(strings.ToLower(strings.Join(seen.header["Connection"], ",")), "upgrade") {
					t.Errorf("the origin saw %v", seen.header)
				}
			}
			if res := rawTo(t, h.tunnel, request); res.StatusCode == http.StatusSwitchingProtocols || strings.Contains(string(res.body), "tunnelled") {
				t.Errorf("a tunnel was opened: %d %q", res.StatusCode, res.body)
			}
		})
	}
	for path, reason := range map[string]string{"/" + T + "/seg.ts": "", "/vidA/seg.ts": "token_required", "/" + T + "/../x": "path_invalid"} {
		t.Run("H7 HTTP/2 without TLS, "+reason, func(t *testing.T) {
			conn := must(net.Dial("tcp", h.plain.addr))(t)
			defer conn.Close()
			res := startHTTP2(t, conn).exchange(t, getFields(path)...)
			if res == nil {
				t.Fatal("the server resets the stream")
			}
			h.want(t, res, reason, "/vidA/seg.ts")
		})
	}
}

// switchProtocols is an origin that always opens a tunnel.
func switchProtocols(w http.ResponseWriter, _ *http.Request) {
	onConnection(w, say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\ntunnelled"))
}

// tryBodies smuggles requests. If two servers disagree about where one request ends,
// the rest of it is a request that no gate has seen (RFC 9112 section 11.2). So a
// body ends at the gate, and the connection with it.
func (h *hostileServer) tryBodies(t *testing.T) {
	addr := h.plain.addr
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
		{"an encoding that is not one", "GET", []string{"Transfer-Encoding: xchunked"}, chunk, 501},
		{"a vertical tab", "GET", []string{"Transfer-Encoding:\vchunked"}, chunk, 400},
		{"a space before the colon", "GET", []string{"Transfer-Encoding : chunked"}, chunk, 400},
		{"two lengths", "GET", []string{"Content-Length: 5", "Content-Length: 6"}, smuggled, 400},
		{"a hexadecimal length", "GET", []string{"Content-Length: 0x5"}, smuggled, 400},
		{"a folded header", "GET", []string{"X-Test: a\r\n Transfer-Encoding: chunked", length}, smuggled, 200},
		{"a line break in a header", "GET", []string{"X-Test: a\rTransfer-Encoding: chunked", length}, smuggled, 400},
	} {
		t.Run("H8 "+row.name, func(t *testing.T) {
			lines := append([]string{row.method + " /" + T + "/seg.ts HTTP/1.1", "Host: media.example.com"}, row.header...)
			statuses := converse(t, addr, row.method, strings.Join(lines, "\r\n")+"\r\n\r\n"+row.body)
			wantEqual(t, []int{row.want}, statuses, "the answers are not one")
			h.wantOneRead(t)
		})
	}
	for name, header := range map[string]string{
		"a chunk that never ends": "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", "a body that never ends": "Content-Length: 100000\r\n\r\n",
	} {
		t.Run("H8 "+name, func(t *testing.T) {
			res := rawTo(t, addr, "GET /"+T+"/seg.ts HTTP/1.1\r\nHost: media.example.com\r\n"+header+smuggled)
			if res.StatusCode != http.StatusOK || !res.Close {
				t.Errorf("got %d, and the connection is kept: %t", res.StatusCode, !res.Close)
			}
			h.wantOneRead(t)
		})
	}
	for name, row := range map[string]struct {
		request string
		want    int
	}{
		"bare line feeds":      {"GET /" + T + "/seg.ts HTTP/1.1\nHost: media.example.com\n" + length + "\n\n" + smuggled, 200},
		"HTTP/1.0 with a body": {"GET /" + T + "/seg.ts HTTP/1.0\r\nHost: media.example.com\r\nConnection: keep-alive\r\n" + length + "\r\n\r\n" + smuggled, 200},
		"a refusal":            {"GET /vidA/seg.ts HTTP/1.1\r\nHost: media.example.com\r\n" + length + "\r\n\r\n" + smuggled, 401},
	} {
		t.Run("H8 "+name, func(t *testing.T) {
			wantEqual(t, []int{row.want}, converse(t, addr, "GET", row.request), "the answers are not one")
			h.wantOneRead(t)
		})
	}
}

// converse sends bytes and reads responses until the server closes. If the server
// keeps the connection, it is asked to close it.
func converse(t testing.TB, addr, method, request string) (statuses []int) {
	t.Helper()
	conn := must(net.Dial("tcp", addr))(t)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	must(io.WriteString(conn, request))(t)
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

// wantOneRead checks that the origin has seen at most one read of the segment, without
// a body.
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

// tryEarlyData sends requests before the handshake has ended. Early data can be
// replayed, and comes from an address that nobody has confirmed (RFC 8470), so
// what depends on the address must wait.
func (h *hostileServer) tryEarlyData(t *testing.T) {
	tickets := &ticketCache{ClientSessionCache: tls.NewLRUClientSessionCache(4), filled: make(chan struct{}, 16)}
	address := onlyFrom(t, "127.0.0.1")
	first := dialQUIC(t, h.tlsGateway, tickets)
	first.release()
	h.want(t, first.get(t, http.MethodGet, address), "", "/vidA/seg.ts")
	await(t, tickets.filled, "a session ticket")
	for _, row := range []struct {
		name, path string
		early      bool // whether the gate must say that it is
	}{
		{"H11 a rule about the address", address, true},
		{"H11 a rule about the country", notIn(t, "DE"), true},
		{"H11 no rule", "/" + mint(t, "vidA", nil) + "/seg.ts", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			query := "?" + strings.ReplaceAll(row.name, " ", "-")
			c := dialQUIC(t, h.tlsGateway, tickets)
			answered := make(chan *response, 1)
			go func() { answered <- c.get(t, http3.MethodGet0RTT, row.path+query) }()
			// The client has read nothing of the server yet, so nothing that it
			// sends can finish the handshake.
			if row.early {
				h.log.await(t, query) // the server has answered the early data
			} else {
				eventually(t, "the request at the origin", func() bool { return slices.Contains(h.uris(), "/vidA/seg.ts"+query) })
			}
			c.release()
			res := await(t, answered, "the response")
			if !c.conn.ConnectionState().Used0RTT {
				t.Fatal("the request was not sent as early data")
			}
			await(t, tickets.filled, "a session ticket") // for the next row
			if !row.early {
				h.want(t, res, "", "/vidA/seg.ts"+query)
				return
			}
			h.want(t, res, "too_early", "")
			h.want(t, c.get(t, http.MethodGet, row.path), "", "/vidA/seg.ts")
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

// quicClient speaks HTTP/3. It reads nothing of the server until release.
type quicClient struct {
	net.PacketConn
	url       string
	released  chan struct{}
	release   func()
	transport *http3.Transport
	conn      *quic.Conn
}

func dialQUIC(t testing.TB, g *tlsGateway, tickets tls.ClientSessionCache) *quicClient {
	t.Helper()
	packets := must(net.ListenPacket("udp", "127.0.0.1:0"))(t)
	server := must(net.ResolveUDPAddr("udp", g.addr))(t)
	c := &quicClient{PacketConn: packets, url: g.url(""), released: make(chan struct{})}
	c.release = sync.OnceFunc(func() { close(c.released) })
	dialer := &quic.Transport{Conn: c}
	trust := g.trust.Clone()
	trust.ClientSessionCache = tickets
	c.transport = &http3.Transport{
		TLSClientConfig: trust,
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			var err error
			c.conn, err = dialer.DialEarly(ctx, server, tlsConfig, config)
			return c.conn, err
		},
	}
	t.Cleanup(func() {
		c.release()
		_ = c.transport.Close()
		_ = dialer.Close()
		_ = packets.Close()
	})
	return c
}

// ReadFrom implements net.PacketConn.
func (c *quicClient) ReadFrom(packet []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(packet)
	<-c.released
	return n, from, err
}

// get may run on another goroutine than the test's.
func (c *quicClient) get(t testing.TB, method, path string) *response {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, nil)
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
