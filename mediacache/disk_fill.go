package mediacache

import (
	"net/http"
	"sync"
)

// fromDisk answers from the disk, as far as it can. It returns the request to send to the
// origin, or nil if the origin is not needed.
func (f *fill) fromDisk(r *http.Request) *http.Request {
	k := f.entry.key
	if f.old != nil && k.slice == 0 {
		return r // memory has what the disk has, or a newer one
	}
	s := f.config.Disk.find(f.ctx, f.config.Site, k)
	if s == nil {
		return r
	}
	defer s.file.Close()
	now := f.cache.now()
	o := s.object(k.path, f.body, now)
	switch {
	case k.slice > 0 && (!o.isFresh(now) || !o.isOf(f.old) || o.length != sliceOf(k.slice-1, f.old.length).length()):
		return r
	case o.isFresh(now):
		return f.stream(s, o, r)
	case !f.load(s, o):
		return r
	case o.canBeStale(now, o.freshness.staleWhileRevalidate):
		f.discard(confirmed, o) // the next request revalidates it
		return nil
	}
	return originRequest(r.Context(), r, k, o)
}

// blockBuffers has memory for blocks that are not checked yet.
var blockBuffers = sync.Pool{New: func() any { return new([fileBlock]byte) }}

// blocks calls use with each block of a file, which is checked. It returns how many bytes
// were used, and whether that is all of them.
func (f *fill) blocks(s *stored, use func(block []byte) error) (used int64, complete bool) {
	buffer := blockBuffers.Get().(*[fileBlock]byte)
	for used < s.header.Stored && f.ctx.Err() == nil {
		block, err := read(f.ctx, f.config.Disk, func() ([]byte, error) { return s.block(buffer[:], used) })
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
func (f *fill) stream(s *stored, o *object, r *http.Request) *http.Request {
	if s.header.Stored == 0 && !f.startStored(o, 0) {
		return r
	}
	used, complete := f.blocks(s, func(block []byte) error {
		if f.state == waiting {
			f.startStored(o, s.header.Stored)
		}
		_, err := f.Write(block)
		return err
	})
	if complete {
		return nil
	}
	if used > 0 {
		f.state, f.skip = resuming, used
	}
	return r
}

// startStored settles the fill with an object whose bytes come from a file. It reports whether
// there is memory for one without bytes.
func (f *fill) startStored(o *object, length int64) bool {
	if !f.body.reserve(f.overheadOf(o) + length) {
		if o.sliced {
			return false
		}
		f.body.doNotKeep()
	}
	f.onDisk, f.expected, f.limit = true, length, length
	f.share(o)
	return true
}

// load reads an object that is not fresh any more into memory, for the origin to confirm. It
// reports whether it is of use.
func (f *fill) load(s *stored, o *object) bool {
	if now := f.cache.now(); !o.hasValidator() && !o.canBeStale(now, max(o.freshness.staleWhileRevalidate, o.freshness.staleIfError)) {
		return false
	}
	b := newBody(&f.cache.memory, nil)
	if !b.reserve(f.overheadOf(o) + s.header.Stored) {
		b.drop()
		return false
	}
	used, _ := f.blocks(s, func(block []byte) error { return b.write(f.ctx, block, s.header.Stored, s.header.Stored) })
	if used != s.header.Stored {
		b.drop()
		return false
	}
	b.end(nil)
	o.body, f.old = b, o
	f.body.replaceOld(b)
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

// resume goes on with an object of which viewers have the beginning already, because the rest of
// the file is damaged, if the origin has the same object.
func (f *fill) resume(status int) {
	o := newObject(status, f.header, f.entry.key.path, f.body)
	isSame := status == f.object.status && o.hasValidator() && o.isOf(f.object) && (o.length < 0 || o.length == f.object.length)
	if n := f.entry.key.slice; n > 0 {
		isSame = isSame && f.header.Get("Content-Range") == sliceOf(n-1, f.old.length).String()
	}
	if isSame {
		f.state = keeping
		return
	}
	f.state = discarding
	f.body.end(errOtherObject)
}
