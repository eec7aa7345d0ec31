// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// setupInstance gives a script an instance of its own, and two servers
// in the world: $SERVER, which `flowing` and `silent` watch, and
// $DENIED, which no script allows. They answer each line with itself.
func setupInstance(env *testscript.Env) error {
	guard, err := newInstance(env.WorkDir)
	if err != nil {
		return err
	}
	sink, err := newSink()
	if err != nil {
		return err
	}
	for _, variable := range guard.env() {
		name, value, _ := strings.Cut(variable, "=")
		env.Setenv(name, value)
	}
	other, err := newSink()
	if err != nil {
		return err
	}
	env.Setenv("SERVER", sink.address())
	env.Setenv("DENIED", other.address())
	env.Setenv("GUARD", guard.cgroup)
	env.Setenv("RESOLVER", resolverAddr)
	env.Setenv("SHARED", sharedAddr)
	// A deadline far enough off to do something before it, and a moment after it.
	soon, past := "2s", "2.2"
	if os.Getenv("AGENTGUARD_VM") != "" {
		soon, past = "10s", "11"
	}
	env.Setenv("SOON", soon)
	env.Setenv("PAST", past)
	env.Values[sinkKey{}] = sink
	env.Values[instanceKey{}] = guard
	env.Defer(func() {
		sink.close()
		other.close()
		if err := guard.unload(); err != nil {
			env.T().Fatal(err)
		}
	})
	return nil
}

type (
	sinkKey     struct{}
	instanceKey struct{}
)

func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"await":     awaitText,
		"flowing":   flowing,
		"silent":    silent,
		"leftovers": leftovers,
		"private":   private,
		"killpid":   killPID,
		"gone":      gone,
	}
}

// awaitText waits until a file holds a match: await FILE REGEXP.
func awaitText(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: await FILE REGEXP")
	}
	pattern, err := regexp.Compile(args[1])
	ts.Check(err)
	var text []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		text, err = os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && pattern.Match(text) {
			return
		}
	}
	ts.Fatalf("%s never matched %q: %v\n%s", args[0], args[1], err, text)
}

// flowing waits until the server has received more than before.
func flowing(ts *testscript.TestScript, _ bool, _ []string) {
	sink := ts.Value(sinkKey{}).(*sink)
	before := sink.received.Load()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if sink.received.Load() > before {
			return
		}
	}
	ts.Fatalf("nothing reached the server for %s", patience)
}

// silent looks that nothing reaches the server any more. What is on its way in
// the server's own socket may arrive first.
func silent(ts *testscript.TestScript, _ bool, _ []string) {
	const onTheWay, quiet = 50 * time.Millisecond, 400 * time.Millisecond
	sink := ts.Value(sinkKey{}).(*sink)
	time.Sleep(onTheWay)
	before := sink.received.Load()
	time.Sleep(quiet) // an absence has no event to wait for
	if after := sink.received.Load(); after != before {
		ts.Fatalf("%d bytes reached the server", after-before)
	}
}

// leftovers fails if something of the instance is on the machine; negated, if
// nothing is.
func leftovers(ts *testscript.TestScript, negated bool, _ []string) {
	err := ts.Value(instanceKey{}).(instance).leftovers()
	if negated && err == nil {
		ts.Fatalf("nothing is left")
	}
	if !negated {
		ts.Check(err)
	}
}

// private checks the modes of the state directory's files.
func private(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Value(instanceKey{}).(instance).stateModes())
}

// killPID kills the process whose id stands in a file: killpid FILE. It must
// be one that the script started.
func killPID(ts *testscript.TestScript, _ bool, args []string) {
	pid := pidIn(ts, args)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	awaitEnd(ts, pid)
}

// gone waits until the process whose id stands in a file has ended: gone FILE.
func gone(ts *testscript.TestScript, _ bool, args []string) {
	awaitEnd(ts, pidIn(ts, args))
}

func pidIn(ts *testscript.TestScript, args []string) (pid int) {
	if len(args) != 1 {
		ts.Fatalf("want the name of a file with a process id")
	}
	_, err := fmt.Sscan(ts.ReadFile(args[0]), &pid)
	ts.Check(err)
	return pid
}

func awaitEnd(ts *testscript.TestScript, pid int) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	ts.Fatalf("process %d does not end", pid)
}
