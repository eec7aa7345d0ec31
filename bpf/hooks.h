/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The hooks in front of packets: they give the caller an errno at once and
 * know the process. In all of them 1 allows and 0 is EPERM. */
#pragma once

#define EPROTONOSUPPORT 93
#define ECONNREFUSED 111

static __always_inline bool is_multipath(__u32 protocol)
{
	return protocol == IPPROTO_MPTCP_SOCKET;
}

static __always_inline __u8 rule_protocol(__u32 protocol)
{
	if (is_multipath(protocol))
		return IPPROTO_TCP;
	if (protocol == IPPROTO_ICMPV6)
		return IPPROTO_ICMP;
	return protocol;
}

/* No rule names the address, but it is this machine's own: reaching a
 * listener of the task is its own affair, and where nobody listens the kernel
 * refuses by itself. Egress has the last word, with the whole tuple. */
static __always_inline void judge_local(struct bpf_sock_addr *ctx, const struct task *task,
					const struct flow *flow, const struct guard *guard,
					__u64 cgroup, __u64 netns, struct decision *d)
{
	struct bpf_sock_tuple tuple = {};
	__u32 anybody[4] = {};
	__u32 length;

	if (!is_loopback(flow->addr)) {
		struct local_addr key = {.netns = netns};

		__builtin_memcpy(key.addr, flow->addr, sizeof(key.addr));
		if (!bpf_map_lookup_elem(&local_addrs, &key))
			return;
	}
	if (d->reason == REASON_NO_RULE)
		d->reason = REASON_NOT_OWN;
	if (task->loopback == LOOPBACK_NONE || is_many(flow->addr))
		return;
	if (flow->proto != IPPROTO_TCP && flow->proto != IPPROTO_UDP)
		return;
	if (task->loopback == LOOPBACK_TASK) {
		length = tuple_of(&tuple, anybody, 0, flow);
		if (receiver(ctx, flow->proto, &tuple, length, guard->level, cgroup) == OWNER_OTHER)
			return;
	}
	d->rule = RULE_LOOPBACK;
	d->reason = REASON_LOOPBACK;
	d->allow = true;
}

/* Where an ingress rule names the peer, datagrams go back to it. */
static __always_inline void judge_answer(struct sock *sk, const struct task *task,
					 const struct flow *flow, struct decision *d)
{
	struct flow peer = *flow;

	peer.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	peer.direction = DIRECTION_INGRESS;
	if (flow->proto == IPPROTO_UDP && find_rule(task, &peer, d))
		d->reason = REASON_REPLY;
}

static __always_inline bool is_noted(const struct memo *memo, const struct flow *flow)
{
	for (int i = 0; i < MAX_ASKED; i++)
		if (same_flow(&memo->asked[i], flow))
			return true;
	return false;
}

/* Puts a decided destination on the socket's record. True if it is new there.
 * Two threads can do this at once, so each takes a place of its own. */
static __always_inline bool note(struct memo *memo, const struct flow *flow)
{
	__u32 place = memo->count;

	if (is_noted(memo, flow))
		return false;
	if (place <= MAX_ASKED) /* beyond, it must not grow till it wraps */
		place = __sync_fetch_and_add(&memo->count, 1);
	memo->asked[place % MAX_ASKED] = *flow;
	return true;
}

/* True if the destination is to be counted and reported: at every connect,
 * and at the first datagram that goes there. */
static __always_inline bool remember(struct bpf_sock_addr *ctx, const struct guard *guard,
				     const struct flow *flow, __u8 hook, struct decision *d)
{
	struct memo *memo;
	bool rewritten = guard->flags & GUARD_REWRITTEN;
	bool connects = hook == HOOK_CONNECT;

	if (!ctx->sk)
		return true;
	if (connects && !rewritten && d->allow)
		return true; /* the socket itself holds it */
	memo = bpf_sk_storage_get(&memos, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!memo) /* perhaps because another thread was faster */
		memo = bpf_sk_storage_get(&memos, ctx->sk, 0, 0);
	if (!memo) {
		if (rewritten && d->allow) { /* deny: egress could take an older one for it */
			d->allow = false;
			d->rule = RULE_NONE;
			d->reason = REASON_MEMORY;
		}
		return true;
	}
	memo->rewritten = rewritten;
	if (connects && flow->proto == IPPROTO_TCP) { /* has one at a time */
		memo->count = 1;
		memo->asked[0] = *flow;
		return true;
	}
	return note(memo, flow) || connects;
}

/* Fills the decision of a live task; station is the guard's port that the
 * flow is to be turned to, or 0. */
static __always_inline void judge_action(struct bpf_sock_addr *ctx, struct flow *flow,
					 const struct task *task, const struct guard *guard,
					 const struct scene *scene, struct decision *d,
					 __u16 *station)
{
	if (asks_dns(task, flow)) {
		d->reason = REASON_RESOLVER; /* deny unless one is there to be asked */
		*station = turn(ctx, task, flow, scene, false);
		d->allow = *station != 0;
		return;
	}
	d->reason = REASON_NO_RULE; /* deny unless a rule is found */
	if (find_rule(task, flow, d)) {
		if (scene->hook != HOOK_CONNECT || !(d->flags & PERMIT_HTTP) ||
		    find_unchecked(task, flow, d))
			return;
		*station = turn(ctx, task, flow, scene, true);
		if (!*station) {
			d->allow = false;
			d->rule = RULE_NONE;
			d->reason = REASON_HTTP;
		}
		return;
	}
	judge_answer(untyped(ctx->sk), task, flow, d);
	if (!d->allow)
		judge_local(ctx, task, flow, guard, scene->cgroup, scene->netns, d);
	if (d->reason == REASON_NO_RULE && is_quic(task, flow))
		d->reason = REASON_QUIC;
}

/* Whether the socket has been judged for this destination, or was turned to it:
 * what is connected to a v4-mapped address gets here with it. */
static __always_inline bool is_further(struct bpf_sock_addr *ctx, const struct flow *flow)
{
	struct memo *memo = ctx->sk ? bpf_sk_storage_get(&memos, ctx->sk, 0, 0) : NULL;

	return memo && (is_noted(memo, flow) ||
			at_station(memo, flow->addr, flow->port, netns_of(untyped(ctx->sk))));
}

static __always_inline int decide_new(struct bpf_sock_addr *ctx, struct flow *flow, const __u8 hook,
				      __u16 *station)
{
	struct sock *sk = untyped(ctx->sk);
	struct decision d = {.begins = true};
	struct scene scene = {.hook = hook};
	struct counter *counter;
	struct recall recall = {};
	struct guard *guard;
	struct task *task;

	guard = bpf_get_local_storage(&guards, 0);
	scene.cgroup = ancestor_id(cgroup_of(sk), guard->level);
	scene.netns = netns_of(sk);
	if (hook == HOOK_CONNECT && !(guard->flags & GUARD_REWRITTEN) &&
	    is_recent(scene.cgroup, flow, 1ULL << RECENT_ALLOWED, &recall)) {
		struct task known = {.number = recall.task, .mode = MODE_ENFORCE};

		d.rule = recall.rule;
		d.reason = REASON_RULE;
		d.allow = true;
		scene.cookie = bpf_get_socket_cookie(ctx);
		report_action(&known, flow, &d, &scene);
		return ALLOW;
	}
	task = bpf_map_lookup_elem(&tasks, &scene.cgroup);
	if (is_live(task, &d))
		judge_action(ctx, flow, task, guard, &scene, &d, station);

	if (*station && d.reason == REASON_RESOLVER)
		return ALLOW; /* which makes the record */
	if ((d.allow || lets_through(task, &d)) && !remember(ctx, guard, flow, hook, &d))
		return ALLOW; /* a further datagram of a flow on record */
	if (d.reason == REASON_REPLY) {
		flow->port = BPF_CORE_READ(sk, __sk_common.skc_num);
		flow->direction = DIRECTION_INGRESS;
	}
	scene.cookie = bpf_get_socket_cookie(ctx);
	counter = count_decision(task, &d);
	if (counter && task && recall.wanted && d.reason == REASON_RULE && !d.flags)
		keep(task, flow, &d, &recall, scene.cgroup);
	report_action(task, flow, &d, &scene);
	if (d.allow || lets_through(task, &d))
		return ALLOW;
	if (d.reason == REASON_RESOLVER || d.reason == REASON_HTTP)
		bpf_set_retval(-ECONNREFUSED); /* programs give up on it at once */
	return DENY;
}

static __always_inline int decide_address(struct bpf_sock_addr *ctx, struct flow *flow,
					  const __u8 hook, __u16 *station)
{
	/* Connected, with ancillary data and no address: connect was judged,
	 * and egress will be. (An address without a port never gets here.) */
	if (hook == HOOK_SENDMSG && !flow->port)
		return ALLOW;
	resolve_any(flow->addr);
	flow->proto = rule_protocol(ctx->protocol);
	if (flow->proto == IPPROTO_ICMP)
		flow->port = 0;
	if (hook == HOOK_SENDMSG && is_further(ctx, flow))
		return ALLOW; /* a further datagram: egress judges it */
	return decide_new(ctx, flow, hook, station);
}

static __always_inline int decide_ipv4(struct bpf_sock_addr *ctx, __u8 hook)
{
	struct flow flow = {.port = bpf_ntohs(ctx->user_port)};
	__u16 station = 0;
	int verdict;

	map_ipv4(flow.addr, ctx->user_ip4);
	verdict = decide_address(ctx, &flow, hook, &station);
	if (station)
		to_station4(ctx, station);
	return verdict;
}

static __always_inline int decide_ipv6(struct bpf_sock_addr *ctx, __u8 hook)
{
	struct flow flow = {.port = bpf_ntohs(ctx->user_port)};
	__u16 station = 0;
	int verdict;

	flow.addr[0] = ctx->user_ip6[0];
	flow.addr[1] = ctx->user_ip6[1];
	flow.addr[2] = ctx->user_ip6[2];
	flow.addr[3] = ctx->user_ip6[3];
	verdict = decide_address(ctx, &flow, hook, &station);
	if (station)
		to_station6(ctx, station);
	return verdict;
}

SEC("cgroup/connect4")
int ag_connect4(struct bpf_sock_addr *ctx)
{
	return decide_ipv4(ctx, HOOK_CONNECT);
}

SEC("cgroup/connect6")
int ag_connect6(struct bpf_sock_addr *ctx)
{
	return decide_ipv6(ctx, HOOK_CONNECT);
}

SEC("cgroup/sendmsg4")
int ag_sendmsg4(struct bpf_sock_addr *ctx)
{
	return decide_ipv4(ctx, HOOK_SENDMSG);
}

SEC("cgroup/sendmsg6")
int ag_sendmsg6(struct bpf_sock_addr *ctx)
{
	return decide_ipv6(ctx, HOOK_SENDMSG);
}

/* The task of a hook that has no address, and the refusal that all share. */
static __always_inline int refuse(const struct task *task, struct scene *scene, __u8 reason)
{
	struct decision d = {.reason = reason};
	struct flow flow = {};

	count_decision(task, &d);
	report_action(task, &flow, &d, scene);
	return lets_through(task, &d) ? ALLOW : DENY;
}

/* A list of what is allowed, so that a kind of socket that a later kernel
 * brings is denied. Without a task only what the other hooks judge again. */
static __always_inline bool kind_allowed(__u32 type, __u32 protocol, __u32 flags)
{
	switch (type) {
	case SOCK_STREAM:
		if (protocol == IPPROTO_TCP)
			return true;
		if (is_multipath(protocol))
			return flags & TASK_MPTCP;
		return protocol == IPPROTO_SCTP && flags & TASK_SCTP;
	case SOCK_DGRAM:
		if (protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP ||
		    protocol == IPPROTO_ICMPV6)
			return true;
		return protocol == IPPROTO_UDPLITE && flags & TASK_UDPLITE;
	case SOCK_SEQPACKET:
		return protocol == IPPROTO_SCTP && flags & TASK_SCTP;
	case SOCK_DCCP:
		return protocol == IPPROTO_DCCP && flags & TASK_DCCP;
	case SOCK_RAW:
		return flags & TASK_RAW;
	default:
		return false;
	}
}

SEC("cgroup/sock_create")
int ag_sock_create(struct bpf_sock *ctx)
{
	struct scene scene = {.hook = HOOK_SOCK_CREATE};
	struct guard *guard;
	struct task *task;
	struct sock *sk;
	int verdict;

	if (kind_allowed(ctx->type, ctx->protocol, 0))
		return ALLOW; /* whoever asks */
	guard = bpf_get_local_storage(&guards, 0);
	sk = untyped(ctx);
	scene.cgroup = ancestor_id(cgroup_of(sk), guard->level);
	task = bpf_map_lookup_elem(&tasks, &scene.cgroup);
	if (task && kind_allowed(ctx->type, ctx->protocol, task->flags))
		return ALLOW;
	scene.netns = netns_of(sk);
	scene.detail = ctx->type << 16 | (ctx->protocol & 0xffff);
	verdict = refuse(task, &scene, REASON_SOCKET);
	/* Programs that prefer MPTCP fall back to TCP on this errno. */
	if (verdict == DENY && is_multipath(ctx->protocol))
		bpf_set_retval(-EPROTONOSUPPORT);
	return verdict;
}

enum {
	SOL_IP = 0,
	SOL_SOCKET = 1,
	SOL_TCP = 6,
	SOL_IPV6 = 41,
};

/* Options that no header for BPF names, with the values of the kernel's ABI. */
enum {
	OPT_IP_OPTIONS = 4,
	OPT_IP_FREEBIND = 15,
	OPT_IP_TRANSPARENT = 19,
	OPT_IP_ADD_MEMBERSHIP = 35,
	OPT_IP_ADD_SOURCE_MEMBERSHIP = 39,
	OPT_IP_MSFILTER = 41,
	OPT_MCAST_JOIN_GROUP = 42,
	OPT_MCAST_JOIN_SOURCE_GROUP = 46,
	OPT_MCAST_MSFILTER = 48,
	OPT_IPV6_2292PKTOPTIONS = 6,
	OPT_IPV6_2292RTHDR = 5,
	OPT_IPV6_ADD_MEMBERSHIP = 20,
	OPT_IPV6_JOIN_ANYCAST = 27,
	OPT_IPV6_RTHDR = 57,
	OPT_IPV6_TRANSPARENT = 75,
	OPT_IPV6_FREEBIND = 78,
	OPT_SO_MAX_PACING_RATE = 47,
	OPT_SO_ATTACH_REUSEPORT_CBPF = 51,
	OPT_SO_ATTACH_REUSEPORT_EBPF = 52,
	OPT_SO_TXTIME = 61,
	OPT_TCP_TX_DELAY = 37,
};

enum option_kind {
	OPTION_HARMLESS,
	OPTION_REFUSED,	  /* routes elsewhere, forges a source, takes another's traffic,
			   * or lets packets wait behind every hook until the task is over */
	OPTION_MULTICAST, /* makes the kernel send reports with bits of the task's choice */
};

static __always_inline enum option_kind option_kind(__s32 level, __s32 name)
{
	switch (level) {
	case SOL_IP:
		switch (name) {
		case OPT_IP_OPTIONS:
		case OPT_IP_FREEBIND:
		case OPT_IP_TRANSPARENT:
			return OPTION_REFUSED;
		case OPT_IP_ADD_MEMBERSHIP:
		case OPT_IP_ADD_SOURCE_MEMBERSHIP:
		case OPT_IP_MSFILTER:
		case OPT_MCAST_JOIN_GROUP:
		case OPT_MCAST_JOIN_SOURCE_GROUP:
		case OPT_MCAST_MSFILTER:
			return OPTION_MULTICAST;
		}
		return OPTION_HARMLESS;
	case SOL_IPV6:
		switch (name) {
		case OPT_IPV6_2292PKTOPTIONS:
		case OPT_IPV6_2292RTHDR:
		case OPT_IPV6_RTHDR:
		case OPT_IPV6_TRANSPARENT:
		case OPT_IPV6_FREEBIND:
			return OPTION_REFUSED;
		case OPT_IPV6_ADD_MEMBERSHIP:
		case OPT_IPV6_JOIN_ANYCAST:
		case OPT_MCAST_JOIN_GROUP:
		case OPT_MCAST_JOIN_SOURCE_GROUP:
		case OPT_MCAST_MSFILTER:
			return OPTION_MULTICAST;
		}
		return OPTION_HARMLESS;
	case SOL_SOCKET:
		switch (name) {
		case OPT_SO_ATTACH_REUSEPORT_CBPF:
		case OPT_SO_ATTACH_REUSEPORT_EBPF:
		case OPT_SO_MAX_PACING_RATE:
		case OPT_SO_TXTIME:
			return OPTION_REFUSED;
		}
		return OPTION_HARMLESS;
	case SOL_TCP:
		return name == OPT_TCP_TX_DELAY ? OPTION_REFUSED : OPTION_HARMLESS;
	default:
		return OPTION_HARMLESS;
	}
}

SEC("cgroup/setsockopt")
int ag_setsockopt(struct bpf_sockopt *ctx)
{
	enum option_kind kind = option_kind(ctx->level, ctx->optname);
	struct guard *guard;
	struct scene scene = {.hook = HOOK_SETSOCKOPT};
	struct task *task;
	struct sock *sk;
	__s32 length = ctx->optlen;

	/* 0 leaves the caller's own value in force, of any length. So what is
	 * judged here is never the value, which could change afterwards. */
	ctx->optlen = 0;
	if (kind == OPTION_HARMLESS || length == 0)
		return ALLOW;

	guard = bpf_get_local_storage(&guards, 0);
	sk = untyped(ctx->sk);
	scene.cgroup = ancestor_id(cgroup_of(sk), guard->level);
	task = bpf_map_lookup_elem(&tasks, &scene.cgroup);
	if (kind == OPTION_MULTICAST && task && task->flags & TASK_MULTICAST)
		return ALLOW;
	scene.netns = netns_of(sk);
	scene.detail = ctx->level << 16 | ctx->optname;
	return refuse(task, &scene, REASON_OPTION);
}

/* Marks what a peer began, so that egress can tell a reply. A socket can be
 * taken apart from its peer and connect elsewhere. */
SEC("sockops")
int ag_sock_ops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct memo *memo;

	if (!sk)
		return ALLOW;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		memo = bpf_sk_storage_get(&memos, sk, 0, 0);
		if (memo)
			memo->accepted = 0;
		bpf_sk_storage_delete(&greetings, sk); /* a new flow shows its name itself */
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		memo = bpf_sk_storage_get(&memos, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (memo)
			memo->accepted = 1;
		break;
	}
	return ALLOW; /* without the mark its packets are judged as egress: deny */
}
