/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every packet of every socket of the guard, whatever made it. */
#pragma once

#define TCP_LISTEN_STATE 10

/* A reset without payload tells the peer that it is over, and carries nothing
 * of the task's choice on a socket that the kernel's own TCP drives. */
static __always_inline bool is_bare_reset(const struct packet *p, struct bpf_sock *sk)
{
	return p->to.proto == IPPROTO_TCP && p->tcp_reset && !p->tcp_syn && !p->payload &&
	       sk->type == SOCK_STREAM;
}

/* The peer began: the listener's own answers, and sockets that came of it. */
static __always_inline bool is_inbound(struct bpf_sock *sk, const struct packet *p)
{
	struct memo *memo;

	if (p->to.proto != IPPROTO_TCP || sk->type != SOCK_STREAM)
		return false;
	if (sk->state == TCP_LISTEN_STATE)
		return true;
	memo = bpf_sk_storage_get(&memos, sk, 0, 0);
	return memo && memo->accepted;
}

/* Packets that stay on this machine: the receiver is looked up with the whole
 * tuple, so that only the socket that will really get it counts. */
static __always_inline void judge_loopback(struct __sk_buff *skb, struct bpf_sock *sk,
					   const struct task *task, const struct packet *p,
					   const struct guard *guard, __u64 cgroup,
					   struct decision *d)
{
	struct bpf_sock_tuple tuple = {};
	__u32 length;

	d->reason = REASON_NOT_OWN;
	if (task->loopback == LOOPBACK_NONE || is_many(p->to.addr))
		return;
	if (p->to.proto != IPPROTO_TCP && p->to.proto != IPPROTO_UDP)
		return;
	d->rule = RULE_LOOPBACK;
	if (task->loopback == LOOPBACK_TASK) {
		length = tuple_of(&tuple, p->from, p->from_port, &p->to);
		if (receiver(skb, p->to.proto, &tuple, length, guard->level, cgroup) ==
		    OWNER_OTHER) {
			d->rule = RULE_REPLY;
			if (!is_inbound(sk, p)) {
				d->rule = RULE_NONE;
				return;
			}
		}
	}
	d->reason = d->rule == RULE_REPLY ? REASON_REPLY : REASON_LOOPBACK;
	d->allow = true;
}

static __always_inline void judge_ingress(const struct task *task, const struct packet *p,
					  struct decision *d)
{
	struct flow flow = p->to;

	flow.port = p->from_port;
	flow.direction = DIRECTION_INGRESS;
	if (find_rule(task, &flow, d))
		d->reason = REASON_REPLY;
}

static __always_inline bool socket_destination(struct sock *sk, __u8 proto, struct flow *flow)
{
	flow->proto = proto;
	flow->port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6)
		BPF_CORE_READ_INTO(&flow->addr, sk, __sk_common.skc_v6_daddr);
	else
		map_ipv4(flow->addr, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	return flow->port;
}

/* Host NAT has put the backend's address into the packet. Where the
 * operator, not the task, rules the namespace, what was asked for counts: the
 * destination that sendmsg last allowed and the one the socket is connected
 * to, every one of them that is known, by the rules of now. */
static __noinline void judge_asked(struct bpf_sock *sk, const struct task *task,
				   const struct packet *p, bool rewritten, struct decision *d)
{
	struct sock *raw = untyped(sk);
	__u64 netns = netns_of(raw);
	struct decision other = {};
	struct flow flow = {};
	struct memo *memo;
	__u32 *flags;
	bool known = false;

	if (p->to.proto != IPPROTO_TCP && p->to.proto != IPPROTO_UDP)
		return;
	if (sk->protocol != p->to.proto || sk->type == SOCK_RAW)
		return;
	flags = bpf_map_lookup_elem(&namespaces, &netns);
	if (!flags || !(*flags & NAMESPACE_TRUSTED))
		return;

	memo = bpf_sk_storage_get(&memos, sk, 0, 0);
	if (memo && memo->sent.proto) {
		flow = memo->sent;
		if (!find_rule(task, &flow, &other))
			return;
		known = true;
	}
	if (rewritten) {
		if (memo && memo->connected.proto) {
			flow = memo->connected;
			if (!find_rule(task, &flow, &other))
				return;
			known = true;
		}
	} else if (socket_destination(raw, p->to.proto, &flow)) {
		flow.direction = DIRECTION_EGRESS;
		if (!find_rule(task, &flow, &other))
			return;
		known = true;
	}
	if (known)
		*d = other;
}

/* The whole road, in the order in which ARCHITECTURE.md lists it. */
static __always_inline void judge_packet(struct __sk_buff *skb, struct bpf_sock *sk,
					 const struct task *task, const struct packet *p,
					 const struct guard *guard, __u64 cgroup,
					 struct decision *d)
{
	d->reason = REASON_NO_RULE; /* deny unless something below allows */
	/* Bound to a device, a packet for 127.0.0.1 leaves the machine: a rule
	 * for a loopback address means this machine's. */
	if (skb->ifindex != LOOPBACK_IFINDEX && is_loopback(p->to.addr))
		return;
	if (find_rule(task, &p->to, d))
		return;
	if (skb->ifindex == LOOPBACK_IFINDEX) {
		judge_loopback(skb, sk, task, p, guard, cgroup, d);
	} else if (is_inbound(sk, p)) {
		d->reason = REASON_INGRESS;
		judge_ingress(task, p, d);
	} else if (p->to.proto == IPPROTO_UDP) {
		judge_ingress(task, p, d);
	}
	if (!d->allow)
		judge_asked(sk, task, p, guard->flags & GUARD_REWRITTEN, d);
}

/* A ping by sendto passes no other hook: its allowed destinations are put on
 * record here. */
static __always_inline bool first_of_flow(struct bpf_sock *sk, const struct packet *p)
{
	struct memo *memo;

	if (p->to.proto == IPPROTO_TCP)
		return sk->state == TCP_LISTEN_STATE && sk->type == SOCK_STREAM;
	if (p->to.proto == IPPROTO_UDP && sk->protocol == IPPROTO_UDP)
		return false;
	memo = bpf_sk_storage_get(&memos, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!memo || same_flow(&memo->sent, &p->to))
		return false;
	memo->sent = p->to;
	return true;
}

SEC("cgroup_skb/egress")
int ag_egress(struct __sk_buff *skb)
{
	struct guard *guard = bpf_get_local_storage(&guards, 0);
	struct scene scene = {.hook = HOOK_EGRESS};
	struct decision d = {};
	struct packet p = {};
	struct bpf_sock *sk;
	struct task *task;
	int malformed;

	scene.cgroup = bpf_skb_ancestor_cgroup_id(skb, guard->level);
	task = bpf_map_lookup_elem(&tasks, &scene.cgroup);
	if (!skb->sk)
		return DENY; /* no socket, nobody's packet: cannot happen in this hook */
	sk = bpf_sk_fullsock(skb->sk);
	if (!sk)
		return DENY;
	malformed = parse(skb, &p);

	if (!is_live(task, &d)) {
		/* Its sockets are being destroyed: the peers may know. */
		if (task && task->state == STATE_DYING && !malformed && is_bare_reset(&p, sk))
			return ALLOW;
	} else if (malformed) {
		d.reason = malformed;
	} else {
		judge_packet(skb, sk, task, &p, guard, scene.cgroup, &d);
		if (d.allow) {
			count_packet(task, d.rule, skb->len);
			if (!first_of_flow(sk, &p))
				return ALLOW;
		} else if (is_bare_reset(&p, sk)) {
			return ALLOW; /* of a flow that is being cut */
		}
	}

	count_decision(task, &d);
	scene.cookie = bpf_get_socket_cookie(skb);
	scene.netns = netns_of(untyped(sk));
	if (d.reason == REASON_INGRESS || d.rule == RULE_REPLY || d.reason == REASON_REPLY) {
		p.to.direction = DIRECTION_INGRESS;
		p.to.port = p.from_port;
	}
	report(task, &p.to, &d, &scene, false);
	if (d.allow)
		return ALLOW;
	return task && task->mode == MODE_AUDIT && task->state == STATE_LIVE ? ALLOW : DENY;
}
