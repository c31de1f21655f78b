package signedplayback

import (
	"net"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/recordconn"
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
	return recordconn.NewListener(listener, l.logger)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*ListenerWrapper)(nil)
	_ caddy.ListenerWrapper = (*ListenerWrapper)(nil)
	_ caddyfile.Unmarshaler = (*ListenerWrapper)(nil)
)
