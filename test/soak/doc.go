// SPDX-License-Identifier: Apache-2.0

// Package soak begins, uses and ends thousands of tasks of several agents side
// by side, on a real daemon, while policies change under them. Every connection
// has to get the verdict of its own task's rules, and when all is over nothing
// may have grown: maps, cgroups, descriptors, threads, pins, memory.
package soak
