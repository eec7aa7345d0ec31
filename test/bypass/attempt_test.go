// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// Processes that try techniques are this test binary again, told so by the
// environment.
const (
	attemptName  = "AGENTGUARD_BYPASS_ATTEMPT"
	attemptToken = "AGENTGUARD_BYPASS_TOKEN"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(attemptName); name != "" {
		os.Exit(runAttempt(name))
	}
	os.Exit(m.Run())
}

// attempt is a technique as it is tried: the process's own side.
type attempt struct {
	token string
	in    *bufio.Scanner
}

// outcome is what a process says when it has tried.
type outcome struct {
	Errno syscall.Errno `json:"errno,omitempty"`
	Error string        `json:"error,omitempty"`
}

const outcomePrefix = "outcome "

func runAttempt(name string) int {
	a := &attempt{token: os.Getenv(attemptToken), in: bufio.NewScanner(os.Stdin)}
	try, err := byName(name)
	if err == nil {
		err = try(a)
	}
	if errors.Is(err, errSpoken) {
		return 0
	}
	var o outcome
	if err != nil {
		o.Error = err.Error()
		errors.As(err, &o.Errno)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return 1
	}
	a.say(outcomePrefix + string(text))
	return 0
}

// payload is what techniques send: the token, and more to fill it up.
func (a *attempt) payload() []byte { return []byte(a.token + " is not for you\n") }

// numbered is the payload of the i-th time.
func (a *attempt) numbered(i int) []byte {
	return fmt.Appendf(nil, "%s for the %dth time\n", a.token, i)
}

// say tells the test something in one write, which a pipe keeps whole.
func (a *attempt) say(line string) { os.Stdout.WriteString(line + "\n") }

// hear waits for the test's next line.
func (a *attempt) hear() (string, error) {
	if !a.in.Scan() {
		return "", fmt.Errorf("the test went away: %v", a.in.Err())
	}
	return strings.TrimSpace(a.in.Text()), nil
}

// step names what failed. It is nil when err is.
func step(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
