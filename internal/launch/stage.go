// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageName is argv[0] of the stage, its only argument.
const stageName = "agentguard-stage"

// Descriptors of the stage beyond stdio.
const (
	orderFD  = 3
	reportFD = 4
)

// order is what the parent tells the stage. Bytes, not strings: arguments and
// environment need not be UTF-8.
type order struct {
	Argv, Env [][]byte
	Dir       []byte
	Cgroup    []byte // path, for the check that the user cannot leave it
	Account   account
}

func newOrder(cmd Command, who account) order {
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	return order{
		Argv:    toBytes(cmd.Argv),
		Env:     toBytes(who.environment(env)),
		Dir:     []byte(cmd.Dir),
		Cgroup:  []byte(cmd.Cgroup.Path()),
		Account: who,
	}
}

func toBytes(in []string) [][]byte {
	out := make([][]byte, len(in))
	for i, s := range in {
		out[i] = []byte(s)
	}
	return out
}

func toStrings(in [][]byte) []string {
	out := make([]string, len(in))
	for i, b := range in {
		out[i] = string(b)
	}
	return out
}

// stageFailure is why a stage did not become its command.
type stageFailure struct {
	Code    int
	Message string
}

func (f stageFailure) Error() string { return f.Message }

// Child is called first in main. In the hidden stage it becomes the command and
// does not return; in every other process it does nothing.
func Child() {
	if len(os.Args) != 1 || os.Args[0] != stageName {
		return
	}
	// Capabilities and no_new_privs are a thread's own; execve keeps those of
	// the thread that calls it.
	runtime.LockOSThread()
	failure := become()
	report := os.NewFile(reportFD, "report")
	if err := json.NewEncoder(report).Encode(failure); err != nil {
		fmt.Fprintf(os.Stderr, "agentguard: %s\n", failure.Message)
	}
	os.Exit(failure.Code)
}

// become returns only when it failed.
func become() stageFailure {
	var o order
	in := os.NewFile(orderFD, "order")
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return stageFailure{ExitFailure, fmt.Sprintf("%s is internal to agentguard: read its order: %v", stageName, err)}
	}
	if len(o.Argv) == 0 {
		return stageFailure{ExitFailure, "the order has no command"}
	}
	if err := o.prepare(); err != nil {
		return stageFailure{ExitFailure, err.Error()}
	}
	return execute(toStrings(o.Argv), toStrings(o.Env))
}

// prepare gives up everything that the command must not have. Capabilities are
// needed until the identity is set, so they go last.
func (o order) prepare() error {
	// Everything but stdio goes with execve, the report included.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	var keep capabilities
	if o.Account.UID == 0 {
		keep = harmless
	}
	if err := o.view(); err != nil {
		return err
	}
	if err := limitCapabilities(keep); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := o.Account.assume(); err != nil {
		return err
	}
	if err := setCapabilities(keep); err != nil {
		return err
	}
	if o.Account.UID != 0 {
		if err := confined(string(o.Cgroup)); err != nil {
			return err
		}
	}
	if len(o.Dir) > 0 {
		if err := os.Chdir(string(o.Dir)); err != nil {
			return fmt.Errorf("change directory: %w", err)
		}
	}
	return nil
}

// view limits what the command sees of the file system: no name services, and
// for root nothing writable that steers the kernel.
func (o order) view() error {
	services, err := presentNameServices()
	if err != nil {
		return err
	}
	root := o.Account.UID == 0
	if !root && len(services) == 0 {
		return nil
	}
	if err := enterView(); err != nil {
		return err
	}
	for _, dir := range services {
		if err := hide(dir); err != nil {
			return err
		}
	}
	if !root {
		return nil
	}
	return shield(string(o.Cgroup))
}

// assume takes the account's identity.
func (a account) assume() error {
	groups := make([]int, len(a.Groups))
	for i, g := range a.Groups {
		groups[i] = int(g)
	}
	if !a.Keep {
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("set groups of uid %d: %w", a.UID, err)
		}
	}
	if err := syscall.Setresgid(int(a.GID), int(a.GID), int(a.GID)); err != nil {
		return fmt.Errorf("become gid %d: %w", a.GID, err)
	}
	if err := syscall.Setresuid(int(a.UID), int(a.UID), int(a.UID)); err != nil {
		return fmt.Errorf("become uid %d: %w", a.UID, err)
	}
	return nil
}

// confined fails when the current user could move itself out of the cgroup: to
// leave it, one must be able to write cgroup.procs of a cgroup above it.
func confined(path string) error {
	var st unix.Statfs_t
	for up := filepath.Dir(path); ; up = filepath.Dir(up) {
		err := unix.Statfs(up, &st)
		if errors.Is(err, unix.EACCES) {
			continue // cannot even look: the next one up decides
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", up, err)
		}
		if st.Type != unix.CGROUP2_SUPER_MAGIC {
			return nil
		}
		procs := filepath.Join(up, "cgroup.procs")
		if writable(procs) {
			return fmt.Errorf("uid %d may write %s, so the command could leave its cgroup %s: use a cgroup whose parents belong to root",
				os.Geteuid(), procs, path)
		}
	}
}

// writable says whether the current user may write a file, or may change its
// mode so that it could.
func writable(path string) bool {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && int(st.Uid) == os.Geteuid() {
		return true
	}
	return unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) == nil
}
