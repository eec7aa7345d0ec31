/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Only for kernels whose egress hook does not see the SYN-ACKs of IPv6
 * listeners (6.1: they are sent through the listener but owned by the request):
 * a connection attempt that no ingress rule allows is dropped before it can be
 * answered. The loader attaches this where it is needed. */
#pragma once

SEC("cgroup_skb/ingress")
int ag_ingress(struct __sk_buff *skb)
{
	struct guard *guard = bpf_get_local_storage(&guards, 0);
	struct scene scene = {.hook = HOOK_EGRESS};
	struct decision d = {};
	struct packet p = {};
	struct flow peer = {};
	struct bpf_sock *sk;
	struct task *task;

	if (skb->ifindex == LOOPBACK_IFINDEX || skb->protocol != bpf_htons(ETH_P_IPV6))
		return ALLOW;
	if (parse(skb, &p) || p.to.proto != IPPROTO_TCP || !p.tcp_syn || p.tcp_ack)
		return ALLOW; /* what answers it is judged by egress */
	sk = skb->sk ? bpf_sk_fullsock(skb->sk) : NULL;
	if (!sk || sk->state != TCP_LISTEN_STATE)
		return ALLOW;

	scene.cgroup = bpf_skb_ancestor_cgroup_id(skb, guard->level);
	task = bpf_map_lookup_elem(&tasks, &scene.cgroup);
	__builtin_memcpy(peer.addr, p.from, sizeof(peer.addr));
	peer.port = p.to.port;
	peer.proto = IPPROTO_TCP;
	peer.direction = DIRECTION_INGRESS;
	if (is_live(task, &d)) {
		if (find_rule(task, &peer, &d))
			return ALLOW;
		d.reason = REASON_INGRESS;
	}
	count_decision(task, &d);
	scene.cookie = bpf_get_socket_cookie(skb);
	scene.netns = netns_of(untyped(sk));
	report_packet(task, &peer, &d, &scene);
	return lets_through(task, &d) ? ALLOW : DENY;
}
