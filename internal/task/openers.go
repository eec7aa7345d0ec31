// SPDX-License-Identifier: Apache-2.0

package task

import (
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"agentguard.dev/agentguard/internal/loader"
	"agentguard.dev/agentguard/internal/policy"
)

// openers are the processes that opened the latest connections: where a packet
// is judged, nobody knows them any more. For the reader of events alone.
type openers struct {
	bySocket *simplelru.LRU[uint64, opener]
}

type opener struct {
	pid, uid uint32
	process  string
}

const maxOpeners = 4096

func newOpeners() openers {
	// The size is positive, which is all that can be wrong.
	latest, _ := simplelru.NewLRU[uint64, opener](maxOpeners, nil)
	return openers{latest}
}

func (o openers) know(event loader.Event) {
	if event.Hook == loader.HookConnect && event.Verdict == loader.Allow && event.Proto == policy.TCP {
		o.bySocket.Add(event.Cookie, opener{event.PID, event.UID, event.Process})
	}
}

func (o openers) of(cookie uint64) (opener, bool) { return o.bySocket.Get(cookie) }
