// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestArrange(t *testing.T) {
	tests := []struct{ typed, want string }{
		{"", ""},
		{"task list", "task list"},
		{"task list -o json", "-o json task list"},
		{"task -o json list", "-o json task list"},
		{"-o json task list", "-o json task list"},
		{"task list --output=json --agent coder", "--output=json task list --agent coder"},
		{"task end build-7 --drain 5s", "task end --drain 5s -- build-7"},
		{"task grant t 192.0.2.1:443 --ttl 1m --run-dir /r", "--run-dir /r task grant --ttl 1m -- t 192.0.2.1:443"},
		{"--cgroup g task begin --cgroup c", "--cgroup g task begin --cgroup c"},
		{"task list --cgroup g", "--cgroup g task list"},
		{"run --allow a --allow b -- cmd -o json --ttl x", "run --allow a --allow b -- cmd -o json --ttl x"},
		{"run -o json cmd -o text -- x", "-o json run -- cmd -o text -- x"},
		{"task exec t -- cmd --drain 1s", "task exec -- t cmd --drain 1s"},
		{"task exec --drain 1s t cmd --drain 2s", "task exec --drain 1s -- t cmd --drain 2s"},
		{"task exec t --drain 1s -- cmd", "task exec --drain 1s -- t cmd"},
		{"task show -- -t", "task show -- -t"},
		{"task show task", "task show -- task"},
		{"task frob", "task -- frob"},
		{"policy apply -", "policy apply -- -"},
		{"help", "--help"},
		{"help task begin", "task begin --help"},
		{"task help", "task --help"},
		{"task show help", "task show -- help"},
		{"run help", "run -- help"},
		{"task list --nonsense", "task list --nonsense"},
		{"task list --agent", "task list --agent"},
	}
	app := new(program).app()
	for _, test := range tests {
		line := arrange(app, append([]string{"agentguard"}, strings.Fields(test.typed)...))
		if got := strings.Join(line[1:], " "); got != test.want {
			t.Errorf("%q became %q; want %q", test.typed, got, test.want)
		}
	}
}

func TestCandidates(t *testing.T) {
	tests := []struct{ typed, want string }{
		{"ta", "task"},
		{"task b", "begin"},
		{"task end --d", "--drain"},
		{"task end --drain 5s --r", "--reason --run-dir"},
		{"task begin --agent ", ""}, // a value of the user's
		{"completion ", "bash fish zsh"},
		{"completion bash ", ""},
		{"run -- c", ""},
		{"policy ", "apply delete list show validate"},
	}
	for _, test := range tests {
		p := new(program)
		got := strings.Join(p.candidates(p.app(), strings.Split(test.typed, " ")), " ")
		if got != test.want {
			t.Errorf("%q: %q; want %q", test.typed, got, test.want)
		}
	}
}
