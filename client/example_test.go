// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"agentguard.dev/agentguard/client"
)

// A task around one piece of an agent's work.
func Example() {
	ctx := context.Background()
	guard := client.New(client.DefaultSocket)
	defer guard.Close()

	task, err := guard.Begin(ctx, client.BeginRequest{
		Agent: "coder", Purpose: "fix #12", TTL: client.Duration(10 * time.Minute),
	})
	if err != nil {
		log.Fatal(err)
	}
	// Start the agent's process in task.Cgroup, and wait for it.
	if _, err := guard.End(ctx, task.ID, client.EndRequest{Reason: "done"}); err != nil {
		log.Fatal(err)
	}
}

// A destination for the next minute only; the kernel takes it back by itself.
func ExampleClient_Grant() {
	guard := client.New(client.DefaultSocket)
	defer guard.Close()
	grant, err := guard.Grant(context.Background(), "build-7", client.Grant{
		Destination: "198.51.100.7:443", TTL: client.Duration(time.Minute),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("until", grant.Deadline)
}

// Denials of one agent as they happen.
func ExampleClient_Audit() {
	guard := client.New(client.DefaultSocket)
	defer guard.Close()
	query := client.AuditQuery{Agent: "coder", Verdict: "deny", Follow: true}
	for record, err := range guard.Audit(context.Background(), query) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(record.Task, record.Dest, record.Reason, record.Hint)
	}
}

// Errors that the daemon answered have a stable code.
func ExampleError() {
	guard := client.New(client.DefaultSocket)
	defer guard.Close()
	_, err := guard.Task(context.Background(), "build-7")
	var answered *client.Error
	switch {
	case errors.Is(err, client.ErrNoDaemon):
		fmt.Println("nobody listens")
	case errors.As(err, &answered) && answered.Code == "not_found":
		fmt.Println("no such task")
	}
}
