# Everything but lint, generate and verify needs Go alone. `make help` lists the
# targets; a variable is set behind the target: make run ONCE=1

GO ?= go
BIN := bin
TOOLS := $(BIN)/tools

# Versions of what is not Go's own. `make tools` builds them into bin/tools.
GOLANGCI_LINT_VERSION := v2.15.0
BUF_VERSION := v1.75.0

# The functions of examples/functions that are compiled to WASM: FOLDER=MODULE.
WASM := thumbnail=thumbnail sentiment/small=sentiment-small sentiment/large=sentiment-large
MANIFESTS := $(wildcard examples/functions/*/*.yaml)

# Suites that start real processes. They run alone, one package after the other,
# so that what they time is not disturbed.
PROCESS_TESTS := ./cmd/... ./docs/... ./internal/devmesh/... ./meshtest/...

# Generated code and documents.
GENERATED := proto docs/config.md

export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/isobar
	@echo "==> building $(BIN)/isobar (a first build takes a minute or two)"
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/isobar ./cmd/isobar

.PHONY: examples
examples: ## Build the example functions to bin/examples, ready to deploy
	@mkdir -p $(BIN)/examples
	@for pair in $(WASM); do \
		echo "==> building $(BIN)/examples/$${pair#*=}.wasm"; \
		GOOS=wasip1 GOARCH=wasm CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' \
			-o $(BIN)/examples/$${pair#*=}.wasm ./examples/functions/$${pair%%=*} || exit 1; \
	done
	@cp $(MANIFESTS) $(BIN)/examples/

RUN_FLAGS = $(if $(filter-out 0,$(ONCE)),--once) $(if $(TRACE),--trace $(TRACE)) $(if $(CARBON),--carbon $(CARBON)) \
	$(if $(PORTS),--ports $(PORTS)) $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(PLAY),--play $(PLAY)) \
	$(if $(SEED),--seed $(SEED)) $(if $(BROKER),--broker "$(BROKER)") $(if $(REPORT),--report $(REPORT))

.PHONY: run
run: build examples ## Play a workload on a mesh of three regions [ONCE=1 TRACE=a.csv,b.csv CARBON=c.csv PORTS=auto REQUESTS=n PLAY=50s SEED=n BROKER=REGION=URL REPORT=r.json]
	@echo "==> building $(BIN)/demo"
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/demo ./cmd/demo
	@exec $(BIN)/demo $(RUN_FLAGS)

# Tests that may be skipped although CI=true, as a regular expression.
MAY_SKIP ?=
TEST_FLAGS ?=

.PHONY: test
test: ## Run every test this machine can run [TEST_FLAGS=-race MAY_SKIP=REGEXP, of what may be skipped in CI]
	@process="$$($(GO) list $(PROCESS_TESTS))" && all="$$($(GO) list ./...)" || exit 1; \
	unit="$$(echo "$$all" | grep -vxF "$$process")"; \
	$(GO) run ./internal/testsum --may-skip '$(MAY_SKIP)' \
		-- $(GO) test -json $(TEST_FLAGS) $$unit \
		-- $(GO) test -json -p 1 -timeout 30m $(TEST_FLAGS) $$process

.PHONY: lint
lint: $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION) ## Lint Go and the protobuf contracts
	@$< run ./...
	@$(MAKE) --no-print-directory $(TOOLS)/buf-$(BUF_VERSION)
	@$(TOOLS)/buf-$(BUF_VERSION) lint

.PHONY: generate
generate: $(TOOLS)/buf-$(BUF_VERSION) ## Generate code from proto/ and docs/config.md from the configuration
	@$< generate
	@$(GO) generate ./...

.PHONY: verify
verify: ## Check that what is generated is up to date
	@rm -rf $(BIN)/verify && mkdir -p $(BIN)/verify
	@for f in $(GENERATED); do mkdir -p $(BIN)/verify/$$(dirname $$f) && cp -R $$f $(BIN)/verify/$$f; done
	@$(MAKE) --no-print-directory generate
	@for f in $(GENERATED); do \
		diff -r $(BIN)/verify/$$f $$f || { echo "verify: $$f was not up to date; it is now, commit it" >&2; exit 1; }; \
	done
	@rm -rf $(BIN)/verify
	@echo "generated files are up to date"

.PHONY: bench
bench: ## Measure decisions, durable tasks, Invoke, take-over and, where one runs, Pulsar [BENCH_FLAGS='-only decide -json']
	@echo "==> building the benchmark"
	@$(GO) run ./loadtest/bench $(BENCH_FLAGS)
	@echo "==> placement: Decide against a bare scoring loop, many tasks at once"
	@$(GO) test -run '^$$' -bench '^Benchmark(AgainstBare|DecideAll)$$' ./placement
	@echo "==> simulate: 100,000 tasks over 30 regions and a year"
	@$(GO) test -run '^$$' -bench '^BenchmarkYear$$' -benchtime 1x -timeout 20m ./simulate

RUNS ?= 20
LETTERS ?= 100

.PHONY: soak
soak: ## Kill servers under load, run after run, a line each [RUNS=20 LETTERS=100 SEED=1]
	@$(GO) test -count=1 -v -timeout 0 -run '^(TestKilledServer|TestDeadLettersUnderKills)$$' ./meshtest -meshtest.runs=$(RUNS) -meshtest.letterruns=$(LETTERS) $(if $(SEED),-meshtest.seed=$(SEED))

.PHONY: soak-pulsar
soak-pulsar: ## Kill Apache Pulsar and leaders ten times each under 50,000 tasks [TASKS=50000 SEED=1]
	@CI=true $(GO) test -count=1 -v -timeout 0 -run '^TestKilledPulsar$$' ./meshtest -meshtest.pulsar-tasks=$(or $(TASKS),50000) \
		-meshtest.pulsar-kills=10 -meshtest.leader-kills=10 $(if $(SEED),-meshtest.seed=$(SEED))

.PHONY: pulsar
pulsar: ## Start a real Apache Pulsar on this machine; the first time it is fetched (245 MB, with Maven and a JDK of 17 or later)
	@$(GO) run ./cmd/pulsar start

.PHONY: pulsar-stop
pulsar-stop: ## Stop the Apache Pulsar that `make pulsar` started
	@$(GO) run ./cmd/pulsar stop

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN)

.PHONY: tools
tools: $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION) $(TOOLS)/buf-$(BUF_VERSION) ## Build the pinned tools into bin/tools (lint, generate and verify do so themselves)

$(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION):
	@echo "==> building golangci-lint $(GOLANGCI_LINT_VERSION) (some minutes)"
	@GOBIN=$(abspath $(TOOLS)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv $(TOOLS)/golangci-lint $@

$(TOOLS)/buf-$(BUF_VERSION):
	@echo "==> building buf $(BUF_VERSION)"
	@GOBIN=$(abspath $(TOOLS)) $(GO) install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
	@mv $(TOOLS)/buf $@
