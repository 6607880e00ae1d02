# The only entries to every task. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run check test rules test-deps lint fmt lint-deps clippy bench soak fuzz

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and serve on http://127.0.0.1:8080 (HOST, PORT and all other settings of the environment apply)
	HOST="$${HOST:-127.0.0.1}" cargo run --release --locked -- serve

check: ## Formatting, clippy and the tests that need no server: the inner loop
	cargo fmt --check
	cargo clippy --locked --lib --bins -- -D warnings
	cargo nextest run --locked --lib --test architecture --test config --test allocations

# Most tests wait for a clock or for another process: two and a half for each core keep it busy. Those that keep it busy by
# themselves count twice (.config/nextest.toml).
TEST_THREADS ?= $(shell echo $$(( ($$(nproc) * 5 + 1) / 2 )))

test: test-deps rules ## Install what the tests need when it is missing, then run them all
	cargo test --locked --doc
	cargo nextest run --locked --features otel --test otel
	cargo nextest run --locked --no-fail-fast --test-threads $(TEST_THREADS)

rules: test-deps ## Check the alert rules and run their tests
	promtool check rules deploy/prometheus/alerts.yml
	promtool test rules deploy/prometheus/alerts_test.yml

test-deps:
	scripts/install-test-deps

lint: fmt clippy lint-deps ## Formatting, clippy with and without default features, licences, unused dependencies
	cargo clippy --locked --features otel --lib --test otel -- -D warnings
	cargo deny --locked check licenses bans sources
	cargo machete

fmt:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings

lint-deps:
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@command -v cargo-machete >/dev/null || cargo install --locked cargo-machete

bench: ## Measure decisions, memory, Redis and whole servers, each beside something else in the same run, and print one table
	cargo bench --locked --no-run
	cargo bench --locked --bench table -- --forget
	@set -e; for bench in decision memory rules told redis front gateway load instructions table; do \
		echo "== $$bench"; cargo bench --locked --bench $$bench; \
	done

soak: ## Run the tests of modules `soak`, too long for every day; TIDEGATE_ADVERSARY_SEEDS, TIDEGATE_CHAOS_SEEDS (1000), TIDEGATE_SIEGE_SECONDS (1800)
	TIDEGATE_SOAK=1 cargo nextest run --locked --cargo-profile soak -E 'test(/(^|::)soak::/)'

FUZZ_SECONDS ?= 60
fuzz: ## Feed the parsers with what nobody would write, FUZZ_SECONDS (60) for each target; a finding stays in fuzz/artifacts
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@set -e; cd fuzz; for target in policy_file limits headers jwt redis_url framing stream; do \
		mkdir -p corpus/$$target; \
		cargo fuzz run --sanitizer none $$target corpus/$$target seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -verbosity=0; \
		echo "$$target: no finding in $(FUZZ_SECONDS) s"; \
	done
