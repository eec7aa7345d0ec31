// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"

	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/task"
)

const configHelp = `The configuration, with its defaults:

   group: ""              # a group that may use the admin socket besides root
   drain: 5s              # how long a drain waits when not told
   logLevel: info         # debug, info, warn or error
   metrics: ""            # a TCP address for /metrics, /healthz and /readyz, such as 127.0.0.1:9469
   trustedNamespaces: []  # paths of network namespaces whose NAT is yours, besides the machine's own
   sizes:                 # of the kernel's maps; 0 is the default, and a new size needs an unload
     {tasks: 0, hosts: 0, prefixes: 0, counters: 0, local_addrs: 0, events: 0}`

// config is the daemon's configuration file.
type config struct {
	Group    string       `yaml:"group"`
	Drain    drainTime    `yaml:"drain"`
	LogLevel slog.Level   `yaml:"logLevel"`
	Metrics  string       `yaml:"metrics"`
	Trusted  []string     `yaml:"trustedNamespaces"`
	Sizes    loader.Sizes `yaml:"sizes"`

	gid int // of Group; -1 for none
}

// drainTime is a time with a unit; a bare number would be nanoseconds.
type drainTime time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *drainTime) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil || parsed < 0 {
		return fmt.Errorf("drain %q: want a positive time such as 5s", text)
	}
	*d = drainTime(parsed)
	return nil
}

// readConfig reads file; without one everything is as by default.
func readConfig(file string) (config, error) {
	c := config{gid: -1}
	if file == "" {
		return c, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return config{}, fmt.Errorf("read the configuration: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(data, &c, yaml.Strict()); err != nil {
		return config{}, fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, true))
	}
	c.gid = -1 // a file without content makes c the zero value, and 0 is root's group
	if c.Group != "" {
		if c.gid, err = groupID(c.Group); err != nil {
			return config{}, fmt.Errorf("%s: %w", file, err)
		}
	}
	return c, nil
}

func groupID(name string) (int, error) {
	if gid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(gid), nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		return -1, fmt.Errorf("group %q does not exist: create it with: groupadd --system %[1]s", name)
	}
	return strconv.Atoi(group.Gid)
}

func (c config) engine(base task.Config) task.Config {
	base.Drain, base.TrustedNamespaces, base.Sizes = time.Duration(c.Drain), c.Trusted, c.Sizes
	return base
}
