package mediacache

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

var (
	// errTruncated is why a body ends early: the origin broke it off, or sent another
	// length than it announced.
	errTruncated = errors.New("mediacache: the origin did not send the body to its end")

	// errPassed is about a viewer who asks for ranges in descending order.
	errPassed = errors.New("mediacache: the first bytes of a body that is not kept are gone")

	errSlowViewer = errors.New("mediacache: other viewers of a body that is not kept would have to wait for this one")
)

// body is the bytes of a response. One fill appends them while viewers read. It is
// safe for concurrent use. Bytes that a reader has got do not change before the reader asks
// for the next ones.
//
// Its memory is part of the budget until nobody uses it any more, so viewers who still
// read what the cache has dropped count too.
type body struct {
	memory *memory

	mu     sync.Mutex
	chunks []chunk
	bodyState
	err     error         // why no more bytes will come, if the body is not complete
	wake    chan struct{} // closed at the next change; nil while nobody waits
	uses    int           // by the index and fills
	old     *body         // of the old object that readers may get instead; nil without one
	readers []*reader     // in no order
	room    chan struct{} // closed when a reader of a windowed body advances
}

type bodyState struct {
	length   int64 // received so far
	reserved int64 // bytes of the budget
	done     bool  // no more bytes will come
	windowed bool  // chunks that all readers have passed are used again
}

// chunk is a part of a body. Its memory is allocated at once and then filled.
type chunk struct {
	at   int64
	data []byte
}

const (
	minChunk = 4 << 10
	maxChunk = 1 << 20 // a contiguous megabyte goes out in one write

	// slowAfter is how long a viewer of a windowed body may keep the others waiting.
	slowAfter = 10 * time.Second

	// A windowed body has at least so many chunks. Those that come after it became
	// windowed are this small, because the budget has no room for them.
	minWindow     = 2
	windowedChunk = 64 << 10
)

// newBody returns an empty body. Its readers may need the body of an old object too,
// which is in use as long as they read, or until the body does without it.
func newBody(m *memory, old *object) *body {
	b := &body{memory: m, uses: 1}
	if old != nil {
		b.old = old.body
		b.old.use()
	}
	return b
}

// replaceOld takes over a use of another old object's body, nil for none.
func (b *body) replaceOld(by *body) {
	b.mu.Lock()
	old := b.old
	b.old = by
	b.mu.Unlock()
	if old != nil {
		old.drop()
	}
}

// doNotKeep makes the body a windowed one, for which the budget needs no room.
func (b *body) doNotKeep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.windowed = true
}

// reserve takes room for the whole body, where its length is known. It reports
// whether there is any.
func (b *body) reserve(size int64) bool {
	if !b.memory.reserve(size) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reserved += size
	return true
}

// write appends bytes. expected is the length of the whole body, or -1.
func (b *body) write(ctx context.Context, p []byte, expected, limit int64) error {
	for len(p) > 0 {
		room, err := b.grow(ctx, expected, limit)
		if err != nil {
			return err
		}
		n := copy(room, p)
		b.extend(n)
		p = p[n:]
	}
	return nil
}

// grow returns memory for the next bytes. A body of unknown length that becomes
// longer than limit, or for which there is no memory, becomes windowed.
func (b *body) grow(ctx context.Context, expected, limit int64) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.chunks); n > 0 {
		if last := b.chunks[n-1].data; len(last) < cap(last) {
			return last[len(last):cap(last)], nil
		}
	}
	size := min(max(b.length, minChunk), maxChunk)
	if b.windowed {
		size = maxChunk
	}
	if expected >= 0 {
		size = min(expected-b.length, maxChunk)
		if size <= 0 {
			return nil, errTruncated
		}
	} else if b.length+size > limit || !b.windowed && !b.reserveLocked(size) {
		b.windowed = b.windowed || len(b.chunks) > 0
	}
	switch {
	case !b.windowed:
		return b.append(size), nil
	case len(b.chunks) < minWindow:
		return b.append(min(size, windowedChunk)), nil
	}
	return b.recycle(ctx, size)
}

func (b *body) reserveLocked(size int64) bool {
	b.mu.Unlock()
	ok := b.memory.reserve(size)
	b.mu.Lock()
	if ok {
		b.reserved += size
	}
	return ok
}

func (b *body) append(size int64) []byte {
	b.chunks = append(b.chunks, chunk{at: b.length, data: make([]byte, 0, size)})
	return b.chunks[len(b.chunks)-1].data[:size]
}

// recycle waits until all readers have passed the first chunk, and moves it to the
// end, for at most size bytes. Readers that keep the others waiting for too long are
// dropped.
func (b *body) recycle(ctx context.Context, size int64) ([]byte, error) {
	first := b.chunks[0]
	timer := time.NewTimer(slowAfter)
	defer timer.Stop()
	memory := first.data
	for b.slowest() < first.at+int64(len(first.data)) {
		if b.room == nil {
			b.room = make(chan struct{})
		}
		room, late := b.room, false
		b.mu.Unlock()
		select {
		case <-room:
		case <-timer.C:
			late = true
			timer.Reset(slowAfter)
		case <-ctx.Done():
		}
		b.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if late && len(b.readers) > 1 {
			b.dropSlowest()
			memory = make([]byte, cap(memory)) // a dropped reader may still write the other to its connection
		}
	}
	if len(b.readers) == 0 {
		return nil, context.Canceled
	}
	memory = memory[:0:min(int64(cap(memory)), size)]
	b.chunks = append(b.chunks[1:], chunk{at: b.length, data: memory})
	return memory[:cap(memory)], nil
}

func (b *body) slowest() int64 {
	slowest := b.length
	for _, r := range b.readers {
		slowest = min(slowest, r.offset)
	}
	return slowest
}

// dropSlowest ends the readers that are furthest behind.
func (b *body) dropSlowest() {
	slowest := b.slowest()
	for _, r := range slices.Clone(b.readers) {
		if r.offset == slowest {
			r.err = errSlowViewer
			b.leave(r)
		}
	}
}

// extend adds n bytes, which are in the memory that grow returned.
func (b *body) extend(n int) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	last := &b.chunks[len(b.chunks)-1]
	last.data = last.data[:len(last.data)+n]
	b.length += int64(n)
	b.wakeAll()
}

// end completes the body, or breaks it off with an error.
func (b *body) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done, b.err = true, err
	b.wakeAll()
}

func (b *body) wakeAll() {
	if b.wake != nil {
		close(b.wake)
		b.wake = nil
	}
}

// drop ends a use by the index or the fill. use begins one.
func (b *body) drop() {
	b.mu.Lock()
	b.uses--
	b.freeLocked()
}

func (b *body) use() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.uses++
}

// freeLocked gives the memory back if nobody uses it any more. It unlocks the body.
func (b *body) freeLocked() {
	unused := b.uses == 0 && len(b.readers) == 0
	var free int64
	if unused {
		free, b.reserved, b.chunks = b.reserved, 0, nil
	}
	b.mu.Unlock()
	b.memory.release(free)
	if unused {
		b.replaceOld(nil)
	}
}

// reader is one viewer of a body.
type reader struct {
	body   *body
	offset int64 // what comes before is not read again
	place  int   // in body.readers; -1 if it is not there
	err    error // why the body has dropped the reader
}

// read begins a reader. The caller must know that the body is in use.
func (b *body) read() *reader {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.readLocked()
}

func (b *body) readLocked() *reader {
	r := &reader{body: b, place: len(b.readers)}
	b.readers = append(b.readers, r)
	return r
}

// leave takes a reader off the list. The caller has locked the body.
func (b *body) leave(r *reader) {
	if r.place < 0 {
		return
	}
	end := len(b.readers) - 1
	last := b.readers[end]
	b.readers[r.place], last.place = last, r.place
	b.readers[end], r.place = nil, -1
	b.readers = b.readers[:end]
}

// join begins a reader of a body that a fill still appends to. It is nil if the first
// bytes may be gone already.
func (b *body) join() *reader {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.windowed {
		return nil
	}
	return b.readLocked()
}

// close ends a reader. It returns whether it was the last one.
func (r *reader) close() (last bool) {
	b := r.body
	b.mu.Lock()
	b.leave(r)
	last = len(b.readers) == 0
	if b.room != nil {
		close(b.room)
		b.room = nil
	}
	b.freeLocked()
	return last
}

// next returns the received bytes from offset on. If there are none yet, it returns a
// channel that is closed when something changes. At the end of the body, the error is
// io.EOF.
func (r *reader) next(offset int64) (data []byte, changed <-chan struct{}, err error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	r.offset = offset
	if b.room != nil {
		close(b.room)
		b.room = nil
	}
	switch {
	case r.err != nil:
		return nil, nil, r.err
	case offset < b.length && offset < b.chunks[0].at:
		return nil, nil, errPassed
	case offset < b.length:
		return b.find(offset), nil, nil
	case b.err != nil:
		return nil, nil, b.err
	case b.done:
		return nil, nil, io.EOF
	}
	if b.wake == nil {
		b.wake = make(chan struct{})
	}
	return nil, b.wake, nil
}

// find returns what is received of the chunk at offset.
func (b *body) find(offset int64) []byte {
	i, found := slices.BinarySearchFunc(b.chunks, offset, func(c chunk, offset int64) int { return cmp.Compare(c.at, offset) })
	if !found {
		i--
	}
	c := b.chunks[i]
	return c.data[offset-c.at:]
}

// copyTo writes the bytes from offset up to end as they arrive, and flushes before it
// waits for more.
func (r *reader) copyTo(ctx context.Context, w io.Writer, offset, end int64, flush func()) error {
	for offset < end {
		data, changed, err := r.next(offset)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case changed != nil:
			flush()
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		data = data[:min(int64(len(data)), end-offset)]
		if _, err := w.Write(data); err != nil {
			return err
		}
		offset += int64(len(data))
	}
	return nil
}

func (b *body) state() bodyState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bodyState
}

func (b *body) hasReaders() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.readers) > 0
}
