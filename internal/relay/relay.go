// SPDX-License-Identifier: Apache-2.0

// Package relay carries the plain HTTP of tasks whose rules have names, and
// holds every request to them. It gets everything but HTTP through Authority:
// who sends a request, and which hosts they may name.
//
// A [Server] has one station in every network namespace where such a task runs:
// listeners on 127.0.0.1 and [::1] at one port below 1024, to which the kernel
// redirects the task's connections to addresses that a name rule allows for
// plain HTTP. For each connection a station
//
//  1. finds out whose it is, by the address of the peer. Nobody that the kernel
//     knows of is cut off;
//  2. reads one request after the other and holds its host to the rules, with
//     its port, which is the one that was connected to. What is not allowed is
//     answered with 403 and what is no request with 400; either closes the
//     connection;
//  3. writes the request anew, to the address that was connected to and to no
//     other, whatever the host says, from a socket in that namespace.
//
// What the server behind sees is net/http's: no byte of the task's passes
// unparsed but in bodies and, once both sides have agreed on it, in a WebSocket.
// So there are no two ways to read a request: its end is where the relay saw
// it, its only Host is the one that was judged, in canonical form. Of a request
// in absolute form that is the host of the URI, as RFC 9112 has it. The names of
// headers are in canonical case and sorted; hop-by-hop headers, trailers that
// were not announced and upgrades to anything but a WebSocket are left out, as
// RFC 9110 allows, and nothing is added. Bodies are streamed both ways.
//
// A connection of the task's has one to the server, for itself alone. A task that
// has closed its side, or the sending half of it, does not wait for an answer: the
// request is broken off. In mode audit bytes pass as they are.
package relay

import (
	"log/slog"
	"net/netip"
	"time"
)

// Authority is what the relay does not decide itself. Its methods are called by
// many goroutines at once.
type Authority interface {
	// Asker finds whose connection from src is, in the namespace with this
	// cookie (netns.Handle.Cookie). False refuses it. It is called once for
	// each connection.
	Asker(netns uint64, src netip.AddrPort) (Asker, bool)

	// Record tells of a request, or of what came in place of one.
	Record(Record)
}

// Asker is whose a connection is, and where it was to go.
type Asker struct {
	Task     uint32
	ID       string // the task, as people know it
	PID, UID uint32
	Process  string
	To       netip.AddrPort // what they connected to
	Rules    Rules
}

// Rules are those of a task whenever they are asked: of its policy and its
// grants. Once a task has ended, they allow nothing and are not in mode audit.
type Rules interface {
	// Allows reports whether requests for host, in canonical form, may go to
	// this address and port.
	Allows(host string, to netip.AddrPort) bool

	// Audit reports whether what is not allowed is recorded, and let through
	// nevertheless.
	Audit() bool

	// Hint is the one command that would allow it, or empty. It is shown to the
	// task.
	Hint(host string, to netip.AddrPort) string
}

// The verdicts of a Record.
const (
	Allow     = "allow"
	Deny      = "deny"
	WouldDeny = "would-deny" // denied, but for mode audit
)

// Record is one request and what became of it.
type Record struct {
	Asker
	Method  string // empty if nothing could be read
	Host    string // in canonical form, or as it was sent if it has none; may be empty
	Verdict string
	Reason  string // of a denial
}

// Config sets bounds. The zero value of every field is a usable default.
type Config struct {
	Conns        int // at once, of all tasks; 2048
	ConnsPerTask int // at once, of one task; 256

	Header        int           // bytes of the headers of a request, about; 64 KiB
	HeaderTimeout time.Duration // from the first byte of a request, or from connect, to the end of its headers; 30 s
	IdleTimeout   time.Duration // between requests; 5 min
	DialTimeout   time.Duration // for the server to accept; 15 s

	Log *slog.Logger // slog.Default when nil
}
