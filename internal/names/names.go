// SPDX-License-Identifier: Apache-2.0

// Package names is the resolver of tasks whose rules have names. It speaks DNS
// and gets everything else through Authority: who asks, what they may know, and
// how addresses come into the kernel.
//
// A [Server] has one station in every network namespace where such a task runs:
// UDP and TCP listeners on 127.0.0.1 and [::1] at one port below 1024, to which
// the kernel redirects what the task sends to port 53 of any address. For each
// question a station
//
//  1. finds out who asks, by the address of the peer. Nobody that the kernel
//     knows of is refused;
//  2. holds the name to the rules of the task. A name that they do not have is
//     never forwarded: the answer is NXDOMAIN, at once, on which resolvers give
//     up, with an Extended DNS Error that says why;
//  3. looks into the cache, else asks upstream, from the namespace that [Server.Listen]
//     was told. The query is built anew from the
//     parsed name and type, with an identifier, port and EDNS of its own: no
//     letter case, option, flag or trailing byte of the task's leaves;
//  4. takes from the answer only the chain of aliases that begins at the
//     question, and the records at its end. Addresses that are not public are
//     dropped unless a rule for addresses covers them (rebinding), targets of
//     SRV and HTTPS that the task may not ask for are dropped, and HTTPS loses
//     its address hints and ECH keys;
//  5. has the addresses learned, in the kernel, before
//  6. the answer, built anew, leaves.
//
// Answers are cached for all tasks by upstream, the namespace that it was asked from,
// name and type. The
// rules are asked before the cache is, and what is in the cache was filtered for
// nobody: steps 2, 4 and 5 are the same for a cached answer.
//
// Trusted are the resolvers that [Server.Listen] was given, and those that the task's own
// rules make so ([Rules].Trusts). A question goes to the resolver that was asked
// if it is trusted, else to the first of those; if that does not answer,
// to the next.
//
// DNSSEC records are not served and AD is never set: upstream validates.
package names

import (
	"log/slog"
	"net/netip"
	"time"

	"agentguard.dev/agentguard/internal/policy"
)

// Authority is what the resolver does not decide itself. Its methods are called
// by many goroutines at once, Asker, Learn and Query once for each question.
type Authority interface {
	// Asker finds who sent a question from src, in the namespace with this
	// cookie (netns.Handle.Cookie). False refuses it.
	Asker(netns uint64, proto policy.Proto, src netip.AddrPort) (Asker, bool)

	// Genuine reports whether what answers at resolver, as seen from the
	// namespace, is no task's: at an address of the machine itself, that a
	// socket outside of all tasks is found there. It is called before each
	// query to a resolver that is trusted, and once more when its answer has
	// come, before that is believed.
	Genuine(netns uint64, proto policy.Proto, resolver netip.AddrPort) bool

	// Learn lets the task reach these addresses as host for ttl. When it
	// returns nil, they are in the kernel. It is called for cached answers too.
	// The text of an error is shown to the task.
	Learn(a Asker, host string, addrs []netip.Addr, ttl time.Duration) error

	// Query tells of a question that has been answered, whatever the answer.
	Query(Record)
}

// Asker is who asks a question, and what they may be told.
type Asker struct {
	Task     uint32
	PID, UID uint32
	Process  string
	To       netip.AddrPort // the resolver that they believe to ask
	Audit    bool           // what the rules refuse is recorded, and answered nevertheless
	Rules    Rules
}

// Rules are those of a task at the time of the question: of its policy and its
// grants. Hosts are in canonical form: lower case, no trailing dot.
type Rules interface {
	// Allows reports whether a rule names host.
	Allows(host string) bool

	// AllowsAddr reports whether a rule for addresses covers addr, as far as it would
	// be learned for host: such an address may be answered even if it is not public.
	AllowsAddr(host string, addr netip.Addr) bool

	// MayReach reports whether any rule, or an address learned for one, lets the
	// task reach addr: its name may then be asked for (PTR).
	MayReach(addr netip.Addr) bool

	// Local reports whether addr is one of the machine's own, in the namespace
	// of the question.
	Local(addr netip.Addr) bool

	// Trusts reports whether resolver may be asked on behalf of this task: it is
	// one of its namespace's, or a rule for addresses allows it at port 53.
	Trusts(resolver netip.AddrPort) bool
}

// The verdicts of a Record.
const (
	Allow     = "allow"
	Deny      = "deny"
	WouldDeny = "would-deny" // denied, but for mode audit
)

// Record is one question and what became of it.
type Record struct {
	Asker
	Host     string // as asked, in lower case, escaped as in a zone file
	Type     string // "AAAA", or "TYPE65280"
	Verdict  string
	Reason   string // why it was not answered, or not all of it; else empty
	Rcode    string // "NOERROR"; empty if no answer was sent
	Addrs    []netip.Addr
	Upstream netip.AddrPort // who gave the answer, now or when it was cached; else zero
	Cached   bool
	Took     time.Duration
}

// Config sets bounds. The zero value of every field is a usable default.
type Config struct {
	MinTTL, MaxTTL time.Duration // floor and ceiling, for the kernel and for the answer alike; 30 s and 1 h

	// Types are those served to tasks, by name; of others an allowed name has
	// no records. A, AAAA, CNAME, HTTPS, SVCB, SRV and PTR if empty.
	Types []string

	Rate  float64 // questions a second of one task; 200
	Burst int     // questions at once of one task; 400

	Timeout time.Duration // for upstream to answer, all attempts together; 4 s
	Log     *slog.Logger  // slog.Default when nil
}
