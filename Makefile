# What a person or CI runs. Needs make and Python >= 3.11 (with its venv module), nothing else.
#
#   make demo     the whole job on handwritten digits: train, evaluate, sample; into runs/digits
#   make test     the tests
#   make check    lint, types and tests
#   make long     the tests that take longest, half a minute to minutes, which check leaves out
#   make docs     the documents as a site, in site/; make notebooks runs its notebooks anew
#   make model    the small model that the package ships, trained anew
#   make mutants  would the tests notice? wrong changes one at a time, and their tests: hours; goes on
#   make trackers the tests of trackio and MLflow, which need an environment of their own
#   make pythons  the quick tests on each Python from 3.11 to 3.13 that is here, with its JAX
#   make release  all of a release but the upload: checks, wheel, sdist, and the wheel tried
#   make bench    what a likelihood and a bound cost beside the published ones: some minutes
#
# make PYTHON=/usr/bin/python3.12 ... picks an interpreter; the default is the first on the path that
# is new enough. make DEMO=folder demo writes elsewhere.

SHELL := /bin/sh
BIN := .venv/bin
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python
DEMO := runs/digits
# What tests need; DEV=dev,parity brings the libraries that some of them compare with.
DEV := dev
# Arguments of pytest for make pythons, such as tests/core; none: all that is not slow.
QUICK :=
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Two workers, a file each, in the order of tests/conftest.py: most of the time goes into compiling,
# on one core at a time. A worker that crashes ends the tests: a new one in its place may wait for ever.
# Memory that compilations free is kept, not given back to the system and fetched anew: glibc's settings,
# which others ignore, save 5 to 10 % of the time.
KEEP := GLIBC_TUNABLES=glibc.malloc.trim_threshold=1000000000:glibc.malloc.top_pad=67108864:glibc.malloc.mmap_threshold=1000000000
TESTS := $(KEEP) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Tests start hundreds of processes, and each would compile the package's Python anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check lint types long bench docs notebooks mutants model trackers pythons release clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

demo: .venv/.demo
	@$(BIN)/python examples/digits_demo.py --workdir=$(DEMO)

test: .venv/.dev
	@$(TESTS)

check: lint types test

lint: .venv/.dev
	$(BIN)/python -m ruff check .

types: .venv/.dev
	$(BIN)/python -m mypy

bench: .venv/.demo
	@$(BIN)/python benchmarks/likelihood.py --quick
	@$(BIN)/python benchmarks/bound.py --quick

docs: .venv/.dev
	@$(BIN)/python -m mkdocs build --strict
	@echo "look at it: $(BIN)/python -m http.server --directory site"

notebooks: .venv/.dev
	@$(BIN)/python docs/theme/execute.py docs/notebooks/*.ipynb

mutants: .venv/.dev
	@$(BIN)/python benchmarks/mutants.py

# The model that the package ships.
MODEL := scoremle/experiment/shipped/digits
model: .venv/.demo
	$(BIN)/scoremle train digits runs/model
	$(BIN)/scoremle export runs/model $(MODEL)/weights.safetensors --force
	cp runs/model/config.json runs/model/data.json $(MODEL)
	$(BIN)/scoremle eval runs/model --config.eval.num_repeats=4
	mkdir -p $(MODEL)/eval
	cp runs/model/eval/results.json runs/model/eval/exact_*.npz $(MODEL)/eval

trackers: .venv/.trackers
	.venv/trackers/bin/python -m pytest tests/training/test_trackers.py

pythons:
	@.ci/pythons $(QUICK)

long: .venv/.dev
	$(BIN)/python -m pytest -m long

release: check long trackers
	@$(BIN)/python .ci/release

clean:
	rm -rf .venv

# What is installed is remembered by an empty file, so that the second time costs nothing.
.venv/.demo: pyproject.toml | .venv/.made
	@echo "installing scoremle for the demo into .venv (once; about a minute on a fast line)"
	@$(PIP) -e '.[digits,plots]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/.made
	@echo "installing scoremle and what its tests need into .venv (once; about a minute on a fast line)"
	@# Python compiles what it imports; to compile all that is installed takes half a minute.
	@$(PIP) --no-compile -e '.[$(DEV)]'
	@touch $@ .venv/.demo

# They hold back pyarrow and python-dateutil. trackio asks for an older Pillow, too, whose overflows
# are known, and works with this one.
.venv/.trackers: pyproject.toml | .venv/.made
	@echo "installing trackio, MLflow and wandb into .venv/trackers (once)"
	@$(BIN)/python -m venv .venv/trackers
	@.venv/trackers/$(PIP:.venv/%=%) -e '.[dev,wandb,mlflow]'
	@.venv/trackers/$(PIP:.venv/%=%) 'trackio>=0.10'
	@.venv/trackers/$(PIP:.venv/%=%) 'pillow>=13'
	@touch $@

# A .venv that is there already is kept, made by hand or cut short, if its Python is new enough.
.venv/.made:
	@if ! $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
	  for python in $(or $(PYTHON),$(PYTHONS)); do \
	    if $$python -c '$(NEW_ENOUGH)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "scoremle needs Python 3.11 or newer; tried $(or $(PYTHON),$(PYTHONS))" >&2; \
	    echo "install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	  fi; \
	  echo "making .venv with $$($$found --version)"; \
	  $$found -m venv --clear .venv || { rm -rf .venv; exit 1; }; \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@touch $@
