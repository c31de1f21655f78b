package mediacache

import (
	"container/list"
	"hash/maphash"
	"sync/atomic"
)

// s3fifo decides which of the items in memory or on the disk to drop (S3-FIFO, Yang et al.,
// SOSP 2023): a new item waits in a small queue, and moves to the main queue if it is
// requested there. So names that are requested only once, a scan of old titles or invented
// ones, push out each other and not what is watched. A library with an admission filter would
// do that too, but by refusing new objects, and the newest segment of a live stream is always
// new.
type s3fifo[K comparable] struct {
	small, main fifo
	ghosts      ghosts[K]
}

// queued is an item, whose id the ghosts remember.
type queued[K comparable] interface {
	id() K
	at() *place
}

// place is the place of an item in its queue. Items embed it.
type place struct {
	element *list.Element
	in      *fifo
	size    int64
	hits    atomic.Uint32 // since its queue last looked at the item, at most maxHits
}

const (
	maxHits   = 3
	smallPart = 10 // of the capacity, as in the paper
)

func (p *place) at() *place { return p }

// hit counts a request for an item.
func (p *place) hit() {
	if hits := p.hits.Load(); hits < maxHits {
		p.hits.CompareAndSwap(hits, hits+1)
	}
}

// leave takes the item out of its queue.
func (p *place) leave() {
	p.in.Remove(p.element)
	p.in.size -= p.size
	p.in, p.element = nil, nil
}

// fifo is a queue of items, the newest at the back.
type fifo struct {
	list.List
	size int64
}

func (q *fifo) push(item interface{ at() *place }) {
	p := item.at()
	p.in, p.element = q, q.PushBack(item)
	q.size += p.size
}

// add puts an item that is in no queue into one.
func (s *s3fifo[K]) add(item queued[K]) {
	if s.ghosts.take(item.id()) {
		s.main.push(item)
	} else {
		s.small.push(item)
	}
}

// victim returns the item to drop next, and leaves it in its queue. It passes over items that
// are busy. It is nil if there is no other.
func (s *s3fifo[K]) victim(capacity int64, busy func(queued[K]) bool) queued[K] {
	for range (maxHits + 2) * (s.small.Len() + s.main.Len()) {
		if s.small.Len() > 0 && (s.small.size > capacity/smallPart || s.main.Len() == 0) {
			item := s.small.Front().Value.(queued[K])
			if item.at().hits.Swap(0) == 0 && !busy(item) {
				s.ghosts.add(item.id(), s.main.Len())
				return item
			}
			item.at().leave()
			s.main.push(item)
			continue
		}
		item := s.main.Front().Value.(queued[K])
		if hits := item.at().hits.Load(); hits > 0 {
			item.at().hits.CompareAndSwap(hits, hits-1)
		} else if !busy(item) {
			return item
		}
		s.main.MoveToBack(item.at().element)
	}
	return nil
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
