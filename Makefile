# Every target that people need; `make` lists them.
SHELL := bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  Servers come from Docker, or from the distribution'\''s packages where there is no engine or no image:'
	@echo '  POSTRIDER_TEST_ENGINE=docker|local decides, POSTRIDER_TEST_POSTGRES_TAG and POSTRIDER_TEST_RABBITMQ_TAG choose versions.'

.PHONY: demo
demo: ## Sell a few courses and watch the events arrive (ONCE=1: end by itself)
	@scripts/toolchain
	@ONCE='$(ONCE)' scripts/demo

.PHONY: test
test: ## Run every test against real servers (ARGS='name -- --nocapture' goes to cargo test)
	@scripts/test $(ARGS)

.PHONY: chaos
chaos: ## The relay under faults, with an account of every event (SEED=1 SECONDS=600 FAULTS=all)
	@SEED='$(SEED)' TIME='$(SECONDS)' FAULTS='$(FAULTS)' scripts/chaos $(ARGS)

.PHONY: mutants
mutants: ## Bugs that the harness has to find, planted one by one (SEED=1 BUGS=NotMandatory,NackIsAck)
	@SEED='$(SEED)' BUGS='$(BUGS)' scripts/mutants

.PHONY: test-matrix
test-matrix: ## The integration tests on PostgreSQL 15, 17, 18 with RabbitMQ 3.10, 4.0, 4.3 (ARGS='15x3 18x4' chooses pairs)
	@scripts/test-matrix $(ARGS)

.PHONY: fuzz
fuzz: ## Fuzz decoder, framing, configuration, messages and URLs (SECONDS=60 each; ARGS='pgoutput urls' chooses; needs nightly)
	@FUZZ_SECONDS='$(SECONDS)' scripts/fuzz $(ARGS)

.PHONY: bench
bench: ## The relay beside its baselines (ROWS=, RUNS=, QUICK=1; ARGS='1-row latency' chooses scenarios)
	@ROWS='$(ROWS)' RUNS='$(RUNS)' QUICK='$(QUICK)' scripts/bench $(ARGS)

.PHONY: lint
lint: ## Format, clippy, documentation, licences, alerts, shell scripts
	@scripts/lint

.PHONY: build
build: ## Build target/release/postrider
	@scripts/toolchain
	cargo build --locked --release

.PHONY: image
image: ## Build the container image postrider:latest (ARGS go to docker build)
	docker build $(ARGS) -t postrider:latest .

.PHONY: clean
clean: ## Remove the servers started here and everything built
	scripts/servers remove-all ''
	rm -rf .servers
	cargo clean
