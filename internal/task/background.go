// SPDX-License-Identifier: Apache-2.0

package task

import "sync"

// background runs what nobody waits for, until it is closed.
type background struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Go runs fn beside the caller; after close it does nothing.
func (b *background) Go(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.wg.Go(fn)
	}
}

// close waits for what runs and lets nothing further begin.
func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}
