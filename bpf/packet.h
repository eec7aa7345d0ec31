/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet as egress sees it: after routing and source NAT's decision, before
 * segmentation and fragmentation, beginning at the network header. */
#pragma once

#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define IPPROTO_MPTCP_SOCKET 262
#define MAX_EXTENSIONS 8 /* IPv6 extension headers; more is malformed here */

#define MAX_IP_OPTIONS 40
#define MAX_OFFSET 0xfff /* of a transport header; a mask, for the verifier */

struct packet {
	struct flow to;
	__u32 from[4];
	__u16 from_port;
	__u16 payload_at; /* where TCP's payload begins */
	__u32 payload;	  /* its length */
	bool tcp_syn;
	bool tcp_ack;
	bool tcp_reset;
	bool tcp_urgent;
};

/* The destination of a packet like nearly all: of TCP or UDP, right behind a
 * network header without options. False says nothing but that parse has to
 * look. A call costs as much as all this, so it is none. */
static __always_inline bool is_plain(struct __sk_buff *skb, struct flow *to)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	void *transport;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;

		transport = ip + 1;
		if (transport + sizeof(struct udphdr) > end || *(__u8 *)data != 0x45 ||
		    ip->frag_off & bpf_htons(0x1fff))
			return false;
		map_ipv4(to->addr, ip->daddr);
		to->proto = ip->protocol;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;

		transport = ip + 1;
		if (transport + sizeof(struct udphdr) > end)
			return false;
		__builtin_memcpy(to->addr, &ip->daddr, sizeof(to->addr));
		to->proto = ip->nexthdr;
	} else {
		return false;
	}
	to->port = bpf_ntohs(*(__be16 *)(transport + 2));
	to->direction = DIRECTION_EGRESS;
	return to->proto == IPPROTO_UDP ||
	       (to->proto == IPPROTO_TCP && transport + sizeof(struct tcphdr) <= end);
}

/* Source routes hide the real destination; other options (labels, router
 * alert) stay. */
__noinline int ipv4_options(struct __sk_buff *skb, __u32 length)
{
	__u32 at = sizeof(struct iphdr);
	__u32 end = at + length;

	for (int i = 0; i < MAX_IP_OPTIONS && at < end; i++) {
		__u8 option[2];

		if (bpf_skb_load_bytes(skb, at, option, 1))
			return REASON_MALFORMED;
		if (option[0] == IPOPT_END)
			break;
		if (option[0] == IPOPT_NOOP) {
			at++;
			continue;
		}
		if (option[0] == IPOPT_LSRR || option[0] == IPOPT_SSRR)
			return REASON_ROUTED;
		if (bpf_skb_load_bytes(skb, at, option, 2) || option[1] < 2)
			return REASON_MALFORMED;
		at += option[1];
	}
	return REASON_NONE;
}

/* Walks to the transport header. Any routing header is refused, whatever its
 * type: type 4 (SRv6) needs no privilege and goes where it likes. Returns the
 * offset, or a negative reason. */
__noinline int ipv6_extensions(struct __sk_buff *skb, __u8 *proto)
{
	__u32 at = sizeof(struct ipv6hdr);
	__u8 next;

	if (!proto)
		return -REASON_MALFORMED;
	next = *proto;

	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		__u8 header[4]; /* next header, length, and of a fragment its offset */

		switch (next) {
		case IPPROTO_ROUTING:
			return -REASON_ROUTED;
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			*proto = next;
			return at;
		}
		if (bpf_skb_load_bytes(skb, at, header, sizeof(header)))
			return -REASON_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			if (header[2] || header[3] & 0xf8)
				return -REASON_FRAGMENT;
			at += 8;
		} else if (next == IPPROTO_AH) {
			at += (header[1] + 2) * 4;
		} else {
			at += (header[1] + 1) * 8;
		}
		next = header[0];
	}
	return -REASON_MALFORMED;
}

/* REASON_NONE, or why the packet cannot be judged by its destination. */
__noinline int parse(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return REASON_MALFORMED;

	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	void *transport;
	__u8 proto;
	int offset;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;
		__u8 words;

		if ((void *)(ip + 1) > end)
			return REASON_MALFORMED;
		map_ipv4(p->to.addr, ip->daddr);
		map_ipv4(p->from, ip->saddr);
		proto = ip->protocol;
		words = *(__u8 *)data & 0xf;
		offset = sizeof(*ip);
		if (ip->frag_off & bpf_htons(0x1fff))
			return REASON_FRAGMENT;
		if (words != 5) {
			int reason;

			if (words < 5)
				return REASON_MALFORMED;
			offset = words * 4;
			reason = ipv4_options(skb, offset - sizeof(*ip));
			if (reason)
				return reason;
		}
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;

		if ((void *)(ip + 1) > end)
			return REASON_MALFORMED;
		__builtin_memcpy(p->to.addr, &ip->daddr, sizeof(p->to.addr));
		__builtin_memcpy(p->from, &ip->saddr, sizeof(p->from));
		proto = ip->nexthdr;
		offset = sizeof(*ip);
		if (proto != IPPROTO_TCP && proto != IPPROTO_UDP) {
			offset = ipv6_extensions(skb, &proto);
			if (offset < 0)
				return -offset;
			if (offset > MAX_OFFSET)
				return REASON_MALFORMED;
			if (proto == IPPROTO_ICMPV6)
				proto = IPPROTO_ICMP;
			else if (proto == IPPROTO_ICMP)
				return REASON_MALFORMED;
		}
	} else {
		return REASON_MALFORMED;
	}
	p->to.proto = proto;

	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
		break;
	default: /* no ports: matched by address and protocol alone */
		return REASON_NONE;
	}

	/* The helpers above may have moved the packet; read its bounds again. */
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	transport = data + (offset & MAX_OFFSET);
	if (transport + 4 > end)
		return REASON_MALFORMED;
	p->from_port = bpf_ntohs(*(__be16 *)transport);
	p->to.port = bpf_ntohs(*(__be16 *)(transport + 2));
	if (proto == IPPROTO_TCP) {
		struct tcphdr *tcp = transport;

		if ((void *)(tcp + 1) > end)
			return REASON_MALFORMED;
		p->tcp_syn = tcp->syn;
		p->tcp_ack = tcp->ack;
		p->tcp_reset = tcp->rst;
		p->tcp_urgent = tcp->urg;
		p->payload_at = (offset & MAX_OFFSET) + tcp->doff * 4;
		p->payload = skb->len - p->payload_at;
	}
	return REASON_NONE;
}
