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
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/signed-playback/caddy-signed-playback/token"
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"localhost"},
		NotAfter:     time.Now().Add(time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
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
	return send(t, c, method, "https://localhost:"+port(g.addr)+path, "", header...)
}

// What the gate promises does not depend on the version of HTTP.
func TestProtocols(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := startTLS(t, o, config{app: withCountries(t)})
	segment, err := os.ReadFile("../examples/media/demo/video/180p/001.m4s")
	if err != nil {
		t.Fatal(err)
	}
	size := len(segment)
	good := "/" + mint(t, "demo", nil)
	path := good + "/video/180p/001.m4s"

	type answer struct {
		Status       int
		Length       int64
		ContentRange string
	}
	passing := []struct {
		name, method, header string
		want                 answer
		body                 []byte
	}{
		{"GET", http.MethodGet, "", answer{http.StatusOK, int64(size), ""}, segment},
		{"HEAD", http.MethodHead, "", answer{http.StatusOK, int64(size), ""}, nil},
		{"first bytes", http.MethodGet, "Range: bytes=0-99", answer{http.StatusPartialContent, 100, fmt.Sprintf("bytes 0-99/%d", size)}, segment[:100]},
		{"from the middle on", http.MethodGet, "Range: bytes=1000-", answer{http.StatusPartialContent, int64(size - 1000), fmt.Sprintf("bytes 1000-%d/%d", size-1, size)}, segment[1000:]},
		{"past the end", http.MethodGet, fmt.Sprintf("Range: bytes=%d-", size), answer{http.StatusRequestedRangeNotSatisfiable, -1, fmt.Sprintf("bytes */%d", size)}, nil},
	}

	rules := func(country string) string {
		return "/" + mint(t, "demo", withRules(`[{"type":"ip.geoip.country","country":["`+country+`"],"action":"block"}]`))
	}
	expired := "/" + mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Second) })
	unknown := "/" + signRaw(privateKey(), `{"alg":"RS256","kid":"other"}`, goodPayloadOf("demo"))
	forged := good[:len(good)-20] + strings.Repeat("A", 18) + good[len(good)-2:]
	refused := []struct {
		name, method, path string
		status             int
		reason             string
	}{
		{"no token", http.MethodGet, "/demo/manifest/video.m3u8", http.StatusUnauthorized, "token_required"},
		{"a forged token", http.MethodGet, forged + "/manifest/video.m3u8", http.StatusUnauthorized, "signature_invalid"},
		{"an unknown key", http.MethodGet, unknown + "/manifest/video.m3u8", http.StatusUnauthorized, "key_unknown"},
		{"an expired token", http.MethodGet, expired + "/manifest/video.m3u8", http.StatusUnauthorized, "token_expired"},
		{"a blocked country", http.MethodGet, rules("US") + "/manifest/video.m3u8", http.StatusForbidden, "rule_blocked"},
		{"a download", http.MethodGet, good + "/downloads/default.mp4", http.StatusForbidden, "download_not_allowed"},
		{"a dot segment", http.MethodGet, good + "/%2e%2e/other/video.m3u8", http.StatusBadRequest, "path_invalid"},
		{"POST", http.MethodPost, path, http.StatusMethodNotAllowed, "method_not_allowed"},
	}

	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			c, dials := protocol.connect(t, g)
			for _, tc := range passing {
				t.Run(tc.name, func(t *testing.T) {
					o.take()
					var header []string
					if tc.header != "" {
						header = []string{tc.header}
					}
					res := g.ask(t, c, tc.method, path, header...)
					got := answer{res.StatusCode, res.ContentLength, res.Header.Get("Content-Range")}
					if tc.want.Length < 0 {
						got.Length = tc.want.Length // an error's text is the origin's affair
						tc.body = res.body
					}
					if diff := cmp.Diff(tc.want, got); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
					if !bytes.Equal(res.body, tc.body) {
						t.Errorf("got other %d bytes than the %d of the file", len(res.body), len(tc.body))
					}
					if res.Proto != protocol.name {
						t.Errorf("answered in %s", res.Proto)
					}
					if requests := o.take(); len(requests) != 1 || requests[0].method != tc.method || requests[0].uri != "/demo/video/180p/001.m4s" {
						t.Errorf("the origin saw %v", requests)
					}
				})
			}
			t.Run("a country that is not blocked", func(t *testing.T) {
				o.take()
				o.wantPassed(t, g.ask(t, c, http.MethodGet, rules("GB")+"/manifest/video.mpd"), "/demo/manifest/video.mpd")
			})
			for _, tc := range refused {
				t.Run(tc.name, func(t *testing.T) {
					o.take()
					o.wantRefused(t, g.ask(t, c, tc.method, tc.path), tc.status, tc.reason)
				})
			}
			if n := dials.Load(); n != 1 {
				t.Errorf("%d connections, want one for all requests", n)
			}
		})
	}
}
