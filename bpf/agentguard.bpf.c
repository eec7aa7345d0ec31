//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* agentguard's kernel half: every egress of every task of a guard, decided at
 * the action and judged again on every packet. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "kernel.h"
#include "agentguard.h"
#include "maps.h"
#include "identity.h"
#include "decide.h"
#include "record.h"
#include "recent.h"
#include "packet.h"
#include "socket.h"
#include "redirect.h"
#include "hooks.h"
#include "hello.h"
#include "named.h"
#include "egress.h"
#include "ingress.h"
#include "sweep.h"

/* Enumerations whose values stand in byte-sized fields reach BTF, and so Go,
 * only by being named in a type that is used. */
struct {
	enum state *state;
	enum mode *mode;
	enum loopback *loopback;
	enum direction *direction;
	enum task_flag *task_flag;
	enum permit_flag *permit_flag;
	enum guard_flag *guard_flag;
	enum namespace_flag *namespace_flag;
	enum rule *rule;
	enum verdict *verdict;
	enum reason *reason;
	enum hook *hook;
	enum stat *stat;
	enum recent_part *recent_part;
} exported_types;
struct event *exported_event;
struct named_event *exported_named_event;
struct socket *exported_socket;

char __license[] SEC("license") = "Dual BSD/GPL";
