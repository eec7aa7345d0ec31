// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"agentguard.dev/agentguard/client"
	"golang.org/x/sys/unix"
)

// merge reads all logs of a directory together. Its files stay open, so that
// their inode numbers stay theirs and a rotated file is known again.
type merge struct {
	dir     string
	sources map[inode]*source
}

type inode struct{ dev, ino uint64 }

func inodeOf(st unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

func openMerge(dir string) (*merge, error) {
	m := &merge{dir: dir, sources: map[inode]*source{}}
	if err := m.refresh(); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// refresh takes up new files and new names of known ones. A rotation meanwhile
// can hide a file from the listing, so it looks until two listings agree.
func (m *merge) refresh() error {
	files, err := listFiles(m.dir)
	for err == nil {
		for _, file := range files {
			if err := m.take(file); err != nil && !missing(err) {
				return err
			}
		}
		before := files
		if files, err = listFiles(m.dir); slices.Equal(before, files) {
			return err
		}
	}
	return err
}

// deleted returns the files that no directory holds any more.
func (m *merge) deleted() []inode {
	var gone []inode
	for id, s := range m.sources {
		if st, err := stat(s.f); err == nil && st.Nlink == 0 {
			gone = append(gone, id)
		}
	}
	return gone
}

// take opens a file unless it is open already, perhaps under another name.
func (m *merge) take(file logFile) error {
	var st unix.Stat_t
	if err := unix.Lstat(file.path, &st); err != nil {
		return fmt.Errorf("stat audit log %s: %w", file.path, err)
	}
	if known, ok := m.sources[inodeOf(st)]; ok {
		known.logFile = file
		return nil
	}
	s, err := openSource(file)
	if err != nil {
		return err
	}
	if st, err = stat(s.f); err != nil {
		s.close()
		return err
	}
	if known, ok := m.sources[inodeOf(st)]; ok { // renamed between the two looks
		s.close()
		known.logFile = file
		return nil
	}
	m.sources[inodeOf(st)] = s
	return nil
}

// drain calls fn with every record that is there and was not read yet, by time;
// records of one log keep their order.
func (m *merge) drain(fn func(client.Record) error) error {
	var queue chainHeap
	for _, c := range m.chains() {
		if err := queue.add(c); err != nil {
			return err
		}
	}
	for len(queue) > 0 {
		c := heap.Pop(&queue).(*chain)
		if err := fn(c.head); err != nil {
			return err
		}
		if err := queue.add(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *merge) finish(q Query) {
	for _, c := range m.chains() {
		for _, s := range c.all {
			s.finish(q)
		}
	}
}

func (m *merge) close() {
	for _, s := range m.sources {
		s.close()
	}
}

// chains groups the files by log, from old to new.
func (m *merge) chains() []*chain {
	sources := slices.SortedFunc(maps.Values(m.sources), func(a, b *source) int {
		return compareFiles(a.logFile, b.logFile)
	})
	var chains []*chain
	for _, s := range sources {
		if n := len(chains); n == 0 || chains[n-1].name != s.name {
			chains = append(chains, &chain{name: s.name})
		}
		c := chains[len(chains)-1]
		c.all = append(c.all, s)
	}
	for _, c := range chains {
		c.left = c.all
	}
	return chains
}

// chain is the files of one log and the next record in them.
type chain struct {
	name string
	all  []*source
	left []*source
	head client.Record
}

// advance reads the next record into head, or returns io.EOF.
func (c *chain) advance() error {
	for len(c.left) > 0 {
		r, err := c.left[0].next()
		if err == nil {
			c.head = r
			return nil
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		c.left = c.left[1:]
	}
	return io.EOF
}

// chainHeap has the chain with the oldest head first.
type chainHeap []*chain

func (h *chainHeap) add(c *chain) error {
	err := c.advance()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		heap.Push(h, c)
	}
	return err
}

func (h chainHeap) Len() int { return len(h) }
func (h chainHeap) Less(i, j int) bool {
	return cmp.Or(h[i].head.Time.Compare(h[j].head.Time), cmp.Compare(h[i].name, h[j].name)) < 0
}
func (h chainHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *chainHeap) Push(x any)   { *h = append(*h, x.(*chain)) }
func (h *chainHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
