/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* May this task send to that address? The one place that knows; the stubs
 * only translate. Nothing here knows an address family. */
#pragma once

struct decision {
	__u64 deadline; /* the rule's own */
	__u32 rule;
	__u32 flags; /* enum permit_flag of what allows it */
	__u8 reason;
	__u8 allow;	/* not bool: its 0 or 1 is a promise that the verifier cannot see */
	__u8 begins;	/* asked of a flow that is new */
	__u8 unchecked; /* asked for what allows it whatever its payload */
	__u32 pad;
};

#define PERMIT_CHECKS (PERMIT_TLS | PERMIT_HTTP)

static __always_inline void stat_add(__u32 which)
{
	__u64 *count = bpf_map_lookup_elem(&stats, &which);

	if (count)
		*count += 1;
}

/* The clock, at most a tick old. */
static __always_inline __u64 recently(void)
{
	__u32 only = 0;
	struct moment *last = bpf_map_lookup_elem(&moments, &only);
	__u64 tick = bpf_jiffies64();

	if (!last)
		return bpf_ktime_get_boot_ns();
	if (last->tick != tick) {
		last->time = bpf_ktime_get_boot_ns();
		barrier();
		last->tick = tick;
	}
	return last->time;
}

#define NEAR 1000000000ULL /* ns */

/* Reading the clock costs more than a look-up, so it is read once a tick and
 * CPU unless the deadline is near. That is exact as long as no tick is as late
 * as NEAR; after a suspend, which the clock counts and the tick does not, the
 * next tick sets it right. */
static __always_inline bool is_far(__u64 deadline)
{
	return !deadline || recently() + NEAR < deadline;
}

__noinline int has_passed(__u64 deadline)
{
	return !is_far(deadline) && bpf_ktime_get_boot_ns() >= deadline;
}

static __always_inline bool passed(__u64 deadline)
{
	return deadline && has_passed(deadline);
}

static __always_inline bool same_flow(const struct flow *a, const struct flow *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] &&
	       a->addr[3] == b->addr[3] && a->port == b->port && a->proto == b->proto;
}

static __always_inline bool is_mapped(const __u32 addr[4])
{
	return addr[0] == 0 && addr[1] == 0 && addr[2] == bpf_htonl(0xffff);
}

static __always_inline void map_ipv4(__u32 addr[4], __be32 ipv4)
{
	addr[0] = 0;
	addr[1] = 0;
	addr[2] = bpf_htonl(0xffff);
	addr[3] = ipv4;
}

/* 127.0.0.0/8 and ::1 */
static __always_inline bool is_loopback(const __u32 addr[4])
{
	if (is_mapped(addr))
		return (addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && addr[3] == bpf_htonl(1);
}

/* Multicast and the broadcast addresses that need no routing table to tell:
 * one packet, any number of receivers, whoever they are. */
static __always_inline bool is_many(const __u32 addr[4])
{
	if (is_mapped(addr))
		return (addr[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
		       addr[3] == bpf_htonl(0xffffffff) || addr[3] == bpf_htonl(0x7fffffff);
	return (addr[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* Connecting to the unspecified address is connecting to oneself. */
static __always_inline void resolve_any(__u32 addr[4])
{
	if (addr[0] || addr[1])
		return;
	if (addr[2] == bpf_htonl(0xffff) && !addr[3])
		addr[3] = bpf_htonl(0x7f000001);
	else if (!addr[2] && !addr[3])
		addr[3] = bpf_htonl(1);
}

#define USED_STEP 1000000000ULL /* ns between two writes of `used` */

/* The part of permitted() that address rules are spared. */
__noinline int name_permits(struct permit *permit, __u32 port, struct decision *d)
{
	__u64 now;

	if (!permit || !d)
		return false;
	if (d->unchecked && permit->flags & PERMIT_CHECKS)
		return false;
	if (!(permit->flags & PERMIT_LEARNED))
		return true;
	if (permit->high && (port < permit->low || port > permit->high))
		return false;
	if (d->begins && has_passed(permit->expires)) {
		d->reason = REASON_STALE;
		return false;
	}
	now = recently();
	if (now > permit->used + USED_STEP)
		permit->used = now;
	return true;
}

static __always_inline bool permitted(struct permit *permit, __u32 port, struct decision *d)
{
	if (!permit)
		return false;
	if (passed(permit->deadline)) {
		d->reason = REASON_RULE_EXPIRED;
		return false;
	}
	if (permit->flags && !name_permits(permit, port, d))
		return false;
	d->rule = permit->rule;
	d->flags = permit->flags;
	d->deadline = permit->deadline;
	return true;
}

/* Asks the longest prefix only: the compiler has merged into each entry what
 * covers it. Functions that are not static are verified once, by themselves,
 * not once per call: that keeps loading fast. */
__noinline int in_prefixes(__u32 owner, const struct flow *flow, struct decision *d)
{
	struct prefix key = {.bits = 160, .owner = owner};
	struct ranges *ranges;

	if (!flow || !d)
		return false;
	__builtin_memcpy(key.addr, flow->addr, sizeof(key.addr));
	ranges = bpf_map_lookup_elem(&prefixes, &key);
	if (!ranges)
		return false;
	for (int i = 0; i < MAX_RANGES; i++) {
		const struct range *r = &ranges->of[i];

		if (!r->proto)
			break;
		if (r->proto != flow->proto || r->direction != flow->direction ||
		    flow->port < r->low || flow->port > r->high)
			continue;
		if (passed(r->deadline)) {
			d->reason = REASON_RULE_EXPIRED;
			continue;
		}
		d->rule = r->rule;
		d->flags = 0;
		d->deadline = r->deadline;
		return true;
	}
	return false;
}

/* What is asked after the policy's exact addresses: the task's own grants,
 * names with many ports, and the prefixes of both. */
__noinline int find_further(__u32 policy, __u32 number, __u32 flags, const struct flow *flow,
			    struct decision *d)
{
	struct host key = {.owner = number};

	if (!flow || !d)
		return false;
	key.flow = *flow;
	if (flags & TASK_GRANTS && permitted(bpf_map_lookup_elem(&hosts, &key), flow->port, d))
		return true;
	if (flags & TASK_WIDE_NAMES) {
		key.flow.port = 0;
		if (flags & TASK_GRANTS &&
		    permitted(bpf_map_lookup_elem(&hosts, &key), flow->port, d))
			return true;
		key.owner = policy;
		if (permitted(bpf_map_lookup_elem(&hosts, &key), flow->port, d))
			return true;
	}
	if (flags & TASK_POLICY_PREFIXES && in_prefixes(policy, flow, d))
		return true;
	return flags & TASK_GRANT_PREFIXES && in_prefixes(number, flow, d);
}

#define FURTHER (TASK_GRANTS | TASK_WIDE_NAMES | TASK_POLICY_PREFIXES | TASK_GRANT_PREFIXES)

#define DNS_PORT 53
#define STATION_PORTS 1024 /* stations are below; nobody without privilege takes one */

/* With names in its rules, a task asks the guard's resolver and no other,
 * whatever its rules say of addresses. */
static __always_inline bool asks_dns(const struct task *task, const struct flow *flow)
{
	return flow->port == DNS_PORT && task->flags & TASK_NAMES &&
	       flow->direction == DIRECTION_EGRESS &&
	       (flow->proto == IPPROTO_UDP || flow->proto == IPPROTO_TCP);
}

/* There are only allowing rules, so the first that holds decides. */
static __always_inline bool find_rule(const struct task *task, const struct flow *flow,
				      struct decision *d)
{
	struct host key = {.owner = task->policy, .flow = *flow};

	if (asks_dns(task, flow)) {
		d->reason = REASON_RESOLVER;
		return false;
	}
	if (!permitted(bpf_map_lookup_elem(&hosts, &key), flow->port, d) &&
	    !(task->flags & FURTHER &&
	      find_further(task->policy, task->number, task->flags, flow, d)))
		return false;
	d->reason = REASON_RULE;
	d->allow = true;
	return true;
}

/* Of a flow that a name allows if its payload agrees: whether something else
 * allows it as it is, which then is the decision. */
__noinline int find_unchecked(const struct task *task, const struct flow *flow, struct decision *d)
{
	struct decision other = {.unchecked = true};

	if (!task || !flow || !d)
		return false;
	other.begins = d->begins;
	if (!find_rule(task, flow, &other))
		return false;
	*d = other;
	return true;
}

/* Whether the datagrams that no rule allows are QUIC, to where a name allows
 * TLS over TCP: the name in them cannot be read. */
__noinline int is_quic(const struct task *task, const struct flow *flow)
{
	struct decision d = {};
	struct flow tcp;

	if (!task || !flow)
		return false;
	if (flow->proto != IPPROTO_UDP || flow->port != 443 || !(task->flags & TASK_NAMES))
		return false;
	tcp = *flow;
	tcp.proto = IPPROTO_TCP;
	return find_rule(task, &tcp, &d) && d.flags & PERMIT_TLS;
}

/* Whether the task may act at all; fills the reason if not. */
static __always_inline bool is_live(const struct task *task, struct decision *d)
{
	if (!task) /* deny: a cgroup below the guard that is no task */
		d->reason = REASON_NO_TASK;
	else if (task->state != STATE_LIVE)
		d->reason = REASON_ENDED;
	else if (passed(task->deadline))
		d->reason = REASON_EXPIRED;
	else
		return true;
	return false;
}

/* Whether a denial is only put on record: in mode audit, of a live task. */
static __always_inline bool lets_through(const struct task *task, const struct decision *d)
{
	return !d->allow && task && task->mode == MODE_AUDIT && d->reason != REASON_ENDED &&
	       d->reason != REASON_EXPIRED;
}
