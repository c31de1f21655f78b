package integration

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// What forged tokens are answered with, and nothing else.
var (
	signatureInvalid    = verdict{http.StatusUnauthorized, "signature_invalid"}
	verificationLimited = verdict{http.StatusTooManyRequests, "verification_limited"}
)

// The attack: somebody who has seen a token sends others like it, each with a
// signature of his own making, as fast as he can, from one address or from many.
// Viewers whose tokens are known go on watching, new ones from other networks get
// in, and nothing is kept of what was sent.
func TestFloodOfForgedTokens(t *testing.T) {
	const (
		floodConns, viewers, newcomers = 24, 4, 5
		floodRequests                  = 1200
	)
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("a segment")) }))
	metrics := freeAddr(t)
	g := start(t, o, config{global: trusting("127.0.0.1"), sites: "http://" + metrics + " {\n\tmetrics\n}"})
	known := make([]string, viewers)
	for i := range known {
		known[i] = requestFrom(numbered(t, i), "203.0.113.1")
		if got := g.raw(t, known[i]).verdict(); got != plays {
			t.Fatalf("got %v before the flood, want %v", got, plays)
		}
	}
	forge := forger(t)
	came := 0
	for _, flood := range []struct {
		name string
		from func(i int64) string
		want verdict // of some at least
		grow int     // by how many bytes the server may, at most
	}{
		{"from one address", func(int64) string { return "198.51.100.7" }, verificationLimited, 256 << 20},
		{"from many addresses", func(i int64) string { return fmt.Sprintf("198.18.%d.%d", i%200, i%250) }, signatureInvalid, 24 << 20},
		{"from one address for longer", func(int64) string { return "198.51.100.7" }, verificationLimited, 24 << 20},
	} {
		t.Run(flood.name, func(t *testing.T) {
			memory := g.memory(t)["VmRSS"]
			remembered := metricOf(t, metrics, "caddy_signed_playback_token_cache_entries")
			verified := metricOf(t, metrics, `caddy_signed_playback_token_verifications_total{result="ok"}`)
			sending := repeat(t, g, floodConns, func(i int64) string { return requestFrom(forge(), flood.from(i)) })
			watching := repeat(t, g, viewers, func(i int64) string { return known[i%viewers] })
			for range newcomers {
				g.wantEntry(t, numbered(t, viewers+came), fmt.Sprintf("192.0.%d.1", came))
				came++
			}
			eventually(t, "a flood", func() bool { return sending.count.Load() >= floodRequests || t.Failed() })
			forged, watched := sending.stop(), watching.stop()
			t.Logf("the flood was answered with %v, viewers with %v", forged, watched)

			if watched[plays] == 0 || len(watched) != 1 {
				t.Errorf("viewers were answered with %v, want %v", watched, plays)
			}
			if forged[flood.want] == 0 || forged[signatureInvalid]+forged[verificationLimited] != int(sending.count.Load()) {
				t.Errorf("the flood was answered with %v, want %v or %v, and some %v", forged, signatureInvalid, verificationLimited, flood.want)
			}
			if n := metricOf(t, metrics, "caddy_signed_playback_token_cache_entries") - remembered; n != newcomers {
				t.Errorf("%d more tokens are remembered, want %d", n, newcomers)
			}
			if n := metricOf(t, metrics, `caddy_signed_playback_token_verifications_total{result="ok"}`) - verified; n != newcomers {
				t.Errorf("%d tokens were verified, want those of %d new viewers alone", n, newcomers)
			}
			grown := g.memory(t)["VmRSS"] - memory
			t.Logf("resident memory has grown by %d KiB", grown>>10)
			if grown > flood.grow {
				t.Errorf("resident memory has grown by %d MiB, want at most %d", grown>>20, flood.grow>>20)
			}
		})
	}
}

// wantEntry holds that a new viewer gets in, and is hardly ever told to come
// again: whoever has sent nothing forged has a queue of his own.
func (g *gateway) wantEntry(t *testing.T, path, from string) {
	t.Helper()
	began := time.Now()
	again := 0
	eventually(t, "a new viewer gets in", func() bool {
		got := g.raw(t, requestFrom(path, from)).verdict()
		if got == plays {
			return true
		}
		if again++; got != verificationLimited || again > 2 {
			t.Fatalf("a new viewer got %v at attempt %d, want %v", got, again, plays)
		}
		return false
	})
	t.Logf("a new viewer got in after %s, told to come again %d times", time.Since(began).Round(time.Millisecond), again)
}

// requestFrom is a request that a proxy makes for a viewer.
func requestFrom(path, viewer string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: media.example.com\r\nX-Forwarded-For: " + viewer + "\r\n\r\n"
}

// numbered is a path with a good token that differs from those of other numbers.
func numbered(t testing.TB, i int) string {
	t.Helper()
	return "/" + mint(t, "vidA", func(c *token.Claims) { c.NotBefore = time.Now().Add(-time.Duration(i+1) * time.Minute) }) + "/seg.ts"
}

// forger makes paths with tokens whose header and key id are real and whose
// signature is random. They are about as long as tokens may be, so that nobody
// can keep them unnoticed.
func forger(t testing.TB) func() string {
	t.Helper()
	const padding = 5000
	payload := strings.Replace(goodPayload("vidA"), "{", `{"session":"`+strings.Repeat("s", padding)+`",`, 1)
	prefix := "/" + b64(goodHeader()) + "." + b64(payload) + "."
	return func() string {
		var signature [256]byte
		_, _ = rand.Read(signature[:])
		// Less than the modulus, or it would be refused without being checked.
		signature[0] &= 0x7f
		return prefix + base64.RawURLEncoding.EncodeToString(signature[:]) + "/seg.ts"
	}
}

// repeated are requests that are made over and over, on some connections.
type repeated struct {
	count atomic.Int64 // of answers
	done  atomic.Bool
	conns sync.WaitGroup

	mu      sync.Mutex
	answers map[verdict]int
}

// repeat begins to send the requests of next until stop, each connection as soon
// as it has the answer to the one before. All who are told to come again must
// learn when.
func repeat(t testing.TB, g *gateway, conns int, next func(i int64) string) *repeated {
	r := &repeated{answers: make(map[verdict]int)}
	t.Cleanup(func() { r.stop() })
	var sent atomic.Int64
	for range conns {
		r.conns.Go(func() {
			conn := &keepAlive{addr: g.addr}
			defer conn.close()
			for !r.done.Load() {
				res := conn.exchange(t, next(sent.Add(1)-1))
				if after := res.Header.Get("Retry-After"); (after != "") != (res.StatusCode == http.StatusTooManyRequests) {
					t.Errorf("%v with Retry-After %q", res.verdict(), after)
					return
				}
				r.mu.Lock()
				r.answers[res.verdict()]++
				r.mu.Unlock()
				r.count.Add(1)
			}
		})
	}
	return r
}

// stop returns how often there was which answer.
func (r *repeated) stop() map[verdict]int {
	r.done.Store(true)
	r.conns.Wait()
	return r.answers
}

// metricOf reads a metric, named with its labels, off a site that serves them.
func metricOf(t testing.TB, addr, name string) int {
	t.Helper()
	res, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(readResponse(t, res).body)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(value)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
