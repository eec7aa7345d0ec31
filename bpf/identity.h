/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose packet, whose socket: always the socket's cgroup, never the running
 * process, which can be a kernel worker or an io_uring thread. */
#pragma once

/* As a number a socket pointer can be followed with CO-RE reads in every
 * program type; typed, each type allows something else (and 6.1 least). */
static __always_inline struct sock *untyped(const void *socket)
{
	struct sock *sk = NULL;

	bpf_probe_read_kernel(&sk, sizeof(sk), &socket);
	return sk;
}

static __always_inline struct cgroup *cgroup_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
}

/* The id of the cgroup's ancestor at level, 0 if it is not that deep. */
static __always_inline __u64 ancestor_id(struct cgroup *cgroup, __u32 level)
{
	struct cgroup *ancestor = NULL;
	__u32 depth = BPF_CORE_READ(cgroup, level);

	if (level > depth)
		return 0;
	bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
			      (void *)cgroup + bpf_core_field_offset(struct cgroup, ancestors) +
				      level * sizeof(ancestor));
	return BPF_CORE_READ(ancestor, kn, id);
}

static __always_inline __u64 netns_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
}
