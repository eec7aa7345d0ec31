// SPDX-License-Identifier: Apache-2.0

// Package task is the life cycle of tasks: what begins, changes and ends them,
// and what brings the kernel's maps and the stored state together again after
// a crash.
//
// The kernel enforces what stands in its maps whether or not an engine is
// running. An engine writes those maps, keeps what people need to know beside
// them, and destroys the sockets of flows that are no longer allowed.
package task

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"agentguard.dev/agentguard/internal/cgroup"
	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/localaddr"
	"agentguard.dev/agentguard/internal/maps"
)

// Engine owns one guard and its tasks. Its methods may be called concurrently.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	started  time.Time
	mount    string      // of cgroup2
	root     string      // the cgroup below which tasks have their own
	guard    *cgroup.Dir // nil for a private engine, whose task is its own guard
	lock     *os.File
	store    *store
	kernel   *loader.Kernel
	maps     *maps.Set
	records  *recorder
	spaces   *namespaces
	stations *stations
	sweeper  *sweeper
	schedule *schedule
	owners   *sequence // numbers of tasks and of policy versions
	rules    *sequence
	openers  openers
	totals   totals
	problems problems

	// ctx ends when the engine closes. Readers outlive background, whose ends
	// of tasks they serve.
	ctx        context.Context
	stop       context.CancelFunc
	readers    sync.WaitGroup
	background background

	gate      sync.RWMutex // held for reading by every call from outside
	closed    bool
	closing   context.Context // ends when a Close begins to wait for the gate
	stopWaits context.CancelFunc

	learning sync.RWMutex // held for writing while tasks change their policy, for reading while addresses are learned
	applying sync.Mutex   // one change of policies at a time
	adopting sync.Mutex   // one cgroup is adopted at a time, so that none overlap

	mu        sync.Mutex
	tasks     map[string]*task // those being begun included
	byNumber  map[uint32]*task
	places    map[string]*task // by the path of the cgroup, not ended
	agents    map[string]*agent
	history   []*task // ended, the oldest first
	leftovers map[uint64]leftover
}

// Open takes the state directory for itself, loads or takes over the programs
// in the kernel, brings tasks, policies and maps into agreement, and ends what
// expired while no engine ran. The caller closes the engine.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	if cfg.Private == "" {
		if err := CollectPrivate(ctx, cfg, false); err != nil {
			cfg.Log.Warn("remove what earlier runs left", "err", err)
		}
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, started: time.Now().UTC(),
		tasks: make(map[string]*task), byNumber: make(map[uint32]*task), places: make(map[string]*task),
		agents: make(map[string]*agent), leftovers: make(map[uint64]leftover),
		openers: newOpeners(),
		totals:  totals{ended: make(map[totalKey]maps.Counter)},
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.closing, e.stopWaits = context.WithCancel(e.ctx)
	stateDir, pinDir, root := cfg.own()
	_, err = os.Stat(pinDir)
	fresh := errors.Is(err, os.ErrNotExist)
	if err := e.open(ctx, stateDir, pinDir, root); err != nil {
		if fresh && e.kernel != nil {
			return nil, errors.Join(err, e.abandon())
		}
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context, stateDir, pinDir, root string) (err error) {
	if e.mount, err = cgroup.Mount(); err != nil {
		return err
	}
	e.root = root
	if e.lock, err = lockState(stateDir); err != nil {
		return err
	}
	if e.store, err = openStore(stateDir, e.cfg.Private != ""); err != nil {
		return err
	}
	err = withParents(func() (err error) {
		e.kernel, err = loader.Open(loader.Config{PinDir: pinDir, Sizes: e.cfg.Sizes})
		return err
	})
	if err != nil {
		return err
	}
	e.maps = e.kernel.Maps()
	if err := e.openGuard(); err != nil {
		return err
	}
	if e.records, err = openRecorder(e.AuditDir(), e.auditName(), e.log); err != nil {
		return err
	}
	if e.spaces, err = openNamespaces(localaddr.New(e.maps.LocalAddrs, e.log), e.log); err != nil {
		return err
	}
	if err := e.trustNamespaces(); err != nil {
		return err
	}
	if err := e.openStations(); err != nil {
		return err
	}
	e.sweeper = newSweeper(e.kernel, e.spaces, e.countDestroyed)
	if e.schedule, err = newSchedule(e.due); err != nil {
		return err
	}
	e.startReaders()
	return e.recover(ctx)
}

// auditName tells logs apart: private engines share one.
func (e *Engine) auditName() string {
	if e.cfg.Private != "" {
		return "run"
	}
	return "daemon"
}

// openGuard makes the guard's cgroup and attaches the programs to it. In a
// private engine the task does that.
func (e *Engine) openGuard() error {
	if err := makePath(e.root); err != nil {
		return err
	}
	if e.cfg.Private != "" {
		return nil
	}
	dir, err := cgroup.Open(e.root)
	if err != nil {
		return err
	}
	e.guard = dir
	return e.kernel.Guard(dir, dir.Level()+1)
}

func (e *Engine) startReaders() {
	e.readers.Go(func() { e.readEvents(e.ctx) })
	e.readers.Go(func() { e.sweeper.run(e.ctx) })
	e.readers.Go(func() { e.records.run(e.ctx) })
	e.readers.Go(func() { e.watch(e.ctx) })
}

// enter keeps the engine open until leave, or fails because it is closed.
func (e *Engine) enter() error {
	e.gate.RLock()
	if e.closed {
		e.gate.RUnlock()
		return unavailablef("agentguard is stopping")
	}
	return nil
}

func (e *Engine) leave() { e.gate.RUnlock() }

// shut waits for calls in progress and lets no further ones in. It says false
// if that was done before.
func (e *Engine) shut() bool {
	e.stopWaits()
	e.gate.Lock()
	defer e.gate.Unlock()
	was := e.closed
	e.closed = true
	return !was
}

// Close stops the engine. What it had set up goes on being enforced. A private
// engine whose task has ended leaves nothing behind.
func (e *Engine) Close() error {
	if !e.shut() {
		return nil
	}
	if e.cfg.Private != "" && e.isDone() {
		return e.unload(context.Background())
	}
	if e.cfg.Private == "" {
		e.recordEngine("stop", "what was set up is still enforced")
	}
	return e.close()
}

func (e *Engine) isDone() bool {
	live := e.live()
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(live) == 0 && len(e.leftovers) == 0
}

// close lets go of everything that was opened, in an order in which what is
// used is closed after its users.
func (e *Engine) close() error {
	errs := e.quiesce()
	if e.kernel != nil {
		errs = append(errs, e.kernel.Close())
	}
	return errors.Join(append(errs, e.letGo()...)...)
}

// quiesce stops all that acts by itself.
func (e *Engine) quiesce() []error {
	var errs []error
	if e.schedule != nil {
		errs = append(errs, e.schedule.close())
	}
	e.background.close()
	if e.kernel != nil {
		ctx, cancel := context.WithTimeout(context.Background(), removePatience)
		errs = append(errs, e.kernel.Flush(ctx))
		cancel()
	}
	e.stop()
	e.readers.Wait()
	if e.stations != nil {
		e.stations.close()
	}
	if e.records != nil {
		errs = append(errs, e.records.close())
	}
	if e.spaces != nil {
		errs = append(errs, e.spaces.close())
	}
	return errs
}

func (e *Engine) letGo() []error {
	var errs []error
	if e.guard != nil {
		errs = append(errs, e.guard.Close())
	}
	if e.store != nil {
		errs = append(errs, e.store.Close())
	}
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	return errs
}
