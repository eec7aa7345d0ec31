/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The socket that a packet or a connect to this very machine would reach. */
#pragma once

enum owner {
	OWNER_NOBODY, /* nothing listens: the kernel will say so itself */
	OWNER_TASK,
	OWNER_OTHER,
};

/* Fills the look-up's tuple as the receiving side sees it: source is the
 * sender. Returns the length that tells the helper the family. */
static __always_inline __u32 tuple_of(struct bpf_sock_tuple *tuple, const __u32 from[4],
				      __u16 from_port, const struct flow *to)
{
	if (is_mapped(to->addr)) {
		tuple->ipv4.saddr = from[3];
		tuple->ipv4.daddr = to->addr[3];
		tuple->ipv4.sport = bpf_htons(from_port);
		tuple->ipv4.dport = bpf_htons(to->port);
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, from, sizeof(tuple->ipv6.saddr));
	__builtin_memcpy(tuple->ipv6.daddr, to->addr, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.sport = bpf_htons(from_port);
	tuple->ipv6.dport = bpf_htons(to->port);
	return sizeof(tuple->ipv6);
}

/* The socket that would receive, or NULL; a length that the verifier knows, on
 * each path. */
static __always_inline struct bpf_sock *look_up(void *ctx, __u8 proto, struct bpf_sock_tuple *tuple,
						__u32 length)
{
	if (proto == IPPROTO_TCP) {
		if (length == sizeof(tuple->ipv4))
			return bpf_sk_lookup_tcp(ctx, tuple, sizeof(tuple->ipv4),
						 BPF_F_CURRENT_NETNS, 0);
		return bpf_sk_lookup_tcp(ctx, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (length == sizeof(tuple->ipv4))
		return bpf_sk_lookup_udp(ctx, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(ctx, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* The socket that answers. ctx is a sock_addr or an skb context. With a full
 * tuple it is exact; without a source port it is good for an errno only,
 * because a reuseport group chooses by source. Changes the tuple. */
static __always_inline struct bpf_sock *find_receiver(void *ctx, __u8 proto,
						      struct bpf_sock_tuple *tuple, __u32 length)
{
	struct bpf_sock *sk = look_up(ctx, proto, tuple, length);

	if (sk || proto != IPPROTO_TCP)
		return sk;
	/* A connection in TIME_WAIT is no answer; behind it is the listener. */
	if (length == sizeof(tuple->ipv4)) {
		tuple->ipv4.saddr = 0;
		tuple->ipv4.sport = 0;
	} else {
		__builtin_memset(tuple->ipv6.saddr, 0, sizeof(tuple->ipv6.saddr));
		tuple->ipv6.sport = 0;
	}
	return look_up(ctx, proto, tuple, length);
}

static __always_inline enum owner receiver(void *ctx, __u8 proto, struct bpf_sock_tuple *tuple,
					   __u32 length, __u32 level, __u64 cgroup)
{
	struct bpf_sock *sk = find_receiver(ctx, proto, tuple, length);
	enum owner owner;

	if (!sk)
		return OWNER_NOBODY;
	owner = ancestor_id(cgroup_of(untyped(sk)), level) == cgroup ? OWNER_TASK : OWNER_OTHER;
	bpf_sk_release(sk);
	return owner;
}
