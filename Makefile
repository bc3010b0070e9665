# Two commands are enough: `make run` (a whole small mesh on localhost) and `make test`.
CARGO ?= cargo
export WEFT_VENV ?= $(CURDIR)/.venv

.PHONY: run build test lint fmt bench instructions tools clean help

help: ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

run: ## builds Weft and starts the demo mesh
	$(CARGO) run --release --bin weft -- quickstart

build: ## release binaries: weft and weft-control
	$(CARGO) build --release --bins

test: tools ## all tests; one whose tool cannot be had says `skipped: why`
	$(CARGO) test --workspace --no-fail-fast

tools: ## fetches what the tests run beside Weft: the real Envoy, gRPC's xDS client
	@sh scripts/tools.sh

lint: ## format, clippy, docs
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

fmt:
	$(CARGO) fmt

bench: build ## Weft against its peers, alternating in one run; BENCH='--quick --only http1' says what
	$(CARGO) build --release -p weft-benches --bins
	$(CARGO) run --release -p weft-benches -- $(BENCH)

instructions: build ## counts the instructions of a request's stages, and records them: what .ci/run holds them to
	$(CARGO) run --release -p weft-benches -- --instructions --record

clean:
	$(CARGO) clean
