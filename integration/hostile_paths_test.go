package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tryHTTP2 has paths and hosts that HTTP/1.1 cannot express, because HTTP/2 carries
// them in fields of their own. The gate must decide on what becomes of them.
func (h *hostileServer) tryHTTP2(t *testing.T) {
	T := mint(t, "vidA", nil)
	good := getFields("/" + T + "/x")
	// with changes pseudo-header fields and appends other fields.
	with := func(changes ...string) []string {
		fields := slices.Clone(good)
		for i := 0; i < len(changes); i += 2 {
			at := slices.Index(fields, changes[i])
			if at >= 0 && at%2 == 0 {
				fields[at+1] = changes[i+1]
			} else {
				fields = append(fields, changes[i], changes[i+1])
			}
		}
		return fields
	}
	without := func(name string) []string {
		at := slices.Index(good, name)
		return slices.Delete(slices.Clone(good), at, at+2)
	}
	const reset = "reset"
	for _, row := range []struct {
		name   string
		fields []string
		want   string // the reason of a refusal, reset, or the origin's uri
	}{
		{"P16 nothing wrong", good, "/vidA/x"},
		{"P16 empty path", with(":path", ""), reset},
		{"P16 path *", with(":path", "*"), "path_invalid"},
		{"P16 path without a slash", with(":path", T+"/x"), reset},
		{"P16 path that is a URL", with(":path", "http://evil.example/"+T+"/x"), reset},
		{"P16 path with #", with(":path", "/"+T+"/x#y"), "path_invalid"},
		{"P16 path with NUL", with(":path", "/"+T+"/x\x00y"), reset},
		{"P16 path with a space", with(":path", "/"+T+"/x y"), "path_invalid"},
		{"P16 path with dots", with(":path", "/"+T+"/../vidB/x"), "path_invalid"},
		{"P16 path with two slashes", with(":path", "//"+T+"/x"), "path_invalid"},
		{"P16 path with a byte that is not ASCII", with(":path", "/"+T+"/\xff"), "path_invalid"},
		{"P16 two paths", append(slices.Clone(good), ":path", "/vidB/x"), reset},
		{"P16 no path", without(":path"), reset},
		{"P16 no method", without(":method"), reset},
		{"P16 authority other than host", with("host", "evil.example"), reset},
		{"P16 authority with userinfo", with(":authority", "u:p@localhost"), reset},
		{"P16 header in capitals", with("X-Test", "1"), reset},
		{"P16 header with a line break", with("x-test", "1\r\nreferer: x"), reset},
		{"P16 connection header", with("connection", "upgrade"), reset},
		{"P16 transfer-encoding header", with("transfer-encoding", "chunked"), reset},
		{"P16 unknown pseudo-header", with(":evil", "1"), reset},
		{"P16 pseudo-header of a response", with(":status", "200"), reset},
		{"P16 method in small letters", with(":method", "get"), "method_not_allowed"},
		{"P15 CONNECT", []string{":method", "CONNECT", ":authority", "localhost:443"}, "method_not_allowed"},
		{"P15 CONNECT with a path", with(":method", "CONNECT"), reset},
		{"P15 CONNECT to a WebSocket", with(":method", "CONNECT", ":protocol", "websocket"), reset},
		{"P15 GET with :protocol", with(":protocol", "websocket"), reset},
	} {
		t.Run(row.name, func(t *testing.T) {
			res := h.dialHTTP2(t).exchange(t, row.fields...)
			rejected := res == nil || res.StatusCode == http.StatusBadRequest && res.reason() == ""
			switch {
			case rejected != (row.want == reset):
				t.Errorf("got %v, want %q", res, row.want)
			case rejected:
				h.wantUntouched(t)
			case strings.HasPrefix(row.want, "/"):
				h.want(t, res, "", row.want)
			default:
				h.want(t, res, row.want, "")
			}
		})
	}
}

// http2Conn is a connection on which a client speaks HTTP/2 frame by frame. Frames
// are sent by out.Flush.
type http2Conn struct {
	*http2.Framer
	conn    net.Conn
	out     *bufio.Writer
	block   bytes.Buffer
	encoder *hpack.Encoder
}

func startHTTP2(t testing.TB, conn net.Conn, settings ...http2.Setting) *http2Conn {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	c := &http2Conn{conn: conn, out: bufio.NewWriter(conn)}
	c.Framer = http2.NewFramer(c.out, conn)
	c.encoder = hpack.NewEncoder(&c.block)
	_, _ = io.WriteString(c.out, http2.ClientPreface)
	noError(t, errors.Join(c.WriteSettings(settings...), c.out.Flush()))
	return c
}

func (g *tlsGateway) dialHTTP2(t testing.TB, settings ...http2.Setting) *http2Conn {
	t.Helper()
	trust := g.trust.Clone()
	trust.NextProtos = []string{"h2"}
	conn := must(tls.Dial("tcp", g.addr, trust))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return startHTTP2(t, conn, settings...)
}

// getFields are the fields of a request, names and values by turns.
func getFields(target string) []string {
	return []string{":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", target}
}

// encode returns a header of any fields, in their order.
func (c *http2Conn) encode(fields ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = c.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return c.block.Bytes()
}

// request opens the n-th stream, from 0 on, with a request of any fields.
func (c *http2Conn) request(n int, fields ...string) error {
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*n + 1), BlockFragment: c.encode(fields...), EndStream: true, EndHeaders: true})
}

// ask opens the n-th stream, from 0 on.
func (c *http2Conn) ask(n int, target string) error { return c.request(n, getFields(target)...) }

// exchange sends one request of any fields, as the first on the connection. It
// returns the response; nil if the server resets the stream or closes the connection
// instead.
func (c *http2Conn) exchange(t testing.TB, fields ...string) *response {
	t.Helper()
	noError(t, errors.Join(c.request(0, fields...), c.out.Flush()))
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var res *response
	for {
		frame, err := c.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			return nil
		case *http2.MetaHeadersFrame:
			status := must(strconv.Atoi(frame.PseudoValue("status")))(t)
			res = &response{Response: &http.Response{StatusCode: status, Header: make(http.Header)}}
			for _, field := range frame.RegularFields() {
				res.Header.Add(field.Name, field.Value)
			}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			res.body = append(res.body, frame.Data()...)
			ended = frame.StreamEnded()
		}
		if ended {
			return res
		}
	}
}

// tryMounts has sites that remove a prefix in front of the gate, which must not
// remove a check with it: the decision is about what the origin is asked for.
func (h *hostileServer) tryMounts(t *testing.T) {
	T, own := mint(t, "vidA", nil), mint(t, "port", nil)

	t.Run("P18 where it belongs", func(t *testing.T) {
		for _, addr := range []string{h.handlePath, h.stripPrefix} {
			h.want(t, rawTo(t, addr, rawGet("/play/"+T+"/a%20b/seg.ts?x=1")), "", "/vidA/a%20b/seg.ts?x=1")
			h.want(t, rawTo(t, addr, rawGet("/play/"+T)), "", "/vidA/iframe")
			h.want(t, rawTo(t, addr, rawGet("/play/vidA/seg.ts")), "token_required", "")
			h.want(t, rawTo(t, addr, rawGet("/play/"+T+"/a%2fb")), "path_invalid", "")
			h.want(t, rawTo(t, addr, rawGet("/play/"+T+"/seg;x")), "path_invalid", "")
			h.want(t, rawTo(t, addr, rawGet("/play/"+own+"/seg.ts", "Referer: http://media.example.com/play/"+own+"/iframe")), "", "/port/seg.ts")
			h.want(t, rawTo(t, addr, rawGet("/play/"+own+"/seg.ts", "Referer: http://media.example.com/"+own+"/iframe")), "origin_not_allowed", "")
		}
		h.want(t, rawTo(t, h.plain.addr, rawGet("/play/"+T+"/seg.ts")), "path_invalid", "")
	})
	// Caddy cleans the path when it removes a prefix.
	t.Run("P18 what comes out of the cleaning is decided on", func(t *testing.T) {
		for _, addr := range []string{h.handlePath, h.stripPrefix} {
			for _, dots := range []string{"..", "%2e%2e", ".%2E"} {
				h.want(t, rawTo(t, addr, rawGet("/play/"+T+"/"+dots+"/vidB/x")), "token_required", "")
				h.want(t, rawTo(t, addr, rawGet("/play/vidB/"+dots+"/"+T+"/x")), "", "/vidA/x")
			}
			h.want(t, rawTo(t, addr, rawGet("/play/"+T+"//seg.ts")), "", "/vidA/seg.ts")
		}
	})
	for _, target := range []string{
		"/play../" + T + "/seg.ts", "/play..%2f" + T + "/seg.ts", "/play%2e%2e/" + T + "/seg.ts", "/play/../" + T + "/seg.ts",
		"/play/../admin", "/play/../vidB/seg.ts", "/play/..", "/play/%2e%2e/" + T + "/seg.ts", "/play/%2e%2e/admin",
		"/play%2f" + T + "/seg.ts", "/play%2F..%2Fadmin", "/%70lay/" + T + "/seg.ts", "/%70lay/../" + T + "/seg.ts", "/%70%6c%61%79/" + T + "/../vidB/x",
		"/play//" + T + "/seg.ts", "//play/" + T + "/seg.ts", "/PLAY/" + T + "/seg.ts", "/play/" + T + "/../../admin", "/play/play/" + T + "/seg.ts",
		"/play;x/" + T + "/seg.ts", "/play/;/" + T + "/seg.ts", "/play\\..\\" + T + "/seg.ts", "/play/" + T + "%2f..%2f..%2fadmin",
		"/./play/" + T + "/seg.ts", "/x/../play/" + T + "/seg.ts", "/x/../play/vidB/seg.ts", "/play", "/play/", "/play/%54", "/play%00/" + T + "/seg.ts",
		"/play/" + T + "/seg.ts%3fx", "/play/?" + T + "/seg.ts", "/play/#/" + T + "/seg.ts", "http://media.example.com/play/../" + T + "/seg.ts",
	} {
		t.Run("P18 "+strings.ReplaceAll(target, T, "T"), func(t *testing.T) {
			for _, addr := range []string{h.plain.addr, h.handlePath, h.stripPrefix} {
				res := rawTo(t, addr, rawGet(target))
				if res.StatusCode >= http.StatusInternalServerError {
					t.Errorf("got %d", res.StatusCode)
				}
				for _, seen := range h.take() {
					if seen.uri != "/vidA/seg.ts" {
						t.Errorf("the origin was asked for %q", seen.uri)
					}
				}
			}
		})
	}
}

// keepAlive is a connection that carries one raw request after the other, for
// as long as the server keeps it.
type keepAlive struct {
	addr   string
	conn   net.Conn
	reader *bufio.Reader
}

func (k *keepAlive) exchange(t testing.TB, request string) *response {
	t.Helper()
	if k.conn == nil {
		conn := must(net.Dial("tcp", k.addr))(t)
		k.conn, k.reader = conn, bufio.NewReader(conn)
	}
	_ = k.conn.SetDeadline(time.Now().Add(startTimeout))
	if _, err := io.WriteString(k.conn, request); err != nil {
		t.Fatalf("sending %.200q: %v", request, err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(k.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the response to %.200q: %v", request, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil && !res.Close {
		t.Fatalf("reading the body: %v", err)
	}
	if res.Close {
		k.close()
	}
	return &response{res, body}
}

func (k *keepAlive) close() {
	if k.conn != nil {
		_ = k.conn.Close()
		k.conn = nil
	}
}
