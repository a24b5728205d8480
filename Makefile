# `make` lists what one can do. All of it happens in .venv; PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
# how many processes run the tests: most of their time they wait; PROCESSES=0 is one after the other, in this one
PROCESSES ?= 3
# after so many seconds a test that hangs fails, with the stacks of its threads; the longest takes less than half of it
TEST_TIMEOUT ?= 400
# more of pytest's options
TEST_OPTIONS ?=
SOURCES := setup.py $(wildcard src/fasthook/*.pyx src/fasthook/*.pxd src/fasthook/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo test build lint format sanitize coverage bench bench-quick bench-peers guard dashboard wheel fresh fuzz soak kill slow clean

# what `make guard` compares with, and how long `make fuzz` looks and `make kill` kills, for each target
BASE ?= $(shell git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD^)
FUZZ_SECONDS ?= 30
KILL_SECONDS ?= 60

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## a conversation with examples/echo.py, without a token, and a curl line to join in
	$(BIN)/python -m examples.demo

test: build ## run all tests
	$(BIN)/python -m pytest -n $(PROCESSES) --maxschedchunk 2 --timeout $(TEST_TIMEOUT) $(TEST_OPTIONS)

build: .venv/built ## make the environment and build the compiled modules in place

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fasthook needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv module: on Debian, apt install python3-venv python3-dev gcc"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' 'cython>=3.2,<4'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test,lint,bench,wheel]'
	@touch $@

.venv/built: .venv/ready $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

lint: build ## ruff, mypy, stubtest, cython-lint, codespell, zizmor, check-jsonschema
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=src $(BIN)/python -m mypy.stubtest --ignore-disjoint-bases --allowlist tests/stubtest-allowlist.txt $(basename $(subst src/fasthook/,fasthook.,$(wildcard src/fasthook/_*.pyx)))
	$(BIN)/cython-lint --no-pycodestyle src
	$(BIN)/codespell src tests bench docs examples release fuzz deploy .github Makefile setup.py README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md
	$(BIN)/zizmor --offline --no-progress --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

format: build ## let ruff write the code as it should look
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize: build ## tests of the core, the edge and the ASGI door with the address and undefined-behaviour sanitizers
	PYTHON=$(BIN)/python bash tests/sanitize.sh

coverage: build ## coverage of Python and of Cython lines, of subprocesses too; fails below 95 % of either
	PYTHON=$(BIN)/python bash release/coverage.sh

bench: build ## micro-benchmarks, each beside the plain-Python way
	$(BIN)/python -m pytest bench/micro

bench-quick: build ## the figures of this tree: micro-benchmarks held to their floors, instruction counts, CPU beside limit.c
	mkdir -p bench/out
	rm -f bench/out/micro.json bench/out/instructions.json bench/out/peers.json
	$(BIN)/python -m pytest bench/micro -q --floors bench/floors.json --benchmark-json bench/out/micro.json
	@if command -v valgrind >/dev/null; then $(BIN)/python -m bench.instructions --json bench/out/instructions.json; \
	else echo "valgrind is not installed: instructions were not counted"; fi
	@if command -v wrk >/dev/null; then $(BIN)/python -m bench.peers --all --quick --only 'fasthook memory,minimal,Hook' --json bench/out/peers.json; \
	else echo "wrk is not installed: nothing was measured beside limit.c"; fi

guard: build ## is this tree slower than BASE (a git revision)? instructions, ratios to plain Python, rounds in turn
	$(BIN)/python -m bench.guard --base "$(BASE)"

dashboard: build ## bench/out/dashboard.html: the page of all figures, of what bench-quick measured
	@test -f bench/out/micro.json || $(MAKE) bench-quick
	$(BIN)/python -m bench.history
	$(BIN)/python -m bench.dashboard

wheel: build ## the sdist, and from it a repaired and tested wheel for each CPython here, in dist/
	$(BIN)/python -m release.wheels

fresh: ## make test and make demo in a fresh clone of HEAD, with an empty home and only /usr/bin
	bash release/fresh.sh

bench-peers: build ## CPU per request beside a server in C and other receivers (needs wrk)
	$(BIN)/python -m bench.peers --install
	$(BIN)/python -m bench.peers --all

fuzz: build ## fuzz the edge and the scan, each for FUZZ_SECONDS (30)
	$(BIN)/python -m pip install --quiet atheris
	mkdir -p build/fuzz/edge build/fuzz/scan
	$(BIN)/python fuzz/corpus.py build/fuzz
	@failed=; \
	$(BIN)/python fuzz/fuzz_edge.py -max_total_time=$(FUZZ_SECONDS) -dict=fuzz/http.dict -timeout=10 -max_len=4096 -artifact_prefix=build/fuzz/ build/fuzz/edge fuzz/corpus/edge || failed="$$failed fuzz_edge"; \
	$(BIN)/python fuzz/fuzz_scan.py -max_total_time=$(FUZZ_SECONDS) -dict=fuzz/json.dict -timeout=10 -artifact_prefix=build/fuzz/ build/fuzz/scan fuzz/corpus/scan || failed="$$failed fuzz_scan"; \
	test -z "$$failed" || { echo "found something, in build/fuzz/:$$failed"; exit 1; }

soak: build ## two million requests; fails if memory grows
	$(BIN)/python -m bench.soak --requests 2000000

kill: build ## kill -9 of a random worker every second under load, KILL_SECONDS (60) for each queue and number of workers
	TEST_SECONDS=$(KILL_SECONDS) $(BIN)/python -m pytest tests/e2e/test_worker_deaths.py -k kill_9

slow: build ## slowhttptest's three attacks on the demo bot (needs slowhttptest)
	bash tests/slowhttptest.sh $(BIN)/fasthook

clean: ## remove what was built
	rm -rf .venv build dist src/*.egg-info src/fasthook/*.so src/fasthook/*.c src/fasthook/*.html
