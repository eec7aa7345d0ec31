// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"agentguard.dev/agentguard/client"
)

var (
	soakTasks = flag.Int("soak.tasks", 0, "how many tasks; 300 with -short, else 20,000")
	soakWidth = flag.Int("soak.width", 32, "how many of them side by side")
	soakSeed  = flag.Uint64("soak.seed", 0, "of what is random; the time when 0")
)

const (
	agents      = 8
	maxFailures = 10 // then nothing further begins
)

// soak is one run.
type soak struct {
	t        *testing.T
	seed     uint64
	programs programs
	daemon   *daemon
	world    *world
	agents   []*agent

	failures atomic.Int32
	changes  atomic.Int32 // of policies

	mu    sync.Mutex
	times map[string][]time.Duration
}

func TestSoak(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("attaching programs to cgroups needs root")
	}
	tasks, warmup := *soakTasks, 4500 // more than the ended tasks that are remembered
	if tasks == 0 {
		tasks = 20_000
		if testing.Short() {
			tasks = 300
		}
	}
	warmup = min(warmup, tasks/2)
	s := newSoak(t)
	s.run("warm-up", 0, warmup)
	before := s.settle(nil, nil)
	s.run("soak", warmup, tasks)
	allowed := bounds(tasks)
	after := s.settle(before, allowed)
	t.Logf("%d tasks, %d visits, %d changes of policies\n%s", tasks, s.world.visits, s.changes.Load(), table(before, after, allowed))
	t.Logf("times\n%s", s.percentiles())
	if err := growth(before, after, allowed); err != nil {
		t.Error(err)
	}
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{t: t, seed: *soakSeed, programs: build(t), agents: newAgents(agents), times: make(map[string][]time.Duration)}
	if s.seed == 0 {
		s.seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s.seed)
	s.world = newWorld(t, s.agents)
	s.daemon = startDaemon(t, s.programs.agentguard)
	for _, a := range s.agents {
		if _, err := s.daemon.ApplyPolicies(t.Context(), a.name, []byte(a.document(0))); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// run lets so many tasks live while policies change and others look on.
func (s *soak) run(name string, first, count int) {
	s.t.Helper()
	began := time.Now()
	var around, lives sync.WaitGroup
	over := make(chan struct{})
	around.Go(func() { s.changePolicies(over) })
	around.Go(func() { s.lookOn(over) })
	numbers := make(chan uint32)
	for range *soakWidth {
		lives.Go(func() {
			for number := range numbers {
				if err := s.live(number); err != nil {
					s.failed(err)
				}
			}
		})
	}
	for i := range count {
		if s.failures.Load() >= maxFailures {
			break
		}
		numbers <- uint32(first + i)
	}
	close(numbers)
	lives.Wait()
	took := time.Since(began)
	close(over)
	around.Wait()
	s.t.Logf("%s: %d tasks in %s, %.0f a second", name, count, took.Round(time.Millisecond), float64(count)/took.Seconds())
	if s.t.Failed() {
		s.t.FailNow()
	}
}

func (s *soak) failed(err error) {
	s.failures.Add(1)
	s.t.Error(err)
}

// timed remembers how long a step took.
func (s *soak) timed(step string, do func() error) error {
	began := time.Now()
	err := do()
	took := time.Since(began)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times[step] = append(s.times[step], took)
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

// changePolicies gives agents the other version of their policy, one or several
// of them at once.
func (s *soak) changePolicies(over <-chan struct{}) {
	rng := rand.New(rand.NewPCG(s.seed, 1<<40))
	for s.failures.Load() < maxFailures {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(rng.IntN(200)) * time.Millisecond):
		}
		chosen := []*agent{s.agents[rng.IntN(len(s.agents))]}
		if rng.IntN(4) == 0 {
			chosen = s.agents
		}
		if err := s.change(chosen); err != nil {
			s.failed(err)
		}
	}
}

func (s *soak) change(chosen []*agent) error {
	var documents strings.Builder
	for _, a := range chosen {
		documents.WriteString(a.document(a.changes.Add(1)/2 + 1))
	}
	s.changes.Add(int32(len(chosen)))
	var result client.ApplyResult
	err := s.timed("apply policies", func() (err error) {
		result, err = s.daemon.ApplyPolicies(s.t.Context(), "soak.yaml", []byte(documents.String()))
		return err
	})
	for _, a := range chosen {
		a.changes.Add(1)
	}
	for _, p := range result.Policies {
		if p.Action != "updated" {
			err = fmt.Errorf("apply policy %s: %s, want updated", p.Name, p.Action)
		}
	}
	return err
}

// lookOn asks the daemon for everything that operators ask for.
func (s *soak) lookOn(over <-chan struct{}) {
	ctx := s.t.Context()
	for s.failures.Load() < maxFailures {
		select {
		case <-over:
			return
		case <-time.After(500 * time.Millisecond):
		}
		status, err := s.daemon.Status(ctx)
		if err == nil && (!status.Ready || status.Lost > 0 || len(status.Problems) > 0) {
			err = fmt.Errorf("status: ready %t, %d events lost, problems %q", status.Ready, status.Lost, status.Problems)
		}
		if err == nil {
			_, err = s.daemon.Tasks(ctx, client.TaskFilter{State: client.TaskLive})
		}
		if err == nil {
			_, err = s.daemon.metrics(ctx)
		}
		if err != nil {
			s.failed(err)
		}
	}
}

// settle takes censuses until nothing has grown beyond what is allowed, or for
// a while; without anything to compare with, until nothing grows any more.
func (s *soak) settle(before, allowed census) census {
	s.t.Helper()
	s.daemon.Close() // idle connections
	var last census
	err := settled(patience, func() error {
		was := before
		if was == nil {
			was = last
		}
		now, err := s.daemon.take(s.t.Context())
		if err != nil {
			return err
		}
		last = now
		if was == nil {
			return fmt.Errorf("nothing to compare with yet")
		}
		return growth(was, now, allowed)
	})
	if last == nil {
		s.t.Fatal(err)
	}
	return last
}

func (s *soak) percentiles() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, step := range slices.Sorted(maps.Keys(s.times)) {
		times := slices.Clone(s.times[step])
		slices.Sort(times)
		at := func(share float64) time.Duration {
			return times[int(share*float64(len(times)-1))].Round(time.Microsecond)
		}
		fmt.Fprintf(&b, "%-16s %6d times, p50 %v, p99 %v, at most %v\n", step, len(times), at(0.5), at(0.99), at(1))
	}
	return b.String()
}
