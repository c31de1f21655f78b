package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// hostilePath is a request target, and what must become of it: a refusal with a
// reason, a request to the origin, or the server's own 400.
type hostilePath struct {
	name   string
	target string
	reason string // "" if it passes
	passes string // the origin's uri
}

// rejected stands for a target that the server refuses before the gate could.
const rejected = "rejected"

// try sends every row, as it is, and checks what became of it.
func (o *origin) try(t *testing.T, addr string, rows []hostilePath) {
	t.Helper()
	if len(rows) == 0 {
		t.Fatal("no rows")
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			switch row.reason {
			case "":
				o.wantPassed(t, rawTo(t, addr, rawGet(row.target)), row.passes)
			case rejected:
				o.wantRejected(t, addr, rawGet(row.target), http.StatusBadRequest)
			default:
				o.wantRefused(t, rawTo(t, addr, rawGet(row.target)), statusOf(row.reason), row.reason)
			}
		})
	}
}

func statusOf(reason string) int {
	switch reason {
	case "path_invalid":
		return http.StatusBadRequest
	case "token_required", "token_malformed", "key_unknown", "signature_invalid", "token_expired":
		return http.StatusUnauthorized
	}
	panic("no status for " + reason)
}

// A path that means one thing to the gate and another to the origin opens a
// video that the token is not for. So what is not in the one plain form is
// refused, and never cleaned.
func TestHostilePathsRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	T := mint(t, "vidA", nil)
	const bad = "path_invalid"

	var rows []hostilePath
	refused := func(id, reason string, targets ...string) {
		for _, target := range targets {
			name := id + " " + strings.ReplaceAll(target, T, "T")
			rows = append(rows, hostilePath{name: name, target: target, reason: reason})
		}
	}
	refused("P1", bad, "/"+T+"/../vidB/manifest/video.m3u8", "/"+T+"/./x", "/"+T+"/manifest/..", "/"+T+"/manifest/.",
		"/../"+T+"/..", "/../"+T+"/x", "/./"+T+"/x", "/"+T+"/..", "/"+T+"/.", "/"+T+"/a/../../vidB/x", "/..", "/.", "/")
	refused("P2", bad, "/"+T+"/%2e%2e/vidB/manifest/video.m3u8", "/"+T+"/%2E./x", "/"+T+"/.%2e/", "/"+T+"/%2E%2E", "/"+T+"/%2e/x",
		"/%2e%2e/"+T+"/x", "/"+T+"/a%2e%2e/x")
	refused("P3", bad, "/"+T+"/%252e%252e/vidB", "/"+T+"/%25%32%65%25%32%65/vidB", "/"+T+"/%25252e%25252e/vidB", "/"+T+"/%25", "/"+T+"/%2525/x")
	refused("P4", bad, "/"+T+"/manifest%2Fvideo.m3u8", "/"+T+"/manifest%2fvideo.m3u8", "/"+T+"/%2f", "/%2f/x")
	refused("P4", "token_malformed", "/"+T+"%2fmanifest", "/"+T+"%2fmanifest%2fvideo", "/"+T+"%2F", "/%2f"+T+"/x")
	refused("P5", bad, `/`+T+`/..\..\vidB`, `/`+T+`/x\y`, "/"+T+"/%5c..%5cvidB", "/"+T+"/%5C", `/`+T+`\x`)
	refused("P5", rejected, `\`+T+`\x`)
	refused("P6", bad, "//"+T+"//manifest/video.m3u8", "/"+T+"//manifest", "///evil.example/"+T, "//evil.example/"+T+"/x", "//"+T+"/x",
		"/"+T+"/x//", "/"+T+"//", "/"+T+"///x")
	refused("P7", bad, "/"+T+"/manifest/..;/x", "/"+T+"/manifest;x/video.m3u8", "/"+T+"/video.m3u8;jsessionid=1", "/"+T+"/;", "/"+T+"/%3b", "/"+T+"/..;x/vidB")
	refused("P7", "token_malformed", "/"+T+";a=b")
	refused("P8", bad, "/"+T+"/%00/x", "/"+T+"/seg%00.ts", "/"+T+"/seg.ts%0d%0aX:1", "/"+T+"/%ff", "/"+T+"/%c0%ae%c0%ae/x", "/"+T+"/%e0%80%ae/x",
		"/"+T+"/%ed%a0%80", "/"+T+"/%7f", "/"+T+"/%c2%85", "/"+T+"/%1b", "/"+T+"/%09", "/"+T+"/\xff", "/"+T+"/é", "/"+T+`/"x"`, "/"+T+"/<x>", "/"+T+"/{x}",
		"/"+T+"/x|y", "/"+T+"/x^y", "/"+T+"/`x`", "/"+T+"/[x]")
	refused("P8", rejected, "/"+T+"/%zz", "/"+T+"/%", "/"+T+"/%2", "/"+T+"/x y", "/"+T+"/\x00", "/"+T+"/\x7f", "/"+T+"/\t", "")
	refused("P9", bad, "/"+T+"/#frag/x", "/"+T+"/x#y", "/"+T+"/%23", "/"+T+"/%3f/x?y", "/"+T+"/x%3Fy", "/"+T+"#frag", "/"+T+"#/x")
	refused("P9", "token_malformed", "/"+T+"%23", "/"+T+"%3f")
	refused("P10", "token_required", "/vidB/"+T+"/x", "/vidA/"+T+"/x")
	refused("P10", bad, "/"+T+"/"+T+"/x", "/"+T+"."+T+"/x", "/"+T+".A/"+T+".B/x", "/x."+T+"/x")
	refused("P11", "token_required", "/vidA/manifest/video.m3u8", "/VIDA/manifest/video.m3u8", "/nosuch/manifest/video.m3u8", "/vidA", "/vidA/", "/a")
	refused("P11", bad, "/vidA%20/x", "/vidA%2f/x", "/vid%41/x", "/%76idA/x", "/vidA%00/x", "/vid+A/x", "/vid@A/x", "/vid:A/x", "/~vidA/x")
	segments := strings.Split(T, ".")
	refused("P12", "token_required", "/"+segments[0]+"/x", "/"+segments[2][:64]+"/x")
	refused("P12", bad, "/"+segments[2][:65]+"/x", "/"+segments[2]+"/x", "/"+segments[0]+"."+segments[1]+"/x", "/vid.A/x", "/.vidA/x", "/vidA./x", "/a.b.c.d/x", "/.../x")
	refused("P12", "token_malformed", "/a.b.c/x", "/vidA../x", "/.vidA./x")
	refused("P12", "signature_invalid", "/"+strings.TrimSuffix(T, segments[2])+segments[2][:128]+"/x")
	refused("P13", bad, "/"+T+"/video.mpd;", "/"+T+"/manifest/video.m3u8%2e", "/"+T+"/manifest/video%2em3u8", "/"+T+"/manifest/video.m3u8%00")
	o.try(t, g.addr, rows)
}

// What passes is what the token is for, under the path that was built for it.
func TestHostilePathsThatPass(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	T := mint(t, "vidA", nil)
	rows := []hostilePath{
		{name: "P1 dots in a name are not dot segments", target: "/" + T + "/..a/b../...", passes: "/vidA/..a/b../..."},
		{name: "P4 an escape that means nothing", target: "/" + T + "/a%20b/%C3%A9.ts", passes: "/vidA/a%20b/%C3%A9.ts"},
		{name: "P8 every byte that a path may have", target: "/" + T + "/-._~!$&'()*+,=:@", passes: "/vidA/-._~!$&'()*+,=:@"},
		{name: "P9 a query that looks like a path", target: "/" + T + "/x?/../vidB#y", passes: "/vidA/x?/../vidB#y"},
		{name: "P10 the id of another video in the suffix", target: "/" + T + "/vidB/manifest/video.m3u8", passes: "/vidA/vidB/manifest/video.m3u8"},
		{name: "P13 a slash behind", target: "/" + T + "/manifest/video.m3u8/", passes: "/vidA/manifest/video.m3u8/"},
		{name: "P13 capitals", target: "/" + T + "/manifest/video.M3U8", passes: "/vidA/manifest/video.M3U8"},
		{name: "P13 a dot behind", target: "/" + T + "/manifest/video.m3u8.", passes: "/vidA/manifest/video.m3u8."},
		{name: "P13 a space behind", target: "/" + T + "/manifest/video.m3u8%20", passes: "/vidA/manifest/video.m3u8%20"},
		{name: "P13 a query", target: "/" + T + "/manifest/video.m3u8?x", passes: "/vidA/manifest/video.m3u8?x"},
		{name: "P14 absolute form of the own host", target: "http://media.example.com/" + T + "/x", passes: "/vidA/x"},
		{name: "P14 absolute form of another host", target: "http://evil.example/" + T + "/x", passes: "/vidA/x"},
		{name: "P14 absolute form with userinfo", target: "http://u:p@media.example.com/" + T + "/x", passes: "/vidA/x"},
		{name: "P14 absolute form without a token", target: "http://media.example.com/vidA/x", reason: "token_required"},
		{name: "P14 absolute form with dots", target: "http://media.example.com/" + T + "/../vidB/x", reason: "path_invalid"},
		{name: "P14 absolute form without a path", target: "http://media.example.com", reason: "path_invalid"},
		{name: "P14 absolute form of another scheme", target: "file:///" + T + "/x", passes: "/vidA/x"},
		{name: "P14 opaque form", target: "http:" + T, reason: rejected},
		{name: "P9 a query with a semicolon", target: "/" + T + "/x?a;b=/../c", passes: "/vidA/x?a;b=/../c"},
		{name: "P9 a query that cannot be decoded", target: "/" + T + "/x?a=%zz", passes: "/vidA/x?a=%zz"},
		{name: "P17 10,001 ampersands", target: "/" + T + "/x?" + strings.Repeat("&", 10_001), passes: "/vidA/x?" + strings.Repeat("&", 10_001)},
		{name: "P17 4,000 segments", target: "/" + T + strings.Repeat("/a", 4000), passes: "/vidA" + strings.Repeat("/a", 4000)},
		{name: "P17 a segment of 8 kB", target: "/" + T + "/" + strings.Repeat("a", 8000), passes: "/vidA/" + strings.Repeat("a", 8000)},
		{name: "P17 a query of 4,000 parameters", target: "/" + T + "/x?" + strings.Repeat("a&", 4000), passes: "/vidA/x?" + strings.Repeat("a&", 4000)},
	}
	for _, row := range rows {
		if row.passes != "" {
			if err := built(row.passes, "/vidA"); err != nil {
				t.Fatalf("%s: the test itself is wrong: %v", row.name, err)
			}
		}
	}
	o.try(t, g.addr, rows)

	for name, target := range map[string]string{
		"P17 64 kB":                     "/" + T + "/" + strings.Repeat("a", 64_000),
		"P17 10,000 segments":           "/" + T + strings.Repeat("/a", 10_000),
		"P17 a query of 10,001 letters": "/" + T + "/x?" + strings.Repeat("a&", 10_001),
	} {
		t.Run(name, func(t *testing.T) {
			o.wantRejected(t, g.addr, rawGet(target), http.StatusRequestHeaderFieldsTooLarge)
		})
	}
}

// A manifest under a name that is almost one must not reach the player with the
// paths of the origin in it, where its token does not stand.
func TestHostileManifestNames(t *testing.T) {
	playlist := "#EXTM3U\n#EXTINF:4,\n/vidA/seg.ts\n"
	document := `<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>/vidA/dash/</BaseURL></MPD>`
	answers := map[string]struct{ contentType, body string }{}
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[r.Header.Get("X-Answer")]
		w.Header().Set("Content-Type", answer.contentType)
		_, _ = io.WriteString(w, answer.body)
	}))
	for _, contentType := range []string{"application/vnd.apple.mpegurl", "Application/X-MPEGURL; charset=utf-8", "audio/mpegurl", "text/plain", "application/octet-stream", "video/mp2t"} {
		answers["HLS as "+contentType] = struct{ contentType, body string }{contentType, playlist}
	}
	for _, contentType := range []string{"application/dash+xml", "APPLICATION/DASH+XML"} {
		answers["DASH as "+contentType] = struct{ contentType, body string }{contentType, document}
	}
	g := start(t, o, config{})
	T := mint(t, "vidA", nil)
	for answer := range answers {
		for _, suffix := range []string{
			"manifest/video.m3u8", "manifest/video.m3u8/", "manifest/video.M3U8", "manifest/video.m3u8.", "manifest/video.m3u8%20", "manifest/video.m3u8?x", "manifest/video.m3u",
			"manifest/video.MPD", "manifest/video.mpd/", "manifest/video.mpd.", "manifest/video", "seg.ts", "iframe", "thumbnails/x.jpg",
		} {
			t.Run("P13 "+answer+" at "+suffix, func(t *testing.T) {
				res := g.raw(t, rawGet("/"+T+"/"+suffix, "X-Answer: "+answer))
				if seen := o.take(); len(seen) != 1 {
					t.Errorf("the origin saw %v", seen)
				}
				switch {
				case res.StatusCode == http.StatusBadGateway && res.reason() == "manifest_invalid":
				case res.StatusCode != http.StatusOK:
					t.Errorf("got %d %q", res.StatusCode, res.reason())
				case strings.Contains(string(res.body), "/vidA/"):
					t.Errorf("the manifest is as the origin wrote it: %q", res.body)
				}
			})
		}
	}
}

// Whether a video exists is nobody's business who has no token for it: the
// answers must not differ in anything but the time.
func TestHostileProbesLearnNothing(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "video vidA {\nallowed_origins example.com\n}\nvideo vidB {\nrequire_signed_urls on\n}"})
	var want http.Header
	for _, id := range []string{"nosuch", "vidA", "vidB", "VIDA", "viDb"} {
		res := g.raw(t, rawGet("/"+id+"/manifest/video.m3u8"))
		o.wantRefused(t, res, http.StatusUnauthorized, "token_required")
		res.Header.Del("Date")
		if want == nil {
			want = res.Header
		}
		if diff := cmp.Diff(want, res.Header); diff != "" {
			t.Errorf("P11 the answer for %s tells that it exists (-nosuch +%s):\n%s", id, id, diff)
		}
	}
}

// A request to connect to another host through the gateway must not be
// proxied: the answer would be the attacker's, on the operator's connection.
func TestHostileConnectRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	T := mint(t, "vidA", nil)
	for name, request := range map[string]string{
		"P15 authority form":          "CONNECT media.example.com:443 HTTP/1.1\r\nHost: media.example.com:443\r\n\r\n",
		"P15 authority of the origin": "CONNECT " + o.addr() + " HTTP/1.1\r\nHost: " + o.addr() + "\r\n\r\n",
		"P15 a path":                  "CONNECT /" + T + "/x HTTP/1.1\r\nHost: media.example.com\r\n\r\n",
		"P15 absolute form":           "CONNECT http://media.example.com/" + T + "/x HTTP/1.1\r\nHost: media.example.com\r\n\r\n",
		"P15 a WebSocket by header":   "CONNECT /" + T + "/x HTTP/1.1\r\nHost: media.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n:protocol: websocket\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(request, ":protocol") {
				o.wantRejected(t, g.addr, request, http.StatusBadRequest)
				return
			}
			o.wantRefused(t, g.raw(t, request), http.StatusMethodNotAllowed, "method_not_allowed")
		})
	}
}

// HTTP/2 carries paths and hosts in fields of their own, which HTTP/1.1 could
// not express: what comes out of them must be decided on in the same way.
func TestHostileHTTP2(t *testing.T) {
	o := startOrigin(t, nil)
	g := startTLS(t, o, config{})
	T := mint(t, "vidA", nil)
	good := []string{":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/" + T + "/x"}
	// with changes pseudo-header fields and adds fields behind them.
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
		{"P16 path with a line break", with(":path", "/"+T+"/x HTTP/1.1\r\nHost: evil"), reset},
		{"P16 path with a space", with(":path", "/"+T+"/x y"), "path_invalid"},
		{"P16 path with dots", with(":path", "/"+T+"/../vidB/x"), "path_invalid"},
		{"P16 path with encoded dots", with(":path", "/"+T+"/%2e%2e/vidB/x"), "path_invalid"},
		{"P16 path with two slashes", with(":path", "//"+T+"/x"), "path_invalid"},
		{"P16 path with a byte that is not ASCII", with(":path", "/"+T+"/\xff"), "path_invalid"},
		{"P16 path that is no path", with(":path", "/"+T+"/%zz"), reset},
		{"P16 two paths", append(slices.Clone(good), ":path", "/vidB/x"), reset},
		{"P16 no path", without(":path"), reset},
		{"P16 no method", without(":method"), reset},
		{"P16 no scheme", without(":scheme"), reset},
		{"P16 authority other than host", with("host", "evil.example"), reset},
		{"P16 authority with a path", with(":authority", "evil.example/x"), reset},
		{"P16 authority with userinfo", with(":authority", "u:p@localhost"), reset},
		{"P16 header in capitals", with("X-Test", "1"), reset},
		{"P16 header with a line break", with("x-test", "1\r\nreferer: x"), reset},
		{"P16 header with a space", with("x test", "1"), reset},
		{"P16 connection header", with("connection", "upgrade"), reset},
		{"P16 transfer-encoding header", with("transfer-encoding", "chunked"), reset},
		{"P16 te header", with("te", "gzip"), reset},
		{"P16 scheme ftp", with(":scheme", "ftp"), reset},
		{"P16 unknown pseudo-header", with(":evil", "1"), reset},
		{"P16 pseudo-header of a response", with(":status", "200"), reset},
		{"P16 method in small letters", with(":method", "get"), "method_not_allowed"},
		{"P16 POST", with(":method", "POST"), "method_not_allowed"},
		{"P15 CONNECT", []string{":method", "CONNECT", ":authority", "localhost:443"}, "method_not_allowed"},
		{"P15 CONNECT with a path", with(":method", "CONNECT"), reset},
		{"P15 CONNECT to a WebSocket", with(":method", "CONNECT", ":protocol", "websocket"), reset},
		{"P15 GET with :protocol", with(":protocol", "websocket"), reset},
	} {
		t.Run(row.name, func(t *testing.T) {
			res := http2Request(t, g, row.fields)
			switch {
			case res == nil || res.StatusCode == http.StatusBadRequest && res.reason() == "":
				if row.want != reset {
					t.Errorf("the server rejected the request, want %q", row.want)
				}
				if seen := o.take(); len(seen) != 0 {
					t.Errorf("the origin was asked for %q", seen[0].uri)
				}
			case strings.HasPrefix(row.want, "/"):
				o.wantPassed(t, res, row.want)
			case row.want == "method_not_allowed":
				o.wantRefused(t, res, http.StatusMethodNotAllowed, row.want)
			case row.want == reset:
				t.Errorf("got %d %q, want no answer from the gate", res.StatusCode, res.reason())
			default:
				o.wantRefused(t, res, statusOf(row.want), row.want)
			}
		})
	}
}

// http2Request sends one request of any fields, in their order, over TLS. See
// http2On.
func http2Request(t testing.TB, g *tlsGateway, fields []string) *response {
	t.Helper()
	trust := g.trust.Clone()
	trust.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", g.addr, trust)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Fatalf("the server speaks %q, not h2", got)
	}
	return http2On(t, conn, fields)
}

// http2On sends one request of any fields, in their order, as the first on a
// connection, and returns the response; nil if the server resets the stream or
// ends the connection instead.
func http2On(t testing.TB, conn net.Conn, fields []string) *response {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		if err := encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for _, err := range []error{
		framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return readHTTP2(t, framer)
}

// readHTTP2 reads the response on stream 1.
func readHTTP2(t testing.TB, framer *http2.Framer) *response {
	t.Helper()
	var res *response
	for {
		frame, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			return nil
		case *http2.MetaHeadersFrame:
			status, err := strconv.Atoi(frame.PseudoValue("status"))
			if err != nil {
				t.Fatal(err)
			}
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

// mounts starts a gateway with the gate at the root, behind handle_path and
// behind uri strip_prefix.
func mounts(t testing.TB, o *origin) (g *gateway, handlePath, stripPrefix string) {
	t.Helper()
	handlePath, stripPrefix = freeAddr(t), freeAddr(t)
	gate := "signed_playback\nreverse_proxy " + o.addr()
	g = start(t, o, config{
		sites: site(handlePath, "handle_path /play/* {\n"+gate+"\n}") +
			site(stripPrefix, "route {\nuri strip_prefix /play\n"+gate+"\n}"),
	})
	return g, handlePath, stripPrefix
}

// A prefix that is taken off in front of the gate must not take a check off
// with it: the decision is about what the origin is asked for.
func TestHostileMounts(t *testing.T) {
	o := startOrigin(t, nil)
	g, handlePath, stripPrefix := mounts(t, o)
	T := mint(t, "vidA", nil)

	t.Run("P18 where it belongs", func(t *testing.T) {
		o.wantPassed(t, g.raw(t, rawGet("/"+T+"/a%20b/seg.ts?x=1")), "/vidA/a%20b/seg.ts?x=1")
		for _, addr := range []string{handlePath, stripPrefix} {
			o.wantPassed(t, rawTo(t, addr, rawGet("/play/"+T+"/a%20b/seg.ts?x=1")), "/vidA/a%20b/seg.ts?x=1")
			o.wantPassed(t, rawTo(t, addr, rawGet("/play/"+T)), "/vidA/iframe")
			o.wantRefused(t, rawTo(t, addr, rawGet("/play/vidA/seg.ts")), http.StatusUnauthorized, "token_required")
			o.wantRefused(t, rawTo(t, addr, rawGet("/play/"+T+"/a%2fb")), http.StatusBadRequest, "path_invalid")
			o.wantRefused(t, rawTo(t, addr, rawGet("/play/"+T+"/seg;x")), http.StatusBadRequest, "path_invalid")
		}
	})
	// Whoever takes a prefix off in Caddy has the path cleaned on the way.
	t.Run("P18 what comes out of the cleaning is decided on", func(t *testing.T) {
		for _, addr := range []string{handlePath, stripPrefix} {
			for _, dots := range []string{"..", "%2e%2e", ".%2E"} {
				o.wantRefused(t, rawTo(t, addr, rawGet("/play/"+T+"/"+dots+"/vidB/x")), http.StatusUnauthorized, "token_required")
				o.wantPassed(t, rawTo(t, addr, rawGet("/play/vidB/"+dots+"/"+T+"/x")), "/vidA/x")
			}
			o.wantPassed(t, rawTo(t, addr, rawGet("/play/"+T+"//seg.ts")), "/vidA/seg.ts")
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
			for _, addr := range []string{g.addr, handlePath, stripPrefix} {
				res := rawTo(t, addr, rawGet(target))
				if res.StatusCode >= http.StatusInternalServerError {
					t.Errorf("got %d", res.StatusCode)
				}
				for _, seen := range o.take() {
					if seen.uri != "/vidA/seg.ts" {
						t.Errorf("the origin was asked for %q", seen.uri)
					}
				}
			}
		})
	}
}

// pathForm has the bytes of a path that was built: pchar of RFC 3986 without the
// semicolon.
var pathForm = regexp.MustCompile(`^(/([A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+)+/?$`)

// built reports what is wrong with a target that the origin was asked for: it
// must be the folder of the video and a suffix that means one thing to every
// reader.
func built(uri, folder string) error {
	path, _, _ := strings.Cut(uri, "?")
	suffix, inside := strings.CutPrefix(path, folder+"/")
	decoded, err := url.PathUnescape(suffix)
	switch {
	case !inside:
		return fmt.Errorf("%q is not inside %s", uri, folder)
	case err != nil || !pathForm.MatchString(path):
		return fmt.Errorf("%q has bytes that are not a path's", uri)
	case !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, unicode.IsControl):
		return fmt.Errorf("%q hides bytes that are not text", uri)
	case strings.Count(decoded, "/") != strings.Count(suffix, "/") || strings.ContainsAny(decoded, `\;%?#`):
		return fmt.Errorf("%q hides a character that has a meaning", uri)
	}
	for segment := range strings.SplitSeq(suffix, "/") {
		if segment == "." || segment == ".." || strings.Contains(strings.ToLower(segment), "%2e") {
			return fmt.Errorf("%q has a dot segment", uri)
		}
	}
	return nil
}

// Nothing that grows out of a good URL by chance or by trying must crash the
// gate, leave the token's video, or be a second spelling of the URL.
func TestHostileMutations(t *testing.T) {
	o := startOrigin(t, nil)
	g, handlePath, stripPrefix := mounts(t, o)
	T := mint(t, "vidA", nil)
	seed := [2]uint64{1, 2026}
	random := mathrand.New(mathrand.NewPCG(seed[0], seed[1]))
	passed := 0
	run := func(addr, prefix string, times int, check func(t *testing.T, target string, res *response, seen []seen)) {
		conn := &keepAlive{addr: addr}
		defer conn.close()
		for i := range times {
			target := mutate(random, prefix+"/"+T+[]string{"/manifest/video.m3u8?x=1", "/seg.ts", "/", "", "/a/b/c.mp4"}[i%5])
			res := conn.exchange(t, "GET "+target+" HTTP/1.1\r\nHost: media.example.com\r\n\r\n")
			requests := o.take()
			if res.StatusCode >= http.StatusInternalServerError {
				t.Errorf("%q is answered with %d (seed %d, number %d)", target, res.StatusCode, seed, i)
			}
			for _, s := range requests {
				passed++
				if err := built(s.uri, "/vidA"); err != nil {
					t.Errorf("%q: %v (seed %d, number %d)", target, err, seed, i)
				}
			}
			if len(requests) > 1 {
				t.Errorf("%q became %d requests (seed %d, number %d)", target, len(requests), seed, i)
			}
			check(t, target, res, requests)
			if t.Failed() {
				return
			}
		}
	}
	run(g.addr, "", 3000, func(t *testing.T, target string, res *response, requests []seen) {
		if ok := res.StatusCode == http.StatusOK; ok != (len(requests) == 1) {
			t.Errorf("%q: status %d and %d requests to the origin", target, res.StatusCode, len(requests))
		} else if ok && requests[0].uri != canonical(target, T) {
			t.Errorf("%q is a second spelling of %q", target, requests[0].uri)
		}
	})
	anything := func(*testing.T, string, *response, []seen) {}
	run(handlePath, "/play", 500, anything)
	run(stripPrefix, "/play", 500, anything)
	if passed < 100 {
		t.Errorf("only %d requests passed: the mutations are too wild to show anything", passed)
	}
}

// canonical is what the origin must be asked for if a target may pass at all,
// and "" if it may not.
func canonical(target, token string) string {
	path, query, _ := strings.Cut(target, "?")
	suffix, ok := strings.CutPrefix(path, "/"+token)
	switch {
	case !ok || suffix != "" && suffix[0] != '/':
		return ""
	case suffix == "" || suffix == "/":
		suffix = "/iframe"
	}
	if strings.Contains(target, "?") {
		return "/vidA" + suffix + "?" + query
	}
	return "/vidA" + suffix
}

// mutate changes a target in one to four places. It leaves out line breaks,
// which end a request line and not a path.
func mutate(random *mathrand.Rand, target string) string {
	inserted := []string{
		"..", ".", "/", "//", "/../", "/./", `\`, ";", "%2e", "%2E%2e", "%2f", "%5c", "%00", "%25", "%252e", "%c0%ae", "%ff", "%zz", "%", "#", "?", "&",
		":", "@", "%0d%0a", "%20", "%41", "%C3%A9", " ", "\t", "\x00", "\x7f", "\xff", "é", "vidB", "/vidB", "%76idB", "iframe", ".m3u8", "..;", "=", "+", "~",
		"http://", "//evil.example", "{env.HOME}", "{http.request.uri}", "*", "a", "A",
	}
	bytes := []byte(target)
	for range 1 + random.IntN(4) {
		// Half of the time near the end, or the token would hardly ever survive.
		at := random.IntN(len(bytes) + 1)
		if slash := strings.LastIndexByte(strings.TrimSuffix(string(bytes), "/"), '/'); random.IntN(8) > 0 && slash > 0 {
			at = slash + random.IntN(len(bytes)-slash+1)
		}
		switch n := random.IntN(6); {
		case n < 3 || at >= len(bytes):
			bytes = slices.Insert(bytes, at, []byte(inserted[random.IntN(len(inserted))])...)
		case n == 3:
			bytes = slices.Delete(bytes, at, min(len(bytes), at+1+random.IntN(3)))
		case n == 4:
			bytes[at] ^= 1 << random.IntN(8)
		default:
			other := random.IntN(len(bytes))
			bytes[at], bytes[other] = bytes[other], bytes[at]
		}
		if len(bytes) == 0 {
			break
		}
	}
	return strings.NewReplacer("\r", "", "\n", "").Replace(string(bytes))
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
		conn, err := net.Dial("tcp", k.addr)
		if err != nil {
			t.Fatal(err)
		}
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
