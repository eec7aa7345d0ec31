// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"log/slog"
	"sync"

	"agentguard.dev/agentguard/internal/localaddr"
	"agentguard.dev/agentguard/internal/netns"
)

// namespaces are the network namespaces in which tasks have, or may have,
// sockets. Each is held open while a task uses it, because a socket outlives
// the process through which its namespace could be found again.
type namespaces struct {
	home    *netns.Handle // the engine's own
	watcher *localaddr.Watcher
	log     *slog.Logger

	mu       sync.Mutex
	inUse    map[netns.ID]*namespace
	byCookie map[uint64]netns.ID
}

type namespace struct {
	handle *netns.Handle
	users  int
}

func openNamespaces(watcher *localaddr.Watcher, log *slog.Logger) (*namespaces, error) {
	home, err := netns.Current()
	if err != nil {
		return nil, err
	}
	n := &namespaces{
		home: home, watcher: watcher, log: log,
		inUse:    make(map[netns.ID]*namespace),
		byCookie: map[uint64]netns.ID{home.Cookie(): home.ID()},
	}
	if err := watcher.Add(home); err != nil {
		return nil, errors.Join(err, home.Close())
	}
	return n, nil
}

func (n *namespaces) close() error {
	n.watcher.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	errs := []error{n.home.Close()}
	for _, ns := range n.inUse {
		errs = append(errs, ns.handle.Close())
	}
	clear(n.inUse)
	return errors.Join(errs...)
}

// known says whether a namespace with that cookie is held open.
func (n *namespaces) known(cookie uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.byCookie[cookie]
	return ok
}

// use holds the namespace behind path for one more user. It says false for one
// that needs no holding, or that is gone.
func (n *namespaces) use(id netns.ID, path string) bool {
	if id == n.home.ID() {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.inUse[id]
	if ns == nil {
		handle, err := netns.Open(path)
		if err != nil {
			return false // its last process is gone
		}
		if handle.ID() != id {
			handle.Close()
			return false // the process moved on
		}
		if err := n.watcher.Add(handle); err != nil {
			n.log.Warn("addresses of a network namespace stay unknown: its own count as remote", "err", err)
		}
		ns = &namespace{handle: handle}
		n.inUse[id] = ns
		n.byCookie[handle.Cookie()] = id
	}
	ns.users++
	return true
}

// release takes one user away and lets go of a namespace without users.
func (n *namespaces) release(id netns.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.inUse[id]
	if ns == nil {
		return
	}
	ns.users--
	if ns.users > 0 {
		return
	}
	delete(n.inUse, id)
	delete(n.byCookie, ns.handle.Cookie())
	if err := errors.Join(n.watcher.Remove(id), ns.handle.Close()); err != nil {
		n.log.Warn("let go of a network namespace", "err", err)
	}
}

// hold returns the handles of the own namespace and of those named that are in
// use, for as long as release is not called.
func (n *namespaces) hold(ids []netns.ID) (handles []*netns.Handle, release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	handles = []*netns.Handle{n.home}
	held := make(map[netns.ID]bool)
	for _, id := range ids {
		if ns := n.inUse[id]; ns != nil && !held[id] {
			held[id] = true
			ns.users++
			handles = append(handles, ns.handle)
		}
	}
	return handles, func() {
		for id := range held {
			n.release(id)
		}
	}
}
