package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// shortTimeouts are the server's for clients that do not talk.
const shortTimeouts = "servers {\ntimeouts {\nread_header 2s\nread_body 2s\nidle 2s\n}\n}"

// dialSlow connects with the smallest receive window that there is.
func dialSlow(t testing.TB, addr string) net.Conn {
	t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) }), err)
	}}
	return must(dialer.DialContext(t.Context(), "tcp", addr))(t)
}

// The attack (slowloris): connections on which a request never ends. The server
// closes them in its own time, however busy they look, and nobody else waits.
func TestSlowHeadersEnd(t *testing.T) {
	t.Parallel() // most of it is waiting
	const each = 40
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(goodSegment) }))
	g := start(t, o, config{global: shortTimeouts})
	before := g.holds(t)
	others := seat(t, []*gateway{g}, otherViewers(t))
	target := "/" + mint(t, "vidA", nil) + "/seg.m4s"
	request := "GET " + target + " HTTP/1.1\r\nHost: media.example.com\r\n"
	ways := map[string]struct{ start, drip string }{
		"silence":                {},
		"a header":               {request + "X-Slow: ", "a"},
		"a header line a second": {request, "X-Slow: a\r\n"},
		"a body":                 {request + "Content-Length: 1000000\r\n\r\n", "a"},
		"chunks":                 {request + "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n"},
		"nothing more":           {request + "\r\n", ""},
	}
	ended := make(map[string]<-chan error)
	for name, way := range ways {
		results := make(chan error, each)
		ended[name] = results
		for range each {
			go func() { results <- drip(g.addr, way.start, way.drip) }()
		}
	}
	for name, results := range ended {
		for range each {
			if err := <-results; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	others.leave(t)
	g.wantReleased(t, before, func() bool {
		client.CloseIdleConnections()
		o.server.CloseClientConnections()
		return true
	})
}

// otherViewers are the paths of viewers who must not notice an attack.
func otherViewers(t testing.TB) map[string]string {
	t.Helper()
	paths := make(map[string]string)
	for _, video := range []string{"good-1", "good-2"} {
		paths["a viewer of "+video] = segment(mint(t, video, nil))
	}
	return paths
}

// drip sends some bytes at first and some each half second, until the server closes
// the connection. It fails if the server does not, or only after Caddy's default of a
// minute.
func drip(addr, first, more string) error {
	const within = 50 * time.Second
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	closed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		closed <- err
	}()
	_, _ = io.WriteString(conn, first)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_, _ = io.WriteString(conn, more)
		case err := <-closed:
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("%q and %q are not at an end after %s", first, more, within)
			}
			return nil // a reset is an end, too
		}
	}
}

// patientOrigin serves files to clients that take long.
type patientOrigin struct {
	*origin
	serving atomic.Int64 // requests for large files
	sent    atomic.Int64 // bytes of them
	hanging atomic.Int64 // requests so far for what hangs
}

// beginning is how much the origin sends of a large file: more than fits into the
// gate's buffers. The kernel has room for a thousand of them.
const beginning = 512 << 10

func startPatientOrigin(t testing.TB) *patientOrigin {
	t.Helper()
	o := new(patientOrigin)
	chunk := make([]byte, 32<<10)
	o.origin = startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/large/"):
			o.serving.Add(1)
			defer o.serving.Add(-1)
			w.Header().Set("Content-Length", strconv.Itoa(1<<30))
			for range beginning / len(chunk) {
				n, _ := w.Write(chunk)
				o.sent.Add(int64(n))
			}
			<-r.Context().Done()
		case strings.HasPrefix(r.URL.Path, "/hanging/"):
			o.hanging.Add(1)
			o.serving.Add(1)
			defer o.serving.Add(-1)
			<-r.Context().Done()
		default:
			_, _ = w.Write(goodSegment)
		}
	}))
	return o
}

// awaitStall waits until so many clients are being served and nothing moves.
func (o *patientOrigin) awaitStall(t testing.TB, clients int) {
	t.Helper()
	var last int64
	unmoved := 0
	eventually(t, "all clients have stalled", func() bool {
		now := o.sent.Load()
		if unmoved++; now != last {
			last, unmoved = now, 0
		}
		return unmoved > 25 && o.serving.Load() == int64(clients)
	})
}

// slowGateway is a gateway for many slow clients, over TLS and without. It is the
// binary that users run.
type slowGateway struct {
	*tlsGateway
	origin *patientOrigin
	plain  string // host:port of the site without TLS
}

func startForSlowClients(t *testing.T) *slowGateway {
	t.Helper()
	o := startPatientOrigin(t)
	s := &slowGateway{origin: o, plain: freeAddr(t)}
	s.tlsGateway = startTLS(t, o.origin, config{
		quick: true, log: quiet,
		sites: site(s.plain, "signed_playback\nreverse_proxy "+o.addr()),
	})
	return s
}

// watch has other viewers watch for a while.
func (s *slowGateway) watch(t testing.TB, while time.Duration) {
	t.Helper()
	others := seat(t, []*gateway{{addr: s.plain}}, otherViewers(t))
	<-time.After(while)
	others.leave(t)
}

// settle closes idle connections and reports whether no others are left.
func (s *slowGateway) settle() bool {
	client.CloseIdleConnections()
	if s.origin.serving.Load() > 0 {
		return false
	}
	s.origin.server.CloseClientConnections()
	return true
}

// baseline is how much the server holds on to, and how much memory it takes, when
// it has served clients and none is left.
func (s *slowGateway) baseline(t testing.TB) (held holding, memory int) {
	t.Helper()
	s.watch(t, time.Second)
	eventually(t, "the server is idle", func() bool {
		last := held
		s.settle()
		held = s.holds(t)
		return held == last
	})
	return held, s.resident(t)
}

// resident returns the server's resident memory after a garbage collection.
func (s *slowGateway) resident(t testing.TB) int {
	t.Helper()
	s.askAdmin(t, "/debug/pprof/heap?gc=1")
	return s.memory(t)["VmRSS"]
}

// A client that has stalled costs the server a few buffers, however large the response,
// and other clients nothing. When the clients leave, the server releases all.
func TestLongStalledClients(t *testing.T) {
	for _, crowd := range []struct {
		name   string
		size   int
		costs  int // KiB each, at the most
		gather func(s *slowGateway, t *testing.T, size int) (leave func())
	}{
		{"readers of a byte a second", 500, 200, (*slowGateway).readSlowly},
		{"streams with a window of a byte", 1000, 200, (*slowGateway).openStreams},
	} {
		t.Run(crowd.name, func(t *testing.T) {
			s := startForSlowClients(t) // the garbage of another crowd would hide the cost
			held, memory := s.baseline(t)
			leave := sync.OnceFunc(crowd.gather(s, t, crowd.size))
			defer leave()
			cost := (s.resident(t) - memory) / crowd.size
			t.Logf("each of %d costs %d KiB", crowd.size, cost>>10)
			if cost > crowd.costs<<10 {
				t.Errorf("each of %d costs %d KiB, want %d at most", crowd.size, cost>>10, crowd.costs)
			}
			s.watch(t, 2*time.Second)
			leave()
			s.wantReleased(t, held, s.settle)
		})
	}
}

// readSlowly asks for a large file and reads a byte a second, with many clients.
func (s *slowGateway) readSlowly(t *testing.T, clients int) (leave func()) {
	target := "/" + mint(t, "large", nil) + "/video.mp4"
	var conns []net.Conn
	var all sync.WaitGroup
	left := make(chan struct{})
	for range clients {
		conn := dialSlow(t, s.plain)
		conns = append(conns, conn)
		must(io.WriteString(conn, rawGet(target)))(t)
		all.Go(func() {
			second := time.NewTicker(time.Second)
			defer second.Stop()
			for one := make([]byte, 1); ; {
				if _, err := conn.Read(one); err != nil {
					return
				}
				select {
				case <-second.C:
				case <-left:
					return
				}
			}
		})
	}
	s.origin.awaitStall(t, clients)
	return func() {
		close(left)
		closeAll(conns)
		all.Wait()
	}
}

func closeAll(conns []net.Conn) {
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// openStreams asks for a large file with many clients, 250 on a connection, which
// is as many as the server allows. Each takes one byte of it.
func (s *slowGateway) openStreams(t *testing.T, clients int) (leave func()) {
	target := "/" + mint(t, "large", nil) + "/video.mp4"
	const most = 250
	var conns []net.Conn
	for opened := 0; opened < clients; opened += most {
		c := s.dialHTTP2(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		conns = append(conns, c.conn)
		for n := range most {
			noError(t, c.ask(n, target))
		}
		noError(t, c.out.Flush())
		for begun := 0; begun < most; {
			frame := must(c.ReadFrame())(t)
			if data, ok := frame.(*http2.DataFrame); ok {
				begun++
				if n := len(data.Data()); n != 1 {
					t.Fatalf("the server sends %d bytes into a window of one", n)
				}
			}
		}
	}
	s.origin.awaitStall(t, clients)
	return func() { closeAll(conns) }
}

// The attacks: frames of a few bytes, each of which costs the server more. The
// client cancels its requests (CVE-2023-44487), never ends a header
// (CVE-2023-45288) or makes the server answer (CVE-2019-9512, CVE-2019-9515). They
// must cost the server a bounded number of requests and buffers.
func TestLongHTTP2Floods(t *testing.T) {
	const (
		clients   = 4
		maxGrowth = 128 << 20
		maxAsked  = clients * floodFrames / 100
	)
	s := startForSlowClients(t)
	hanging := "/" + mint(t, "hanging", nil) + "/seg.m4s"
	for _, flood := range []struct {
		name    string
		frames  func(c *http2Conn, n int) error
		stops   bool // the server must put an end to it
		cancels bool // each request, so that the origin is hardly asked
	}{
		{name: "rapid reset", frames: func(c *http2Conn, n int) error {
			return errors.Join(c.ask(n, hanging), c.WriteRSTStream(uint32(2*n+1), http2.ErrCodeCancel))
		}, cancels: true},
		{name: "requests beyond the limit", frames: func(c *http2Conn, n int) error { return c.ask(n, hanging) }},
		{name: "CONTINUATION with fields", frames: func(c *http2Conn, n int) error {
			return c.continueHeader(n, hanging, bytes.Repeat([]byte("\x00\x01x\x01y"), 3000))
		}, stops: true},
		{name: "CONTINUATION with nothing", frames: func(c *http2Conn, n int) error { return c.continueHeader(n, hanging, nil) }},
		{name: "PING", frames: func(c *http2Conn, _ int) error { return c.WritePing(false, [8]byte{}) }},
		{name: "SETTINGS", frames: func(c *http2Conn, _ int) error { return c.WriteSettings() }},
	} {
		t.Run(flood.name, func(t *testing.T) {
			held, memory := s.baseline(t)
			var all sync.WaitGroup
			var conns []net.Conn
			for range clients {
				c := s.dialHTTP2(t)
				conns = append(conns, c.conn)
				all.Go(func() {
					if stopped := c.flood(flood.frames); flood.stops && !stopped {
						t.Errorf("the server has read all of %d frames", floodFrames)
					}
				})
			}
			s.watch(t, time.Second)
			all.Wait()
			growth, asked := s.resident(t)-memory, int(s.origin.hanging.Swap(0))
			t.Logf("the server has grown by %d KiB, the origin was asked %d times", growth>>10, asked)
			if growth > maxGrowth {
				t.Errorf("the server has grown by %d MiB", growth>>20)
			}
			if flood.cancels && asked > maxAsked {
				t.Errorf("the origin was asked %d times, want %d at the most", asked, maxAsked)
			}
			closeAll(conns)
			s.wantReleased(t, held, s.settle)
		})
	}
}

// floodFrames is how many frames, or pairs of them, a client of a flood sends unless
// the server stops it.
const floodFrames = 10_000

// flood writes frames and reports whether the server has stopped it. It reads what the
// server answers, and ignores it.
func (c *http2Conn) flood(write func(c *http2Conn, n int) error) (stopped bool) {
	go func() { _, _ = io.Copy(io.Discard, c.conn) }()
	for n := range floodFrames {
		if write(c, n) != nil {
			return true
		}
	}
	return c.out.Flush() != nil
}

// continueHeader starts a header with the first frame, and never ends it.
func (c *http2Conn) continueHeader(n int, target string, fragment []byte) error {
	if n == 0 {
		return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(getFields(target)...), EndStream: true})
	}
	return c.WriteContinuation(1, false, fragment)
}

// productionTimeouts are global options: the production example's timeouts for
// clients.
func productionTimeouts(t testing.TB) string {
	t.Helper()
	return "servers {\ntimeouts {\n" + productionBlock(t, "timeouts") + "\n}\n}"
}

// productionProxy is a reverse_proxy with the production example's limits for an
// origin.
func productionProxy(t testing.TB, o *origin) string {
	t.Helper()
	return "reverse_proxy " + o.addr() + " {\ntransport http {\n" + productionBlock(t, "transport http") + "\n}\n}"
}

// A viewer who pauses for 90 seconds gets the rest of a film in one file, under the
// timeouts of the production example. By default, Caddy gives up a response that has
// stalled for a minute. SIGNED_PLAYBACK_PAUSE sets another pause.
func TestLongPausedPlayers(t *testing.T) {
	t.Parallel()                  // all of it is waiting
	movie := make([]byte, 32<<20) // more than all buffers on the way
	noise := rand.NewChaCha8([32]byte{})
	_, _ = noise.Read(movie)
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "movie.mp4", time.Time{}, bytes.NewReader(movie))
	}))
	plain := &gateway{addr: freeAddr(t)} // for a client with a small window
	g := startTLS(t, o, config{
		global: productionTimeouts(t), site: productionProxy(t, o),
		sites: site(plain.addr, "signed_playback\n"+productionProxy(t, o)),
	})
	space := "/" + mint(t, "demo", nil) + "/"
	length := durationFrom(t, "SIGNED_PLAYBACK_PAUSE", 90*time.Second)

	downloads := make(map[string]<-chan error)
	download := func(name string, c *http.Client, base string) {
		c.Timeout = length + 2*startTimeout
		done := make(chan error, 1)
		downloads[name] = done
		began := time.Now()
		go func() {
			err := downloadWithPause(c, base+space+"movie.mp4", movie, length)
			t.Logf("%s: %d MiB with a pause of %s took %s", name, len(movie)>>20, length, time.Since(began).Round(time.Second))
			done <- err
		}()
	}
	conn := dialSlow(t, plain.addr)
	defer conn.Close()
	download("a small window", &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}, plain.url(""))
	for _, protocol := range protocols {
		c, _ := protocol.connect(t, g)
		download(protocol.name, c, g.url(""))
	}

	for name, done := range downloads {
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// downloadWithPause reads a file, with a pause after its first part.
func downloadWithPause(c *http.Client, address string, want []byte, length time.Duration) error {
	res, err := c.Get(address)
	if err != nil {
		return errors.Unwrap(err) // less the address, which has the token
	}
	defer res.Body.Close()
	sum := sha256.New()
	first, err := io.CopyN(sum, res.Body, 256<<10)
	if err != nil {
		return err
	}
	<-time.After(length)
	rest, err := io.Copy(sum, res.Body)
	if err != nil || first+rest != int64(len(want)) || [32]byte(sum.Sum(nil)) != sha256.Sum256(want) {
		return fmt.Errorf("after the pause, %d of %d bytes have come: %w", first+rest, len(want), err)
	}
	return nil
}
