# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := build

GO ?= go
CLANG_FORMAT ?= clang-format-19
FUZZTIME ?= 30s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PREFIX ?= /usr/local
DESTDIR ?=
KERNELS := .cache/kernels

export CGO_ENABLED := 0
export CLANG_FORMAT

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: build
build: ## bin/agentguard; needs only Go
	$(GO) build -trimpath -o bin/agentguard ./cmd/agentguard

.PHONY: demo
demo: build ## see it work, on local addresses, in half a minute; needs root
	@$(GO) build -trimpath -o bin/demo ./test/demo
	@bin/demo bin/agentguard

.PHONY: generate
generate: ## the BPF objects and their Go types, with clang 19
	@scripts/test-deps --check clang-19 llvm-strip-19 /usr/include/bpf/bpf_core_read.h /usr/include/linux/bpf.h
	$(GO) generate ./bpf ./test/hello

.PHONY: format
format: ## gofmt and clang-format everything
	gofmt -w $$(git ls-files --cached --others --exclude-standard -- '*.go')
	$(CLANG_FORMAT) -i bpf/*.[ch] test/hello/*.c

.PHONY: verify
verify: ## generated files in step with their sources, formatting, licences, vet
	scripts/verify

.PHONY: lint
lint: ## staticcheck
	$(GO) run $(STATICCHECK) ./...

.PHONY: test-deps
test-deps: ## install what the tests need, fetch the kernels
	@scripts/test-deps
	@$(GO) run ./test/vm/fetch $(KERNELS)

.PHONY: test
test: test-deps verify lint ## everything: on this machine, then on each kernel in a virtual machine
	@[ "$$(id -u)" = 0 ] || { echo "make test: the kernel tests need root" >&2; exit 1; }
	$(GO) test -json -count=1 -p=1 -timeout=45m ./... | $(GO) run ./test/report

.PHONY: test-host
test-host: ## as test, on this machine alone: make test-host PKG=./internal/...
	$(GO) test -short -count=1 -p=1 $(if $(RUN),-v -run='$(RUN)') $(or $(PKG),./...)

.PHONY: test-vm
test-vm: ## tests in virtual machines: make test-vm KERNEL=6.1 PKG=./internal/loader RUN=TestX CONSOLE=1
	@$(GO) run ./test/vm/fetch $(KERNELS)
	$(GO) test ./test/vm -count=1 -v -timeout=30m -run='^TestKernels$$/$(if $(KERNEL),^$(subst .,\.,$(KERNEL))$$)' \
		-args -vm.live $(if $(PKG),-vm.pkg=$(PKG)) $(if $(RUN),-vm.run='$(RUN)') $(if $(CONSOLE),-vm.console) $(VMARGS)

.PHONY: race
race: ## the tests of this machine under the race detector; needs a C compiler
	CGO_ENABLED=1 $(GO) test -race -short -count=1 -p=1 $(or $(PKG),./...)

.PHONY: soak
soak: ## 20,000 tasks begun, used and ended, and nothing may have grown: make soak SOAKFLAGS='-soak.tasks 100000 -soak.width 64'
	$(GO) test ./test/soak -count=1 -v -timeout=2h -args $(SOAKFLAGS)

.PHONY: bench
bench: ## what a guard costs, beside no guard and nftables: make bench BENCHFLAGS='-rounds 200 -o json'
	@mkdir -p bin
	$(GO) build -trimpath -o bin/bench ./test/bench
	bin/bench $(BENCHFLAGS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s)
	scripts/fuzz $(FUZZTIME)

.PHONY: install
install: build ## into DESTDIR and PREFIX
	install -D bin/agentguard $(DESTDIR)$(PREFIX)/bin/agentguard
	install -D -m 644 cmd/agentguard/completion/agentguard.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/agentguard
	install -D -m 644 cmd/agentguard/completion/agentguard.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_agentguard
	install -D -m 644 cmd/agentguard/completion/agentguard.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/agentguard.fish
	install -d $(DESTDIR)/etc/systemd/system
	sed 's|/usr/local|$(PREFIX)|' packaging/agentguard.service > $(DESTDIR)/etc/systemd/system/agentguard.service
	[ -e $(DESTDIR)/etc/agentguard/daemon.yaml ] || install -D -m 600 packaging/daemon.yaml $(DESTDIR)/etc/agentguard/daemon.yaml

.PHONY: clean
clean: ## what was built and fetched
	rm -rf bin .cache
