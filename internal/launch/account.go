// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// nogroup is the group of a user known only by number.
const nogroup = 65534

// account is who the command runs as.
type account struct {
	UID, GID uint32
	Groups   []uint32
	Keep     bool // the current identity and its environment, as they are
	Name     string
	Home     string
}

// resolve finds the account for Command.User.
func resolve(spec string) (account, error) {
	if spec != "" {
		a, err := resolveSpec(spec)
		if err != nil {
			return account{}, fmt.Errorf("user %q: %w", spec, err)
		}
		return a, nil
	}
	if uid, ok := os.LookupEnv("SUDO_UID"); ok && os.Geteuid() == 0 {
		return resolveSudo(uid, os.Getenv("SUDO_GID"))
	}
	return current()
}

// resolveSudo fails on what it does not understand: the way out of a typing
// error must not be to run as root.
func resolveSudo(uid, gid string) (account, error) {
	if _, err := number(uid); err != nil {
		return account{}, fmt.Errorf("SUDO_UID: %w: name the user, or unset it", err)
	}
	a, err := resolveUser(uid)
	if err != nil || gid == "" {
		return a, err
	}
	if a.GID, err = number(gid); err != nil {
		return account{}, fmt.Errorf("SUDO_GID: %w: name the user, or unset it", err)
	}
	return a, nil
}

func current() (account, error) {
	groups, err := os.Getgroups()
	if err != nil {
		return account{}, fmt.Errorf("groups of the current user: %w", err)
	}
	a := account{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Keep: true}
	for _, g := range groups {
		a.Groups = append(a.Groups, uint32(g))
	}
	return a, nil
}

func resolveSpec(spec string) (account, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	a, err := resolveUser(name)
	if err != nil || !hasGroup {
		return a, err
	}
	a.GID, err = resolveGroup(group)
	a.Groups = nil // uid:gid means these two and no more
	return a, err
}

// resolveUser looks a user up by name or number. A number that no user has
// stands for itself.
func resolveUser(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		uid, notNumber := number(name)
		if notNumber != nil {
			return account{}, errors.New("no such user: write a name of the user database, a uid or uid:gid")
		}
		if u, err = user.LookupId(name); err != nil {
			return account{UID: uid, GID: nogroup, Name: name, Home: "/"}, nil
		}
	}
	return fromUser(u)
}

func fromUser(u *user.User) (account, error) {
	uid, err := number(u.Uid)
	if err != nil {
		return account{}, err
	}
	gid, err := number(u.Gid)
	if err != nil {
		return account{}, err
	}
	a := account{UID: uid, GID: gid, Name: u.Username, Home: u.HomeDir}
	ids, err := u.GroupIds()
	if errors.Is(err, fs.ErrNotExist) { // a system without /etc/group
		return a, nil
	}
	if err != nil {
		return account{}, fmt.Errorf("groups of %s: %w", u.Username, err)
	}
	for _, id := range ids {
		g, err := number(id)
		if err != nil {
			return account{}, err
		}
		a.Groups = append(a.Groups, g)
	}
	return a, nil
}

func resolveGroup(name string) (uint32, error) {
	if g, err := user.LookupGroup(name); err == nil {
		return number(g.Gid)
	}
	gid, err := number(name)
	if err != nil {
		return 0, fmt.Errorf("no such group: %w", err)
	}
	return gid, nil
}

// number parses a uid or gid. The highest value means "unchanged" to the kernel
// and is none.
func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is not a user or group id", s)
	}
	return uint32(n), nil
}

// environment returns env with the account's HOME, USER and LOGNAME.
func (a account) environment(env []string) []string {
	if a.Keep {
		return env
	}
	out := make([]string, 0, len(env)+3)
	for _, v := range env {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "HOME", "USER", "LOGNAME":
		default:
			out = append(out, v)
		}
	}
	return append(out, "HOME="+a.Home, "USER="+a.Name, "LOGNAME="+a.Name)
}
