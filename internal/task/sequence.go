// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"sync"
)

// sequenceStep is how many numbers are taken out of the store at once. Those
// that a crash leaves unused stay unused.
const sequenceStep = 1024

// sequence gives out numbers, none of them twice on one boot.
type sequence struct {
	reserve func(upTo uint32) error // makes sure that later sequences begin after upTo

	mu       sync.Mutex
	last     uint32
	reserved uint32
}

var errNumbersUsedUp = errors.New("all numbers of this boot are used up: unload and reboot")

func (s *sequence) next() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last+1 == 0 {
		return 0, errNumbersUsedUp
	}
	if s.last == s.reserved {
		upTo := s.reserved + min(sequenceStep, ^uint32(0)-s.reserved)
		if err := s.reserve(upTo); err != nil {
			return 0, err
		}
		s.reserved = upTo
	}
	s.last++
	return s.last, nil
}

// startAfter makes sure that n and everything below it is not given out.
func (s *sequence) startAfter(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, n)
	s.reserved = max(s.reserved, s.last)
}
