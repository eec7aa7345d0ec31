// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"agentguard.dev/agentguard/internal/netns"
)

// Server relays in every namespace that it has a station in.
type Server struct {
	config    Config
	authority Authority
	http      http.Server // of all stations

	mu       sync.Mutex
	closed   bool
	stations map[netns.ID]*station
	links    map[*link]struct{}
	perTask  map[uint32]int // links
}

// New returns a server without a station. The caller closes it.
func New(c Config, authority Authority) *Server {
	c.Conns = cmp.Or(c.Conns, 2048)
	c.ConnsPerTask = cmp.Or(c.ConnsPerTask, 256)
	c.Header = cmp.Or(c.Header, 64<<10)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, 30*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 5*time.Minute)
	c.DialTimeout = cmp.Or(c.DialTimeout, 15*time.Second)
	c.Log = cmp.Or(c.Log, slog.Default())
	s := &Server{
		config: c, authority: authority,
		stations: make(map[netns.ID]*station), links: make(map[*link]struct{}), perTask: make(map[uint32]int),
	}
	s.http = http.Server{
		Handler:                      http.HandlerFunc(serve),
		DisableGeneralOptionsHandler: true,
		MaxHeaderBytes:               c.Header,
		ReadHeaderTimeout:            c.HeaderTimeout,
		IdleTimeout:                  c.IdleTimeout,
		ConnState:                    func(conn net.Conn, state http.ConnState) { conn.(*link).follow(state) },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, linkKey{}, conn)
		},
		ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
	return s
}

// Listen opens the station of a namespace and returns its port. A namespace that
// has a station keeps it. The caller leaves ns open until Leave or Close has
// returned.
func (s *Server) Listen(ns *netns.Handle) (port uint16, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errors.New("listen for HTTP: the relay is closed")
	}
	if st, ok := s.stations[ns.ID()]; ok {
		return st.port, nil
	}
	st, err := open(s, ns)
	if err != nil {
		return 0, fmt.Errorf("listen for HTTP in network namespace %d: %w", ns.ID().Inode, err)
	}
	st.serve()
	s.stations[ns.ID()] = st
	return st.port, nil
}

// Leave closes the station of a namespace, and returns when nothing of it is left.
func (s *Server) Leave(id netns.ID) {
	s.mu.Lock()
	st, ok := s.stations[id]
	delete(s.stations, id)
	s.mu.Unlock()
	if ok {
		st.close()
	}
}

// Close closes all stations, and returns when nothing is left of them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	ids := make([]netns.ID, 0, len(s.stations))
	for id := range s.stations {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.Leave(id)
	}
	_ = s.http.Close()
}

// Cut closes all connections of a task, on both sides, and returns how many they
// were. When it returns, nothing that the task sent is on its way any more. The
// rules of the task allow nothing by then: what connects meanwhile is held to them.
func (s *Server) Cut(task uint32) (n int) {
	return s.cut(func(l *link) bool { return l.asker.Task == task })
}

// Recheck does the same with those connections of a task whose last request its
// rules do not allow any more. It is called after they have changed.
func (s *Server) Recheck(task uint32) (n int) {
	return s.cut(func(l *link) bool { return l.asker.Task == task && !l.stillAllowed() })
}

func (s *Server) cut(which func(*link) bool) (n int) {
	s.mu.Lock()
	all := make([]*link, 0, len(s.links))
	for l := range s.links {
		all = append(all, l)
	}
	s.mu.Unlock()
	for _, l := range all {
		if which(l) && l.cut() {
			n++
		}
	}
	return n
}

// add counts a link in, until remove, or says why there is no room for it.
func (s *Server) add(l *link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch task := l.asker.Task; {
	case len(s.links) >= s.config.Conns:
		return fmt.Errorf("the relay has %d connections, as many as it may", len(s.links))
	case s.perTask[task] >= s.config.ConnsPerTask:
		return fmt.Errorf("the task has %d connections through the relay, as many as it may", s.perTask[task])
	default:
		s.perTask[task]++
	}
	s.links[l] = struct{}{}
	return nil
}

func (s *Server) remove(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
	if s.perTask[l.asker.Task]--; s.perTask[l.asker.Task] == 0 {
		delete(s.perTask, l.asker.Task)
	}
}
