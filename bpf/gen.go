// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the kernel half of agentguard: its C sources, the compiled
// object and the Go types that bpf2go makes from agentguard.h. It contains
// nothing else; internal/maps and internal/loader use it.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -type state -type mode -type loopback -type direction -type task_flag -type guard_flag -type namespace_flag -type rule -type verdict -type reason -type hook -type stat -type guard -type task -type flow -type host -type permit_flag -type permit -type name -type claim -type claims -type learned_addr -type station -type peer -type asker -type prefix -type range -type ranges -type counter_key -type counter -type recent_part -type recent -type local_addr -type memo -type greeting -type event -type named_event -type socket Guard agentguard.bpf.c
