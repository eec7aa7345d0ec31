/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Iterators over every TCP and UDP socket of a network namespace: list those
 * of tasks, and destroy those that may no longer be. Run by the daemon after
 * anything that takes away. Since 6.5 the program destroys by itself; before,
 * the daemon does it over netlink from this list. */
#pragma once

extern int bpf_sock_destroy(struct sock_common *sk) __weak __ksym;

enum {
	TCP_ESTABLISHED = 1,
	TCP_TIME_WAIT = 6,
	TCP_NEW_SYN_RECV = 12,
	TCP_SYN_SENT = 2,
};

/* Set by the daemon before each run. */
__u32 sweep_levels; /* bit n: tasks stand at depth n */
__u32 sweep_task;   /* only this task's sockets; 0 is all */
bool sweep_cut;	    /* destroy, instead of only listing */

static __always_inline struct task *task_at_any_level(struct sock *sk, __u64 *cgroup)
{
	struct cgroup *of = cgroup_of(sk);
	struct task *task;

	for (__u32 level = 0; level < MAX_LEVEL; level++) {
		if (!(sweep_levels & 1U << level))
			continue;
		*cgroup = ancestor_id(of, level);
		if (!*cgroup)
			break;
		task = bpf_map_lookup_elem(&tasks, cgroup);
		if (task)
			return task;
	}
	return NULL;
}

/* Of a flow on this machine that no rule names. Who is at its other end only
 * the reader can find out, from all sockets; it is there as long as the
 * connection stands. The sender of a datagram is told by egress. */
static __always_inline __u8 cut_local(const struct task *task, struct sock *sk,
				      const struct memo *memo, __u8 proto)
{
	if (task->loopback == LOOPBACK_NONE)
		return REASON_NO_RULE;
	if (task->loopback == LOOPBACK_HOST || proto != IPPROTO_TCP || (memo && memo->accepted) ||
	    BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_ESTABLISHED)
		return REASON_NONE;
	return REASON_NOT_OWN;
}

/* Of a flow that only a name allows. A name that was shown must still be
 * allowed at that port; how long its address counts is of no matter to a flow
 * in progress. */
static __always_inline __u8 cut_named(const struct task *task, struct sock *sk,
				      struct greeting *greeting, const struct flow *flow,
				      struct decision *d)
{
	if (find_unchecked(task, flow, d))
		return REASON_NONE;
	if (greeting && greeting->shown)
		return is_name_allowed(greeting, task, flow, true) ? REASON_NONE : REASON_SNI;
	if (BPF_CORE_READ((struct tcp_sock *)sk, bytes_acked) <= 1)
		return REASON_NONE; /* egress judges its first payload */
	return d->flags & PERMIT_HTTP ? REASON_HTTP : REASON_NO_SNI;
}

/* Why the socket has to go, or REASON_NONE. */
static __always_inline __u8 cut_reason(const struct task *task, struct sock *sk, struct memo *memo,
				       struct greeting *greeting, __u8 proto)
{
	bool turned;
	struct local_addr key = {.netns = netns_of(sk)};
	struct decision d = {};
	struct flow flow = {};

	if (!is_live(task, &d))
		return d.reason;
	if (task->mode == MODE_AUDIT)
		return REASON_NONE;
	if (!socket_destination(sk, proto, &flow))
		return REASON_NONE; /* listening or unconnected: nothing to cut */
	if (greeting && greeting->refused)
		return greeting->refused;
	turned = memo && at_station(memo, flow.addr, flow.port, key.netns);
	if (turned) {
		flow = memo->via.to; /* in force as long as that may be reached */
		if (asks_dns(task, &flow))
			return REASON_NONE;
	}
	if (find_rule(task, &flow, &d)) {
		if (turned || !(d.flags & PERMIT_CHECKS) || (memo && memo->accepted))
			return REASON_NONE;
		return cut_named(task, sk, greeting, &flow, &d);
	}
	if (d.reason == REASON_RESOLVER)
		return d.reason;
	if (memo && memo->rewritten && all_permitted(memo, task, &d))
		return REASON_NONE; /* rewritten above; egress judges by the same */
	__builtin_memcpy(key.addr, flow.addr, sizeof(key.addr));
	if (proto == IPPROTO_UDP || (memo && memo->accepted)) {
		flow.direction = DIRECTION_INGRESS;
		flow.port = BPF_CORE_READ(sk, __sk_common.skc_num);
		if (find_rule(task, &flow, &d))
			return REASON_NONE;
	}
	if (is_loopback(flow.addr) || bpf_map_lookup_elem(&local_addrs, &key))
		return cut_local(task, sk, memo, proto);
	return d.reason ?: REASON_NO_RULE;
}

static __always_inline bool describe(struct sock *sk, struct memo *memo, struct greeting *greeting,
				     __u8 proto, struct socket *out)
{
	struct task *task = task_at_any_level(sk, &out->cgroup);

	if (!task || (sweep_task && task->number != sweep_task))
		return false;
	out->task = task->number;
	out->proto = proto;
	out->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	out->state = BPF_CORE_READ(sk, __sk_common.skc_state);
	out->ifindex = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	out->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	out->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (out->family == AF_INET6) {
		BPF_CORE_READ_INTO(&out->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&out->remote, sk, __sk_common.skc_v6_daddr);
	} else {
		out->local[0] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		out->remote[0] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	}
	if (sweep_cut)
		out->cut = cut_reason(task, sk, memo, greeting, proto);
	return true;
}

SEC("iter/tcp")
int ag_iter_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct greeting *greeting;
	struct socket out = {};
	struct memo *memo;
	struct sock *sk;

	if (!common)
		return 0;
	if (common->skc_state == TCP_TIME_WAIT || common->skc_state == TCP_NEW_SYN_RECV)
		return 0; /* not full sockets */
	sk = untyped(common);
	memo = bpf_sk_storage_get(&memos, (struct sock *)common, 0, 0);
	greeting = bpf_sk_storage_get(&greetings, (struct sock *)common, 0, 0);
	if (!describe(sk, memo, greeting, IPPROTO_TCP, &out))
		return 0;
	out.cookie = bpf_get_socket_cookie(common);
	if (out.state != TCP_SYN_SENT && out.state != TCP_LISTEN_STATE) {
		struct tcp_sock *tcp = (struct tcp_sock *)sk;

		out.unsent = BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_una);
	}
	if (out.cut && out.cut != REASON_NOT_OWN && bpf_sock_destroy)
		out.destroyed = !bpf_sock_destroy(common);
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

SEC("iter/udp")
int ag_iter_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *udp = ctx->udp_sk;
	struct socket out = {};
	struct memo *memo;
	struct sock *sk;

	if (!udp)
		return 0;
	sk = untyped(udp);
	memo = bpf_sk_storage_get(&memos, (struct sock *)udp, 0, 0);
	if (!describe(sk, memo, NULL, BPF_CORE_READ(sk, sk_protocol), &out))
		return 0;
	out.cookie = bpf_get_socket_cookie(udp);
	if (out.cut && out.cut != REASON_NOT_OWN && bpf_sock_destroy)
		out.destroyed = !bpf_sock_destroy((struct sock_common *)udp);
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}
