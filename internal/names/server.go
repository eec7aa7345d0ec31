// SPDX-License-Identifier: Apache-2.0

package names

import (
	"errors"
	"net/netip"

	"agentguard.dev/agentguard/internal/netns"
)

// Server answers the questions of tasks, in every namespace that it listens in.
type Server struct{}

// New returns a server without a station. The caller closes it.
func New(Config, Authority) (*Server, error) { return &Server{}, nil }

// Listen opens the station of a namespace and returns its port. trusted are the
// namespace's resolvers, the first preferred. A namespace that has a station
// keeps it, with these resolvers from now on. The caller leaves ns open until it
// has called Leave.
func (s *Server) Listen(ns *netns.Handle, trusted []netip.AddrPort) (port uint16, err error) {
	return 0, errors.ErrUnsupported
}

// Leave closes the station of a namespace, and returns when nothing of it is left.
func (s *Server) Leave(id netns.ID) {}

// Forget frees what the server keeps of a task that has ended.
func (s *Server) Forget(task uint32) {}

// Close closes all stations, and returns when nothing is left of them.
func (s *Server) Close() {}
