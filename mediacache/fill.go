package mediacache

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"
)

// fill is one request to the origin, for all viewers who ask for the same meanwhile. The
// origin's handler sees it as the response writer.
type fill struct {
	cache  *Cache
	config *Config
	entry  *entry
	old    *object // that is revalidated; nil if there is none
	asked  time.Time
	ctx    context.Context
	cancel context.CancelFunc
	body   *body
	header http.Header

	state    fillState
	expected int64     // Content-Length; -1 if there is none
	limit    int64     // of a body of unknown length that is kept
	skip     int64     // bytes of the origin's body that came from the disk
	deadline time.Time // until when a write may wait for viewers; zero without one

	// ready is closed when the fields below it are known.
	ready   chan struct{}
	outcome outcome
	object  *object
	failure error // of the origin's handler; http.ErrAbortHandler if it has panicked
	renewed bool  // the origin has given another answer than the old object
	onDisk  bool  // the object is from there

	ended chan struct{} // closed when the origin's handler has returned
}

// outcome is what has become of a fill.
type outcome int

const (
	shared    outcome = iota // object is for all who wait, and its body arrives
	confirmed                // object is the old one, which is still right, or is used because of an error
	exclusive                // object is for the first viewer; the others ask for themselves
	failed                   // the origin's handler has not answered
)

// settle tells the viewers what has become of the fill.
func (f *fill) settle(result outcome, o *object) {
	f.outcome, f.object = result, o
	if result == shared {
		f.body.replaceOld(nil)
	}
	close(f.ready)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// isJoinable reports whether a request that comes now may have the response of the
// fill. The caller has locked the index.
func (f *fill) isJoinable(now time.Time) bool {
	return !isClosed(f.ready) || f.outcome == shared && f.object.isFresh(now)
}

// run asks the disk, and the origin for what is not there.
func (f *fill) run(next Handler, r *http.Request) {
	defer f.cancel()
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p != any(http.ErrAbortHandler) && f.config.Panicked != nil {
			f.config.Panicked(p, debug.Stack())
		}
		f.finish(http.ErrAbortHandler)
	}()
	var failure error
	if request := f.fromDisk(r); request != nil {
		failure = next(f, request)
	}
	f.finish(failure)
}

// finish ends the fill when the origin's handler has returned.
func (f *fill) finish(failure error) {
	complete := false
	originFailed := failure != nil && (f.config.OriginFailed == nil || f.config.OriginFailed(failure))
	switch {
	case f.state == waiting && originFailed && f.mayUseOld(f.cache.now()):
		f.settle(confirmed, f.old)
	case f.state == waiting:
		f.failure = failure
		f.settle(failed, nil)
	case f.state == discarding:
	case failure != nil || f.expected >= 0 && f.expected != f.body.state().length:
		f.body.end(errTruncated)
	default:
		f.body.end(nil)
		complete = !f.body.state().windowed
	}
	f.cache.ended(f, complete)
	close(f.ended)
}

// mayUseOld reports whether the old object may be used because the origin has failed
// (RFC 5861 section 4).
func (f *fill) mayUseOld(now time.Time) bool {
	return f.entry.key.slice == 0 && f.old != nil && f.old.canBeStale(now, f.old.freshness.staleIfError)
}

type fillState int

const (
	waiting    fillState = iota // until the headers are known
	resuming                    // the same for the rest of a damaged file
	keeping                     // bytes go into the body
	discarding                  // nobody needs the bytes
)

// Header implements http.ResponseWriter.
func (f *fill) Header() http.Header { return f.header }

// errNotNeeded ends the origin's handler when nobody needs the body.
var errNotNeeded = errors.New("mediacache: nobody needs the rest of this response")

// WriteHeader implements http.ResponseWriter.
func (f *fill) WriteHeader(status int) {
	switch {
	case status < 200 || f.state == keeping || f.state == discarding:
		return
	case f.state == resuming:
		f.resume(status)
		return
	}
	now := f.cache.now()
	d := parseDirectives(f.header["Cache-Control"])
	made := now.Add(-ageOnArrival(f.header, f.asked, now))
	f.renewed = status < 500 && status != http.StatusNotModified && f.entry.key.slice == 0
	switch {
	case f.entry.key.slice > 0:
		f.startSlice(status, made, d)
	case status == http.StatusNotModified && f.old != nil:
		f.confirm(made)
	case status >= 500 && f.mayUseOld(now):
		f.discard(confirmed, f.old)
	default:
		f.start(status, made, d)
	}
}

// confirm refreshes the old object.
func (f *fill) confirm(made time.Time) {
	o := f.old.refreshed(f.header, made)
	header := o.fields.header()
	d := parseDirectives(header["Cache-Control"])
	o.freshness, o.keep = freshnessOf(o.status, header, d, f.config.ttl(o.status, o.isManifest, o.isMedia), o.isManifest, f.asked)
	o.keep = o.keep && isShareable(o.status, header, d)
	f.discard(confirmed, o)
}

// start keeps the response, if it can be.
func (f *fill) start(status int, made time.Time, d directives) {
	o := newObject(status, f.header, f.entry.key.path, f.body)
	o.made = made
	o.freshness, o.keep = freshnessOf(status, f.header, d, f.config.ttl(status, o.isManifest, o.isMedia), o.isManifest, f.asked)
	f.expected, f.limit = o.length, f.config.MaxObject
	o.sliced = o.length > f.config.MaxObject && o.keep && o.canBeSliced() && o.fields.get(f.config.MemoryOnly) == ""
	size := f.overheadOf(o)
	if !o.sliced {
		size += max(o.length, 0)
	}
	switch {
	case !isShareable(status, f.header, d), o.length > f.config.MaxObject && !o.sliced, !f.body.reserve(size):
		f.passToFirst(o)
	default:
		f.share(o)
	}
}

// share settles the fill with an object for all who wait.
func (f *fill) share(o *object) {
	if o.sliced {
		f.body.end(nil)
		f.discard(shared, o)
		return
	}
	f.state = keeping
	f.settle(shared, o)
}

// overheadOf is what an object takes of the memory besides its body.
func (f *fill) overheadOf(o *object) int64 {
	return objectOverhead + int64(len(o.fields)) + f.entry.key.size() + int64(len(f.entry.key.path)+len(f.entry.key.query))
}

// discard settles the fill when the body of the response is not needed.
func (f *fill) discard(result outcome, o *object) {
	f.state = discarding
	f.settle(result, o)
	f.cancel()
}

// startSlice keeps a part of a large object. It must be a part of the same object as
// the other slices, which If-Range and the headers ensure.
func (f *fill) startSlice(status int, made time.Time, d directives) {
	o := newObject(status, f.header, f.entry.key.path, f.body)
	want := sliceOf(f.entry.key.slice-1, f.old.length)
	if status != http.StatusPartialContent || f.header.Get("Content-Range") != want.String() || !o.isOf(f.old) || !isShareable(http.StatusOK, f.header, d) {
		f.failure = errOtherObject
		f.discard(failed, nil)
		return
	}
	o.made, o.freshness, o.keep = made, freshness{lifetime: f.old.freshness.lifetime}, true
	o.length, f.expected = want.length(), want.length()
	if !f.body.reserve(f.overheadOf(o) + o.length) {
		f.body.doNotKeep()
	}
	f.share(o)
}

// passToFirst gives the response to the first viewer, with all its fields.
func (f *fill) passToFirst(o *object) {
	f.cache.markUnshared(f.entry.key)
	f.body.doNotKeep()
	o.fields, o.keep, o.sliced = encodeFields(f.header), false, false
	f.state, f.expected, f.limit = keeping, o.length, 0
	f.settle(exclusive, o)
}

// Write implements http.ResponseWriter.
func (f *fill) Write(p []byte) (int, error) {
	f.WriteHeader(http.StatusOK)
	if f.state == discarding {
		return 0, errNotNeeded
	}
	skipped := min(f.skip, int64(len(p)))
	f.skip -= skipped
	ctx := f.ctx
	if !f.deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, f.deadline)
		defer cancel()
	}
	if err := f.body.write(ctx, p[skipped:], f.expected, f.limit); err != nil {
		f.state = discarding
		f.body.end(err)
		return 0, err
	}
	return len(p), nil
}

// FlushError implements what http.ResponseController looks for. Viewers flush what they get.
func (*fill) FlushError() error { return nil }

// SetWriteDeadline implements what http.ResponseController looks for. Writes wait
// for viewers only if there is no room for the body.
func (f *fill) SetWriteDeadline(at time.Time) error {
	f.deadline = at
	return nil
}

var errOtherObject = errors.New("mediacache: a large object has changed on the origin, or the origin does not answer ranges")

// sliceSize is the size of the parts in which large objects are kept.
const sliceSize = 1 << 20

// span is a range of bytes, the last one included.
type span struct{ first, last, total int64 }

func (s span) length() int64 { return s.last - s.first + 1 }

func (s span) String() string { return fmt.Sprintf("bytes %d-%d/%d", s.first, s.last, s.total) }

func sliceOf(n, total int64) span {
	return span{first: n * sliceSize, last: min((n+1)*sliceSize, total) - 1, total: total}
}
