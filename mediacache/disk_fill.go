package mediacache

import (
	"net/http"
	"sync"
)

// fromDisk answers from the disk, as far as it can. It returns the request to send to the
// origin, and who gets the answer, or nil if the origin is not needed.
func (w *fillWriter) fromDisk(r *http.Request) (http.ResponseWriter, *http.Request) {
	k := w.entry.key
	if w.old != nil && k.slice == 0 {
		return w, r // memory has what the disk has, or a newer one
	}
	s := w.config.Disk.find(w.ctx, w.config.Site, k)
	if s == nil {
		return w, r
	}
	defer s.file.Close()
	now := w.cache.now()
	o := s.object(k.path, w.body, now)
	switch {
	case k.slice > 0 && (!o.isFresh(now) || !o.isOf(w.old) || o.length != sliceOf(k.slice-1, w.old.length).length()):
		return w, r
	case o.isFresh(now):
		return w.stream(s, o, r)
	case !w.load(s, o):
		return w, r
	case o.canBeStale(now, o.freshness.staleWhileRevalidate):
		w.discard(confirmed, o) // the next request revalidates it
		return nil, nil
	}
	return w, originRequest(r.Context(), r, k, o)
}

// blockBuffers has memory for blocks that are not checked yet.
var blockBuffers = sync.Pool{New: func() any { return new([fileBlock]byte) }}

// blocks calls use with each block of a file, which is checked. It returns how many bytes
// were used, and whether that is all of them.
func (w *fillWriter) blocks(s *stored, use func(block []byte) error) (used int64, complete bool) {
	buffer := blockBuffers.Get().(*[fileBlock]byte)
	for used < s.header.Stored && w.ctx.Err() == nil {
		block, err := read(w.ctx, w.config.Disk, func() ([]byte, error) { return s.block(buffer[:], used) })
		if err != nil {
			s.drop(err)
			return used, false // a read that hangs may still write to the buffer
		}
		if use(block) != nil {
			break // nobody needs the rest
		}
		used += int64(len(block))
	}
	blockBuffers.Put(buffer)
	return used, true
}

// stream fills the body from a file. If a part of it is damaged, the origin is asked for
// the object, and viewers who have the beginning get the rest from there.
func (w *fillWriter) stream(s *stored, o *object, r *http.Request) (http.ResponseWriter, *http.Request) {
	if s.header.Stored == 0 && !w.startStored(o, 0) {
		return w, r
	}
	used, complete := w.blocks(s, func(block []byte) error {
		if w.state == waiting {
			w.startStored(o, s.header.Stored)
		}
		_, err := w.Write(block)
		return err
	})
	switch {
	case complete:
		return nil, nil
	case used == 0:
		return w, r
	}
	return &restWriter{fillWriter: w, skip: used}, r
}

// startStored settles the fill with an object whose bytes come from a file. It reports whether
// there is memory for one without bytes.
func (w *fillWriter) startStored(o *object, length int64) bool {
	if !w.body.reserve(w.overheadOf(o) + length) {
		if o.sliced {
			return false
		}
		w.body.doNotKeep()
	}
	w.onDisk, w.expected, w.limit = true, length, length
	if o.sliced {
		w.body.end(nil)
		w.discard(shared, o)
		return true
	}
	w.state = keeping
	w.settle(shared, o)
	return true
}

// load reads an object that is not fresh any more into memory, for the origin to confirm. It
// reports whether it is of use.
func (w *fillWriter) load(s *stored, o *object) bool {
	if now := w.cache.now(); !o.hasValidator() && !o.canBeStale(now, max(o.freshness.staleWhileRevalidate, o.freshness.staleIfError)) {
		return false
	}
	b := newBody(&w.cache.memory, nil)
	if !b.reserve(w.overheadOf(o) + s.header.Stored) {
		b.drop()
		return false
	}
	used, _ := w.blocks(s, func(block []byte) error { return b.write(w.ctx, block, s.header.Stored, s.header.Stored) })
	if used != s.header.Stored {
		b.drop()
		return false
	}
	b.end(nil)
	o.body, w.old = b, o
	w.body.replaceOld(b)
	return true
}

// toDisk brings the disk up to date after a fill. kept is the object that memory keeps;
// nil if there is none. After a 304, the file stays as it is: it is stale, so the origin is
// asked before it is used, and writing it again would wear the disk.
func (f *fill) toDisk(kept *object) {
	if f.renewed || f.outcome == confirmed && (!f.object.keep || f.old.outlasts(f.object)) {
		f.config.Disk.forgetObject(f.config.Site, f.entry.key)
	}
	if kept != nil && !f.onDisk && kept.fields.get(f.config.MemoryOnly) == "" {
		f.config.Disk.put(f.config.Site, f.entry.key, kept, f.config.Memory/waitingPart)
	}
}

// waitingPart is the part of the memory that may wait to be written.
const waitingPart = 8

// restWriter is the response writer of an origin that is asked for an object of which
// viewers have the beginning already, because the rest of the file is damaged.
type restWriter struct {
	*fillWriter
	skip     int64
	answered bool // status and headers are known
	isSame   bool // as the object in the file
}

func (w *restWriter) WriteHeader(status int) {
	if w.answered || status < 200 {
		return
	}
	w.answered = true
	o := newObject(status, w.header, w.entry.key.path, w.body)
	w.isSame = status == w.object.status && o.hasValidator() && o.isOf(w.object) && (o.length < 0 || o.length == w.object.length)
	if n := w.entry.key.slice; n > 0 {
		w.isSame = w.isSame && w.header.Get("Content-Range") == sliceOf(n-1, w.old.length).String()
	}
}

func (w *restWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if !w.isSame {
		return 0, errOtherObject
	}
	skipped := min(w.skip, int64(len(p)))
	w.skip -= skipped
	n, err := w.fillWriter.Write(p[skipped:])
	return int(skipped) + n, err
}
