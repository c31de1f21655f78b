// Package mediacache is an HTTP cache for media: a shared cache (RFC 9111) for GET
// and HEAD requests that keeps one object for all viewers.
//
// The first request for an object starts a fill, which asks the origin. Others that
// come meanwhile read the same bytes as they arrive. The origin is told nothing about
// viewers, so nothing that a viewer sends besides host, path and query can lead to
// another object or another answer.
//
// The package knows nothing of tokens: what may be requested, by whom, is decided
// before.
package mediacache

import (
	"context"
	"hash/maphash"
	"net/http"
	"slices"
	"time"
)

// Config is what a Cache keeps, and for how long. It is read only after New.
type Config struct {
	Memory    int64 // bytes, with all overheads; positive
	MaxObject int64 // bytes; a larger object is kept in slices of 1 MiB

	// How long a response is fresh if the origin does not say. 0 keeps none of these.
	SegmentTTL  time.Duration // media other than manifests
	ManifestTTL time.Duration
	ErrorTTL    time.Duration // 404 and 410

	// Query has the names of the query parameters that make another object. The
	// others are not sent to the origin. nil: all but CMCD.
	Query []string

	// Variant returns what tells requests of one URL apart besides. nil: nothing does.
	Variant func(*http.Request) Variant

	// Disk is a second tier below the memory, which several caches may share. Site tells
	// this cache from others there, also over restarts. nil: there is none.
	Disk *Disk
	Site string

	// MemoryOnly is a header of objects that this process has checked or changed as a whole. So
	// they do not go to the disk, and no slices of them are asked for. Empty: there is none.
	MemoryOnly string

	// Context returns the context of a request to the origin, which may outlive the
	// viewer's request. It is called in the goroutine of that request. nil: an empty
	// one.
	Context func(*http.Request) context.Context

	// OriginFailed reports whether an error of a Handler means that the origin has
	// failed, as a status from 500 on does. nil: each error does.
	OriginFailed func(error) bool

	// Gather is called before bytes are written that have all arrived, so none needs to
	// go out by itself. The function that it returns is called afterwards, and sends what
	// is left. nil, for both: bytes go out as they are written.
	Gather func(*http.Request) (send func() error)

	// Panicked is told with what value a Handler has panicked, other than
	// http.ErrAbortHandler, and where. nil: nobody is told.
	Panicked func(value any, stack []byte)
}

// originContext returns the context of a request to the origin for a viewer's one.
func (c *Config) originContext(r *http.Request) (context.Context, context.CancelFunc) {
	ctx := context.Background()
	if c.Context != nil {
		ctx = c.Context(r)
	}
	return context.WithCancel(ctx)
}

// ttl returns how long a response is fresh if the origin does not say.
func (c *Config) ttl(status int, isManifest, isMedia bool) time.Duration {
	switch {
	case isNegative(status):
		return c.ErrorTTL
	case isManifest:
		return c.ManifestTTL
	case isMedia:
		return c.SegmentTTL
	}
	return 0
}

// Handler asks the origin, or whatever comes next. It may be called in another
// goroutine than that of the viewer's request, and outlive it.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Result is what the cache did for a request.
type Result int

// The results. Their texts are those of metrics.
const (
	Hit         Result = iota // from memory
	DiskHit                   // from the disk
	Miss                      // asked the origin
	Collapsed                 // waited with others for the origin
	Stale                     // from memory, older than it should be
	Revalidated               // from memory, after the origin has confirmed it
	Bypass                    // asked the origin, for this viewer alone
)

var resultTexts = [...]struct{ name, status string }{
	Hit:         {"hit", "signed-playback; hit"},
	DiskHit:     {"hit", "signed-playback; hit; detail=disk"},
	Miss:        {"miss", "signed-playback; fwd=uri-miss"},
	Collapsed:   {"collapsed", "signed-playback; fwd=uri-miss; collapsed"},
	Stale:       {"stale", "signed-playback; hit; detail=stale"},
	Revalidated: {"revalidated", "signed-playback; fwd=stale; fwd-status=304"},
	Bypass:      {"bypass", "signed-playback; fwd=bypass"},
}

// Results lists all results. Some have the same text.
func Results() []Result { return []Result{Hit, DiskHit, Miss, Collapsed, Stale, Revalidated, Bypass} }

func (r Result) String() string { return resultTexts[r].name }

// addCacheStatus adds the cache's member to Cache-Status (RFC 9211).
func addCacheStatus(h http.Header, result Result) {
	h["Cache-Status"] = append(slices.Clip(h["Cache-Status"]), resultTexts[result].status)
}

// Usage returns how many objects the cache has, and how many bytes of its memory are in
// use.
func (c *Cache) Usage() (objects int, bytes int64) {
	c.index.mu.RLock()
	defer c.index.mu.RUnlock()
	return len(c.index.entries), c.memory.used.Load()
}

// Cache keeps responses in memory. It is safe for concurrent use.
type Cache struct {
	index  index
	memory memory
	now    func() time.Time

	// generations has the greatest of each group, if it is not 0. index.mu guards it.
	generations map[string]int64

	// unshared tells until when nobody waits for a response that may again be for one viewer
	// alone, by the hash of the key. index.mu guards it.
	unshared map[uint64]time.Time
}

// New returns an empty cache that takes at most so many bytes.
func New(bytes int64) *Cache {
	c := &Cache{now: time.Now, generations: map[string]int64{}, unshared: map[uint64]time.Time{}}
	c.index.entries = map[key]*entry{}
	c.memory.max = bytes
	c.memory.evict = func() bool { return c.index.evict(bytes) }
	return c
}

// Serve answers a request from memory, or with what next says. Its error is one of
// next.
func (c *Cache) Serve(w http.ResponseWriter, r *http.Request, config *Config, next Handler) (Result, error) {
	if !isCacheable(r) {
		return Bypass, c.bypass(w, r, config, next)
	}
	v := &visit{cache: c, config: config, w: w, r: r, next: next}
	return v.serve(keyOf(r, config))
}

// isCacheable reports whether the answer to a request can be for others too.
func isCacheable(r *http.Request) bool {
	_, ok := generationOf(r)
	return ok && (r.Method == http.MethodGet || r.Method == http.MethodHead) && len(r.Header["Authorization"]) == 0
}

// bypass forwards a request as it is. An unsafe one that succeeds may have changed the
// object (RFC 9111 section 4.4).
func (c *Cache) bypass(w http.ResponseWriter, r *http.Request, config *Config, next Handler) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return next(w, r)
	}
	k, seen := keyOf(r, config), &statusWriter{ResponseWriter: w}
	err := next(seen, r)
	if err == nil && seen.status < 400 {
		c.forget(config, k)
	}
	return err
}

// statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int // 0 means 200
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap implements what http.ResponseController looks for.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// find returns an object that may be used, with a reader of its body, or a fill that
// is under way. first reports whether this call has started it. Without an object and a
// fill, the viewer asks the origin alone.
func (c *Cache) find(v *visit, k key, old *object) (o *object, f *fill, rd *reader, first bool) {
	now := c.now()
	c.index.mu.RLock()
	if e := c.index.entries[k]; e != nil && e.object != nil && e.object.isFresh(now) {
		o, rd = e.object, e.object.body.read()
		e.hit()
		c.index.mu.RUnlock()
		return o, nil, rd, false
	}
	c.index.mu.RUnlock()

	c.index.mu.Lock()
	defer c.index.mu.Unlock()
	k.Generation = c.present(v.config, k.Variant)
	e := c.index.entries[k]
	if e == nil {
		e = &entry{key: k.clone()}
		c.index.entries[e.key] = e
	}
	if e.object != nil && e.object.isFresh(now) {
		return e.object, nil, e.object.body.read(), false
	}
	if e.object != nil && e.object.canBeStale(now, e.object.freshness.staleWhileRevalidate) {
		if e.fill == nil {
			f, rd := c.start(v, e, e.object)
			rd.close()
			time.AfterFunc(refreshWithin, func() { c.abandon(f) })
		}
		return e.object, nil, e.object.body.read(), false
	}
	if c.isUnshared(k, now) && (!v.needsAll() || e.fill != nil && !isClosed(e.fill.ready)) {
		c.index.forget(e)
		return nil, nil, nil, false
	}
	if e.fill != nil && e.fill.isJoinable(now) {
		if rd := e.fill.body.join(); rd != nil {
			e.hit()
			return nil, e.fill, rd, false
		}
	}
	if old == nil {
		old = e.object
	}
	f, rd = c.start(v, e, old)
	return nil, f, rd, true
}

const (
	unsharedFor = 3 * time.Second
	maxUnshared = 4096 // because strangers can ask for any number of names
)

// markUnshared has others ask the origin for a key without waiting for each other, because a
// response was for one viewer alone. One request at a time finds out whether that has changed.
func (c *Cache) markUnshared(k key) {
	c.index.mu.Lock()
	defer c.index.mu.Unlock()
	if len(c.unshared) >= maxUnshared {
		clear(c.unshared)
	}
	c.unshared[maphash.Comparable(keySeed, k)] = c.now().Add(unsharedFor)
}

// isUnshared reports whether a key is marked. The caller has locked the index.
func (c *Cache) isUnshared(k key, now time.Time) bool {
	return len(c.unshared) > 0 && now.Before(c.unshared[maphash.Comparable(keySeed, k)])
}

// start starts a fill. The caller has locked the index.
func (c *Cache) start(v *visit, e *entry, old *object) (f *fill, rd *reader) {
	f = &fill{
		cache: c, config: v.config, entry: e, old: old, asked: c.now(), body: newBody(&c.memory, old),
		header: http.Header{}, expected: -1, ready: make(chan struct{}), ended: make(chan struct{}),
	}
	f.ctx, f.cancel = v.config.originContext(v.r)
	e.fill = f
	rd = f.body.read() // before any byte comes: a windowed body without readers ends
	go f.run(v.next, originRequest(f.ctx, v.r, e.key, old))
	return f, rd
}

// ended puts the object of a fill into the index.
func (c *Cache) ended(f *fill, complete bool) {
	c.index.mu.Lock()
	e := f.entry
	current := c.index.entries[e.key] == e && e.fill == f
	if e.fill == f {
		e.fill = nil
	}
	var kept *object
	switch {
	case current && complete && f.object.keep:
		whole := *f.object
		whole.length = f.body.state().length
		kept = &whole
		c.replace(e, kept)
	case current && f.outcome == confirmed && !f.object.keep:
		c.index.drop(e)
	case current && f.outcome == confirmed && f.object != e.object:
		c.replace(e, f.object)
	case current && f.outcome == shared && f.object.sliced:
		kept = f.object
		c.replace(e, kept)
	case current && f.renewed && (f.outcome != shared || !f.object.keep):
		c.index.drop(e) // what the origin has taken back is not used if it fails later
	}
	c.index.forget(e)
	if current {
		f.toDisk(kept) // before another fill looks there
	}
	c.index.mu.Unlock()
	f.body.drop()
}

// abandon ends a fill that has no viewers any more.
func (c *Cache) abandon(f *fill) {
	c.index.mu.Lock()
	defer c.index.mu.Unlock()
	if f.body.hasReaders() {
		return // one has just come
	}
	if f.entry.fill == f {
		f.entry.fill = nil
	}
	f.cancel()
}

// replace gives an entry another object. The caller has locked the index.
func (c *Cache) replace(e *entry, o *object) {
	o.body.use()
	if e.object != nil {
		e.leave()
		e.object.body.drop()
	}
	e.object = o
	c.index.keep(e, c.memory.max)
}
