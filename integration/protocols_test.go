package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// tlsGateway is a gateway whose site speaks HTTP/1.1, HTTP/2 and HTTP/3.
type tlsGateway struct {
	*gateway
	trust *tls.Config
}

// startTLS is start for a TLS site on localhost, with a certificate made for
// the test.
func startTLS(t testing.TB, o *origin, c config) *tlsGateway {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"localhost"},
		NotAfter:     time.Now().Add(time.Hour),
	}
	certificate := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))(t)
	private := must(x509.MarshalPKCS8PrivateKey(key))(t)
	dir := t.TempDir()
	certificatePEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	writeFile(t, filepath.Join(dir, "site.crt"), certificatePEM)
	writeFile(t, filepath.Join(dir, "site.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certificatePEM)

	c.listen = "https://localhost"
	if c.site == "" {
		c.site = "reverse_proxy " + o.addr()
	}
	c.site = fmt.Sprintf("tls %s/site.crt %s/site.key\n%s", dir, dir, c.site)
	return &tlsGateway{start(t, o, c), &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}}
}

// url returns an address on the gateway.
func (g *tlsGateway) url(path string) string { return "https://localhost:" + port(g.addr) + path }

// protocols are the versions of HTTP. Each connect makes a client that keeps its
// connection, and counts its connections.
var protocols = []struct {
	name    string
	connect func(t testing.TB, g *tlsGateway) (*http.Client, *atomic.Int32)
}{
	{"HTTP/1.1", func(t testing.TB, g *tlsGateway) (*http.Client, *atomic.Int32) { return connectTCP(t, g, false) }},
	{"HTTP/2.0", func(t testing.TB, g *tlsGateway) (*http.Client, *atomic.Int32) { return connectTCP(t, g, true) }},
	{"HTTP/3.0", connectQUIC},
}

func connectTCP(t testing.TB, g *tlsGateway, http2 bool) (*http.Client, *atomic.Int32) {
	dials := new(atomic.Int32)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: g.trust.Clone(),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, g.addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 2 * startTimeout}, dials
}

func connectQUIC(t testing.TB, g *tlsGateway) (*http.Client, *atomic.Int32) {
	dials := new(atomic.Int32)
	transport := &http3.Transport{
		TLSClientConfig: g.trust.Clone(),
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
			dials.Add(1)
			return quic.DialAddr(ctx, g.addr, tlsConfig, quicConfig)
		},
	}
	t.Cleanup(func() { _ = transport.Close() })
	return &http.Client{Transport: transport, Timeout: 2 * startTimeout}, dials
}

// ask sends a request without a body, with header fields as "Name: value".
func (g *tlsGateway) ask(t testing.TB, c *http.Client, method, path string, header ...string) *response {
	t.Helper()
	return send(t, c, method, g.url(path), "", header...)
}

// What the gate promises does not depend on the version of HTTP. TestHostileRequests has every refusal.
func TestProtocols(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := startTLS(t, o, config{app: withCountries(t)})
	const file = "/video/180p/001.m4s"
	segment := []byte(readText(t, "../examples/media/demo"+file))
	size := len(segment)
	good := "/" + mint(t, "demo", nil)
	type answer struct {
		Status       int
		Length       int64
		ContentRange string
	}
	passing := []struct {
		method, header string
		want           answer
		body           []byte
	}{
		{http.MethodGet, "Accept: */*", answer{http.StatusOK, int64(size), ""}, segment},
		{http.MethodHead, "Accept: */*", answer{http.StatusOK, int64(size), ""}, []byte{}},
		{http.MethodGet, "Range: bytes=0-99", answer{http.StatusPartialContent, 100, fmt.Sprintf("bytes 0-99/%d", size)}, segment[:100]},
		{http.MethodGet, "Range: bytes=1000-", answer{http.StatusPartialContent, int64(size - 1000), fmt.Sprintf("bytes 1000-%d/%d", size-1, size)}, segment[1000:]},
	}
	rules := func(country string) string {
		return "/" + mint(t, "demo", withRules(`[{"type":"ip.geoip.country","country":["`+country+`"],"action":"block"}]`))
	}
	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			c, dials := protocol.connect(t, g)
			for _, tc := range passing {
				o.take()
				res := g.ask(t, c, tc.method, good+file, tc.header)
				got := answer{res.StatusCode, res.ContentLength, res.Header.Get("Content-Range")}
				wantEqual(t, tc.want, got, "%s with %s", tc.method, tc.header)
				if !bytes.Equal(res.body, tc.body) || res.Proto != protocol.name {
					t.Errorf("%s with %s: other %d bytes than the %d of the file, in %s", tc.method, tc.header, len(res.body), len(tc.body), res.Proto)
				}
				if requests := o.take(); len(requests) != 1 || requests[0].method != tc.method || requests[0].uri != "/demo"+file {
					t.Errorf("the origin saw %v", requests)
				}
			}
			o.wantPassed(t, g.ask(t, c, http.MethodGet, rules("GB")+"/manifest/video.mpd"), "/demo/manifest/video.mpd")
			o.wantRefused(t, g.ask(t, c, http.MethodGet, rules("US")+"/manifest/video.mpd"), "rule_blocked")
			o.wantRefused(t, g.ask(t, c, http.MethodGet, "/demo"+file), "token_required")
			o.wantRefused(t, g.ask(t, c, http.MethodGet, good+"/%2e%2e/other/video.m3u8"), "path_invalid")
			o.wantRefused(t, g.ask(t, c, http.MethodPost, good+file), "method_not_allowed")
			if n := dials.Load(); n != 1 {
				t.Errorf("%d connections, want one for all requests", n)
			}
		})
	}
}

// h2specVersion is the newest version that the Go module proxy has.
const h2specVersion = "v2.2.1+incompatible"

// specCase is one conformance test of h2spec.
type specCase struct {
	Section string `xml:"package,attr"`
	Name    string `xml:"classname,attr"`
	Failure string `xml:"failure"`
	Error   string `xml:"error"`

	id string // like http2/8.1.2.2/1
}

func (c specCase) fails() bool { return strings.TrimSpace(c.Failure+c.Error) != "" }

// h2spec runs the conformance tests of RFC 7540 and RFC 7541 against a server, or only
// one of them. It returns the results by section and name.
func h2spec(t testing.TB, addr, path string, id ...string) map[string]specCase {
	t.Helper()
	installed := execute(t, "..", "", "./.ci/tool", "github.com/summerwind/h2spec/cmd/h2spec", h2specVersion)
	if installed.code != 0 {
		t.Errorf("installing h2spec: %s", installed.stderr)
		return nil
	}
	host, port, _ := net.SplitHostPort(addr)
	report := filepath.Join(t.TempDir(), "report.xml")
	ran := execute(t, "", "", strings.TrimSpace(installed.stdout), append(id,
		"--tls", "--insecure", "--timeout", "4", "--host", host, "--port", port, "--path", path, "--junit-report", report)...)
	text, err := os.ReadFile(report)
	if err != nil {
		t.Errorf("h2spec: %v: %+v", err, ran)
		return nil
	}
	var suites struct {
		Cases []specCase `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Error(err)
	}
	cases, sections := make(map[string]specCase), make(map[string]int)
	for _, c := range suites.Cases {
		sections[c.Section]++
		c.id = fmt.Sprintf("%s/%d", c.Section, sections[c.Section])
		cases[c.Section+": "+c.Name] = c
	}
	return cases
}

// The gate does not change how its server speaks HTTP/2, for a request that passes, a
// response that is rewritten, and a refusal. h2spec must find nothing that it does not
// also find in Caddy without the gate, in the same process.
//
// Many cases send a request and then an invalid frame. A server that has already answered
// the request may ignore the frame (RFC 9113 section 8.1). Other cases wait for the
// answer. So a case must pass where a request is answered at once, or where
// its answer is held back until the server has met the invalid frame, which cancels the
// request. Every answer has a body, which many cases hold back with a window of zero.
func TestH2spec(t *testing.T) {
	t.Parallel()      // most of it is waiting
	const least = 140 // of 145 cases; some have the same name
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "#EXTM3U\n")
	}))
	held := "@held query held=\nforward_auth @held " + o.addr() + " {\nuri /hold\n}\n"
	rest := "reverse_proxy " + o.addr() + "\nhandle_errors {\nrespond refused\n}\n"
	bare := freeAddr(t)
	g := startTLS(t, o, config{site: held + rest, sites: "https://" + bare + " {\ntls internal\n" + held + "error /refused 401\n" + rest + "}\n"})
	eventually(t, "bare Caddy has made its certificate", func() bool {
		conn, err := tls.Dial("tcp", bare, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	gate := net.JoinHostPort("localhost", port(g.addr)) // the site's name
	viewer := "/" + mint(t, "vidA", nil)
	ways := []struct {
		name, gate, bare string // paths
		found, known     map[string]specCase
	}{
		{name: "a segment", gate: viewer + "/seg.ts", bare: "/vidA/seg.ts"},
		{name: "a manifest", gate: viewer + "/video.m3u8", bare: "/vidA/video.m3u8"},
		{name: "a refusal", gate: "/vidA/seg.ts", bare: "/refused"},
	}
	var running sync.WaitGroup
	for i := range ways {
		way := &ways[i]
		running.Go(func() { way.found = h2spec(t, gate, way.gate) })
		running.Go(func() { way.known = h2spec(t, bare, way.bare) })
	}
	running.Wait()
	for _, way := range ways {
		if len(way.known) < least || len(way.found) != len(way.known) {
			t.Errorf("%s: h2spec has run %d cases against bare Caddy and %d against the gate", way.name, len(way.known), len(way.found))
		}
		for name, c := range way.found {
			if !c.fails() {
				continue
			}
			running.Go(func() {
				switch {
				case !h2spec(t, gate, way.gate+"?held=", c.id)[name].fails():
				case way.known[name].fails() && h2spec(t, bare, way.bare+"?held=", c.id)[name].fails():
					t.Logf("%s: bare Caddy fails, too: %s", way.name, name)
				default:
					t.Errorf("%s: %s: %s%s", way.name, name, c.Failure, c.Error)
				}
			})
		}
	}
	running.Wait()
}
