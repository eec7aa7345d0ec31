// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"agentguard.dev/agentguard/client"
	"agentguard.dev/agentguard/internal/cgroup"
)

// What a probe answers.
const (
	reached     = "ok"
	refused     = "connect 1"   // EPERM
	notSent     = "send 1"      // EPERM
	unreachable = "connect 101" // ENETUNREACH: allowed, in a namespace without routes
	aborted     = "read 103"    // ECONNABORTED
)

// life is one task from its beginning to its end.
type life struct {
	*soak
	number  uint32
	rng     *rand.Rand
	agent   *agent
	visitor *visitor
	task    client.Task
	process *process

	held            netip.AddrPort // where the connection that stays open leads
	allowed, denied uint64         // verdicts so far
	uncertain       bool           // they may be others than was seen
	done            []string       // for whoever reads of a failure
}

// kind is a way for a task to live. What its functions leave out is nil.
type kind struct {
	name   string
	weight int
	apart  bool // in a network namespace of its own
	begin  func(*life, *client.BeginRequest) error
	use    func(*life) error // instead of the usual
	more   func(*life) error
	alive  bool // the process still runs when the task is ended
	after  func(*life) error
}

func kinds() []kind {
	return []kind{
		{name: "plain", weight: 40, more: (*life).finish},
		{name: "held", weight: 26, more: (*life).hold, alive: true, after: (*life).expectReset},
		{name: "granted", weight: 15, more: (*life).grantAndRevoke, alive: true},
		{name: "promised", weight: 6, begin: (*life).promise, more: (*life).redeem, alive: true},
		{name: "own policy", weight: 6, begin: (*life).bringPolicy, more: (*life).finish},
		{name: "apart", weight: 4, apart: true, use: (*life).useApart, alive: true},
		{name: "adopted", weight: 2, begin: (*life).makeCgroup, more: (*life).hold, alive: true, after: (*life).afterAdopted},
		{name: "expiring", weight: 1, begin: (*life).limit, use: (*life).outlive},
	}
}

func pick(rng *rand.Rand) kind {
	all, sum := kinds(), 0
	for _, k := range all {
		sum += k.weight
	}
	at := rng.IntN(sum)
	for _, k := range all {
		if at -= k.weight; at < 0 {
			return k
		}
	}
	panic("the weights do not add up")
}

// live begins, uses and ends a task, and compares everything about it with
// what its own rules say.
func (s *soak) live(number uint32) error {
	rng := rand.New(rand.NewPCG(s.seed, uint64(number)))
	k := pick(rng)
	l := &life{soak: s, number: number, rng: rng, agent: s.agents[rng.IntN(len(s.agents))], visitor: s.world.expect(number)}
	defer s.world.forget(number)
	if err := l.run(k); err != nil {
		return fmt.Errorf("task %d (%s, %s, %s): %w; it did: %s; the audit log has: %s",
			number, l.agent.name, k.name, l.task.ID, err, strings.Join(l.done, ", "), l.log())
	}
	return nil
}

// log is what the daemon has written about the task.
func (l *life) log() string {
	var words []string
	for record, err := range l.daemon.Audit(l.t.Context(), client.AuditQuery{Task: l.task.ID}) {
		if err != nil {
			return err.Error()
		}
		words = append(words, fmt.Sprint(record.Time.Format(time.StampMicro), " ", record.Kind, " ", record.Action, record.Verdict, " ",
			record.Hook, " ", record.Dest, " ", record.Reason, " ", record.Detail, " ", record.Count))
	}
	return strings.Join(words, "; ")
}

func (l *life) run(k kind) error {
	if err := l.start(k); err != nil {
		return err
	}
	defer l.process.dismiss()
	use := k.use
	if use == nil {
		use = (*life).usual
	}
	end := func(l *life) error { return l.end(k) }
	for _, step := range []func(*life) error{use, k.more, (*life).compareCounters, end, k.after} {
		if step == nil {
			continue
		}
		if err := step(l); err != nil {
			return err
		}
	}
	return nil
}

func (l *life) start(k kind) error {
	request := client.BeginRequest{Agent: l.agent.name, Purpose: fmt.Sprintf("soak %d", l.number)}
	if k.begin != nil {
		if err := k.begin(l, &request); err != nil {
			return err
		}
	}
	step := "begin"
	if request.Cgroup != "" {
		step = "begin, adopting" // which attaches programs, and cuts what was there
	}
	err := l.timed(step, func() (err error) {
		l.task, err = l.daemon.Begin(l.t.Context(), request)
		return err
	})
	if err != nil {
		return err
	}
	return l.timed("start a process", func() (err error) {
		l.process, err = start(l.programs.probe, l.task.Cgroup, l.number, k.apart)
		return err
	})
}

// may notes that the task is allowed to reach a destination.
func (l *life) may(to netip.AddrPort) { l.world.mayReach(l.visitor, to) }

func (l *life) expect(want string, order string, args ...any) error {
	answer, err := l.order(order, args...)
	if err != nil {
		return err
	}
	return l.judge(answer, want, fmt.Sprintf(order, args...))
}

func (l *life) order(order string, args ...any) (answer string, err error) {
	answer, err = l.process.order(order, args...)
	l.done = append(l.done, fmt.Sprintf(order, args...)+": "+answer)
	return answer, err
}

// judge compares an answer with what it should be and counts the verdict.
func (l *life) judge(answer, want, order string) error {
	if answer != want {
		return fmt.Errorf("%s: %q, want %q", order, answer, want)
	}
	switch answer {
	case refused, notSent:
		l.denied++
	case reached, unreachable:
		l.allowed++
	}
	return nil
}

func (l *life) allow(verb string, to netip.AddrPort) error {
	l.may(to)
	return l.expect(reached, "%s %s", verb, to)
}

func (l *life) deny(to netip.AddrPort) error { return l.expect(refused, "tcp %s", to) }

// usual tries some of what the agent may do, and of what others may.
func (l *life) usual() error {
	if err := l.allowOne(); err != nil {
		return err
	}
	for range 2 {
		if err := l.denyOne(); err != nil {
			return err
		}
	}
	if l.rng.IntN(4) == 0 {
		return l.tryToggle()
	}
	return nil
}

func (l *life) allowOne() error {
	switch l.rng.IntN(4) {
	case 0:
		return l.allow("tcp", l.agent.exact())
	case 1:
		return l.allow("tcp", l.agent.exact6())
	case 2:
		return l.allow("tcp", l.agent.within(l.rng))
	default:
		return l.allow("udp", l.agent.datagram())
	}
}

// other is an agent whose rules the task does not have.
func (l *life) other() *agent {
	i := (l.agent.index - 1 + 1 + l.rng.IntN(len(l.agents)-1)) % len(l.agents)
	return l.agents[i]
}

func (l *life) denyOne() error {
	other := l.other()
	switch l.rng.IntN(7) {
	case 0:
		return l.deny(other.exact())
	case 1:
		return l.deny(other.exact6())
	case 2:
		return l.deny(other.within(l.rng))
	case 3:
		return l.expect(notSent, "udp %s", other.datagram())
	case 4:
		return l.deny(other.toggle(l.rng.Uint64N(2)))
	case 5:
		return l.deny(l.agent.never())
	default:
		// What other tasks of the same agent are granted at this moment.
		return l.deny(l.agent.grantable(int(l.number) + 1 + l.rng.IntN(grantables-1)))
	}
}

// tryToggle tries what one version of the policy allows and the other does not.
// While it is being changed either verdict is right.
func (l *life) tryToggle() error {
	if l.task.Agent != l.agent.name {
		return nil // it has a policy of its own
	}
	version := l.rng.Uint64N(2)
	to := l.agent.toggle(version)
	l.may(to)
	before := l.agent.changes.Load()
	answer, err := l.order("tcp %s", to)
	if err != nil {
		return err
	}
	after := l.agent.changes.Load()
	if before != after || before%2 != 0 {
		l.uncertain = true
		return nil
	}
	if before/2%2 == version {
		return l.judge(answer, reached, "tcp "+to.String())
	}
	return l.judge(answer, refused, "tcp "+to.String())
}

// finish lets the process end before the task.
func (l *life) finish() error { return l.process.finish() }

// hold keeps a connection open that a change of policy must not touch.
func (l *life) hold() error {
	to := l.agent.exact()
	if l.rng.IntN(2) == 0 {
		to = l.agent.within(l.rng)
	}
	if err := l.keep(to); err != nil {
		return err
	}
	if err := l.denyOne(); err != nil {
		return err
	}
	l.allowed-- // no new connection
	return l.expect(reached, "again")
}

// keep opens the connection that stays open.
func (l *life) keep(to netip.AddrPort) error {
	l.held = to
	return l.allow("hold", to)
}

// grantAndRevoke reaches a destination exactly as long as it is granted.
func (l *life) grantAndRevoke() error {
	to := l.agent.grantable(int(l.number))
	if err := l.deny(to); err != nil {
		return err
	}
	l.may(to)
	err := l.timed("grant", func() error {
		_, err := l.daemon.Grant(l.t.Context(), l.task.ID, client.Grant{Destination: to.String(), TTL: client.Duration(time.Hour)})
		return err
	})
	if err != nil {
		return err
	}
	if err := l.keep(to); err != nil {
		return err
	}
	if l.rng.IntN(2) == 0 {
		return nil // the end of the task takes it back
	}
	err = l.timed("revoke", func() error {
		_, err := l.daemon.Revoke(l.t.Context(), l.task.ID, to.String())
		return err
	})
	if err != nil {
		return err
	}
	if err := l.expectReset(); err != nil {
		return err
	}
	if err := l.expect(aborted, "cut"); err != nil {
		return err
	}
	return l.deny(to)
}

// promise has the task begun with a grant.
func (l *life) promise(request *client.BeginRequest) error {
	request.Allow = []string{l.agent.grantable(int(l.number)).String()}
	return nil
}

func (l *life) redeem() error { return l.keep(l.agent.grantable(int(l.number))) }

func (l *life) bringPolicy(request *client.BeginRequest) error {
	request.Agent, request.Policy = "", l.agent.ownDocument()
	return nil
}

// useApart connects inside a namespace that only the task has.
func (l *life) useApart() error {
	if err := l.expect(unreachable, "tcp %s", l.agent.exact()); err != nil {
		return err
	}
	if err := l.deny(l.other().exact()); err != nil {
		return err
	}
	l.allowed++ // the connect counts, and the listener's answer
	return l.expect(reached, "loopback")
}

func (l *life) adoptable() string { return filepath.Join(l.daemon.side, fmt.Sprint(l.number)) }

func (l *life) makeCgroup(request *client.BeginRequest) error {
	request.Cgroup = l.adoptable()
	dir, err := cgroup.Create(request.Cgroup)
	if err != nil {
		return err
	}
	return dir.Close()
}

// afterAdopted removes the cgroup, which the task has left as it was.
func (l *life) afterAdopted() error {
	if err := l.expectReset(); err != nil {
		return err
	}
	dir, err := cgroup.Open(l.adoptable())
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return dir.Remove(ctx)
}

const shortLife = 500 * time.Millisecond

func (l *life) limit(request *client.BeginRequest) error {
	request.TTL = client.Duration(shortLife)
	return nil
}

// outlive holds a connection until the task expires.
func (l *life) outlive() error {
	err := l.keep(l.agent.exact())
	if time.Since(l.task.Begun) >= shortLife {
		l.uncertain = true // the machine is too slow to say
		return nil
	}
	if err != nil {
		return err
	}
	return l.expectReset()
}

// expectReset waits until a server sees the held connection reset.
func (l *life) expectReset() error {
	impatient := time.After(patience)
	for {
		select {
		case at := <-l.visitor.resets:
			if at == l.held {
				return nil
			}
		case <-impatient:
			return fmt.Errorf("the server at %s saw no reset of the held connection", l.held)
		}
	}
}

func (l *life) end(k kind) error {
	var result client.EndResult
	err := l.timed("end", func() (err error) {
		result, err = l.daemon.End(l.t.Context(), l.task.ID, client.EndRequest{})
		return err
	})
	if err != nil {
		return err
	}
	if result.Task.State != client.TaskEnded {
		return fmt.Errorf("state %q after its end", result.Task.State)
	}
	if k.alive && result.Killed != 1 {
		return fmt.Errorf("%d processes killed, want 1", result.Killed)
	}
	return nil
}

// compareCounters looks whether the kernel has counted for this task what this
// task did, by rules that it has.
func (l *life) compareCounters() error {
	task, err := l.daemon.Task(l.t.Context(), l.task.ID)
	if err != nil {
		return err
	}
	var allowed, denied uint64
	for _, c := range task.Counters {
		allowed += c.Allowed
		denied += c.Denied
		builtin := strings.HasPrefix(c.Rule, "(")
		own := strings.Contains(c.Rule, l.agent.block()) || strings.Contains(c.Rule, l.agent.block6())
		if !builtin && !own {
			return fmt.Errorf("counted under a rule of another: %+v", c)
		}
	}
	if l.uncertain {
		return nil
	}
	if allowed != l.allowed || denied != l.denied {
		return fmt.Errorf("counted %d allowed and %d denied, want %d and %d: %+v", allowed, denied, l.allowed, l.denied, task.Counters)
	}
	return nil
}
