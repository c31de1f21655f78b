package signedplayback

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// largeWrite is how much goes to a connection at once. Each write costs a system call and
// wakes the client up: in pieces of 64 KiB, Caddy's default, a megabyte costs half as much
// again. Still larger writes save nothing.
const largeWrite = 256 << 10

// useLargeWrites has Caddy pass larger writes on, unless write_max_chunk says otherwise. The timeout write_idle is for each write, so a shorter one than its default of a
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
