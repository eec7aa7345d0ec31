// SPDX-License-Identifier: Apache-2.0

// Command bench measures what a guard costs, beside no guard, a guard that
// decides nothing, and nftables. It needs root, works in cgroups and network
// namespaces of its own, and leaves nothing behind.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// What the executable is when it is started by itself.
const (
	roleClient = "client"
	roleServer = "server"
	roleTLS    = "tls"
	roleSender = "sender"
)

func main() {
	switch os.Getenv(roleVariable) {
	case roleClient:
		runClient()
		return
	case roleServer:
		runServer()
		return
	case roleTLS:
		runTLS()
		return
	case roleSender:
		runSender()
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	effort
	only     *regexp.Regexp
	sections map[string]bool
	json     bool
	cpu      int
}

func run() error {
	var o options
	flag.IntVar(&o.rounds, "rounds", 60, "how often each lane has its turn in each workload")
	flag.DurationVar(&o.slice, "slice", 20*time.Millisecond, "length of a turn")
	flag.IntVar(&o.generation, "generation", 10, "after how many rounds all processes are started anew")
	flag.IntVar(&o.cpu, "cpu", lastCPU(), "the processor that clients and servers run on")
	only := flag.String("run", "", "only workloads that match this regular expression")
	section := flag.String("section", strings.Join(sectionNames(), ","), "what to measure, comma-separated")
	output := flag.String("o", "table", "table or json")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return err
	}
	if o.sections, err = parseSections(*section); err != nil {
		return err
	}
	if *output != "table" && *output != "json" {
		return fmt.Errorf("-o %s: table or json", *output)
	}
	o.json = *output == "json"
	if os.Geteuid() != 0 {
		return errors.New("needs root: loads programs into the kernel")
	}
	l, err := newLab(o.cpu)
	if err != nil {
		return err
	}
	defer l.close()
	return l.interruptible(func() error { return o.measureAll(l) })
}

// interruptible runs fn, but returns early when the user has had enough.
func (l *lab) interruptible(fn func() error) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case s := <-stop:
		return fmt.Errorf("stopped by %s", s)
	}
}
