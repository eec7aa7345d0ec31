/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows that a name allows: an address is not a name, so before their first
 * payload byte leaves it must show a name that is allowed for that address. */
#pragma once

/* How long a first payload may stay incomplete; TCP keeps it, glues what
 * follows to it and tries again. */
#define HELLO_PATIENCE 10000000000ULL /* ns */

/* Whether rules of that owner allow what the socket has named: at that address
 * if it was learned for it, else at that port of any address. */
static __noinline int is_claimed(struct greeting *greeting, __u32 owner, const struct flow *flow,
				 bool anywhere)
{
	struct learned_addr key = {.owner = owner};
	__u64 now = bpf_ktime_get_boot_ns();
	struct claims *claims;

	greeting->name.owner = owner;
	claims = bpf_map_lookup_elem(&names, &greeting->name);
	if (!claims)
		return false;
	__builtin_memcpy(key.addr, flow->addr, sizeof(key.addr));
	for (int i = 0; i < MAX_CLAIMS; i++) {
		const struct claim *claim = &claims->of[i];
		__u64 *until;

		if (!claim->number)
			break;
		if (flow->port < claim->low || flow->port > claim->high)
			continue;
		if (anywhere)
			return true;
		key.number = claim->number;
		until = bpf_map_lookup_elem(&learned, &key);
		if (until && now < *until)
			return true;
	}
	return false;
}

static __always_inline bool is_name_allowed(struct greeting *greeting, const struct task *task,
					    const struct flow *flow, bool anywhere)
{
	return is_claimed(greeting, task->policy, flow, anywhere) ||
	       is_claimed(greeting, task->number, flow, anywhere);
}

/* Whether somebody can still write to what would leave: pages of a file
 * (sendfile, splice) or of a process (MSG_ZEROCOPY). */
static __always_inline bool is_shared(struct __sk_buff *skb)
{
	struct sk_buff *raw = (struct sk_buff *)untyped(skb);
	unsigned char *head = KERNEL_FIELD(raw, sk_buff, head);
	__u32 end = KERNEL_FIELD(raw, sk_buff, end);

	return KERNEL_FIELD(head + end, skb_shared_info, flags);
}

/* Why the payload may not leave, REASON_NONE if it may; *held if it is not
 * known yet. */
static __always_inline __u8 read_greeting(struct __sk_buff *skb, const struct task *task,
					  const struct packet *p, struct greeting *greeting,
					  bool *held)
{
	struct hello hello = {.offset = p->payload_at, .length = p->payload};
	__u64 now;

	if (is_shared(skb))
		return REASON_SHARED;
	if (p->tcp_urgent) /* what the server reads lacks a byte of this */
		return REASON_HELLO;
	switch (read_hello(skb, &hello, &greeting->name)) {
	case HELLO_NAMED:
		greeting->length = hello.name_length;
		greeting->name.bits = 32 + 8 * (hello.name_length + 1);
		return is_name_allowed(greeting, task, &p->to, false) ? REASON_NONE : REASON_SNI;
	case HELLO_NO_NAME:
		return REASON_NO_SNI;
	case HELLO_ECH:
		return REASON_ECH;
	case HELLO_NOT_TLS:
		return REASON_NOT_TLS;
	case HELLO_INCOMPLETE:
		now = bpf_ktime_get_boot_ns();
		if (!greeting->held)
			greeting->held = now;
		*held = now - greeting->held < HELLO_PATIENCE;
		return REASON_HELLO;
	default:
		return REASON_HELLO;
	}
}

static __always_inline int deny_payload(struct decision *d, __u8 reason)
{
	struct decision denial = {.reason = reason};

	*d = denial;
	return false;
}

/* Of a packet to where a name allows it: whether its payload, if any, may go
 * there. Else d is a denial: without a reason one that nobody need hear of, of
 * what is held or was refused before; REASON_NO_RULE if the name is not for
 * this flow at all. */
__noinline int may_carry(struct __sk_buff *skb, const struct task *task, const struct packet *p,
			 struct decision *d)
{
	struct bpf_sock *sk = skb->sk;
	struct bpf_tcp_sock *tcp;
	struct greeting *greeting;
	struct memo *memo;
	bool held = false;
	__u8 reason;

	if (!task || !p || !d)
		return false;
	if (!p->payload)
		return true;
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk)
		return deny_payload(d, REASON_SOCKET);
	/* The helper takes a raw socket of the protocol for a connection. */
	tcp = sk->type == SOCK_STREAM ? bpf_tcp_sock(sk) : NULL;
	greeting = bpf_sk_storage_get(&greetings, sk, 0, 0);
	if (d->flags & PERMIT_TLS && greeting && greeting->shown)
		return true; /* the road of all but the first */
	if (find_unchecked(task, &p->to, d))
		return true;
	memo = bpf_sk_storage_get(&memos, sk, 0, 0);
	if (memo && memo->accepted)
		return deny_payload(d, REASON_NO_RULE);
	if (d->flags & PERMIT_HTTP)
		return deny_payload(d, REASON_HTTP);
	if (!tcp) /* raw: nothing puts it together */
		return deny_payload(d, REASON_NOT_TLS);
	if (!greeting)
		greeting = bpf_sk_storage_get(&greetings, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!greeting)
		return deny_payload(d, REASON_MEMORY);
	if (greeting->refused)
		return task->mode == MODE_AUDIT || deny_payload(d, REASON_NONE);
	/* What has been sent before, under another rule, was not read. */
	if (tcp->bytes_acked > 1 || tcp->snd_nxt != tcp->snd_una)
		reason = REASON_NOT_TLS;
	else
		reason = read_greeting(skb, task, p, greeting, &held);
	if (held)
		return deny_payload(d, REASON_NONE);
	if (reason) {
		greeting->refused = reason;
		return deny_payload(d, reason);
	}
	greeting->shown = true;
	return true;
}
