// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"agentguard.dev/agentguard/client"
)

// Exit codes. The last three follow env(1) and timeout(1), so that scripts
// can tell a command's own failure from ours.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitExpired = 124 // run, exec: the task's time was over and its command was killed
	exitGuard   = 125 // run, exec: agentguard failed before or beside the command
)

// usageError says that the command line makes no sense.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

// exitError is a command's own exit code. There is nothing left to print.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// guardError is a failure of run or exec themselves.
type guardError struct{ error }

func (e guardError) Unwrap() error { return e.error }

// exitCode prints err, if there is something to say, and returns the code to
// exit with.
func (p *program) exitCode(err error) int {
	var (
		exited exitError
		usage  usageError
		guard  guardError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exited):
		return exited.code
	case errors.As(err, &usage):
		p.complain("usage", err)
		return exitUsage
	case errors.As(err, &guard):
		p.complain(codeOf(err), err)
		return exitGuard
	}
	p.complain(codeOf(err), err)
	return exitFailed
}

func codeOf(err error) string {
	var answered *client.Error
	switch {
	case errors.As(err, &answered):
		return answered.Code
	case errors.Is(err, client.ErrNoDaemon):
		return "unavailable"
	}
	return "failed"
}

func (p *program) complain(code string, err error) {
	if p.json() {
		json.NewEncoder(p.stderr).Encode(struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		}{code, err.Error()})
		return
	}
	fmt.Fprintf(p.stderr, "agentguard: %v\n", err)
}
