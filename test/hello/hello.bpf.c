//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* read_hello alone, for its tests; not part of the product. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "../../bpf/agentguard.h"
#include "../../bpf/hello.h"

struct reading {
	__u64 packets; /* with payload */
	struct hello hello;
	enum hello_verdict verdict;
	struct name name;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reading);
} readings SEC(".maps");

/* Reads the payload of TCP over IPv4, as egress does, and lets it through. */
SEC("cgroup_skb/egress")
int read_payload(struct __sk_buff *skb)
{
	struct hello hello = {.offset = sizeof(struct iphdr)};
	struct reading *reading;
	struct tcphdr tcp;
	__u32 first = 0;

	reading = bpf_map_lookup_elem(&readings, &first);
	if (!reading || bpf_skb_load_bytes(skb, hello.offset, &tcp, sizeof(tcp)))
		return 1;
	hello.offset += tcp.doff * 4;
	if (skb->len <= hello.offset)
		return 1;
	hello.length = skb->len - hello.offset;
	reading->verdict = read_hello(skb, &hello, &reading->name);
	reading->hello = hello;
	reading->packets++;
	return 1;
}

char __license[] SEC("license") = "Dual BSD/GPL";
