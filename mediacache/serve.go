package mediacache

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// visit is one request of a viewer.
type visit struct {
	cache  *Cache
	config *Config
	w      http.ResponseWriter
	r      *http.Request
	next   Handler
}

// serve answers the request.
func (v *visit) serve(k key) (Result, error) {
	o, f, rd, first := v.cache.find(v, k, nil)
	if o != nil {
		defer rd.close()
		result := Hit
		if !o.isFresh(v.cache.now()) {
			result = Stale
		}
		return result, v.answer(o, rd, result)
	}
	if f == nil {
		return Bypass, v.goAlone(k)
	}
	defer v.leave(f, rd)
	select {
	case <-f.ready:
	case <-v.r.Context().Done():
		return Miss, v.r.Context().Err()
	}
	switch f.outcome {
	case failed:
		return Miss, f.fail()
	case exclusive:
		if first && v.needsAll() {
			return Bypass, v.answer(f.object, rd, Bypass)
		}
		v.leave(f, rd)
		return Bypass, v.goAlone(f.entry.key)
	case confirmed:
		use := f.object.body.read() // f.body uses it while it has readers
		defer use.close()
		if f.object == f.old {
			return Stale, v.answer(f.object, use, Stale)
		}
		return Revalidated, v.answer(f.object, use, Revalidated)
	case shared:
	}
	result := Collapsed
	switch {
	case f.onDisk:
		result = DiskHit
	case first:
		result = Miss
	}
	return result, v.answer(f.object, rd, result)
}

// leave ends the viewer's part in a fill. A fill that has lost its last viewer goes
// on only if little is missing, and not for long: later viewers must not wait for an
// origin that has stalled.
func (v *visit) leave(f *fill, rd *reader) {
	if last := rd.close(); !last || isClosed(f.ended) {
		return
	}
	if f.isNearlyDone() {
		time.AfterFunc(restAfter, func() { v.cache.abandon(f) })
		return
	}
	v.cache.abandon(f)
}

const (
	smallRest = 1 << 20
	restAfter = 10 * time.Second

	// refreshWithin is how long a fill may take that no viewer waits for, because a stale
	// object is good enough.
	refreshWithin = time.Minute
)

// isNearlyDone reports whether the body is not needed, or less than 1 MiB or a tenth of
// it is missing. Of one that is for nobody else, nothing may be missing.
func (f *fill) isNearlyDone() bool {
	body := f.body.state()
	switch {
	case !isClosed(f.ready):
		return false
	case f.outcome == exclusive:
		return body.done || body.length == f.object.length
	case f.outcome != shared || body.done:
		return true
	}
	missing := f.object.length - body.length
	return f.object.length >= 0 && (missing < smallRest || missing < f.object.length/10)
}

// fail returns the error of the origin's handler, or breaks the response off as the
// handler did.
func (f *fill) fail() error {
	if errors.Is(f.failure, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler)
	}
	return f.failure // nil if no handler has answered
}

// needsAll reports whether the viewer asks for all that a fill gets.
func (v *visit) needsAll() bool {
	return v.r.Method == http.MethodGet && len(v.r.Header["Range"]) == 0
}

// goAlone asks the origin for this viewer alone.
func (v *visit) goAlone(k key) error {
	ctx, cancel := v.config.originContext(v.r)
	defer cancel()
	defer context.AfterFunc(v.r.Context(), cancel)()
	addCacheStatus(v.w.Header(), Bypass)
	out := originRequest(ctx, v.r, k, nil)
	out.Method = v.r.Method
	for _, name := range []string{"Range", "If-Range"} {
		if values, ok := v.r.Header[name]; ok {
			out.Header[name] = values
		}
	}
	return v.next(v.w, out)
}

// answer sends an object, whose body may still arrive.
func (v *visit) answer(o *object, rd *reader, result Result) error {
	h := v.w.Header()
	o.fields.addTo(h)
	addCacheStatus(h, result)
	if result != Bypass {
		h["Age"] = []string{strconv.FormatInt(int64(o.age(v.cache.now())/time.Second), 10)}
	}
	if o.status == http.StatusOK {
		if status := v.evaluate(o); status != 0 {
			for _, name := range []string{"Content-Type", "Content-Length", "Content-Encoding"} {
				delete(h, name)
			}
			v.w.WriteHeader(status)
			return nil
		}
		if spans, ok := v.ranges(o); ok {
			return v.sendRanges(o, rd, spans)
		}
	}
	if o.length >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(o.length, 10)}
	}
	v.w.WriteHeader(o.status)
	if v.r.Method == http.MethodHead {
		return nil
	}
	v.send(o, rd, span{first: 0, last: o.length - 1, total: o.length})
	return nil
}

// send writes a part of the body. If that fails, it breaks the response off, so that
// the viewer does not take it for complete.
func (v *visit) send(o *object, rd *reader, part span) {
	var err error
	if o.sliced {
		err = v.sendSlices(o, part)
	} else {
		err = v.copy(rd, part.first, part.last+1, o.length < 0)
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

const (
	unknownEnd = 1<<63 - 1

	// A shorter body is one record of TLS.
	minGather = 16 << 10
)

func (v *visit) copy(rd *reader, from, to int64, toTheEnd bool) (err error) {
	if toTheEnd {
		to = unknownEnd
	}
	if v.config.Gather != nil && to-from >= minGather && rd.body.state().done {
		if send := v.config.Gather(v.r); send != nil {
			defer func() { err = errors.Join(err, send()) }()
		}
	}
	return rd.copyTo(v.r.Context(), v.w, from, to, func() { http.NewResponseController(v.w).Flush() })
}

// sendSlices writes a part of a large object, slice by slice.
func (v *visit) sendSlices(o *object, part span) error {
	k := keyOf(v.r, v.config)
	for n := part.first / sliceSize; n <= part.last/sliceSize; n++ {
		k.slice = n + 1
		if err := v.sendSlice(o, k, sliceOf(n, o.length), part); err != nil {
			return err
		}
	}
	return nil
}

func (v *visit) sendSlice(o *object, k key, slice, part span) error {
	s, f, rd, _ := v.cache.find(v, k, o)
	if s != nil && !s.isOf(o) {
		rd.close()
		v.cache.forget(v.config, k)
		s, f, rd, _ = v.cache.find(v, k, o)
	}
	if s != nil {
		defer rd.close()
		if !s.isOf(o) {
			return errOtherObject
		}
	} else {
		defer v.leave(f, rd)
		select {
		case <-f.ready:
		case <-v.r.Context().Done():
			return v.r.Context().Err()
		}
		if f.outcome != shared || !f.object.isOf(o) {
			// The whole is asked for next time.
			k.slice = 0
			v.cache.forget(v.config, k)
			return errOtherObject
		}
	}
	from, to := max(part.first, slice.first), min(part.last, slice.last)
	return v.copy(rd, from-slice.first, to+1-slice.first, false)
}
