// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"

	"agentguard.dev/agentguard/client"
)

// CollectPrivate removes what engines with Config.Private have left behind
// whose process is gone and whose command has ended; with all set also those
// whose command still runs, which it ends.
func CollectPrivate(ctx context.Context, cfg Config, all bool) error { return nil }

// ValidatePolicies checks every document of a policy file as ApplyPolicies
// would. The file name appears in errors only.
func ValidatePolicies(file string, data []byte) ([]client.Policy, error) { return nil, nil }

// Begin begins a task. If a live task has the same id and was begun by the
// same request, that task is returned with Existing set.
func (e *Engine) Begin(ctx context.Context, req client.BeginRequest) (client.Task, error) {
	return client.Task{}, nil
}

// End ends a task: when it returns, nothing leaves any socket of the task.
// Ending an ended task is no error: the answer's Task has Existing set.
func (e *Engine) End(ctx context.Context, id string, req client.EndRequest) (client.EndResult, error) {
	return client.EndResult{}, nil
}

// Drain waits until no socket of the task holds data that its peer has not
// acknowledged, or the time is over.
func (e *Engine) Drain(ctx context.Context, id string, req client.DrainRequest) (client.DrainResult, error) {
	return client.DrainResult{}, nil
}

// Grant lets one task reach grant.Destination for grant.TTL, or until the task
// ends. Granting the same destination again sets its deadline anew.
func (e *Engine) Grant(ctx context.Context, id string, grant client.Grant) (client.Grant, error) {
	return client.Grant{}, nil
}

// Revoke takes back the task's grants that destination covers. When it
// returns, nothing more of the task leaves for them unless its policy allows it.
func (e *Engine) Revoke(ctx context.Context, id, destination string) (client.RevokeResult, error) {
	return client.RevokeResult{}, nil
}

// Get describes one task, with its counters.
func (e *Engine) Get(id string) (client.Task, error) { return client.Task{}, nil }

// List describes tasks, oldest first, without their counters.
func (e *Engine) List(filter client.TaskFilter) []client.Task { return nil }

// ApplyPolicies applies every AgentPolicy document in data, or none. The file
// name appears in errors only.
func (e *Engine) ApplyPolicies(ctx context.Context, file string, data []byte) (client.ApplyResult, error) {
	return client.ApplyResult{}, nil
}

// Policies describes the policies by name, without their documents.
func (e *Engine) Policies() []client.Policy { return nil }

// Policy describes one policy with its document.
func (e *Engine) Policy(name string) (client.Policy, error) { return client.Policy{}, nil }

// DeletePolicy removes a policy that no live task uses.
func (e *Engine) DeletePolicy(ctx context.Context, name string) error { return nil }

// Status is the engine's account of itself.
func (e *Engine) Status() client.Status { return client.Status{} }

// Doctor says which protections this kernel has.
func (e *Engine) Doctor() []client.Check { return nil }

// AuditDir is where the audit log is, for package audit's readers.
func (e *Engine) AuditDir() string { return "" }

// Subscription is a stream of audit records as they are made. A reader that is
// too slow loses records rather than delay anything.
type Subscription struct {
	C <-chan client.Record
}

// Subscribe starts a subscription. The caller closes it.
func (e *Engine) Subscribe() *Subscription { return nil }

// Lost is how many records the subscriber was too slow for.
func (s *Subscription) Lost() uint64 { return 0 }

// Close ends the subscription and closes C.
func (s *Subscription) Close() {}

// Total is what one rule did for all tasks of one agent, ended ones included,
// since the engine was opened.
type Total struct {
	Agent   string
	Rule    string
	Allowed uint64
	Denied  uint64
	Packets uint64
	Bytes   uint64
}

// Totals adds up the counters of all tasks. Agents without a stored policy are
// put together under the name "".
func (e *Engine) Totals() ([]Total, error) { return nil, nil }
