// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"net/http"
	"net/url"
)

// Status asks how the daemon is. Ready says whether it enforces.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	return status, c.call(ctx, http.MethodGet, "/v1/status", nil, nil, &status)
}

// Doctor asks which protections this kernel has.
func (c *Client) Doctor(ctx context.Context) ([]Check, error) {
	var checks []Check
	return checks, c.call(ctx, http.MethodGet, "/v1/doctor", nil, nil, &checks)
}

// Begin begins a task. Beginning one with the id and content of a live task is
// no error: the answer has Existing set.
func (c *Client) Begin(ctx context.Context, request BeginRequest) (Task, error) {
	var task Task
	return task, c.call(ctx, http.MethodPost, "/v1/tasks", nil, request, &task)
}

// End ends a task: when it returns, nothing leaves any socket of the task.
// Ending an ended task is no error: the answer's Task has Existing set.
func (c *Client) End(ctx context.Context, id string, request EndRequest) (EndResult, error) {
	var result EndResult
	return result, c.call(ctx, http.MethodPost, taskPath(id, "end"), nil, request, &result)
}

// Drain waits until what the task has written is sent, or the time is over.
func (c *Client) Drain(ctx context.Context, id string, request DrainRequest) (DrainResult, error) {
	var result DrainResult
	return result, c.call(ctx, http.MethodPost, taskPath(id, "drain"), nil, request, &result)
}

// Task describes one task, with its counters.
func (c *Client) Task(ctx context.Context, id string) (Task, error) {
	var task Task
	return task, c.call(ctx, http.MethodGet, taskPath(id), nil, nil, &task)
}

// Enter says that the caller is about to start a process in a live task's
// cgroup, in its own network namespace: names can be looked up there when it
// returns.
func (c *Client) Enter(ctx context.Context, id string) (Task, error) {
	var task Task
	return task, c.call(ctx, http.MethodPost, taskPath(id, "enter"), nil, nil, &task)
}

// Tasks lists tasks, oldest first.
func (c *Client) Tasks(ctx context.Context, filter TaskFilter) ([]Task, error) {
	query := url.Values{}
	set(query, "agent", filter.Agent)
	set(query, "state", string(filter.State))
	var tasks []Task
	return tasks, c.call(ctx, http.MethodGet, "/v1/tasks", query, nil, &tasks)
}

// Grant lets one task reach grant.Destination for grant.TTL, or until the task
// ends. Granting the same destination again sets its deadline anew.
func (c *Client) Grant(ctx context.Context, id string, grant Grant) (Grant, error) {
	var granted Grant
	return granted, c.call(ctx, http.MethodPost, taskPath(id, "grants"), nil, grant, &granted)
}

// Revoke takes a grant back: when it returns, nothing more of the task leaves
// for the destination unless a rule of its policy allows it.
func (c *Client) Revoke(ctx context.Context, id, destination string) (RevokeResult, error) {
	var result RevokeResult
	query := url.Values{"destination": {destination}}
	return result, c.call(ctx, http.MethodDelete, taskPath(id, "grants"), query, nil, &result)
}

// ApplyPolicies applies every AgentPolicy document in yaml, or none. The file
// name appears in messages only.
func (c *Client) ApplyPolicies(ctx context.Context, file string, yaml []byte) (ApplyResult, error) {
	var result ApplyResult
	return result, c.call(ctx, http.MethodPost, "/v1/policies", fileName(file), yaml, &result)
}

// ValidatePolicies checks what ApplyPolicies would apply, and applies nothing.
func (c *Client) ValidatePolicies(ctx context.Context, file string, yaml []byte) ([]Policy, error) {
	var policies []Policy
	return policies, c.call(ctx, http.MethodPost, "/v1/policies/validate", fileName(file), yaml, &policies)
}

// Policies lists the policies by name, without their documents.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	var policies []Policy
	return policies, c.call(ctx, http.MethodGet, "/v1/policies", nil, nil, &policies)
}

// Policy returns one policy with its document.
func (c *Client) Policy(ctx context.Context, name string) (Policy, error) {
	var policy Policy
	return policy, c.call(ctx, http.MethodGet, policyPath(name), nil, nil, &policy)
}

// DeletePolicy removes a policy that no live task uses.
func (c *Client) DeletePolicy(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, policyPath(name), nil, nil, nil)
}

func taskPath(id string, more ...string) string {
	path := "/v1/tasks/" + url.PathEscape(id)
	for _, segment := range more {
		path += "/" + segment
	}
	return path
}

func policyPath(name string) string { return "/v1/policies/" + url.PathEscape(name) }

func fileName(file string) url.Values {
	query := url.Values{}
	set(query, "file", file)
	return query
}

func set(query url.Values, key, value string) {
	if value != "" {
		query.Set(key, value)
	}
}
