// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"agentguard.dev/agentguard/bpf"
	"agentguard.dev/agentguard/internal/policy"
)

// Station is where the guard listens in one network namespace, on 127.0.0.1 and
// ::1, for what its programs turn there. A port of 0 is nowhere.
type Station struct {
	DNS  uint16 // UDP and TCP
	HTTP uint16 // TCP
}

// Stations are the listening places by cookie of the network namespace.
type Stations struct {
	m       *ebpf.Map
	recents recents
}

// Put says where the guard listens in the namespace with that cookie.
func (s *Stations) Put(cookie uint64, station Station) error {
	defer s.recents.outdate() // what goes there is judged before any rule
	if err := s.m.Put(cookie, bpf.GuardStation{Dns: station.DNS, Http: station.HTTP}); err != nil {
		return writeError("stations", s.m.MaxEntries(), err)
	}
	return nil
}

// Delete says that the guard listens in that namespace no more.
func (s *Stations) Delete(cookie uint64) error { return remove(s.m, "stations", cookie) }

// All returns every station.
func (s *Stations) All() (map[uint64]Station, error) {
	var (
		cookie  uint64
		station bpf.GuardStation
		all     = make(map[uint64]Station)
	)
	entries := s.m.Iterate()
	for entries.Next(&cookie, &station) {
		all[cookie] = Station{DNS: station.Dns, HTTP: station.Http}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read stations: %w", err)
	}
	return all, nil
}

// Asker is who sent what has reached a station, as the kernel saw it.
type Asker struct {
	Cgroup         uint64
	Task, PID, UID uint32
	Process        string
	To             netip.AddrPort // whom they believe to ask
}

// Askers knows who asks at stations. The programs write it for every packet
// that they let through to one; what is forgotten is written again when the
// client repeats itself.
type Askers struct{ m *ebpf.Map }

// Find returns who sent from src in the namespace with that cookie. Without
// an asker, ok is false: no program has let that packet through.
func (a *Askers) Find(cookie uint64, proto policy.Proto, src netip.AddrPort) (asker Asker, ok bool, err error) {
	var value bpf.GuardAsker
	err = a.m.Lookup(bpf.GuardPeer{
		Netns: cookie, Addr: words(src.Addr()), Port: src.Port(), Proto: uint8(proto),
	}, &value)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Asker{}, false, nil
	case err != nil:
		return Asker{}, false, fmt.Errorf("read askers: %w", err)
	}
	return Asker{
		Cgroup: value.Cgroup, Task: value.Task, PID: value.Pid, UID: value.Uid,
		Process: unix.ByteSliceToString(unsafe.Slice((*byte)(unsafe.Pointer(&value.Comm[0])), len(value.Comm))),
		To:      netip.AddrPortFrom(Addr(value.To.Addr), value.To.Port),
	}, true, nil
}
