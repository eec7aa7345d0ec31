/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows that are turned to the guard's own resolver and relay, which listen on
 * loopback in the caller's network namespace: the turning, the way back for
 * the program's eyes, and who asks for those who listen. */
#pragma once

/* Of any guard: another guard's task is no more to be trusted with it. */
static __always_inline bool is_of_a_task(struct sock *sk)
{
	struct cgroup *cgroup = cgroup_of(sk);

	for (__u32 level = 1; level < MAX_LEVEL; level++) {
		__u64 id = ancestor_id(cgroup, level);

		if (!id)
			break;
		if (bpf_map_lookup_elem(&tasks, &id))
			return true;
	}
	return false;
}

/* Whether what would receive is the guard's own. Changes the tuple. */
static __noinline int is_manned(void *ctx, __u8 proto, struct bpf_sock_tuple *tuple, __u32 length)
{
	struct bpf_sock *sk = find_receiver(ctx, proto, tuple, length);
	bool manned;

	if (!sk)
		return false;
	manned = !is_of_a_task(untyped(sk));
	bpf_sk_release(sk);
	return manned;
}

/* The flow's own family, on this machine. */
static __always_inline void to_loopback(struct flow *flow)
{
	if (is_mapped(flow->addr)) {
		flow->addr[3] = bpf_htonl(0x7f000001);
	} else {
		__builtin_memset(flow->addr, 0, sizeof(flow->addr));
		flow->addr[3] = bpf_htonl(1);
	}
}

static __always_inline bool is_station_address(const __u32 addr[4])
{
	if (is_mapped(addr))
		return addr[3] == bpf_htonl(0x7f000001);
	return is_loopback(addr);
}

/* Writes down what was asked, and by whom. Returns the port to turn to, 0 if
 * there is nobody to ask. */
__noinline int turn(struct bpf_sock_addr *ctx, const struct task *task, const struct flow *flow,
		    const struct scene *scene, bool http)
{
	struct bpf_sock_tuple tuple = {};
	struct task_struct *current;
	struct station *station;
	__u32 anybody[4] = {};
	struct flow there;
	struct memo *memo;
	__u32 length;
	__u64 netns;

	if (!ctx->sk || !task || !flow || !scene)
		return 0;
	netns = scene->netns;
	station = bpf_map_lookup_elem(&stations, &netns);
	if (!station)
		return 0;
	there = *flow;
	there.port = http ? station->http : station->dns;
	to_loopback(&there);
	length = tuple_of(&tuple, anybody, 0, &there);
	if (!there.port || !is_manned(ctx, there.proto, &tuple, length))
		return 0;
	memo = bpf_sk_storage_get(&memos, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!memo) /* perhaps because another thread was faster */
		memo = bpf_sk_storage_get(&memos, ctx->sk, 0, 0);
	if (!memo)
		return 0;
	current = bpf_get_current_task_btf();
	memo->via.cgroup = scene->cgroup;
	memo->via.task = task->number;
	memo->via.to = *flow;
	memo->via.pid = current->tgid;
	memo->via.uid = current->cred->uid.val;
	__builtin_memcpy(memo->via.comm, current->comm, sizeof(memo->via.comm));
	return there.port;
}

static __always_inline void to_station4(struct bpf_sock_addr *ctx, __u16 port)
{
	ctx->user_ip4 = bpf_htonl(0x7f000001);
	ctx->user_port = bpf_htons(port);
}

/* sendmsg6 accepts no mapped address; connect6 of a mapped one no other. */
static __always_inline void to_station6(struct bpf_sock_addr *ctx, __u16 port)
{
	if (ctx->user_ip6[0] == 0 && ctx->user_ip6[1] == 0 &&
	    ctx->user_ip6[2] == bpf_htonl(0xffff)) {
		ctx->user_ip6[3] = bpf_htonl(0x7f000001);
	} else {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = 0;
		ctx->user_ip6[3] = bpf_htonl(1);
	}
	ctx->user_port = bpf_htons(port);
}

/* Whether that is a port of the guard's own, of this kind. */
static __always_inline bool is_station(const struct station *station, const __u32 addr[4],
				       __u16 port, bool http)
{
	return port && port == (http ? station->http : station->dns) && is_station_address(addr);
}

/* Whether the socket was turned to what it sends to. */
static __always_inline bool at_station(const struct memo *memo, const __u32 addr[4], __u16 port,
				       __u64 netns)
{
	struct station *station;

	if (port >= STATION_PORTS || !memo->via.to.proto)
		return false;
	station = bpf_map_lookup_elem(&stations, &netns);
	return station && is_station(station, addr, port, memo->via.to.port != DNS_PORT);
}

/* What the program believes to talk to where it really talks to a station;
 * NULL if it does not. */
static __always_inline const struct flow *believed(struct bpf_sock_addr *ctx, const __u32 addr[4])
{
	struct memo *memo;

	if (!ctx->sk)
		return NULL;
	memo = bpf_sk_storage_get(&memos, ctx->sk, 0, 0);
	if (!memo || !at_station(memo, addr, bpf_ntohs(ctx->user_port), netns_of(untyped(ctx->sk))))
		return NULL;
	return &memo->via.to;
}

static __always_inline int show_ipv4(struct bpf_sock_addr *ctx)
{
	const struct flow *flow;
	__u32 addr[4];

	map_ipv4(addr, ctx->user_ip4);
	flow = believed(ctx, addr);
	if (flow && is_mapped(flow->addr)) {
		ctx->user_ip4 = flow->addr[3];
		ctx->user_port = bpf_htons(flow->port);
	}
	return ALLOW;
}

static __always_inline int show_ipv6(struct bpf_sock_addr *ctx)
{
	__u32 addr[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};
	const struct flow *flow = believed(ctx, addr);

	if (flow) {
		ctx->user_ip6[0] = flow->addr[0];
		ctx->user_ip6[1] = flow->addr[1];
		ctx->user_ip6[2] = flow->addr[2];
		ctx->user_ip6[3] = flow->addr[3];
		ctx->user_port = bpf_htons(flow->port);
	}
	return ALLOW;
}

SEC("cgroup/recvmsg4")
int ag_recvmsg4(struct bpf_sock_addr *ctx)
{
	return show_ipv4(ctx);
}

SEC("cgroup/recvmsg6")
int ag_recvmsg6(struct bpf_sock_addr *ctx)
{
	return show_ipv6(ctx);
}

SEC("cgroup/getpeername4")
int ag_getpeername4(struct bpf_sock_addr *ctx)
{
	return show_ipv4(ctx);
}

SEC("cgroup/getpeername6")
int ag_getpeername6(struct bpf_sock_addr *ctx)
{
	return show_ipv6(ctx);
}

/* A packet to a port of the guard's own. False if it is none; else d says
 * whether it may, and who asks is there for the listener to read. */
__noinline int judge_station(struct __sk_buff *skb, const struct task *task, const struct packet *p,
			     struct decision *d)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk = skb->sk;
	struct station *station;
	struct peer peer = {};
	struct memo *memo;
	struct flow asked;
	__u32 length;
	bool http;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || !task || !p || !d)
		return false;
	peer.netns = netns_of(untyped(sk));
	station = bpf_map_lookup_elem(&stations, &peer.netns);
	if (!station)
		return false;
	http = is_station(station, p->to.addr, p->to.port, true);
	if (!http && !is_station(station, p->to.addr, p->to.port, false))
		return false;
	d->reason = REASON_NOT_OWN; /* deny unless it was turned here */
	memo = bpf_sk_storage_get(&memos, sk, 0, 0);
	if (!memo || !memo->via.to.proto || sk->protocol != p->to.proto)
		return true;
	asked = memo->via.to;
	if (http == (asked.port == DNS_PORT))
		return true;
	if (http) {
		if (!find_rule(task, &asked, d))
			return true;
		d->allow = false;
	} else if (!(task->flags & TASK_NAMES)) {
		return true;
	}
	length = tuple_of(&tuple, p->from, p->from_port, &p->to);
	if (!is_manned(skb, p->to.proto, &tuple, length)) {
		d->rule = RULE_NONE;
		d->reason = http ? REASON_HTTP : REASON_RESOLVER;
		return true;
	}
	__builtin_memcpy(peer.addr, p->from, sizeof(peer.addr));
	peer.port = p->from_port;
	peer.proto = p->to.proto;
	d->allow = !bpf_map_update_elem(&askers, &peer, &memo->via, BPF_ANY);
	d->reason = d->allow ? REASON_RULE : REASON_MEMORY;
	return true;
}
