// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/client"
)

// census is what a daemon holds: numbers of things, and bytes.
type census map[string]int64

// take counts everything while no task is there.
func (d *daemon) take(ctx context.Context) (census, error) {
	c := make(census)
	for _, count := range []func(context.Context, census) error{
		d.countMaps, d.countCgroups, d.countDescriptors, d.countProcess, d.countFiles, d.countRuntime,
	} {
		if err := count(ctx, c); err != nil {
			return nil, fmt.Errorf("take a census: %w", err)
		}
	}
	return c, nil
}

func (d *daemon) countMaps(ctx context.Context, c census) error {
	status, err := d.Status(ctx)
	if err != nil {
		return err
	}
	for _, m := range status.Maps {
		c["entries of "+m.Name] = int64(m.Entries)
	}
	c["live tasks"] = int64(status.Tasks)
	c["guards"] = int64(len(status.Guards))
	c["problems"] = int64(len(status.Problems))
	return nil
}

// countCgroups includes those that were removed and that something in the
// kernel still holds on to.
func (d *daemon) countCgroups(_ context.Context, c census) error {
	for _, dir := range []string{d.guard, d.side} {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.stat"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			var n int64
			if _, err := fmt.Sscanf(line, "nr_descendants %d", &n); err == nil {
				c["cgroups"] += n
			}
			if _, err := fmt.Sscanf(line, "nr_dying_descendants %d", &n); err == nil {
				c["dying cgroups"] += n
			}
		}
	}
	return nil
}

// countDescriptors also adds up what the kernel says that the daemon's maps
// occupy (since Linux 6.4 for what they hold, before for what they may).
func (d *daemon) countDescriptors(_ context.Context, c census) error {
	dir := fmt.Sprintf("/proc/%d/fd", d.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	c["network namespaces"] = 0
	occupied := make(map[string]int64)
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		c["descriptors"]++
		switch {
		case strings.HasPrefix(target, "net:"):
			c["network namespaces"]++
		case target == "anon_inode:bpf-map":
			id, bytes, err := mapMemory(fmt.Sprintf("/proc/%d/fdinfo/%s", d.pid, entry.Name()))
			if err != nil {
				return err
			}
			occupied[id] = bytes
		}
	}
	for _, bytes := range occupied {
		c["bytes of maps"] += bytes
	}
	return nil
}

func mapMemory(fdinfo string) (id string, bytes int64, err error) {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); name {
		case "map_id":
			id = value
		case "memlock":
			bytes, err = strconv.ParseInt(value, 10, 64)
		}
	}
	return id, bytes, err
}

func (d *daemon) countProcess(_ context.Context, c census) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var n int64
		if _, err := fmt.Sscanf(line, "Threads: %d", &n); err == nil {
			c["threads"] = n
		}
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &n); err == nil {
			c["bytes resident"] = n << 10
		}
	}
	return nil
}

func (d *daemon) countFiles(_ context.Context, c census) error {
	for name, dir := range map[string]string{"pins": d.pins, "files of state": d.state()} {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			c[name]++
			if strings.HasSuffix(path, ".db") {
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil {
					return err
				}
				c["bytes of "+entry.Name()] = st.Size
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// countRuntime asks the daemon's Go runtime. Half of the size at which it will
// collect garbage next is what was in use when it last did.
func (d *daemon) countRuntime(ctx context.Context, c census) error {
	samples, err := d.collectGarbage(ctx)
	if err != nil {
		return err
	}
	c["goroutines"] = int64(samples["go_goroutines"])
	c["bytes of heap in use"] = int64(samples["go_memstats_next_gc_bytes"] / 2)
	return nil
}

// collectGarbage makes the daemon allocate until it has collected twice, so
// that what was in use while tasks were there no longer counts.
func (d *daemon) collectGarbage(ctx context.Context) (samples map[string]float64, err error) {
	var first float64
	return samples, settled(patience, func() error {
		for range 20 {
			if _, err := d.Tasks(ctx, client.TaskFilter{State: client.TaskEnded}); err != nil {
				return err
			}
		}
		if samples, err = d.metrics(ctx); err != nil {
			return err
		}
		collected := samples["go_gc_duration_seconds_count"]
		if first == 0 {
			first = collected
		}
		if collected < first+2 {
			return fmt.Errorf("the daemon collected garbage %.0f times, want %.0f", collected, first+2)
		}
		return nil
	})
}

// metrics scrapes those that have no labels.
func (d *daemon) metrics(ctx context.Context) (map[string]float64, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.Socket())
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agentguard/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape metrics: %s", response.Status)
	}
	samples := make(map[string]float64)
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil {
			samples[name] = value
		}
	}
	return samples, lines.Err()
}

// bounds are how much more there may be after the soak than before. What is
// not in them may not grow at all.
func bounds(tasks int) census {
	// The ends of that many tasks are remembered in full. When there were more,
	// the warm-up has filled that memory.
	const history, remembered = 4096, 8 << 10
	growing := int64(tasks) * remembered
	if tasks > history {
		growing = 0
	}
	return census{
		"dying cgroups":        8,
		"descriptors":          4,
		"threads":              32, // the runtime keeps those that it once needed
		"goroutines":           8,
		"files of state":       16, // of the audit log, whose size has a limit of its own
		"bytes of maps":        64 << 10,
		"bytes of tasks.db":    1<<20 + growing,
		"bytes of heap in use": 2<<20 + growing,
		"bytes resident":       16<<20 + 2*growing,
	}
}

// growth names what is more in after than it may be.
func growth(before, after, allowed census) error {
	var grown []string
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if after[name] > before[name]+allowed[name] {
			grown = append(grown, fmt.Sprintf("%s: %d before, %d after, at most %d more allowed", name, before[name], after[name], allowed[name]))
		}
	}
	if grown != nil {
		return fmt.Errorf("grown: %s", strings.Join(grown, "; "))
	}
	return nil
}

// table shows two censuses side by side.
func table(before, after, allowed census) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-24s %12s %12s %12s\n", "", "before", "after", "may grow by")
	for _, name := range slices.Sorted(maps.Keys(after)) {
		fmt.Fprintf(&b, "%-24s %12d %12d %12d\n", name, before[name], after[name], allowed[name])
	}
	return b.String()
}
