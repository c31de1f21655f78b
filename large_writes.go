package signedplayback

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(new(ListenerWrapper))
}

// largeWrite is how much goes to a connection at once. Each write costs a system call and
// wakes the client up: in pieces of 64 KiB, Caddy's default, a megabyte costs half as much
// again. Still larger writes save nothing.
const largeWrite = 256 << 10

// useLargeWrites has Caddy pass larger writes on, unless write_max_chunk says otherwise. The
// timeout write_idle is for each write, so a shorter one than its default of a
// minute has smaller writes, and the slowest client that it tolerates stays about the same:
// 4 KiB a second.
func useLargeWrites(r *http.Request) {
	_, idle := caddyhttp.IdleTimeoutsFromContext(r.Context())
	if idle == nil || idle.MaxChunk != caddyhttp.DefaultMaxWriteChunk {
		return
	}
	size := largeWrite * min(idle.Deadline.Timeout, time.Minute) / time.Minute
	idle.MaxChunk = max(int(size), caddyhttp.DefaultMaxWriteChunk)
}

// ListenerWrapper makes answers of `signed_playback_cache` over HTTP/1.1 cheaper. TLS writes
// each record of 16 KiB to its connection by itself. The wrapper gathers the records of an
// answer and writes them in pieces of 64 KiB. Without TLS, it writes the header of an answer
// together with the body. It comes before `tls`, and changes nothing else.
type ListenerWrapper struct{ logger *zap.Logger }

// CaddyModule returns the Caddy module information.
func (*ListenerWrapper) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.listeners.signed_playback",
		New: func() caddy.Module { return new(ListenerWrapper) },
	}
}

// UnmarshalCaddyfile parses the wrapper, which has no options:
//
//	signed_playback
func (*ListenerWrapper) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.Errf("%q: the listener wrapper signed_playback has no options", d.Val())
	}
	return nil
}

// Provision prepares the log.
func (l *ListenerWrapper) Provision(ctx caddy.Context) error {
	l.logger = ctx.Logger()
	return nil
}

// WrapListener implements caddy.ListenerWrapper.
func (l *ListenerWrapper) WrapListener(listener net.Listener) net.Listener {
	return &recordListener{Listener: listener, logger: l.logger}
}

type recordListener struct {
	net.Listener
	logger *zap.Logger
	warned sync.Once
}

// Accept implements net.Listener.
func (l *recordListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &recordConn{TCPConn: tcp}, nil
	}
	l.warned.Do(func() {
		l.logger.Warn("the listener wrapper signed_playback has no effect here; make it the first of listener_wrappers, before tls",
			zap.String("connection", fmt.Sprintf("%T", c)))
	})
	return c, nil
}

const (
	// recordsAtOnce is how many bytes of records go to the connection at once. A megabyte
	// costs a quarter less than record by record; with 32 KiB or 128 KiB, it costs more.
	recordsAtOnce = 64 << 10
	maxRecord     = 17 << 10                  // a longer write is none of TLS
	recordRoom    = recordsAtOnce + maxRecord // the last record may go beyond

	// maxGathering is how many connections gather at a time. Each has a buffer.
	maxGathering = 256

	// slowClient is how long a write takes at least to a client that is slower than the
	// server. The buffer is of more use to another one.
	slowClient = 100 * time.Millisecond
)

var (
	recordBuffers = sync.Pool{New: func() any { return new([recordRoom]byte) }}
	nowGathering  atomic.Int32
)

// recordConn is a connection of HTTP, mostly below TLS, which gathers small writes while a
// complete body is sent. At other times nobody would send what is gathered.
type recordConn struct {
	*net.TCPConn

	mu      sync.Mutex // TLS may answer a key update meanwhile
	buffer  *[recordRoom]byte
	pending int // bytes in the buffer
}

// gather begins to gather. The caller calls send at the end, in any case.
func (c *recordConn) gather() {
	if nowGathering.Add(1) > maxGathering {
		nowGathering.Add(-1)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buffer = recordBuffers.Get().(*[recordRoom]byte)
}

// Write implements net.Conn. It also returns the error of an earlier write that failed
// after that write had returned.
func (c *recordConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buffer == nil {
		return c.TCPConn.Write(p)
	}
	if len(p) > maxRecord {
		return c.writeWithPending(p)
	}
	c.pending += copy(c.buffer[c.pending:], p)
	if c.pending < recordsAtOnce {
		return len(p), nil
	}
	start := time.Now()
	err := c.sendPending()
	if time.Since(start) >= slowClient {
		c.giveBack()
	}
	return len(p), err
}

// writeWithPending writes the header of an answer without TLS, which is pending, and the
// beginning of its body with one system call. Each costs a client that waits a wake-up. The
// rest of the body is large enough as it is.
func (c *recordConn) writeWithPending(p []byte) (int, error) {
	defer c.giveBack()
	pending := int64(c.pending)
	c.pending = 0
	n, err := (&net.Buffers{c.buffer[:pending], p}).WriteTo(c.TCPConn)
	return int(max(0, n-pending)), err
}

// ReadFrom implements io.ReaderFrom. The server may use it for a body without TLS.
func (c *recordConn) ReadFrom(r io.Reader) (int64, error) {
	if err := c.send(); err != nil {
		return 0, err
	}
	return c.TCPConn.ReadFrom(r)
}

// send ends gathering, and writes what is left.
func (c *recordConn) send() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.giveBack()
	return c.sendPending()
}

func (c *recordConn) sendPending() error {
	if c.pending == 0 {
		return nil
	}
	_, err := c.TCPConn.Write(c.buffer[:c.pending])
	c.pending = 0
	return err
}

func (c *recordConn) giveBack() {
	if c.buffer != nil {
		recordBuffers.Put(c.buffer)
		c.buffer = nil
		nowGathering.Add(-1)
	}
}

// recordConnKey is the context key of the recordConn of a request.
type recordConnKey struct{}

// withRecordConn adds the recordConn of a connection to the context of its requests.
func withRecordConn(ctx context.Context, c net.Conn) context.Context {
	if overTLS, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = overTLS.NetConn()
	}
	if proxied, ok := c.(interface{ Raw() net.Conn }); ok { // of proxy_protocol
		c = proxied.Raw()
	}
	if conn, ok := c.(*recordConn); ok && ctx.Value(recordConnKey{}) == nil {
		return context.WithValue(ctx, recordConnKey{}, conn)
	}
	return ctx
}

// gatherRecords begins to gather the records of a response, until the function that it
// returns is called. Connections of HTTP/2 have several responses at a time, so they gather
// none.
func gatherRecords(r *http.Request) (send func() error) {
	c, ok := r.Context().Value(recordConnKey{}).(*recordConn)
	if !ok || r.ProtoMajor > 1 {
		return nil
	}
	c.gather()
	return c.send
}

// Interface guards
var (
	_ caddy.Provisioner     = (*ListenerWrapper)(nil)
	_ caddy.ListenerWrapper = (*ListenerWrapper)(nil)
	_ caddyfile.Unmarshaler = (*ListenerWrapper)(nil)
)
