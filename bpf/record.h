/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting and reporting. Neither ever changes a verdict. */
#pragma once

/* A denial wakes the reader, but not more often than this: the reader also
 * polls. An allowed connect never does: a wake-up costs half a connect. */
#define WAKE_INTERVAL 10000000ULL /* ns */

static __u64 last_wake;

static __always_inline struct counter *counter_of(__u32 task, __u32 rule)
{
	struct counter_key key = {.task = task, .rule = rule};
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);
	struct counter zero = {};

	if (counter)
		return counter;
	bpf_map_update_elem(&counters, &key, &zero, BPF_NOEXIST);
	counter = bpf_map_lookup_elem(&counters, &key);
	if (!counter)
		stat_add(STAT_COUNTERS_FULL);
	return counter;
}

/* The counter, if it could be counted. */
static __always_inline struct counter *count_decision(const struct task *task,
						      const struct decision *d)
{
	struct counter *counter;

	if (!d->allow) {
		stat_add(STAT_DENIED);
		if (!task) {
			stat_add(STAT_NO_TASK);
			return NULL;
		}
	}
	if (!task)
		return NULL;
	counter = counter_of(task->number, d->rule);
	if (counter)
		__sync_fetch_and_add(d->allow ? &counter->allowed : &counter->denied, 1);
	return counter;
}

static __always_inline struct counter *count_packet(const struct task *task, __u32 rule,
						    __u32 length)
{
	struct counter *counter = counter_of(task->number, rule);

	if (!counter)
		return NULL;
	__sync_fetch_and_add(&counter->packets, 1);
	__sync_fetch_and_add(&counter->bytes, length);
	return counter;
}

/* What an event says beside the decision. */
struct scene {
	__u64 cgroup;
	__u64 cookie;
	__u64 netns;
	__u32 detail;
	__u8 hook;
};

/* has_process: current is the process that acts. A constant at each call: 6.1
 * refuses the helpers in egress even where they cannot be reached. Returns
 * how the reader is to be woken. */
static __always_inline __u64 fill_event(struct event *event, const struct task *task,
					const struct flow *flow, const struct decision *d,
					const struct scene *scene, const bool has_process)
{
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_boot_ns();
	event->cgroup = scene->cgroup;
	event->cookie = scene->cookie;
	event->netns = scene->netns;
	event->rule = d->rule;
	event->flow = *flow;
	event->detail = scene->detail;
	event->hook = scene->hook;
	event->reason = d->reason;
	event->verdict = d->allow ? VERDICT_ALLOW : VERDICT_DENY;
	if (task) {
		event->task = task->number;
		event->mode = task->mode;
		if (lets_through(task, d))
			event->verdict = VERDICT_WOULD_DENY;
	}
	if (has_process) {
		struct task_struct *current = bpf_get_current_task_btf();

		event->pid = current->tgid;
		event->uid = current->cred->uid.val;
		__builtin_memcpy(event->comm, current->comm, sizeof(event->comm));
	}
	if (d->allow || event->time - last_wake <= WAKE_INTERVAL)
		return BPF_RB_NO_WAKEUP;
	last_wake = event->time;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline void put_event(const struct task *task, const struct flow *flow,
				      const struct decision *d, const struct scene *scene,
				      const bool has_process)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		stat_add(STAT_EVENTS_LOST);
		return;
	}
	bpf_ringbuf_submit(event, fill_event(event, task, flow, d, scene, has_process));
}

/* Verified once each, by themselves, whatever led there. */
__noinline int report_action(const struct task *task, const struct flow *flow,
			     const struct decision *d, const struct scene *scene)
{
	if (flow && d && scene)
		put_event(task, flow, d, scene, true);
	return 0;
}

__noinline int report_packet(const struct task *task, const struct flow *flow,
			     const struct decision *d, const struct scene *scene)
{
	if (flow && d && scene)
		put_event(task, flow, d, scene, false);
	return 0;
}
