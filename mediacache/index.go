package mediacache

import (
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

// index finds entries by their keys, and decides which objects to drop.
type index struct {
	mu      sync.RWMutex
	entries map[key]*entry

	kept     s3fifo[key]
	negative fifo
}

// entry has the object and the fill of a key. index.mu guards its fields.
type entry struct {
	key    key
	object *object // complete, or filled right now by a fill whose headers are known; nil before
	fill   *fill   // in progress; nil if none
	place
}

func (e *entry) id() key { return e.key }

// negativePart is the part of the memory for answers that say that there is nothing, because
// strangers can ask for any number of names.
const negativePart = 100

// keep puts the object of a fill that has ended into a queue. The caller has locked
// the index.
func (x *index) keep(e *entry, max int64) {
	e.size = e.object.size()
	if !isNegative(e.object.status) {
		x.kept.add(e)
		return
	}
	x.negative.push(e)
	for x.negative.size > max/negativePart && x.negative.Len() > 1 {
		x.drop(x.negative.Front().Value.(*entry))
	}
}

// evict drops an object, and reports whether there was one. An object that a viewer
// reads right now is passed over: dropping it would free no memory yet, so slow viewers
// could empty the cache.
func (x *index) evict(max int64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	victim := x.kept.victim(max, func(e queued[key]) bool { return e.(*entry).object.body.hasReaders() })
	if victim == nil && x.negative.Len() > 0 {
		victim = x.negative.Front().Value.(*entry)
	}
	if victim == nil {
		return false
	}
	x.drop(victim.(*entry))
	return true
}

// drop forgets the object of an entry.
func (x *index) drop(e *entry) {
	if e.in != nil {
		e.leave()
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
