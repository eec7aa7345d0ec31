// SPDX-License-Identifier: Apache-2.0

package task

import (
	"fmt"
	"os"

	"agentguard.dev/agentguard/internal/netns"
)

// trustNamespaces marks the machine's own network namespace and those of the
// configuration, and takes the mark from those of an earlier one.
func (e *Engine) trustNamespaces() error {
	before, err := e.store.trusted()
	if err != nil {
		return err
	}
	cookies, err := e.trustedCookies()
	if err != nil {
		return err
	}
	for cookie := range cookies {
		if err := e.maps.Namespaces.Trust(cookie); err != nil {
			return err
		}
	}
	for _, cookie := range before {
		if !cookies[cookie] {
			if err := e.maps.Namespaces.Forget(cookie); err != nil {
				return fmt.Errorf("no longer trust a network namespace: %w", err)
			}
		}
	}
	return e.store.setTrusted(cookies)
}

func (e *Engine) trustedCookies() (map[uint64]bool, error) {
	cookies := make(map[uint64]bool)
	if cookie, ok := e.initialNamespace(); ok {
		cookies[cookie] = true
	}
	for _, path := range e.cfg.TrustedNamespaces {
		ns, err := netns.Open(path)
		if err != nil {
			return nil, err
		}
		cookies[ns.Cookie()] = true
		if err := ns.Close(); err != nil {
			return nil, err
		}
	}
	return cookies, nil
}

// initialNamespace finds the machine's own, if this process may.
func (e *Engine) initialNamespace() (cookie uint64, ok bool) {
	if isInitial(e.spaces.home) {
		return e.spaces.home.Cookie(), true
	}
	ns, err := netns.OfProcess(1)
	if err != nil {
		return 0, false
	}
	defer ns.Close()
	return ns.Cookie(), isInitial(ns)
}

// isInitial says whether ns is the machine's own network namespace. Settings
// that are not per namespace show there alone.
func isInitial(ns *netns.Handle) bool {
	err := ns.Do(func() error {
		_, err := os.Stat("/proc/sys/net/core/netdev_budget")
		return err
	})
	return err == nil
}
