package integration

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// Forged tokens get one of these answers, and no other.
var (
	signatureInvalid    = refusedFor("signature_invalid")
	verificationLimited = refusedFor("verification_limited")
)

// forgery is a flood of forged tokens. Viewers whose tokens are known go on
// watching, new viewers from other networks get in, and nothing is kept of what was
// sent.
type forgery struct {
	*gateway
	known    []string
	forge    func() string
	newcomer int // how many new viewers have come
}

func startForgery(t *testing.T) *forgery {
	t.Helper()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("a segment")) }))
	f := &forgery{forge: forger(t)}
	f.gateway = start(t, o, config{quick: true, global: trusting("127.0.0.1")})
	for i := range 4 {
		f.known = append(f.known, requestFrom(numbered(t, i), "203.0.113.1"))
		if got := f.raw(t, f.known[i]).verdict(); got != plays {
			t.Fatalf("got %v before the flood, want %v", got, plays)
		}
	}
	return f
}

// flood sends forged tokens from some addresses until enough have been answered,
// some of them with want.
func (f *forgery) flood(t *testing.T, requests int64, from func(i int64) string, want verdict) {
	t.Helper()
	const floodConns, newcomers = 24, 5
	const verified = `token_verifications_total{result="ok"}`
	remembered, before := f.metric(t, "token_cache_entries"), f.metric(t, verified)
	sending := repeat(t, f.gateway, floodConns, func(i int64) string { return requestFrom(f.forge(), from(i)) })
	watching := repeat(t, f.gateway, len(f.known), func(i int64) string { return f.known[i%int64(len(f.known))] })
	for range newcomers {
		// A network that has sent nothing forged has a queue of its own.
		path, network := numbered(t, len(f.known)+f.newcomer), fmt.Sprintf("192.0.%d.1", f.newcomer)
		f.newcomer++
		eventually(t, "a new viewer gets in", func() bool {
			got := f.raw(t, requestFrom(path, network)).verdict()
			if got != plays && got != verificationLimited {
				t.Fatalf("a new viewer got %v, want %v", got, plays)
			}
			return got == plays
		})
	}
	eventually(t, "a flood", func() bool { return sending.count.Load() >= requests && sending.answered(want) || t.Failed() })
	forged, watched := sending.stop(), watching.stop()
	t.Logf("the flood was answered with %v, viewers with %v", forged, watched)

	if watched[plays] == 0 || len(watched) != 1 {
		t.Errorf("viewers were answered with %v, want %v", watched, plays)
	}
	if forged[signatureInvalid]+forged[verificationLimited] != int(sending.count.Load()) {
		t.Errorf("the flood was answered with %v, want %v or %v", forged, signatureInvalid, verificationLimited)
	}
	if n := f.metric(t, "token_cache_entries") - remembered; n != newcomers {
		t.Errorf("%.0f more tokens are remembered, want those of %d new viewers", n, newcomers)
	}
	if n := f.metric(t, verified) - before; n != newcomers {
		t.Errorf("%.0f tokens were verified, want those of %d new viewers", n, newcomers)
	}
}

func oneAddress(int64) string { return "198.51.100.7" }

// The attack: somebody who has seen a token sends others like it, each with another
// signature, as fast as possible.
func TestFloodOfForgedTokens(t *testing.T) {
	t.Parallel()
	startForgery(t).flood(t, 600, oneAddress, verificationLimited)
}

// The same for longer, and from many addresses: the server's memory does not grow.
func TestLongFloodOfForgedTokens(t *testing.T) {
	f := startForgery(t)
	f.flood(t, 10_000, oneAddress, verificationLimited) // which the runtime takes memory for
	for name, from := range map[string]func(int64) string{
		"one address":    oneAddress,
		"many addresses": func(i int64) string { return fmt.Sprintf("198.18.%d.%d", i%200, i%250) },
	} {
		t.Run(name, func(t *testing.T) {
			const maxGrowth = 24 << 20
			memory := f.memory(t)["VmRSS"]
			f.flood(t, 10_000, from, signatureInvalid)
			grown := f.memory(t)["VmRSS"] - memory
			t.Logf("resident memory has grown by %d KiB", grown>>10)
			if grown > maxGrowth {
				t.Errorf("resident memory has grown by %d MiB, want at most %d", grown>>20, maxGrowth>>20)
			}
		})
	}
}

// requestFrom is a request that a proxy makes for a viewer.
func requestFrom(path, viewer string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: media.example.com\r\nX-Forwarded-For: " + viewer + "\r\n\r\n"
}

// numbered is a path with a good token, another one for each number.
func numbered(t testing.TB, i int) string {
	t.Helper()
	return "/" + mint(t, "vidA", func(c *token.Claims) { c.NotBefore = time.Now().Add(-time.Duration(i+1) * time.Minute) }) + "/seg.ts"
}

// forger makes paths with tokens whose header and key id are real and whose
// signature is random. The tokens are about as long as they may be, so that keeping
// them would show.
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

// repeated is requests that are made over and over, on some connections.
type repeated struct {
	count atomic.Int64 // of answers
	done  atomic.Bool
	conns sync.WaitGroup

	mu      sync.Mutex
	answers map[verdict]int
}

// repeat sends the requests of next until stop, each connection as soon as it has
// the answer to the one before. A 429 must say when to come again.
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

// answered reports whether there was such an answer.
func (r *repeated) answered(v verdict) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answers[v] > 0
}

// stop returns how often there was which answer.
func (r *repeated) stop() map[verdict]int {
	r.done.Store(true)
	r.conns.Wait()
	return r.answers
}

// The attack: strangers ask for random videos without a token, each of which the node
// must look up in a store that is 200 ms away. Operators go on writing, a revocation is
// in force, viewers with a token play videos that nobody has asked for before, and the
// node does not take its store for unavailable.
func TestFloodOfUnknownVideos(t *testing.T) {
	t.Parallel()
	// More strangers ask at a time than a store so far away answers, and no more than that: the machine needs its time
	// for viewers, or only its load would decide.
	const conns, pause, rounds = 800, 400 * time.Millisecond, 4
	for name, from := range map[string]func(i int64) string{
		"one address":    oneAddress,
		"many addresses": func(i int64) string { return fmt.Sprintf("198.%d.%d.7", 18+i/250%2, i%250) },
	} {
		t.Run(name, func(t *testing.T) {
			redis := startRedis(t)
			g := start(t, startOrigin(t, nil), config{
				quick: true, log: quiet, api: withAPI, global: trusting("127.0.0.1"),
				app: "store redis redis://" + distant(t, redis.addr, 100*time.Millisecond) + "/0",
			})
			eventually(t, "the node knows its store, which may take it longer to reach than it waits", func() bool {
				return g.raw(t, requestFrom(segment("nobody"), "203.0.113.1")).verdict() == tokenNeeded
			})
			before := len(g.log.String())
			flood := repeat(t, g, conns, func(i int64) string {
				<-time.After(pause)
				return requestFrom(segment(fmt.Sprint("stranger-", i)), from(i))
			})
			eventually(t, "a flood", func() bool { return flood.answered(verificationLimited) && flood.count.Load() > 2*conns })
			for i := range rounds {
				video := fmt.Sprint("video-", i)
				key := g.createKey(t)
				g.edit(t, video, `{"requireSignedURLs":true}`)
				path := segment(signWith(t, key, video))
				if got := g.raw(t, requestFrom(path, "203.0.113.1")).verdict(); got != plays {
					t.Errorf("a viewer with a token: %v", got)
				}
				if got := g.raw(t, requestFrom(segment(signWith(t, key, "unseen-"+video)), "203.0.113.1")).verdict(); got != plays {
					t.Errorf("a viewer of a video that nobody has asked for: %v", got)
				}
				g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
				if got := g.raw(t, requestFrom(path, "203.0.113.1")).verdict(); got != keyUnknown {
					t.Errorf("a revoked key: %v", got)
				}
			}
			answers := flood.stop()
			t.Logf("the flood was answered with %v", answers)
			if len(answers) != 2 || answers[tokenNeeded] == 0 {
				t.Errorf("the flood was answered with %v, want %v or %v", answers, tokenNeeded, verificationLimited)
			}
			if log := g.log.String()[before:]; strings.Contains(log, storeAway) {
				t.Errorf("the node took its store for unavailable:\n%.2000s", log)
			}
		})
	}
}

// distant is the address of a server seen from so far away that each message takes some
// time.
func distant(t testing.TB, addr string, away time.Duration) string {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				_ = near.Close()
				continue
			}
			go carry(near, far, away)
			go carry(far, near, away)
		}
	}()
	return listener.Addr().String()
}

// carry takes what it reads to another connection, each piece after some time, however
// much is under way.
func carry(from, to net.Conn, takes time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1<<14)
	go func() {
		defer to.Close()
		for p := range pieces {
			<-time.After(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				_ = from.Close()
			}
		}
	}()
	defer close(pieces)
	for {
		data := make([]byte, 4<<10)
		n, err := from.Read(data)
		if err != nil {
			return
		}
		pieces <- piece{time.Now().Add(takes), data[:n]}
	}
}
