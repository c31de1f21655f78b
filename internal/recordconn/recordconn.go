// Package recordconn makes answers of a server cheaper: it gathers the records of TLS, and the
// header of an answer without TLS, into few writes to the connection.
package recordconn

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// NewListener returns a listener whose connections gather small writes. The logger is told of
// connections that cannot.
func NewListener(l net.Listener, logger *zap.Logger) net.Listener {
	return &listener{Listener: l, logger: logger}
}

type listener struct {
	net.Listener
	logger *zap.Logger
	warned sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &conn{TCPConn: tcp}, nil
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

// conn is a connection of HTTP, mostly below TLS, which gathers small writes while a
// complete body is sent. At other times nobody would send what is gathered.
type conn struct {
	*net.TCPConn

	mu      sync.Mutex // TLS may answer a key update meanwhile
	buffer  *[recordRoom]byte
	pending int // bytes in the buffer
}

// gather begins to gather. The caller calls send at the end, in any case.
func (c *conn) gather() {
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
func (c *conn) Write(p []byte) (int, error) {
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
func (c *conn) writeWithPending(p []byte) (int, error) {
	defer c.giveBack()
	pending := int64(c.pending)
	c.pending = 0
	n, err := (&net.Buffers{c.buffer[:pending], p}).WriteTo(c.TCPConn)
	return int(max(0, n-pending)), err
}

// ReadFrom implements io.ReaderFrom. The server may use it for a body without TLS.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if err := c.send(); err != nil {
		return 0, err
	}
	return c.TCPConn.ReadFrom(r)
}

// send ends gathering, and writes what is left.
func (c *conn) send() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.giveBack()
	return c.sendPending()
}

func (c *conn) sendPending() error {
	if c.pending == 0 {
		return nil
	}
	_, err := c.TCPConn.Write(c.buffer[:c.pending])
	c.pending = 0
	return err
}

func (c *conn) giveBack() {
	if c.buffer != nil {
		recordBuffers.Put(c.buffer)
		c.buffer = nil
		nowGathering.Add(-1)
	}
}

// connKey is the context key of the conn of a request.
type connKey struct{}

// WithConn adds the conn of a connection to the context of its requests.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	if overTLS, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = overTLS.NetConn()
	}
	if proxied, ok := c.(interface{ Raw() net.Conn }); ok { // of proxy_protocol
		c = proxied.Raw()
	}
	if conn, ok := c.(*conn); ok && ctx.Value(connKey{}) == nil {
		return context.WithValue(ctx, connKey{}, conn)
	}
	return ctx
}

// Gather begins to gather the records of a response, until the function that it
// returns is called. Connections of HTTP/2 have several responses at a time, so they gather
// none.
func Gather(r *http.Request) (send func() error) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok || r.ProtoMajor > 1 {
		return nil
	}
	c.gather()
	return c.send
}
