// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fresh makes a network namespace that lives as long as its handle.
func fresh(t *testing.T) *Handle {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	own, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var made *Handle
	// Do brings the thread back, whatever namespace fn leaves it in.
	if err := own.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		made, err = Current()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

func TestDoRunsInside(t *testing.T) {
	h := fresh(t)
	var links []net.Interface
	if err := h.Do(func() (err error) {
		links, err = net.Interfaces()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp != 0 {
		t.Errorf("interfaces inside = %v, want lo alone, down", links)
	}
	own, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if own.ID() == h.ID() || own.Cookie() == h.Cookie() {
		t.Errorf("own namespace %v/%d, other %v/%d: want them to differ", own.ID(), own.Cookie(), h.ID(), h.Cookie())
	}
}

func TestSameNamespaceSameIdentity(t *testing.T) {
	a, err := OfProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if a.ID() != b.ID() || a.Cookie() != b.Cookie() {
		t.Errorf("%v/%d and %v/%d, want the same", a.ID(), a.Cookie(), b.ID(), b.Cookie())
	}
}

func TestOfThreadsSeesEveryThread(t *testing.T) {
	h := fresh(t)
	inside, leave := make(chan error), make(chan struct{})
	go func() {
		err := h.Do(func() error {
			inside <- nil
			<-leave
			return nil
		})
		if err != nil {
			inside <- err
		}
	}()
	if err := <-inside; err != nil {
		t.Fatal(err)
	}
	found := OfThreads(os.Getpid())
	close(leave)
	if _, ok := found[h.ID()]; !ok {
		t.Errorf("namespaces of the own threads %v, want %v among them", found, h.ID())
	}
	if len(found) < 2 {
		t.Errorf("namespaces of the own threads %v, want at least two", found)
	}
}
