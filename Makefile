# Every target makes the environment it needs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python -P
export OMP_NUM_THREADS = 1

.PHONY: demo test lint unit distributed forked started alone frameworks lab lab-bench moe-bench nightly parity accuracy bench docs wheel clean

demo: $(VENV)/installed  ## profile this machine, plan, launch, verify
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/tiny-llama/demo.sh

TWO := --jobs=2 --output-sync=target
test: $(VENV)/installed  ## everything CI runs
	$(MAKE) $(TWO) lint wheel
	$(MAKE) unit
	$(MAKE) distributed

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PY) tests/check_lengths.py

# Folders are named, so that no run imports torch or a framework to leave out its tests;
# tests/unit/test_suites.py holds tests to them.
unit: $(VENV)/installed  ## without torch
	$(PY) -m pytest -m "not distributed" --numprocesses auto --dist worksteal tests/unit tests/cli \
		tests/lab/test_topology.py

distributed: $(VENV)/installed  ## real processes: parity, profile, launch
	$(MAKE) $(TWO) forked started
	$(MAKE) alone

forked: $(VENV)/installed frameworks  ## ranks are forked from pytest
	$(PY) -m pytest -m "distributed and not (started or timed)" --durations=5 tests/parity tests/frameworks

started: $(VENV)/installed  ## ranks are started by torchrun
	$(PY) -m pytest -m "started and not timed" --durations=5 tests/parity

alone: $(VENV)/installed  ## what other processes would disturb
	$(PY) -m pytest -m "timed or (lab and distributed)" --durations=5 tests/parity tests/lab

frameworks: $(VENV)/frameworks/installed  ## what plans are written for, to read what is written

lab: $(VENV)/installed  ## clusters of unlike hosts, as network namespaces; needs root
	$(PY) -m pytest -m lab --durations=5 tests/lab

lab-bench: $(VENV)/installed  ## every layout on clusters of unlike hosts, write docs/lab.md
	$(PY) -m tests.lab.bench

moe-bench: $(VENV)/installed  ## placements of experts on recordings and in the lab, write docs/moe.md
	$(PY) -m tests.accuracy.moe_page

nightly: $(VENV)/installed  ## 10,000 fuzzed inputs for each reader, 200 layouts at random
	FUZZ_EXAMPLES=10000 $(PY) -m pytest -m fuzz
	RANDOM_LAYOUTS=200 $(PY) -m pytest tests/parity/test_random_layouts.py

parity: $(VENV)/installed  ## every layout of the table against one process, write docs/parity.md
	PYTHONPATH=tests/parity $(PY) tests/parity/report.py

accuracy: $(VENV)/installed  ## run many layouts on 4 processes, write docs/accuracy.md
	$(PY) -m tests.accuracy.loop

bench: $(VENV)/installed  ## speed of planning and mapping; the runtime beside a plain PyTorch loop; recording routing
	$(PY) -m tests.accuracy.bench --write
	$(PY) -m tests.accuracy.map_bench --write
	$(PY) -m tests.accuracy.lean --write
	$(PY) -m tests.accuracy.routing_cost --write

docs: $(VENV)/installed  ## the reference, and what the guides show
	$(PY) -m tests.reference
	UPDATE_GOLDEN=1 $(PY) -m pytest tests/cli/test_guides.py

wheel: $(VENV)/installed  ## planning works from a wheel where torch is not installed
	PYTHON="$(PYTHON)" sh tests/check_wheel.sh

clean:
	rm -rf $(VENV) build dist

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[run,dev]"
	touch $@

RELEASES := $(wildcard tests/frameworks/releases/*.txt)
UNPACKED := --python-version 3.12 --ignore-requires-python --only-binary :all:

$(VENV)/frameworks/installed: $(VENV)/installed $(RELEASES)
	rm -rf $(VENV)/frameworks
	for file in $(RELEASES); do \
		case $$file in */megatron-*) how="$(UNPACKED)";; *) how=;; esac; \
		$(BIN)/pip install --quiet --no-deps --no-compile $$how --requirement $$file \
			--target $(VENV)/frameworks/$$(basename $$file .txt) || exit 1; \
	done
	touch $@
