# `make` lists what one can do. All of it happens in .venv; PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py $(wildcard src/fasthook/*.pyx src/fasthook/*.pxd src/fasthook/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo test build lint format sanitize bench bench-peers fuzz soak slow clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## serve examples/echo.py and print a curl line to try it
	$(BIN)/fasthook run examples.echo:handler

test: build ## run all tests
	$(BIN)/python -m pytest

build: .venv/built ## make the environment and build the compiled modules in place

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fasthook needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv module: on Debian, apt install python3-venv python3-dev gcc"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' 'cython>=3.2,<4'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test,lint,bench]'
	@touch $@

.venv/built: .venv/ready $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

lint: build ## ruff, mypy, stubtest, cython-lint, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=src $(BIN)/stubtest --ignore-disjoint-bases --allowlist tests/stubtest-allowlist.txt $(basename $(subst src/fasthook/,fasthook.,$(wildcard src/fasthook/_*.pyx)))
	$(BIN)/cython-lint --no-pycodestyle src
	$(BIN)/codespell src tests bench docs examples README.md CHANGELOG.md

format: build ## let ruff write the code as it should look
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize: build ## the core's tests with the address and undefined-behaviour sanitizers
	PYTHON=$(BIN)/python bash tests/sanitize.sh

bench: build ## micro-benchmarks, each beside the plain-Python way
	$(BIN)/python -m pytest bench/micro

bench-peers: build ## CPU per request beside a server in C and other receivers (needs wrk)
	$(BIN)/python -m bench.peers --install
	$(BIN)/python -m bench.peers --all

fuzz: build ## fuzz the edge and the scan, each for half a minute
	$(BIN)/python -m pip install --quiet atheris
	mkdir -p build/fuzz/edge build/fuzz/scan
	$(BIN)/python fuzz/corpus.py build/fuzz
	$(BIN)/python fuzz/fuzz_edge.py -max_total_time=30 -dict=fuzz/http.dict -timeout=10 -max_len=4096 -artifact_prefix=build/fuzz/ build/fuzz/edge fuzz/corpus/edge
	$(BIN)/python fuzz/fuzz_scan.py -max_total_time=30 -dict=fuzz/json.dict -timeout=10 -artifact_prefix=build/fuzz/ build/fuzz/scan fuzz/corpus/scan

soak: build ## two million requests; fails if memory grows
	$(BIN)/python -m bench.soak --requests 2000000

slow: build ## slowhttptest's three attacks on the demo bot (needs slowhttptest)
	bash tests/slowhttptest.sh $(BIN)/fasthook

clean: ## remove what was built
	rm -rf .venv build dist src/*.egg-info src/fasthook/*.so src/fasthook/*.c src/fasthook/*.html
