package signedplayback

import (
	"cmp"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// A client that write_idle tolerates in pieces of 64 KiB is not cut off for its slowness
// because the pieces are larger.
func TestLargeWritesFollowTheTimeout(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		timeout    time.Duration
		configured int
		want       int
	}{
		{timeout: time.Minute, want: 256 << 10},
		{timeout: time.Hour, want: 256 << 10},
		{timeout: 30 * time.Second, want: 128 << 10},
		{timeout: time.Second, want: 64 << 10},
		{timeout: time.Minute, configured: 4 << 10, want: 4 << 10},
		{timeout: time.Minute, configured: 4 << 20, want: 4 << 20},
	} {
		idle := &caddyhttp.IdleTimeoutWriter{MaxChunk: cmp.Or(row.configured, caddyhttp.DefaultMaxWriteChunk), Deadline: caddyhttp.IdleDeadline{Timeout: row.timeout}}
		r := httptest.NewRequest("GET", "/", nil)
		useLargeWrites(r.WithContext(caddyhttp.ContextWithIdleTimeouts(r.Context(), nil, idle)))
		if idle.MaxChunk != row.want {
			t.Errorf("write_idle %v, write_max_chunk %d: writes of %d bytes, want %d", row.timeout, row.configured, idle.MaxChunk, row.want)
		}
	}
	useLargeWrites(httptest.NewRequest("GET", "/", nil)) // write_idle is negative
}
