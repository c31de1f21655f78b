package verification

import (
	"strings"

	"github.com/maypok86/otter/v2"
)

// Cache remembers verified tokens by all of their bytes, so no other string
// finds an entry. An entry is a function of those bytes and the key; dates,
// settings, addresses and origins are not in it. It is safe for concurrent use.
type Cache struct {
	entries *otter.Cache[string, *Token]
}

// NewCache returns a cache that takes this many bytes at most.
func NewCache(size uint64) *Cache {
	return &Cache{otter.Must(&otter.Options[string, *Token]{
		MaximumWeight: size,
		// Waking a goroutine for each new token would cost more than its work.
		Executor: func(work func()) { work() },
		Weigher:  weighToken,
	})}
}

// Entries returns how many tokens the cache remembers, about.
func (c *Cache) Entries() int { return c.entries.EstimatedSize() }

// Bytes returns the memory that they take, about.
func (c *Cache) Bytes() uint64 { return c.entries.WeightedSize() }

// Clear forgets all tokens.
func (c *Cache) Clear() { c.entries.InvalidateAll() }

// get returns the entry of a token, nil without one.
func (c *Cache) get(compact string) *Token {
	t, _ := c.entries.GetIfPresent(compact)
	return t
}

func (c *Cache) put(compact string, t *Token) {
	// A clone, because compact is a part of the path, which must not be kept.
	c.entries.Set(strings.Clone(compact), t)
}

// weighToken estimates the memory that a token takes in the cache, in bytes.
func weighToken(compact string, t *Token) uint32 {
	const entry, text = 544, 16
	weight := entry + len(compact) + len(t.issuer) + len(t.ID) + len(t.Viewer) + len(t.SessionViewer) + t.Rules.Weight()
	for _, audience := range t.audience {
		weight += text + len(audience)
	}
	return uint32(weight)
}
