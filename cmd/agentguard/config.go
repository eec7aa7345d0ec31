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

	"agentguard.dev/agentguard/internal/task"
)

const configHelp = `The configuration, with its defaults:

   group: ""              # a group that may use the admin socket besides root
   drain: 5s              # how long a drain waits when not told
   logLevel: info         # debug, info, warn or error
   metrics: ""            # a TCP address for /metrics, /healthz and /readyz, such as 127.0.0.1:9469`

// config is the daemon's configuration file.
type config struct {
	Group    string        `yaml:"group"`
	Drain    time.Duration `yaml:"drain"`
	LogLevel slog.Level    `yaml:"logLevel"`
	Metrics  string        `yaml:"metrics"`

	gid int // of Group; -1 for none
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
	if c.Drain < 0 {
		return config{}, fmt.Errorf("%s: drain %s: want a positive time", file, c.Drain)
	}
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
	base.Drain = c.Drain
	return base
}
