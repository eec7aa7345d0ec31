// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// The bounds of the cache, over all namespaces.
const (
	cacheEntries = 1 << 15
	cacheBytes   = 32 << 20
)

// cacheKey says who was to be asked, and what. Another may have given the answer.
type cacheKey struct {
	netns    uint64 // from which it was to be asked
	resolver netip.AddrPort
	question
}

// cache keeps answers until they expire, or until others need the room. It is safe for concurrent use.
type cache struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[cacheKey, *answer]
	bytes int
}

func newCache() *cache {
	c := &cache{}
	// Only a size that is not positive is an error.
	c.lru, _ = simplelru.NewLRU(cacheEntries, func(_ cacheKey, a *answer) { c.bytes -= a.cost() })
	return c
}

// cost is roughly what an answer takes in memory.
func (a *answer) cost() int { return 512 + 2*len(a.all.wire) + 128*len(a.all.records) }

// get returns an answer that holds at the time now, or nil.
func (c *cache) get(key cacheKey, now time.Time) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.lru.Get(key)
	if !ok {
		return nil
	}
	if !now.Before(a.expires) {
		c.lru.Remove(key)
		return nil
	}
	return a
}

// put keeps an answer that holds at the time now.
func (c *cache) put(key cacheKey, a *answer, now time.Time) {
	if !now.Before(a.expires) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(key)
	c.lru.Add(key, a)
	c.bytes += a.cost()
	for c.bytes > cacheBytes {
		c.lru.RemoveOldest()
	}
}

// drop removes the answers of a namespace.
func (c *cache) drop(netns uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range c.lru.Keys() {
		if key.netns == netns {
			c.lru.Remove(key)
		}
	}
}
