/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the kernel half and the daemon both name: bpf2go makes the Go side of
 * every type and enumeration here. Zero is always the value that denies.
 * Times are nanoseconds of CLOCK_BOOTTIME; 0 as a deadline means none. */
#pragma once

#define MAX_RANGES 32 /* port ranges that one prefix entry can hold */
#define MAX_ASKED 4   /* destinations that one socket remembers */
#define MAX_NAME 248  /* bytes of a name in a key: a trie's hold 256 with the owner */
#define MAX_CLAIMS 16 /* port ranges that one name entry can hold */
#define RECENTS 64    /* verdicts that one CPU remembers */

enum state {
	STATE_NONE, /* no task: deny */
	STATE_LIVE,
	STATE_DYING, /* only bare resets leave, while its sockets are destroyed */
	STATE_DEAD,
};

enum mode {
	MODE_ENFORCE,
	MODE_AUDIT, /* decide, record, let through */
};

enum loopback {
	LOOPBACK_NONE,
	LOOPBACK_TASK, /* listeners of the task itself */
	LOOPBACK_HOST, /* anybody's */
};

enum direction {
	DIRECTION_EGRESS,  /* the port is the remote one */
	DIRECTION_INGRESS, /* the port is the task's own; the peer began */
};

enum task_flag {
	TASK_MPTCP = 1 << 0,
	TASK_RAW = 1 << 1,
	TASK_MULTICAST = 1 << 2,
	TASK_UDPLITE = 1 << 3,
	TASK_SCTP = 1 << 4,
	TASK_DCCP = 1 << 5,
	TASK_POLICY_PREFIXES = 1 << 6, /* the policy owns entries of `prefixes` */
	TASK_GRANTS = 1 << 7,	       /* the task owns entries of `hosts` */
	TASK_GRANT_PREFIXES = 1 << 8,  /* the task owns entries of `prefixes` */
	TASK_NAMES = 1 << 9, /* policy or grants name names: DNS goes to the guard's resolver */
	TASK_WIDE_NAMES =
		1 << 10, /* some of them with many ports: entries of `hosts` under port 0 */
};

enum guard_flag {
	/* A cgroup above the guard rewrites destinations in its own connect
	 * hooks (a socket-level load balancer): the socket then holds an
	 * address that nobody asked for, so what was asked is remembered. */
	GUARD_REWRITTEN = 1 << 0,
};

enum namespace_flag {
	NAMESPACE_TRUSTED = 1 << 0, /* its NAT is the operator's, not the task's */
};

/* Rule ids that are not rules of a policy. */
enum rule {
	RULE_NONE,
	RULE_LOOPBACK,
	RULE_REPLY,
	RULE_FIRST = 16, /* the first one that the daemon gives out */
};

enum verdict {
	VERDICT_DENY,
	VERDICT_ALLOW,
	VERDICT_WOULD_DENY, /* mode audit */
};

enum reason {
	REASON_NONE,
	REASON_RULE,	     /* allowed by `rule` */
	REASON_LOOPBACK,     /* allowed: the task's own listener, or loopback: host */
	REASON_REPLY,	     /* allowed: the peer began, and may */
	REASON_NO_TASK,	     /* the cgroup belongs to no task */
	REASON_ENDED,	     /* the task has ended */
	REASON_EXPIRED,	     /* the task's deadline has passed */
	REASON_NO_RULE,	     /* no rule names the destination */
	REASON_RULE_EXPIRED, /* the rule's own deadline has passed */
	REASON_NOT_OWN,	     /* a loopback listener that is not the task's */
	REASON_INGRESS,	     /* a peer began, and no ingress rule names it */
	REASON_SOCKET,	     /* a kind of socket that the policy does not allow */
	REASON_OPTION,	     /* a socket option that changes where packets go */
	REASON_ROUTED,	     /* source route or routing header */
	REASON_FRAGMENT,     /* a later fragment: its ports cannot be known */
	REASON_MALFORMED,    /* headers that cannot be read */
	REASON_MEMORY,	     /* the destination cannot be put on record */
	REASON_STALE,	     /* the address was learned for a name too long ago for a new flow */
	REASON_RESOLVER,     /* DNS: no resolver of the guard is ready here, or it was to be walked
				around */
	REASON_QUIC,	     /* UDP 443 to an address that a name allows for TLS only */
	REASON_NOT_TLS,	     /* the first payload is no ClientHello */
	REASON_NO_SNI,	     /* a ClientHello that names no server */
	REASON_SNI,	     /* a ClientHello with a name that no rule allows for this address */
	REASON_ECH,	     /* a ClientHello with an encrypted part that can name another server */
	REASON_HELLO,	     /* a ClientHello that cannot be read, or is not complete in time */
	REASON_SHARED,	     /* first payload in pages that can change after the check */
	REASON_HTTP,	     /* plain HTTP beside the guard's relay */
};

enum hook {
	HOOK_NONE,
	HOOK_CONNECT,
	HOOK_SENDMSG,
	HOOK_SOCK_CREATE,
	HOOK_SETSOCKOPT,
	HOOK_EGRESS,
};

enum stat {
	STAT_EVENTS_LOST,   /* ring buffer full */
	STAT_COUNTERS_FULL, /* decisions and packets not counted: map full */
	STAT_NO_TASK,	    /* denied below a guard, outside any task */
	STAT_DENIED,	    /* all denials */
	STAT_COUNT,
};

/* What a guard's programs need to know of the cgroup they hang at. */
struct guard {
	__u32 level; /* depth at which tasks stand below the cgroup2 root */
	__u32 flags; /* enum guard_flag */
};

struct task {
	__u64 deadline;
	__u32 number; /* owner of its grants, and its name in counters and events */
	__u32 policy; /* owner of its policy's compiled rules */
	__u32 flags;  /* enum task_flag */
	__u8 state;
	__u8 mode;
	__u8 loopback;
	__u8 pad;
};

/* One end of a flow as rules see it: IPv4 is ::ffff:a.b.c.d, ports are in host
 * order and 0 for ICMP, ICMPv6 is ICMP, MPTCP is TCP. */
struct flow {
	__u32 addr[4]; /* network order */
	__u16 port;
	__u8 proto;
	__u8 direction;
};

/* Key of `hosts`. */
struct host {
	__u32 owner; /* a policy version or a task */
	struct flow flow;
};

enum permit_flag {
	PERMIT_LEARNED = 1 << 0, /* an address of a name; `expires` and `used` count */
	PERMIT_TLS = 1 << 1,	 /* the first payload must be a ClientHello that names the name */
	PERMIT_HTTP = 1 << 2,	 /* plain HTTP: connections go to the guard's relay */
};

struct permit {
	__u64 deadline;
	__u64 expires; /* from when on no flow begins any more */
	__u64 used;    /* when a flow last did, about a second exact */
	__u32 rule;
	__u32 flags; /* enum permit_flag */
	__u16 low;   /* the ports, of an entry under port 0 */
	__u16 high;
	__u32 pad;
};

/* Key of `names`: the name from its end, lower case, "moc.elpmaxe.ipa" and a
 * zero byte; for a wildcard "moc.elpmaxe." and no zero byte. */
struct name {
	__u32 bits; /* of owner and text together */
	__u32 owner;
	char text[MAX_NAME];
};

/* What a name may be used for with TLS; number 0 ends the list. */
struct claim {
	__u32 number; /* of the named destination, within its owner; from 1 */
	__u16 low;
	__u16 high;
};

struct claims {
	struct claim of[MAX_CLAIMS];
};

/* Key of `learned`, whose value is the time until which the address counts as
 * one of that named destination. */
struct learned_addr {
	__u32 owner;
	__u32 number;
	__u32 addr[4];
};

/* Where the guard listens in one network namespace, on 127.0.0.1 and ::1.
 * Ports in host order; 0 is none. Key: the namespace's cookie. */
struct station {
	__u16 dns;
	__u16 http;
};

/* Key of `askers`: the source of what reaches a station. */
struct peer {
	__u64 netns; /* cookie */
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 pad[5];
};

/* Who asks, and whom they believe to ask. */
struct asker {
	__u64 cgroup;
	struct flow to;
	__u32 task;
	__u32 pid;
	__u32 uid;
	char comm[16];
};

/* Key of `prefixes`. */
struct prefix {
	__u32 bits; /* of owner and address together: 32 + prefix length */
	__u32 owner;
	__u32 addr[4];
};

/* An empty range (proto 0) ends the list. */
struct range {
	__u64 deadline;
	__u32 rule;
	__u16 low;
	__u16 high;
	__u8 proto;
	__u8 direction;
	__u8 pad[6];
};

struct ranges {
	struct range of[MAX_RANGES];
};

struct counter_key {
	__u32 task;
	__u32 rule;
};

struct counter {
	__u64 allowed;
	__u64 denied;
	__u64 packets;
	__u64 bytes;
};

/* Where the parts of a recent's `word` begin, above the bytes. */
enum recent_part {
	RECENT_PACKETS = 24,
	RECENT_ALLOWED = 34,
	RECENT_GENERATION = 41, /* odd while the entry is replaced */
};

/* A verdict that a CPU remembers, in one cache line; see recent.h. */
struct recent {
	__u64 word; /* what is not yet in `counters`, and the generation */
	__u64 epoch;
	__u64 cgroup;
	__u64 deadline; /* the earliest of the task's and the rule's */
	struct flow flow;
	__u32 task;
	__u32 rule;
	__u32 wanted; /* mark of the flow that last missed here */
};

/* Key of `local_addrs`. */
struct local_addr {
	__u64 netns; /* cookie */
	__u32 addr[4];
};

/* What a socket remembers. */
struct memo {
	struct flow asked[MAX_ASKED]; /* decided destinations; proto 0 is a free place */
	__u32 count;		      /* of them, above MAX_ASKED if not all are known */
	__u16 accepted;		      /* the peer began */
	__u16 rewritten;	      /* GUARD_REWRITTEN: connect notes its destination too */
	struct asker via; /* to.proto: a destination of its own was turned to a station */
};

/* What a TCP socket's first payload says, where it has to be a ClientHello.
 * The socket's own memory, because packets of others can come in between. */
struct greeting {
	__u64 held;	  /* since when it waits to be complete */
	struct name name; /* the last one that it named, as a key of `names` */
	__u32 length;	  /* of the text, without its zero byte */
	__u8 shown;	  /* it named what a rule allows */
	__u8 refused;	  /* enum reason: it did not, and the socket is to be destroyed */
	__u8 pad[2];
};

struct event {
	__u64 time;
	__u64 cgroup;
	__u64 cookie; /* of the socket */
	__u64 netns;
	__u32 task;
	__u32 rule;
	__u32 pid; /* 0 where the hook cannot know */
	__u32 uid;
	struct flow flow;
	__u32 detail; /* sock_create: type << 16 | protocol; setsockopt: level << 16 | option */
	__u8 verdict;
	__u8 reason;
	__u8 hook;
	__u8 mode;
	char comm[16];
	__u32 pad;
};

/* An event that a name belongs to, on the same ring; told by its size. */
struct named_event {
	struct event event;
	__u32 length;
	char name[MAX_NAME]; /* lower case and from its end, as in `names` */
	__u32 pad;
};

/* One socket of a task, as the iterators report it. Addresses are in network
 * order, in the family's own form; ports in host order. */
struct socket {
	__u64 cgroup;
	__u64 cookie;
	__u32 task;
	__u32 unsent; /* bytes written and not yet acknowledged, TCP only */
	__u32 local[4];
	__u32 remote[4];
	__u16 local_port;
	__u16 remote_port;
	__u32 ifindex;
	__u8 family;
	__u8 proto;
	__u8 state;
	__u8 cut;	/* enum reason, if it is to be destroyed, else 0; if
			 * REASON_NOT_OWN, unless its peer is the task's own */
	__u8 destroyed; /* by the iterator itself */
	__u8 pad[3];
};
