// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/maps"
	"agentguard.dev/agentguard/internal/names"
	"agentguard.dev/agentguard/internal/netns"
	"agentguard.dev/agentguard/internal/relay"
)

// stations are where the DNS and the plain HTTP of tasks with names go: a
// resolver and a relay in each network namespace in which such a task has, or
// may have, processes. Tasks without names cost nothing here.
type stations struct {
	names  *names.Server
	relay  *relay.Server
	kernel *maps.Stations
	spaces *namespaces
	log    *slog.Logger

	mu   sync.Mutex
	open map[netns.ID]*station

	// upstreams are those of each, by cookie. Whoever answers a question reads it,
	// and closing a station waits for that with mu held.
	trusting  sync.RWMutex
	upstreams map[uint64]names.Upstream
}

type station struct {
	ns    *netns.Handle
	ports maps.Station
	users map[uint32]struct{} // numbers of tasks
}

// use opens the station of a namespace for a task, if that has not been done.
// upstreamOf is asked who answers there when it is new.
func (s *stations) use(number uint32, id netns.ID, upstreamOf func(*netns.Handle) names.Upstream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.open[id]
	if st == nil {
		ns, ok := s.spaces.take(id)
		if !ok {
			return nil // its last process is gone
		}
		st = &station{ns: ns, users: make(map[uint32]struct{})}
		if err := s.listen(st, upstreamOf(ns)); err != nil {
			s.spaces.release(id)
			return err
		}
		s.open[id] = st
	}
	st.users[number] = struct{}{}
	return nil
}

// listen makes st work, or leaves nothing behind.
func (s *stations) listen(st *station, upstream names.Upstream) (err error) {
	if st.ports.DNS, err = s.names.Listen(st.ns, upstream); err != nil {
		return fmt.Errorf("answer DNS for tasks: %w", err)
	}
	if st.ports.HTTP, err = s.relay.Listen(st.ns); err != nil {
		s.names.Leave(st.ns.ID())
		return fmt.Errorf("relay plain HTTP for tasks: %w", err)
	}
	if err := s.kernel.Put(st.ns.Cookie(), st.ports); err != nil {
		s.names.Leave(st.ns.ID())
		s.relay.Leave(st.ns.ID())
		return err
	}
	s.trust(st.ns.Cookie(), upstream)
	return nil
}

// leave lets go of the stations that only this task used. That of the engine's
// own namespace stays, as the namespace does: the next task finds it open.
func (s *stations) leave(number uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, st := range s.open {
		if _, uses := st.users[number]; !uses {
			continue
		}
		delete(st.users, number)
		if len(st.users) == 0 && id != s.spaces.home.ID() {
			s.shut(id, st)
		}
	}
}

// shut is called with mu held. The kernel forgets the station first, so that
// what comes now is refused rather than lost.
func (s *stations) shut(id netns.ID, st *station) {
	if err := s.kernel.Delete(st.ns.Cookie()); err != nil {
		s.log.Error("close the station of a network namespace", "err", err)
	}
	s.names.Leave(id)
	s.relay.Leave(id)
	s.trust(st.ns.Cookie(), names.Upstream{})
	s.spaces.release(id)
	delete(s.open, id)
}

func (s *stations) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, st := range s.open {
		s.shut(id, st)
	}
	s.names.Close()
	s.relay.Close()
}

// trust sets who answers in a namespace; the zero upstream forgets it.
func (s *stations) trust(cookie uint64, upstream names.Upstream) {
	s.trusting.Lock()
	defer s.trusting.Unlock()
	if upstream.From == nil {
		delete(s.upstreams, cookie)
		return
	}
	s.upstreams[cookie] = upstream
}

func (s *stations) upstream(cookie uint64) names.Upstream {
	s.trusting.RLock()
	defer s.trusting.RUnlock()
	return s.upstreams[cookie]
}

// trusts says whether a resolver is one of those that answer in the namespace.
func (s *stations) trusts(cookie uint64, resolver netip.AddrPort) bool {
	return slices.Contains(s.upstream(cookie).Resolvers, resolver)
}

// retrust changes the resolvers that are asked from a namespace.
func (s *stations) retrust(from *netns.Handle, resolvers []netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.open {
		upstream := s.upstream(st.ns.Cookie())
		if upstream.From != from || slices.Equal(upstream.Resolvers, resolvers) {
			continue
		}
		upstream.Resolvers = resolvers
		if _, err := s.names.Listen(st.ns, upstream); err != nil {
			return err
		}
		s.trust(st.ns.Cookie(), upstream)
	}
	return nil
}

func (s *stations) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// forget removes what an engine before this one has left in the kernel.
func (s *stations) forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make(map[uint64]bool)
	for _, st := range s.open {
		known[st.ns.Cookie()] = true
	}
	all, err := s.kernel.All()
	for cookie := range all {
		if !known[cookie] {
			err = errors.Join(err, s.kernel.Delete(cookie))
		}
	}
	return err
}

// openStations makes the resolver and the relay, without a station.
func (e *Engine) openStations() error {
	config := e.cfg.DNS
	config.Log = e.log
	resolver, err := names.New(config, resolverSide{e})
	if err != nil {
		return fmt.Errorf("dns settings: %w", err)
	}
	e.stations = &stations{
		names: resolver, relay: relay.New(relay.Config{Log: e.log}, relaySide{e}), kernel: e.maps.Stations, spaces: e.spaces, log: e.log,
		open: make(map[netns.ID]*station), upstreams: make(map[uint64]names.Upstream),
	}
	return nil
}

// station opens the stations that a task needs if it has names.
func (e *Engine) station(t *task) error {
	if !t.hasNames() {
		return nil
	}
	return e.stationFor(t)
}

// stationFor does so for one that is about to have names: in the engine's own
// namespace, and where its processes were seen.
func (e *Engine) stationFor(t *task) error {
	var errs []error
	for _, id := range append(t.spaces(), e.spaces.home.ID()) {
		errs = append(errs, e.stations.use(t.number, id, func(ns *netns.Handle) names.Upstream { return e.upstreamOf(t, ns) }))
	}
	return errors.Join(errs...)
}

// hasNames says whether rules or grants of t have names.
func (t *task) hasNames() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kernel.Names && t.state != client.TaskEnded
}

// followResolvers takes up a change of the engine's own resolv.conf, everywhere
// where it counts.
func (e *Engine) followResolvers() {
	if len(e.cfg.Resolvers) > 0 || e.stations.count() == 0 {
		return
	}
	found, err := readResolvers("/")
	if err != nil {
		return // just being replaced, or gone: the last ones stand
	}
	if err := e.stations.retrust(e.spaces.home, found); err != nil {
		e.log.Error("take up a change of resolv.conf", "err", err)
	}
}
