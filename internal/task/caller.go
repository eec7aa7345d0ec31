// SPDX-License-Identifier: Apache-2.0

package task

import "context"

// Caller is who asked for a change, for the audit log.
type Caller struct {
	PID uint32
	UID uint32
}

type callerKey struct{}

// WithCaller makes the engine record caller in the audit records of what is
// done under the returned context.
func WithCaller(ctx context.Context, caller Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

func callerOf(ctx context.Context) (Caller, bool) {
	caller, ok := ctx.Value(callerKey{}).(Caller)
	return caller, ok
}
