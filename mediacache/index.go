package mediacache

import (
	"container/list"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
)

// memory is a budget in bytes. When it is used up, reserve has the index drop
// objects. It is safe for concurrent use.
type memory struct {
	max   int64
	used  atomic.Int64
	evict func() bool // drops an object; false if there is none
}

// reserve takes n bytes of the budget, and reports whether there was room.
func (m *memory) reserve(n int64) bool {
	for {
		used := m.used.Load()
		switch {
		case n > m.max:
			return false
		case used+n <= m.max:
			if m.used.CompareAndSwap(used, used+n) {
				return true
			}
		case !m.evict():
			return false
		}
	}
}

func (m *memory) release(n int64) { m.used.Add(-n) }

// index finds entries by their keys, and decides which objects to drop by S3-FIFO
// (Yang et al., SOSP 2023): a new object waits in a small queue, and moves to the main
// queue if it is requested there. So names that are requested only once, a scan of old
// titles or invented ones, push out each other and not what is watched. A library with
// an admission filter would do that too, but by refusing new objects, and the newest
// segment of a live stream is always new.
type index struct {
	mu      sync.RWMutex
	entries map[key]*entry

	small, main, negative fifo
	ghosts                ghosts[key]
}

// entry has the object and the fill of a key. index.mu guards its fields.
type entry struct {
	key     key
	object  *object // complete, or filled right now by a fill whose headers are known; nil before
	fill    *fill   // in progress; nil if none
	element *list.Element
	in      *fifo

	hits atomic.Uint32 // since the entry was last looked at by its queue, at most maxHits
}

const maxHits = 3

// fifo is a queue of entries with objects, the newest at the back.
type fifo struct {
	list.List
	size int64
}

func (q *fifo) push(e *entry) {
	e.in, e.element = q, q.PushBack(e)
	q.size += e.object.size()
}

func (q *fifo) remove(e *entry) {
	q.Remove(e.element)
	q.size -= e.object.size()
	e.in, e.element = nil, nil
}

// Parts of the memory: the small queue gets a tenth, as in the paper, and answers that
// say that there is nothing get a hundredth, because strangers can ask for any number of
// names.
const (
	smallPart    = 10
	negativePart = 100
)

// keep puts the object of a fill that has ended into a queue. The caller has locked
// the index.
func (x *index) keep(e *entry, max int64) {
	switch {
	case isNegative(e.object.status):
		x.negative.push(e)
		for x.negative.size > max/negativePart && x.negative.Len() > 1 {
			x.drop(x.negative.Front().Value.(*entry))
		}
	case x.ghosts.take(e.key):
		x.main.push(e)
	default:
		x.small.push(e)
	}
}

// evict drops an object, and reports whether there was one. An object that a viewer
// reads right now is passed over: dropping it would free no memory yet, so slow viewers
// could empty the cache.
func (x *index) evict(max int64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for range (maxHits + 2) * (x.small.Len() + x.main.Len()) {
		if x.small.Len() > 0 && (x.small.size > max/smallPart || x.main.Len() == 0) {
			e := x.small.Front().Value.(*entry)
			if e.hits.Swap(0) == 0 && !e.object.body.hasReaders() {
				x.ghosts.add(e.key, x.main.Len())
				x.drop(e)
				return true
			}
			x.small.remove(e)
			x.main.push(e)
			continue
		}
		e := x.main.Front().Value.(*entry)
		if hits := e.hits.Load(); hits > 0 {
			e.hits.CompareAndSwap(hits, hits-1)
		} else if !e.object.body.hasReaders() {
			x.drop(e)
			return true
		}
		x.main.MoveToBack(e.element)
	}
	if x.negative.Len() > 0 {
		x.drop(x.negative.Front().Value.(*entry))
		return true
	}
	return false
}

// drop forgets the object of an entry.
func (x *index) drop(e *entry) {
	if e.in != nil {
		e.in.remove(e)
	}
	if e.object != nil {
		e.object.body.drop()
		e.object = nil
	}
	x.forget(e)
}

// forget removes an entry that has neither an object nor a fill.
func (x *index) forget(e *entry) {
	if e.object == nil && e.fill == nil && x.entries[e.key] == e {
		delete(x.entries, e.key)
	}
}

// hit counts a request for an object.
func (e *entry) hit() {
	if hits := e.hits.Load(); hits < maxHits {
		e.hits.CompareAndSwap(hits, hits+1)
	}
}

// ghosts remembers which keys were dropped from the small queue lately, as many as the
// main queue has objects.
type ghosts[K comparable] struct {
	hashes map[uint64]struct{}
	order  []uint64
}

var keySeed = maphash.MakeSeed()

const minGhosts = 1024

func (g *ghosts[K]) add(k K, atMost int) {
	if g.hashes == nil {
		g.hashes = map[uint64]struct{}{}
	}
	hash := maphash.Comparable(keySeed, k)
	g.hashes[hash] = struct{}{}
	g.order = append(g.order, hash)
	for len(g.order) > max(atMost, minGhosts) {
		delete(g.hashes, g.order[0])
		g.order = g.order[1:]
	}
}

func (g *ghosts[K]) take(k K) bool {
	hash := maphash.Comparable(keySeed, k)
	_, found := g.hashes[hash]
	delete(g.hashes, hash)
	return found
}

// forget drops the object under a key, on the disk too. A response that still arrives is
// not kept.
func (c *Cache) forget(config *Config, k key) {
	c.index.mu.Lock()
	defer c.index.mu.Unlock()
	k.Generation = c.present(config, k.Variant)
	if e := c.index.entries[k]; e != nil {
		e.fill = nil // its viewers get the response, and nobody else
		c.index.drop(e)
	}
	config.Disk.forgetObject(config.Site, k)
}

// present returns the greatest generation of a group so far. If that is a new one, present
// drops the objects of those before, and what still arrives of them is not kept. The caller
// has locked the index.
func (c *Cache) present(config *Config, v Variant) int64 {
	if v.Group == "" {
		return v.Generation
	}
	known := c.generations[v.Group]
	if v.Generation <= known {
		return known
	}
	c.generations[strings.Clone(v.Group)] = v.Generation
	config.Disk.purge(v.Group, v.Generation)
	for k, e := range c.index.entries {
		if k.Group == v.Group && k.Generation < v.Generation {
			e.fill = nil
			c.index.drop(e)
		}
	}
	return v.Generation
}
