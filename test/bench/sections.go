// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// packetSections need lanes, daemonSections a daemon, nameSections both.
var (
	packetSections = []string{"paths", "rules", "tasks", "programs"}
	nameSections   = []string{"names"}
	daemonSections = []string{"end", "api", "memory"}
)

func sectionNames() []string { return slices.Concat(packetSections, nameSections, daemonSections) }

func parseSections(list string) (map[string]bool, error) {
	chosen := make(map[string]bool)
	for name := range strings.SplitSeq(list, ",") {
		if !slices.Contains(sectionNames(), name) {
			return nil, fmt.Errorf("-section %s: there are %s", name, strings.Join(sectionNames(), ", "))
		}
		chosen[name] = true
	}
	return chosen, nil
}

// measureAll prints each section as it is done, or all of it as JSON.
func (o *options) measureAll(l *lab) error {
	report := newReport(o)
	if o.any(packetSections) {
		if err := o.measurePackets(l, report); err != nil {
			return err
		}
	}
	if o.any(nameSections) {
		if err := o.measureNames(l, report); err != nil {
			return err
		}
	}
	if o.any(daemonSections) {
		if err := o.measureDaemon(l, report); err != nil {
			return err
		}
	}
	return report.end(os.Stdout)
}

func (o *options) any(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return o.sections[name] })
}

// ruleCounts and taskCounts are what a guard holds in its smallest form and beyond.
var (
	ruleCounts = []int{10, 1_000, 100_000}
	taskCounts = []int{1, 1_000, 10_000}
)

func (o *options) measurePackets(l *lab, report *report) error {
	var base []*lane
	for _, open := range []func() (*lane, error){
		func() (*lane, error) { return l.plain("plain") },
		func() (*lane, error) { return l.plain("again") },
		l.empty,
		func() (*lane, error) { return l.guarded("guarded", ruleCounts[0], taskCounts[0]) },
	} {
		lane, err := open()
		if err != nil {
			return err
		}
		base = append(base, lane)
	}
	if o.sections["paths"] {
		all := base
		filtered, err := l.nftables()
		if err != nil {
			report.note("without nftables: %v", err)
		} else {
			all = append(slices.Clone(base), filtered)
		}
		if err := o.section(report, "paths", paths(), all); err != nil {
			return err
		}
	}
	if o.sections["rules"] {
		if err := o.measureRules(l, report, base); err != nil {
			return err
		}
	}
	if o.sections["tasks"] {
		lanes := slices.Clone(base)
		for _, n := range taskCounts[1:] {
			lane, err := l.guarded(fmt.Sprintf("%d tasks", n), ruleCounts[0], n)
			if err != nil {
				return err
			}
			lanes = append(lanes, lane)
		}
		if err := o.section(report, "tasks", scales(), lanes); err != nil {
			return err
		}
	}
	if o.sections["programs"] {
		return o.profile(report, base[3], base[2])
	}
	return nil
}

func (o *options) measureRules(l *lab, report *report, base []*lane) error {
	lanes := slices.Clone(base)
	for _, n := range ruleCounts[1:] {
		lane, err := l.guarded(fmt.Sprintf("%d rules", n), n, taskCounts[0])
		if err != nil {
			return err
		}
		lanes = append(lanes, lane)
	}
	if err := o.section(report, "rules", scales(), lanes); err != nil {
		return err
	}
	for i, n := range ruleCounts[1:] {
		some := append(slices.Clone(base[:3]), lanes[len(base)+i])
		jobs := scattered(n - 10)
		if err := o.section(report, fmt.Sprintf("%d destinations", n), jobs, some); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) section(report *report, name string, jobs []job, lanes []*lane) error {
	for _, j := range jobs {
		if !o.only.MatchString(j.name) {
			continue
		}
		report.progress("%s: %s", name, j.name)
		r, err := o.measure(name, j, lanes)
		if err != nil {
			return fmt.Errorf("%s: %w", j.name, err)
		}
		report.row(r)
	}
	return nil
}
