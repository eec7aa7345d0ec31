// SPDX-License-Identifier: Apache-2.0

// Package bypass tries every way out of a task that can be thought of.
//
// Its tests build two network namespaces joined by a veth pair: the host, in
// which tasks run, and the sink, which records every payload and every packet
// that reaches it. A technique is one way out, tried by a process of its own.
// It is first tried unguarded and must reach its target: a technique that
// cannot is worth nothing as a test. Then it is tried as a task, and nothing
// of it may arrive: no payload at any listener, and at the sink's end of the
// wire no packet at all but a bare reset and what the technique is expressly
// permitted. A control is the opposite: something ordinary that must go on
// working in a task.
//
// Names are resolved in the sink, which records questions as it does payloads:
// a technique that hides the token in one has its own way of looking for it.
// What the guard itself asks and relays may leave only without the token.
//
// Absence is shown by order, not by waiting: after each try an unguarded
// process on the same processor sends a marker down the same path, and what
// has not arrived before the marker was not sent.
//
// AGENTGUARD_UPDATE=1 writes the table of results to docs/bypass.md.
package bypass
