// SPDX-License-Identifier: Apache-2.0

package names

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestCache(t *testing.T) {
	c, now := newCache(), time.Now()
	key := func(name string) cacheKey { return cacheKey{1, upstream, question{name, dns.TypeA}} }
	c.put(key("a"), &answer{expires: now.Add(time.Second)}, now)
	c.put(key("gone"), &answer{expires: now}, now)
	for _, tt := range []struct {
		name string
		at   time.Duration
		want bool
	}{{"a", 0, true}, {"a", time.Second - 1, true}, {"b", 0, false}, {"gone", 0, false}, {"a", time.Second, false}, {"a", 0, false}} {
		if got := c.get(key(tt.name), now.Add(tt.at)); (got != nil) != tt.want {
			t.Errorf("%s after %v: %v, want %v", tt.name, tt.at, got != nil, tt.want)
		}
	}
	if c.bytes != 0 || c.lru.Len() != 0 {
		t.Errorf("%d bytes in %d answers are left", c.bytes, c.lru.Len())
	}
}

func TestCacheIsBounded(t *testing.T) {
	c, now := newCache(), time.Now()
	large := &answer{all: section{wire: make([]byte, maxMessage)}, expires: now.Add(time.Hour)}
	for i := range 1000 {
		c.put(cacheKey{1, upstream, question{fmt.Sprint(i), dns.TypeA}}, large, now)
		c.put(cacheKey{1, upstream, question{fmt.Sprint(i), dns.TypeA}}, large, now)
	}
	if want := c.lru.Len() * large.cost(); c.bytes > cacheBytes || c.bytes != want || c.lru.Len() < 200 {
		t.Errorf("%d bytes in %d answers, want %d and at most %d", c.bytes, c.lru.Len(), want, cacheBytes)
	}
	if c.get(cacheKey{1, upstream, question{"999", dns.TypeA}}, now) == nil {
		t.Error("the latest answer is gone")
	}
	small := &answer{expires: now.Add(time.Hour)}
	for i := range cacheEntries + 100 {
		c.put(cacheKey{2, upstream, question{fmt.Sprint(i), dns.TypeA}}, small, now)
	}
	if c.lru.Len() != cacheEntries || c.bytes != cacheEntries*small.cost() {
		t.Errorf("%d bytes in %d answers", c.bytes, c.lru.Len())
	}
	c.drop(2)
	if c.lru.Len() != 0 || c.bytes != 0 {
		t.Errorf("%d bytes in %d answers are left", c.bytes, c.lru.Len())
	}
}
