/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's own types, reduced to the fields that the programs read. Every
 * access is relocated against the running kernel's BTF (CO-RE), so the layout
 * here means nothing; only names and nesting do. */
#pragma once

#include <linux/in6.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct task_struct {
	int tgid;
	const struct cred *cred;
	char comm[16];
};

struct list_head {
	struct list_head *next;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[0]; /* a flexible array; since 6.1, ids before */
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	__u16 sk_type;
	__u16 sk_protocol;
};

struct tcp_sock {
	__u32 snd_una;
	__u32 write_seq;
	__u64 bytes_acked;
};

struct udp_sock {
};

union nf_inet_addr {
	__u32 all[4];
};

struct nf_conntrack_man {
	__u16 l3num;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
		__u8 protonum;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2]; /* of the first packet, of replies */
};

struct sk_buff {
	unsigned long _nfct;
	unsigned char *head;
	unsigned int end; /* from head */
};

struct skb_shared_info {
	__u8 flags;
};

struct seq_file {
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

/* Constants of the kernel's ABI that no header for BPF gives. */
enum {
	AF_INET = 2,
	AF_INET6 = 10,
	LOOPBACK_IFINDEX = 1, /* every network namespace's lo, include/net/flow.h */
	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86dd,
};

/* What the programs in front of an action or a packet return. */
enum {
	DENY = 0,
	ALLOW = 1,
};

/* The low bits of sk_buff._nfct, include/uapi/linux/netfilter/nf_conntrack_common.h. */
enum {
	CONNTRACK_KIND = 7,
	CONNTRACK_REPLY = 3, /* this kind and above */
};

enum socket_type {
	SOCK_STREAM = 1,
	SOCK_DGRAM = 2,
	SOCK_RAW = 3,
	SOCK_SEQPACKET = 5,
	SOCK_DCCP = 6,
};
