// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"

	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/names"
	"agentguard.dev/agentguard/internal/task"
)

const configHelp = `The configuration, with its defaults:

   group: ""              # a group that may use the admin socket besides root
   drain: 5s              # how long a drain waits when not told
   logLevel: info         # debug, info, warn or error
   metrics: ""            # a TCP address for /metrics, /healthz and /readyz, such as 127.0.0.1:9469
   trustedNamespaces: []  # paths of network namespaces whose NAT is yours, besides the machine's own
   dns:                   # how names are looked up for tasks whose rules have names
     resolvers: []        # asked from the daemon's network namespace for tasks in any, instead of those of resolv.conf
     minTTL: 30s          # an address is good for new connections at least that long,
     maxTTL: 1h           # and at most that long
     types: [A, AAAA, CNAME, HTTPS, SVCB, SRV, PTR]  # of records that are answered
     rate: 200            # questions a second of one task
   sizes:                 # of the kernel's maps; 0 is the default, and a new size needs an unload
     {tasks: 0, hosts: 0, prefixes: 0, names: 0, learned: 0, counters: 0, local_addrs: 0, events: 0}`

// config is the daemon's configuration file.
type config struct {
	Group    string       `yaml:"group"`
	Drain    positiveTime `yaml:"drain"`
	LogLevel slog.Level   `yaml:"logLevel"`
	Metrics  string       `yaml:"metrics"`
	Trusted  []string     `yaml:"trustedNamespaces"`
	DNS      dnsConfig    `yaml:"dns"`
	Sizes    loader.Sizes `yaml:"sizes"`

	gid int // of Group; -1 for none
}

type dnsConfig struct {
	Resolvers []resolver   `yaml:"resolvers"`
	MinTTL    positiveTime `yaml:"minTTL"`
	MaxTTL    positiveTime `yaml:"maxTTL"`
	Types     []string     `yaml:"types"`
	Rate      float64      `yaml:"rate"`
}

// positiveTime is a time with a unit; a bare number would be nanoseconds.
type positiveTime time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *positiveTime) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil || parsed < 0 {
		return fmt.Errorf("%q: want a positive time such as 5s", text)
	}
	*d = positiveTime(parsed)
	return nil
}

// resolver is a DNS server: an address, with a port unless that is 53.
type resolver netip.AddrPort

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *resolver) UnmarshalText(text []byte) error {
	if addr, err := netip.ParseAddr(string(text)); err == nil {
		*r = resolver(netip.AddrPortFrom(addr.Unmap(), 53))
		return nil
	}
	server, err := netip.ParseAddrPort(string(text))
	if err != nil || server.Port() == 0 {
		return fmt.Errorf("resolver %q: want an address such as 192.0.2.53, or with a port 192.0.2.53:5353 or [2001:db8::53]:5353", text)
	}
	*r = resolver(netip.AddrPortFrom(server.Addr().Unmap(), server.Port()))
	return nil
}

func resolverFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "resolver", Usage: "ask the DNS server at `ADDRESS` for names, instead of those of resolv.conf; can be repeated"}
}

// givenResolvers reads resolverFlag.
func givenResolvers(ctx *cli.Context) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	for _, text := range ctx.StringSlice("resolver") {
		var server resolver
		if err := server.UnmarshalText([]byte(text)); err != nil {
			return nil, usageError{err.Error()}
		}
		servers = append(servers, netip.AddrPort(server))
	}
	return servers, nil
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
	base.DNS = names.Config{
		MinTTL: time.Duration(c.DNS.MinTTL), MaxTTL: time.Duration(c.DNS.MaxTTL),
		Types: c.DNS.Types, Rate: c.DNS.Rate,
	}
	for _, server := range c.DNS.Resolvers {
		base.Resolvers = append(base.Resolvers, netip.AddrPort(server))
	}
	return base
}
