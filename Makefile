# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash -o pipefail
GO ?= go
CLANG ?= clang-19
CLANG_FORMAT ?= clang-format-19
KERNELS := .cache/kernels

export CGO_ENABLED := 0

.PHONY: build
build: ## bin/agentguard; needs only Go
	$(GO) build -trimpath -o bin/agentguard ./cmd/agentguard

.PHONY: test-deps
test-deps: ## install what the tests need and fetch the kernels
	@scripts/test-deps
	@$(GO) run ./test/vm/fetch $(KERNELS)

.PHONY: test-vm
test-vm: ## one package on one kernel: make test-vm KERNEL=6.1 PKG=./internal/loader RUN=TestX
	@$(GO) run ./test/vm/fetch $(KERNELS)
	$(GO) test ./test/vm -count=1 -v -timeout=30m $(if $(KERNEL),-run='^TestKernels$$/^$(subst .,\.,$(KERNEL))$$') \
		-args -vm.live $(if $(PKG),-vm.pkg=$(PKG)) $(if $(RUN),-vm.run='$(RUN)') $(if $(CONSOLE),-vm.console) $(VMARGS)
