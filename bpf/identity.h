/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose packet, whose socket: always the socket's cgroup, never the running
 * process, which can be a kernel worker or an io_uring thread. */
#pragma once

extern void *bpf_rdonly_cast(const void *object, __u32 type) __weak __ksym;

/* Follows a kernel pointer. Since 6.2 a cast makes of it a plain load that
 * yields 0 where nothing is mapped; the probe read of before costs 40 times as
 * much. */
#define KERNEL_FIELD(pointer, type, field)                                                         \
	({                                                                                         \
		__typeof__(((struct type *)0)->field) value_;                                      \
		if (bpf_rdonly_cast)                                                               \
			value_ =                                                                   \
				((struct type *)bpf_rdonly_cast(                                   \
					 (void *)(pointer), bpf_core_type_id_kernel(struct type))) \
					->field;                                                   \
		else                                                                               \
			value_ = BPF_CORE_READ((struct type *)(pointer), field);                   \
		value_;                                                                            \
	})

/* A pointer at an address that no type describes: an element of an array. */
static __always_inline void *pointer_at(const void *address)
{
	void *value = NULL;

	if (bpf_rdonly_cast)
		return ((struct list_head *)bpf_rdonly_cast(
				address, bpf_core_type_id_kernel(struct list_head)))
			->next;
	bpf_probe_read_kernel(&value, sizeof(value), address);
	return value;
}

/* As a number a socket pointer can be followed in every program type; typed,
 * each type allows something else (and 6.1 least). */
static __always_inline struct sock *untyped(const void *socket)
{
	struct sock *sk = NULL;

	if (bpf_rdonly_cast)
		return bpf_rdonly_cast(socket, bpf_core_type_id_kernel(struct sock));
	bpf_probe_read_kernel(&sk, sizeof(sk), &socket);
	return sk;
}

static __always_inline struct cgroup *cgroup_of(struct sock *sk)
{
	return KERNEL_FIELD(sk, sock, sk_cgrp_data.cgroup);
}

#define MAX_LEVEL 32 /* depth of a task's cgroup below the cgroup2 root */

/* The id of the cgroup's ancestor at level, 0 if it is not that deep. */
static __always_inline __u64 ancestor_id(struct cgroup *cgroup, __u32 level)
{
	__u32 depth = KERNEL_FIELD(cgroup, cgroup, level);
	struct kernfs_node *node;
	void *ancestor;

	if (level > depth || level >= MAX_LEVEL)
		return 0;
	ancestor = pointer_at((void *)cgroup + bpf_core_field_offset(struct cgroup, ancestors) +
			      level * sizeof(ancestor));
	node = KERNEL_FIELD(ancestor, cgroup, kn);
	return KERNEL_FIELD(node, kernfs_node, id);
}

static __always_inline __u64 netns_of(struct sock *sk)
{
	struct net *net = KERNEL_FIELD(sk, sock, __sk_common.skc_net.net);

	return KERNEL_FIELD(net, net, net_cookie);
}
