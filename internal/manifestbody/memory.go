package manifestbody

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// Timeout bounds how long the origin may take for a whole manifest. A
// blocking playlist reload (LL-HLS) takes at most three target durations.
const Timeout = time.Minute

const (
	// freeSize is up to which size a manifest is buffered without a
	// reservation: about the memory that copying any response takes.
	freeSize = 32 << 10

	// A manifest takes at most this many times its size: itself, the rewritten
	// manifest, which manifest.Rewrite bounds, and its compressed form.
	factor           = 1 + manifest.MaxGrowth
	compressedFactor = factor + 1
	sessionFactor    = manifest.MaxSessionGrowth - manifest.MaxGrowth // more, if it leads below a session

	// MinMemory has room for the largest manifest. MaxMemory is enough for all.
	MinMemory = (compressedFactor + sessionFactor) * manifest.MaxSize
	MaxMemory = 256 << 20

	// MaxWait is about how long players wait for a manifest.
	MaxWait = 10 * time.Second

	// maxWaiting bounds how many manifests wait for memory. Their
	// connections to the origin are open meanwhile.
	maxWaiting = 1024
)

// ErrMemory says that no memory was free in time.
var ErrMemory = errors.New("too many large manifests are buffered at once; try again in a moment")

// Memory bounds the memory of all buffered manifests, because a viewer
// could otherwise have as many large ones buffered as they can send requests. A
// manifest reserves all that it can need once, before the memory is allocated,
// and the gate reads no more from the origin until then. So no two manifests wait
// for each other. It is safe for concurrent use.
type Memory struct {
	free     *queue.Queue
	reserved atomic.Int64 // bytes, for the metric
}

// NewMemory returns this many bytes of memory, MinMemory or more.
func NewMemory(bytes uint64) *Memory {
	return &Memory{free: queue.New(semaphore.NewWeighted(int64(bytes)), maxWaiting, MaxWait)}
}

// Reserved returns how many bytes are reserved.
func (m *Memory) Reserved() int64 { return m.reserved.Load() }

// Buffer holds the body of a manifest until it is complete.
type Buffer struct {
	Body       []byte // so far
	memory     *Memory
	start      time.Time
	length     int // by Content-Length, 0 if unknown
	extra      int // how many times its size more the rewritten one may have
	compressed bool
	reserved   int64 // bytes of memory
}

// NewBuffer returns a Buffer for a body of this length, 0 if it is unknown, in compressed
// form or not. leadsBelow says that the manifest may lead below a session, which makes it longer.
func NewBuffer(memory *Memory, length int64, compressed, leadsBelow bool) *Buffer {
	b := &Buffer{memory: memory, start: time.Now(), length: int(max(0, length)), compressed: compressed}
	if leadsBelow {
		b.extra = sessionFactor
	}
	return b
}

// Write adds bytes to the body when there is memory for all of it.
func (b *Buffer) Write(ctx context.Context, p []byte) error {
	size := len(b.Body) + len(p)
	switch {
	// A request for a resource that only its type or first bytes tell to be a
	// manifest has no deadline.
	case time.Since(b.start) > Timeout:
		return ErrIncomplete
	case size > manifest.MaxSize:
		return ErrSize
	case b.length > 0 && size > b.length:
		return ErrLength
	}
	if err := b.reserve(ctx, max(size, b.length)); err != nil {
		return err
	}
	b.Body = append(slices.Grow(b.Body, max(0, b.length-len(b.Body))), p...)
	return nil
}

// reserve waits for memory for a manifest of this many bytes. If the length is
// unknown, it reserves memory for the largest.
func (b *Buffer) reserve(ctx context.Context, size int) error {
	if b.reserved > 0 || size <= freeSize && !b.compressed {
		return nil
	}
	bytes := int64((factor + b.extra) * cmp.Or(b.length, manifest.MaxSize))
	if b.compressed {
		bytes = int64((compressedFactor + b.extra) * manifest.MaxSize)
	}
	if err := b.memory.free.Enter(ctx, bytes); err != nil {
		if ctx.Err() == nil {
			err = ErrMemory
		}
		return err
	}
	b.reserved = bytes
	b.memory.reserved.Add(bytes)
	return nil
}

// ShrinkTo gives back all reserved memory except this many bytes, and reports whether
// any is left.
func (b *Buffer) ShrinkTo(bytes int64) (left bool) {
	if excess := b.reserved - bytes; excess > 0 {
		b.memory.free.Leave(excess)
		b.memory.reserved.Add(-excess)
		b.reserved = bytes
	}
	return b.reserved > 0
}

// Release gives back the body and all memory. b may be nil.
func (b *Buffer) Release() {
	if b == nil {
		return
	}
	b.Body = nil
	b.ShrinkTo(0)
}
