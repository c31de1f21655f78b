package manifestbody

import (
	"context"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// A manifest reserves at least what it and its rewritten form take, and at most
// all that there is, or it would wait in vain.
func TestManifestsReserveWhatTheyTake(t *testing.T) {
	t.Parallel()
	const most = manifest.MaxSize
	for _, tc := range []struct {
		name       string
		length     int64
		size       int
		compressed bool
		want       int64
	}{
		{"small, with length", 20_000, 20_000, false, 0},
		{"small, without length", 0, freeSize, false, 0},
		{"larger, without length", 0, freeSize + 1, false, 3 * most},
		{"larger, with length", freeSize + 1, 1, false, 3 * (freeSize + 1)},
		{"large, with length", 5_000_000, 1, false, 15_000_000},
		{"M9 compressed, so of any size", 50, 1, true, 4 * most},
		{"M9 compressed and large", 0, most, true, 4 * most},
	} {
		t.Run(tc.name, func(t *testing.T) {
			memory := NewMemory(MinMemory)
			buffer := NewBuffer(memory, tc.length, tc.compressed, false)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // it must not wait
			if err := buffer.Write(ctx, make([]byte, tc.size)); err != nil || memory.Reserved() != tc.want {
				t.Errorf("write = %v with %d bytes reserved, want %d", err, memory.Reserved(), tc.want)
			}
			buffer.Release()
			buffer.Release()
			if reserved := memory.Reserved(); reserved != 0 {
				t.Errorf("%d bytes stay reserved", reserved)
			}
		})
	}
}
