/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What each CPU has just allowed, so that the next packet of the same flow
 * needs no look-up in a hash map. Only what a rule allows a live task in mode
 * enforce is here; all else is judged anew each time.
 *
 * An entry holds for the epoch in which it was found. The daemon counts the
 * epoch up after each write to `tasks`, `hosts` or `prefixes`, and before it
 * says that anything has changed. A program reads the epoch first, and the
 * maps after it: what it found in older maps has an older epoch, and is never
 * found again. The entry's deadline is the earliest that its verdict depends on.
 *
 * A program can be interrupted on its CPU by another that uses the same entry.
 * `word` tells: replacing an entry changes the generation in it, at the
 * beginning and at the end, and a hit is one only if the compare-and-swap that
 * counts it finds the word as it was before the entry was read. (It has 23 bits:
 * more replacements than one CPU can make while a program waits to go on.)
 *
 * The word also holds what was counted since the entry was made. Whoever
 * replaces the entry, because of another flow or because a count is half full,
 * first adds that to the task's counter. It is there as long as the task is:
 * an entry is made only after its counter, and an ended task's counter, which
 * the daemon has read together with its entries, is not made again. */
#pragma once

#define RECENT_COUNTS ((1ULL << RECENT_GENERATION) - 1)
#define RECENT_TAKEN (1ULL << RECENT_GENERATION)
/* The uppermost bit of each count: half full. */
#define RECENT_FULL                                                                                \
	((1ULL << (RECENT_PACKETS - 1)) | (1ULL << (RECENT_ALLOWED - 1)) |                         \
	 (1ULL << (RECENT_GENERATION - 1)))

/* What was found, or what is needed to keep what will be. */
struct recall {
	__u64 epoch;
	__u32 task;
	__u32 rule;
	__u32 place;  /* in `recents` */
	__u32 wanted; /* not bool: see decision */
};

static __always_inline __u64 packet_count(__u32 length)
{
	/* No packet is that long; the next part must not be reached. */
	if (length >= 1 << (RECENT_PACKETS - 1))
		return 0;
	return 1ULL << RECENT_PACKETS | length;
}

static __always_inline __u64 mix(__u64 cgroup, const struct flow *flow)
{
	__u64 h = cgroup ^ (__u64)flow->addr[0] << 32 ^ flow->addr[1];

	h = h * 0x9e3779b97f4a7c15ULL ^ (__u64)flow->addr[2] << 32 ^ flow->addr[3];
	h = h * 0x9e3779b97f4a7c15ULL ^ (__u64)flow->proto << 16 ^ flow->port;
	h *= 0x9e3779b97f4a7c15ULL;
	return h ^ h >> 32;
}

/* True if the flow was allowed a moment ago and still is; then count is added
 * to what its word holds. A flow is kept when it misses the second time in a
 * row, so that one packet each to many destinations drives nothing out. */
static __always_inline bool is_recent(__u64 cgroup, const struct flow *flow, __u64 count,
				      struct recall *r)
{
	__u32 only = 0, mark;
	__u64 *epoch = bpf_map_lookup_elem(&epochs, &only);
	struct recent *e;
	__u64 h, word;

	if (!epoch || !count)
		return false;
	r->epoch = *(volatile __u64 *)epoch;
	h = mix(cgroup, flow);
	r->place = bpf_get_smp_processor_id() * RECENTS + h % RECENTS;
	e = bpf_map_lookup_elem(&recents, &r->place);
	if (!e)
		return false;
	word = *(volatile __u64 *)&e->word;
	barrier();
	if (e->epoch == r->epoch && e->cgroup == cgroup && same_flow(&e->flow, flow) &&
	    !(word & (RECENT_TAKEN | RECENT_FULL)) && is_far(e->deadline)) {
		r->task = e->task;
		r->rule = e->rule;
		if (__sync_val_compare_and_swap(&e->word, word, word + count) == word)
			return true;
	}
	/* Also the barrier between reading the epoch and reading the maps. */
	mark = h >> 32 | 1;
	r->wanted = __sync_lock_test_and_set(&e->wanted, mark) == mark;
	return false;
}

/* Adds what an entry's word holds to the counter, unless its task has ended. */
static __always_inline void settle(const struct recent *e, __u64 word)
{
	struct counter_key key = {.task = e->task, .rule = e->rule};
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);

	if (!counter)
		return;
	__sync_fetch_and_add(&counter->bytes, word & ((1 << RECENT_PACKETS) - 1));
	__sync_fetch_and_add(&counter->packets,
			     word >> RECENT_PACKETS &
				     ((1 << (RECENT_ALLOWED - RECENT_PACKETS)) - 1));
	__sync_fetch_and_add(&counter->allowed, (word & RECENT_COUNTS) >> RECENT_ALLOWED);
}

/* Where a flow was wanted that a rule allows, and its counter was found: what is
 * counted here later would have nowhere to go without. A rule that asks for more
 * than address, protocol and port has no place here. */
__noinline int keep(const struct task *task, const struct flow *flow, const struct decision *d,
		    const struct recall *r, __u64 cgroup)
{
	struct recent *e;
	__u32 place;
	__u64 word;

	if (!task || !flow || !d || !r || task->mode != MODE_ENFORCE)
		return 0;
	if (flow->port < STATION_PORTS && is_loopback(flow->addr))
		return 0; /* a station can be there, which is judged before rules */
	place = r->place;
	e = bpf_map_lookup_elem(&recents, &place);
	if (!e)
		return 0;
	word = *(volatile __u64 *)&e->word;
	if (word & RECENT_TAKEN ||
	    __sync_val_compare_and_swap(&e->word, word, word + RECENT_TAKEN) != word)
		return 0;
	if (word & RECENT_COUNTS)
		settle(e, word);
	e->epoch = r->epoch;
	e->cgroup = cgroup;
	e->deadline = task->deadline;
	if (!e->deadline || (d->deadline && d->deadline < e->deadline))
		e->deadline = d->deadline;
	e->flow = *flow;
	e->task = task->number;
	e->rule = d->rule;
	/* An exchange, so that the daemon sees the rest no later. */
	__sync_lock_test_and_set(&e->word, (word & ~RECENT_COUNTS) + 2 * RECENT_TAKEN);
	return 0;
}
