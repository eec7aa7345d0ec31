// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"agentguard.dev/agentguard/client"
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
	path   string // by which it was found; the process there may be gone
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
		ns = &namespace{handle: handle, path: path}
		n.inUse[id] = ns
		n.byCookie[handle.Cookie()] = id
	}
	ns.users++
	return true
}

// discover finds the namespaces of processes and keeps them for the task, with
// stations in them if it has names.
func (e *Engine) discover(t *task, pids ...int) {
	for _, pid := range pids {
		for id, path := range netns.OfThreads(pid) {
			t.keep(e.spaces, id, path)
		}
	}
	problem := ""
	if err := e.station(t); err != nil {
		problem = fmt.Sprintf("names cannot be looked up for task %s: %v", t.id, err)
	}
	e.problems.set("names of "+t.id, problem)
	t.mu.Lock()
	crowded := t.crowded && t.state != client.TaskEnded
	t.mu.Unlock()
	if crowded {
		e.problems.set("namespaces of "+t.id, fmt.Sprintf(
			"task %s is in more than %d network namespaces: in the others names cannot be looked up, and denied sockets are not destroyed", t.id, maxNamespaces))
	}
}

// discoverAll does the same for every process of the task. A cgroup that is
// gone has none.
func (e *Engine) discoverAll(t *task) {
	dir, err := t.open()
	if err != nil {
		return
	}
	defer dir.Close()
	if pids, err := dir.Procs(); err == nil {
		e.discover(t, pids...)
	}
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

// take returns the handle of a namespace that is in use, or of the own one, for
// one more user, who releases it.
func (n *namespaces) take(id netns.ID) (handle *netns.Handle, ok bool) {
	if id == n.home.ID() {
		return n.home, true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.inUse[id]
	if ns == nil {
		return nil, false
	}
	ns.users++
	return ns.handle, true
}

// withCookie does the same for a namespace that the kernel names by its cookie.
func (n *namespaces) withCookie(cookie uint64) (handle *netns.Handle, ok bool) {
	n.mu.Lock()
	id, ok := n.byCookie[cookie]
	n.mu.Unlock()
	if !ok {
		return nil, false
	}
	return n.take(id)
}

// origin is the directory in /proc of the process by which a namespace in use
// was found.
func (n *namespaces) origin(id netns.ID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.inUse[id]
	if ns == nil {
		return ""
	}
	rest, isProc := strings.CutPrefix(ns.path, "/proc/")
	pid, _, _ := strings.Cut(rest, "/")
	if !isProc {
		return ""
	}
	return "/proc/" + pid
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
