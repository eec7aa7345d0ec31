// SPDX-License-Identifier: Apache-2.0

package task

import (
	"slices"
	"sync"
)

// problems are what an operator should know and do something about, for as
// long as it is so.
type problems struct {
	mu    sync.Mutex
	texts map[string]string
}

// set states a problem; an empty text takes it back.
func (p *problems) set(about, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == "" {
		delete(p.texts, about)
		return
	}
	if p.texts == nil {
		p.texts = make(map[string]string)
	}
	p.texts[about] = text
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var texts []string
	for _, text := range p.texts {
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return texts
}
