package mediacache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"time"
)

// fill is one request to the origin, for all viewers who ask for the same meanwhile.
type fill struct {
	cache  *Cache
	config *Config
	entry  *entry
	old    *object // that is revalidated; nil if there is none
	asked  time.Time
	cancel context.CancelFunc
	body   *body

	// ready is closed when the fields below it are known.
	ready   chan struct{}
	outcome outcome
	object  *object
	failure error // of the origin's handler; http.ErrAbortHandler if it has panicked
	renewed bool  // the origin has given another answer than the old object
	onDisk  bool  // the object is from there

	// The first viewer takes a response over that nobody else may get.
	takeOver chan http.ResponseWriter
	gone     chan struct{} // closed when the first viewer has left before that
	ended    chan struct{} // closed when the origin's handler has returned
}

// outcome is what has become of a fill.
type outcome int

const (
	shared    outcome = iota // object is for all who wait, and its body arrives
	confirmed                // object is the old one, which is still right, or is used because of an error
	exclusive                // the response is for one viewer; the others ask for themselves
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
	return !isClosed(f.ready) || f.outcome == shared && f.object.isFresh(now) && !f.body.isWindowed()
}

// run asks the disk, and the origin for what is not there.
func (f *fill) run(next Handler, r *http.Request) {
	w := &fillWriter{fill: f, ctx: r.Context(), header: http.Header{}, expected: -1}
	defer f.cancel()
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p != any(http.ErrAbortHandler) && f.config.Panicked != nil {
			f.config.Panicked(p, debug.Stack())
		}
		w.finish(http.ErrAbortHandler)
	}()
	var failure error
	if origin, request := w.fromDisk(r); origin != nil {
		failure = next(origin, request)
	}
	w.finish(failure)
}

// finish ends the fill when the origin's handler has returned.
func (w *fillWriter) finish(failure error) {
	f := w.fill
	complete := false
	originFailed := failure != nil && (f.config.OriginFailed == nil || f.config.OriginFailed(failure))
	switch {
	case w.state == waiting && originFailed && f.mayUseOld(f.cache.now()):
		f.settle(confirmed, f.old)
	case w.state == waiting:
		f.failure = failure
		f.settle(failed, nil)
	case w.state == passing:
		f.failure = failure
	case w.state != keeping:
	case failure != nil || w.expected >= 0 && w.expected != f.body.received():
		f.body.end(errTruncated)
	default:
		f.body.end(nil)
		complete = !f.body.isWindowed()
	}
	f.cache.ended(f, complete)
	close(f.ended)
}

// mayUseOld reports whether the old object may be used because the origin has failed
// (RFC 5861 section 4).
func (f *fill) mayUseOld(now time.Time) bool {
	return f.entry.key.slice == 0 && f.old != nil && f.old.canBeStale(now, f.old.freshness.staleIfError)
}

// fillWriter is the response writer that the origin's handler sees.
type fillWriter struct {
	*fill
	ctx      context.Context
	header   http.Header
	state    fillState
	expected int64 // Content-Length; -1 if there is none
	limit    int64 // of a body of unknown length that is kept
	viewer   http.ResponseWriter
}

type fillState int

const (
	waiting    fillState = iota // until the headers are known
	keeping                     // bytes go into the body
	passing                     // bytes go to the first viewer
	discarding                  // nobody needs the bytes
)

func (w *fillWriter) Header() http.Header { return w.header }

// errNotNeeded ends the origin's handler when nobody needs the body.
var errNotNeeded = errors.New("mediacache: nobody needs the rest of this response")

func (w *fillWriter) WriteHeader(status int) {
	if w.state != waiting || status < 200 {
		return
	}
	now := w.cache.now()
	d := parseDirectives(w.header["Cache-Control"])
	made := now.Add(-ageOnArrival(w.header, w.asked, now))
	w.renewed = status < 500 && status != http.StatusNotModified && w.entry.key.slice == 0
	switch {
	case w.entry.key.slice > 0:
		w.startSlice(status, made, d)
	case status == http.StatusNotModified && w.old != nil:
		w.confirm(made)
	case status >= 500 && w.mayUseOld(now):
		w.discard(confirmed, w.old)
	case !isShareable(status, w.header, d):
		w.passToFirst(status)
	default:
		w.start(status, made, d)
	}
}

// confirm refreshes the old object.
func (w *fillWriter) confirm(made time.Time) {
	o := w.old.refreshed(w.header, made)
	header := o.fields.header()
	d := parseDirectives(header["Cache-Control"])
	o.freshness, o.keep = freshnessOf(o.status, header, d, w.config.ttl(o.status, o.isManifest, o.isMedia), o.isManifest, w.asked)
	o.keep = o.keep && isShareable(o.status, header, d)
	w.discard(confirmed, o)
}

// start keeps the response, if it can be.
func (w *fillWriter) start(status int, made time.Time, d directives) {
	o := newObject(status, w.header, w.entry.key.path, w.body)
	o.made = made
	o.freshness, o.keep = freshnessOf(status, w.header, d, w.config.ttl(status, o.isManifest, o.isMedia), o.isManifest, w.asked)
	w.expected, w.limit = o.length, w.config.MaxObject
	o.sliced = o.length > w.config.MaxObject && o.keep && o.canBeSliced() && o.fields.get(w.config.MemoryOnly) == ""
	size := w.overheadOf(o)
	if !o.sliced {
		size += max(o.length, 0)
	}
	switch {
	case o.length > w.config.MaxObject && !o.sliced, !w.body.reserve(size):
		w.passToFirst(status)
	case o.sliced:
		w.body.end(nil)
		w.discard(shared, o)
	default:
		w.state = keeping
		w.settle(shared, o)
	}
}

// overheadOf is what an object takes of the memory besides its body.
func (f *fill) overheadOf(o *object) int64 {
	return objectOverhead + int64(len(o.fields)) + f.entry.key.size() + int64(len(f.entry.key.path)+len(f.entry.key.query))
}

// discard settles the fill when the body of the response is not needed.
func (w *fillWriter) discard(result outcome, o *object) {
	w.state = discarding
	w.settle(result, o)
	w.cancel()
}

// startSlice keeps a part of a large object. It must be a part of the same object as
// the other slices, which If-Range and the headers ensure.
func (w *fillWriter) startSlice(status int, made time.Time, d directives) {
	o := newObject(status, w.header, w.entry.key.path, w.body)
	want := sliceOf(w.entry.key.slice-1, w.old.length)
	if status != http.StatusPartialContent || w.header.Get("Content-Range") != want.String() || !o.isOf(w.old) || !isShareable(http.StatusOK, w.header, d) {
		w.failure = errOtherObject
		w.discard(failed, nil)
		return
	}
	o.made, o.freshness, o.keep = made, freshness{lifetime: w.old.freshness.lifetime}, true
	o.length, w.expected = want.length(), want.length()
	if !w.body.reserve(w.overheadOf(o) + o.length) {
		w.body.doNotKeep()
	}
	w.state = keeping
	w.settle(shared, o)
}

// passToFirst gives the response to the first viewer, if it still waits.
func (w *fillWriter) passToFirst(status int) {
	w.cache.markUnshared(w.entry.key)
	w.settle(exclusive, nil)
	w.state = discarding
	select {
	case w.viewer = <-w.takeOver:
		w.state = passing
		header := w.viewer.Header()
		maps.Copy(header, w.header)
		addCacheStatus(header, Bypass)
		w.viewer.WriteHeader(status)
	case <-w.gone:
		w.cancel()
	case <-w.ctx.Done():
	}
}

func (w *fillWriter) Write(p []byte) (int, error) {
	if w.state == waiting {
		w.WriteHeader(http.StatusOK)
	}
	switch w.state {
	case keeping:
		if err := w.body.write(w.ctx, p, w.expected, w.limit); err != nil {
			w.state = discarding
			w.body.end(err)
			return 0, err
		}
		return len(p), nil
	case passing:
		return w.viewer.Write(p)
	default:
		return 0, errNotNeeded
	}
}

// FlushError implements what http.ResponseController looks for.
func (w *fillWriter) FlushError() error {
	if w.state == passing {
		return http.NewResponseController(w.viewer).Flush()
	}
	return nil
}

// SetWriteDeadline implements what http.ResponseController looks for.
func (w *fillWriter) SetWriteDeadline(deadline time.Time) error {
	if w.state == passing {
		return http.NewResponseController(w.viewer).SetWriteDeadline(deadline)
	}
	return nil // nothing waits for a viewer
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
