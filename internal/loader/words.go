// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"agentguard.dev/agentguard/bpf"
)

// Verdict is what became of an action.
type Verdict uint8

// The verdicts.
const (
	Deny      = Verdict(bpf.GuardVerdictVERDICT_DENY)
	Allow     = Verdict(bpf.GuardVerdictVERDICT_ALLOW)
	WouldDeny = Verdict(bpf.GuardVerdictVERDICT_WOULD_DENY) // mode audit: let through
)

// String returns the verdict as audit records have it.
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case WouldDeny:
		return "would-deny"
	default:
		return "deny"
	}
}

// Hook is where a decision was made.
type Hook uint8

// The hooks.
const (
	HookConnect    = Hook(bpf.GuardHookHOOK_CONNECT)
	HookSendmsg    = Hook(bpf.GuardHookHOOK_SENDMSG)
	HookSockCreate = Hook(bpf.GuardHookHOOK_SOCK_CREATE)
	HookSetsockopt = Hook(bpf.GuardHookHOOK_SETSOCKOPT)
	HookEgress     = Hook(bpf.GuardHookHOOK_EGRESS)
)

// String returns the hook as audit records have it.
func (h Hook) String() string {
	switch h {
	case HookConnect:
		return "connect"
	case HookSendmsg:
		return "sendmsg"
	case HookSockCreate:
		return "sock_create"
	case HookSetsockopt:
		return "setsockopt"
	case HookEgress:
		return "egress"
	default:
		return fmt.Sprintf("Hook(%d)", uint8(h))
	}
}

// Reason is why an action was allowed or denied.
type Reason uint8

// The reasons.
const (
	ReasonNone        = Reason(bpf.GuardReasonREASON_NONE)
	ReasonRule        = Reason(bpf.GuardReasonREASON_RULE)
	ReasonLoopback    = Reason(bpf.GuardReasonREASON_LOOPBACK)
	ReasonReply       = Reason(bpf.GuardReasonREASON_REPLY)
	ReasonNoTask      = Reason(bpf.GuardReasonREASON_NO_TASK)
	ReasonEnded       = Reason(bpf.GuardReasonREASON_ENDED)
	ReasonExpired     = Reason(bpf.GuardReasonREASON_EXPIRED)
	ReasonNoRule      = Reason(bpf.GuardReasonREASON_NO_RULE)
	ReasonRuleExpired = Reason(bpf.GuardReasonREASON_RULE_EXPIRED)
	ReasonNotOwn      = Reason(bpf.GuardReasonREASON_NOT_OWN)
	ReasonIngress     = Reason(bpf.GuardReasonREASON_INGRESS)
	ReasonSocket      = Reason(bpf.GuardReasonREASON_SOCKET)
	ReasonOption      = Reason(bpf.GuardReasonREASON_OPTION)
	ReasonRouted      = Reason(bpf.GuardReasonREASON_ROUTED)
	ReasonFragment    = Reason(bpf.GuardReasonREASON_FRAGMENT)
	ReasonMalformed   = Reason(bpf.GuardReasonREASON_MALFORMED)
	ReasonMemory      = Reason(bpf.GuardReasonREASON_MEMORY)
	ReasonStale       = Reason(bpf.GuardReasonREASON_STALE)
	ReasonResolver    = Reason(bpf.GuardReasonREASON_RESOLVER)
	ReasonQUIC        = Reason(bpf.GuardReasonREASON_QUIC)
	ReasonNotTLS      = Reason(bpf.GuardReasonREASON_NOT_TLS)
	ReasonNoSNI       = Reason(bpf.GuardReasonREASON_NO_SNI)
	ReasonSNI         = Reason(bpf.GuardReasonREASON_SNI)
	ReasonECH         = Reason(bpf.GuardReasonREASON_ECH)
	ReasonHello       = Reason(bpf.GuardReasonREASON_HELLO)
	ReasonShared      = Reason(bpf.GuardReasonREASON_SHARED)
	ReasonHTTP        = Reason(bpf.GuardReasonREASON_HTTP)
)

// String returns the reason in words for people.
func (r Reason) String() string {
	switch r {
	case ReasonNone:
		return ""
	case ReasonRule:
		return "a rule allows it"
	case ReasonLoopback:
		return "loopback"
	case ReasonReply:
		return "reply to a peer"
	case ReasonNoTask:
		return "the process belongs to no task"
	case ReasonEnded:
		return "the task has ended"
	case ReasonExpired:
		return "the task's deadline has passed"
	case ReasonNoRule:
		return "no rule"
	case ReasonRuleExpired:
		return "the grant has expired"
	case ReasonNotOwn:
		return "the listener is not the task's own"
	case ReasonIngress:
		return "no ingress rule for the peer"
	case ReasonSocket:
		return "kind of socket not allowed"
	case ReasonOption:
		return "socket option not allowed"
	case ReasonRouted:
		return "source route or routing header"
	case ReasonFragment:
		return "fragment without ports"
	case ReasonMalformed:
		return "malformed packet"
	case ReasonMemory:
		return "no memory left at the socket"
	case ReasonStale:
		return "the address was learned for a name too long ago: resolve the name again"
	case ReasonResolver:
		return "DNS must go through agentguard's resolver"
	case ReasonQUIC:
		return "QUIC hides the name: the rule allows TLS over TCP"
	case ReasonNotTLS:
		return "the flow does not begin with TLS"
	case ReasonNoSNI:
		return "TLS without a server name"
	case ReasonSNI:
		return "no rule allows this server name at this address"
	case ReasonECH:
		return "encrypted ClientHello: the server name cannot be known"
	case ReasonHello:
		return "ClientHello that cannot be read or is not complete in time"
	case ReasonShared:
		return "first payload in memory that can change after the check"
	case ReasonHTTP:
		return "plain HTTP must go through agentguard's relay"
	default:
		return fmt.Sprintf("Reason(%d)", uint8(r))
	}
}
