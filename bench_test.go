package signedplayback

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// restrictedApp has geo databases and allowed origins.
func restrictedApp() *App {
	return &App{
		GeoIPDatabase: "testdata/country.mmdb", ASNDatabase: "testdata/asn.mmdb", AnonymousDatabase: "testdata/anonymous.mmdb",
		VideoSettings: VideoSettings{AllowedOrigins: []string{"example.com", "*.example.org"}},
	}
}

const restrictedRules = `[{"type":"ip.geoip.country","country":["GB","US"],"action":"allow"},{"type":"any","action":"block"}]`

// networkRules are rules of which only the last one matches the viewer.
const networkRules = `[{"type":"ip.geoip.country","country":["DE","US"],"action":"block"},{"type":"ip.geoip.asnum","asn":[64500,64501],"action":"block"},
	{"type":"ip.anonymous","kinds":["tor","hosting"],"action":"block"},{"type":"any","action":"allow"}]`

// benchCase is a request that a benchmark repeats.
type benchCase struct {
	name   string
	app    *App
	token  func() string
	header http.Header
}

// inSession is a token and a session of it, as they are in a path.
func inSession() string {
	owner := sessions.Owner{Token: sha256.Sum256([]byte(plainToken()))}
	return plainToken() + "/~" + sessions.NewAuthority([]byte(testSecret)).New(owner, testTime)
}

var warmCases = []benchCase{
	{"plain", new(App), plainToken, nil},
	{"session", sessionApp(nil), inSession, nil},
	{"sessions without one in the path", sessionApp(nil), plainToken, http.Header{"User-Agent": {"AndroidXMedia3/1.8.0 (Linux;Android 14) ExoPlayerLib/1.8.0"}}},
	{
		"country and origins", restrictedApp(), func() string { return signedWithRules(restrictedRules) },
		http.Header{"Origin": {"https://www.example.org"}, "Referer": {"https://www.example.org/watch"}},
	},
	{
		"country, ASN, anonymous and origins", restrictedApp(), func() string { return signedWithRules(networkRules) },
		http.Header{"Origin": {"https://www.example.org"}, "Referer": {"https://www.example.org/watch"}},
	},
}

// request makes the request of a case. reset undoes what the gate changes in it
// for the origin.
func (c benchCase) request(b testing.TB) (r *http.Request, reset func()) {
	r = requestFor(b, "/"+c.token()+"/video/1080/seg_123.m4s", nil)
	u, uri := *r.URL, r.RequestURI
	return r, func() {
		*r.URL, r.RequestURI = u, uri
		maps.Copy(r.Header, c.header)
	}
}

// BenchmarkDecide is the decision about a warm request. It must take at most 1 µs,
// 1.5 µs with rules by country and network and origins, and no allocation.
func BenchmarkDecide(b *testing.B) {
	for _, c := range warmCases {
		b.Run(c.name, func(b *testing.B) {
			app := *c.app
			g := newGate(b, &app, new(Gate))
			r, reset := c.request(b)
			reset()
			fresh := *newDecision(g, r, silentObserver{})
			var d decision
			b.ReportAllocs()
			for b.Loop() {
				d = fresh
				if err := d.decide(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkServe is a next handler that answers at once, with and without the
// gate in front of it. The difference is what the gate adds.
func BenchmarkServe(b *testing.B) {
	server := new(caddyhttp.Server) // without access logs
	body := []byte(strings.Repeat("x", 1024))
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		h := w.Header()
		h["Content-Type"] = []string{"video/iso.segment"}
		h["Content-Length"] = []string{"1024"}
		w.WriteHeader(http.StatusOK)
		_, err := w.Write(body)
		return err
	})
	for _, c := range warmCases {
		app := *c.app
		g := newGate(b, &app, new(Gate))
		r, reset := c.request(b)
		for _, with := range []struct {
			name  string
			serve func(http.ResponseWriter, *http.Request) error
		}{
			{"without the gate", func(w http.ResponseWriter, r *http.Request) error { return next.ServeHTTP(w, r) }},
			{"with the gate", func(w http.ResponseWriter, r *http.Request) error { return g.ServeHTTP(w, r, next) }},
		} {
			b.Run(c.name+"/"+with.name, func(b *testing.B) {
				w := &discard{header: make(http.Header)}
				b.ReportAllocs()
				for b.Loop() {
					clear(w.header)
					reset()
					// Caddy makes these for each request.
					prepared := caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, server)
					caddyhttp.SetVar(prepared.Context(), caddyhttp.ClientIPVarKey, "203.0.113.7")
					if err := with.serve(w, prepared); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCold is the first verification of a token in turn with the bare
// verification of its signature, so that a slow moment of the machine affects both.
// The ratio must be at most 1.25.
func BenchmarkCold(b *testing.B) {
	g := newGate(b, new(App), new(Gate))
	public := &must(x509.ParsePKCS1PrivateKey(privatePEM(b, testKey()).Bytes)).PublicKey
	r := requestFor(b, "/x", nil)
	tokens := make([]string, 200)
	for i := range tokens {
		tokens[i] = signed(func(c *token.Claims) {
			c.NotBefore, c.AccessRules = testTime.Add(-time.Duration(i)*time.Second), json.RawMessage(restrictedRules)
		})
	}
	var bare, cold time.Duration
	for i := 0; b.Loop(); i++ {
		if i%len(tokens) == 0 {
			g.app.verifier.Cache.Clear()
		}
		compact := tokens[i%len(tokens)]
		dot := strings.LastIndexByte(compact, '.')
		digest := sha256.Sum256([]byte(compact[:dot]))
		signature := must(base64.RawURLEncoding.DecodeString(compact[dot+1:]))
		start := time.Now()
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if _, err := g.app.verifier.Verify(r, compact); err != nil {
			b.Fatal(err)
		}
		bare += middle.Sub(start)
		cold += time.Since(middle)
	}
	b.ReportMetric(float64(bare.Nanoseconds())/float64(b.N), "bare-ns/op")
	b.ReportMetric(float64(cold.Nanoseconds())/float64(b.N), "cold-ns/op")
	b.ReportMetric(cold.Seconds()/bare.Seconds(), "ratio")
}

// discard is a response writer without a body.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
