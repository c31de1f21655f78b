package signedplayback

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

const (
	// freeManifestSize is up to which size a manifest is held without asking for
	// memory: what the copying of any response takes, about.
	freeManifestSize = 32 << 10

	// manifestFactor is how many times its size a manifest takes at the most:
	// itself, and what it is rewritten to, which manifest.Rewrite bounds. One
	// that is compressed is there in that form, too.
	manifestFactor           = 3
	compressedManifestFactor = manifestFactor + 1

	// All manifests together have a quarter of the memory of the process, and no
	// more than this.
	maxManifestMemory = 256 << 20

	// maxManifestWait is how long a manifest waits for memory, which is about
	// how long players wait for a manifest.
	maxManifestWait = 10 * time.Second
)

var errManifestMemory = errors.New("too many large manifests are held at once; try again in a moment")

// manifestMemory bounds what manifests that are held back take, all together.
// Whoever can ask for a large one could otherwise have as many held as he can
// send requests, for as long as the origin takes, and as he takes to read them.
//
// Memory is reserved before it is used, and until it is there, nothing more is
// read from the origin. Sizes have classes with memory of their own, so that
// large manifests do not keep usual ones waiting. A manifest of unknown size
// begins in a low class, and reserves the most that it can need of a higher one
// when it outgrows that. It never waits for memory of its own class or a lower
// one: so the top class always gets on, and no two can wait for each other.
//
// It is safe for concurrent use.
type manifestMemory struct {
	classes [3]manifestClass
	bytes   atomic.Int64 // reserved, for the metric
}

type manifestClass struct {
	most int // bytes that a manifest of this class may have
	free *semaphore.Weighted

	// Who waits to leave the class still holds some of its memory: so much that
	// half of it is always for those who pass.
	leaving *semaphore.Weighted
}

// processManifestMemory is that of all gates, over reloads.
var processManifestMemory = sync.OnceValue(func() *manifestMemory {
	return newManifestMemory(debug.SetMemoryLimit(-1))
})

// newManifestMemory shares out memory in a process with a memory limit in bytes.
func newManifestMemory(limit int64) *manifestMemory {
	total := min(limit/4, maxManifestMemory)
	// Each class has at least what its largest manifest takes.
	class := func(most int, share int64) manifestClass {
		share = max(share, int64(compressedManifestFactor*most))
		return manifestClass{most, semaphore.NewWeighted(share), semaphore.NewWeighted(share / 2 / int64(most))}
	}
	return &manifestMemory{classes: [...]manifestClass{
		class(256<<10, total/4), class(1<<20, total/4), class(manifest.MaxSize, total/2),
	}}
}

// manifestShare is what one manifest has of the memory.
type manifestShare struct {
	memory     *manifestMemory
	began      time.Time // to hold the manifest
	patience   time.Duration
	length     int // that the origin has told, 0 if it has not
	compressed bool
	room       int            // bytes that may be held
	class      *manifestClass // that bytes are of, nil for none
	bytes      int64
}

func (m *manifestMemory) newShare(length int, compressed bool) *manifestShare {
	s := &manifestShare{memory: m, began: time.Now(), patience: maxManifestWait, length: length, compressed: compressed, room: freeManifestSize}
	if compressed {
		s.room = 0 // nobody knows what it becomes
	}
	return s
}

// grow makes room for a manifest of so many bytes, at most manifest.MaxSize and
// no more than the origin has told. It waits until there is some.
func (s *manifestShare) grow(ctx context.Context, size int) error {
	size = max(size, s.length)
	if size <= s.room {
		return nil
	}
	if s.compressed {
		size = manifest.MaxSize
	}
	i := 0
	for s.memory.classes[i].most < size {
		i++
	}
	class := &s.memory.classes[i]
	room, factor := class.most, manifestFactor
	if s.compressed {
		factor = compressedManifestFactor
	} else if s.length > 0 {
		room = s.length
	}
	bytes := int64(factor * room)
	if err := s.wait(ctx, class, bytes); err != nil {
		return err
	}
	s.release()
	s.memory.bytes.Add(bytes)
	s.room, s.class, s.bytes = room, class, bytes
	return nil
}

// wait reserves bytes of a class beside what the share has.
func (s *manifestShare) wait(ctx context.Context, class *manifestClass, bytes int64) error {
	if class.free.TryAcquire(bytes) {
		return nil
	}
	if s.class != nil {
		if !s.class.leaving.TryAcquire(1) {
			return errManifestMemory
		}
		defer s.class.leaving.Release(1)
		s.shrinkTo(int64(s.room))
	}
	began := time.Now()
	defer func() { s.patience -= time.Since(began) }()
	ctx, cancel := context.WithTimeoutCause(ctx, s.patience, errManifestMemory)
	defer cancel()
	if class.free.Acquire(ctx, bytes) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// shrinkTo gives back all but so many bytes.
func (s *manifestShare) shrinkTo(bytes int64) {
	if s == nil || s.bytes <= bytes {
		return
	}
	s.class.free.Release(s.bytes - bytes)
	s.memory.bytes.Add(bytes - s.bytes)
	s.bytes = bytes
}

// release gives everything back.
func (s *manifestShare) release() { s.shrinkTo(0) }
