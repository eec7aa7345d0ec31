// SPDX-License-Identifier: Apache-2.0

package names

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"agentguard.dev/agentguard/internal/netns"
)

// The bounds that hold where Config is silent.
const (
	defaultMinTTL  = 30 * time.Second
	defaultMaxTTL  = time.Hour
	defaultTimeout = 4 * time.Second
)

var defaultTypes = []string{"A", "AAAA", "CNAME", "HTTPS", "SVCB", "SRV", "PTR"}

// Server answers the questions of tasks, in every namespace that it has a station in.
type Server struct {
	config    Config
	types     map[uint16]bool
	authority Authority
	log       *slog.Logger
	cache     *cache
	quotas    *quotas
	flights   singleflight.Group // questions to upstream, by cache key

	mu       sync.Mutex
	closed   bool
	stations map[netns.ID]*station
	leaving  sync.WaitGroup // stations that are being closed
}

// New returns a server without a station. The caller closes it.
func New(c Config, authority Authority) (*Server, error) {
	c.MinTTL = cmp.Or(c.MinTTL, defaultMinTTL)
	c.MaxTTL = cmp.Or(c.MaxTTL, max(defaultMaxTTL, c.MinTTL))
	if c.MinTTL < 0 || c.MaxTTL < c.MinTTL {
		return nil, fmt.Errorf("TTLs from %v to %v: want the first not larger than the second", c.MinTTL, c.MaxTTL)
	}
	c.Timeout = cmp.Or(c.Timeout, defaultTimeout)
	c.Rate = cmp.Or(c.Rate, defaultRate)
	c.Burst = cmp.Or(c.Burst, defaultBurst)
	c.Log = cmp.Or(c.Log, slog.Default())
	if len(c.Types) == 0 {
		c.Types = defaultTypes
	}
	s := &Server{
		config: c, types: make(map[uint16]bool), authority: authority, log: c.Log,
		cache: newCache(), quotas: newQuotas(c.Rate, c.Burst), stations: make(map[netns.ID]*station),
	}
	for _, name := range c.Types {
		t, ok := dns.StringToType[name]
		if !ok || !isData(t) {
			return nil, fmt.Errorf("DNS type %q: want one of records, such as A or TXT", name)
		}
		s.types[t] = true
	}
	return s, nil
}

// isData reports whether there can be records of a type in a zone, other than
// those of DNSSEC, which come with others.
func isData(t uint16) bool {
	switch t {
	case dns.TypeNone, dns.TypeOPT, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3:
		return false
	}
	return t < 128 || t > 255 // between them are questions that are no types (RFC 6895)
}

// Upstream says who answers the questions of a station.
type Upstream struct {
	// From is the namespace in which they are asked, resolvers that a task's rules
	// make trusted included: one that no task administers, or its answers are the
	// task's.
	From *netns.Handle

	Resolvers []netip.AddrPort // trusted, the first preferred
}

// Listen opens the station of a namespace and returns its port. A namespace that
// has a station keeps it, with this upstream from now on. The caller leaves ns and
// from.From open until Leave or Close has returned.
func (s *Server) Listen(ns *netns.Handle, from Upstream) (port uint16, err error) {
	from.Resolvers = slices.Clone(from.Resolvers)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errors.New("listen for DNS: the resolver is closed")
	}
	if st, ok := s.stations[ns.ID()]; ok {
		st.upstream.Store(&from)
		return st.port, nil
	}
	st, err := open(s, ns)
	if err != nil {
		return 0, fmt.Errorf("listen for DNS in network namespace %d: %w", ns.ID().Inode, err)
	}
	st.upstream.Store(&from)
	st.serve()
	s.stations[ns.ID()] = st
	return st.port, nil
}

// Leave closes the station of a namespace, and returns when nothing of it is left.
func (s *Server) Leave(id netns.ID) {
	s.mu.Lock()
	st, ok := s.stations[id]
	if !ok {
		s.mu.Unlock()
		return
	}
	delete(s.stations, id)
	s.leaving.Add(1)
	s.mu.Unlock()
	defer s.leaving.Done()
	st.close()
	s.cache.drop(st.ns.Cookie())
}

// Forget frees what the server keeps of a task that has ended.
func (s *Server) Forget(task uint32) { s.quotas.tasks.Remove(task) }

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
	s.leaving.Wait()
}
