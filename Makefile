# make demo    the whole job on real digits: insert BN, train, calibrate, fold, verify; under a
#              minute of one core after the installation, ends in a page
# make demo-full   the same with more steps and learning rates
# make test    the tests
# make docs    docs/ as a site in out/site; a broken link is an error
# make lint    ruff and mypy --strict
# make fuzz    thousands of random graphs: folded, inserted into, compared in float64 (N=2000), and
#              five times as many damaged files: every one done right or refused clearly
# make faults  every write, rename, fsync and open of a command fails once, and kills it once
# make test-lowest   the tests with the lowest versions that pyproject.toml allows (for a schedule)
# make licences      what bnpass stands on, with versions and licences; needs no network
# make hashes        the same with the hashes of the files, for pip --require-hashes in a CI
# make mutants small mistakes in the core that a test should notice, N of them (N=40)
# make paper   the paper's experiments, over an hour (DATA=folder with mnist/ and fashion-mnist/)
# make paper-quick   the same at a fiftieth of the steps: a smoke test, minutes
# make branches  BN alone against branches that are trained and collapsed (DATA as above)
# make clean   remove the environment, the caches and what the demo wrote
#
# The first call makes .venv and installs into it: for the demo what bnpass runs on, for tests and
# lint their tools too. Later calls start at once.
#   PYTHON=python3.12      another interpreter (3.11 or newer)
#   ORT=cpu | gpu          the flavour of onnxruntime; the default is gpu where its wheels exist
#   CONSTRAINTS=           newest versions instead of the known-good set
#   ARGS="-k fold -x"      more arguments for pytest
#   OUT=folder             where the demo writes; the default is out/demo

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
OUT ?= out/demo
ARGS ?=
N ?= 2000

# onnxruntime-gpu has wheels for Linux x86_64 and Windows only; it runs on the CPU as well.
PLATFORM := $(shell uname -s 2>/dev/null)-$(shell uname -m 2>/dev/null)
ORT ?= $(if $(filter Linux-x86_64 MINGW% MSYS% CYGWIN%,$(PLATFORM)),gpu,cpu)

VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
STAMP := $(VENV)/.installed-$(ORT)
TOOLS := $(VENV)/.tools-$(ORT)
INPUTS := pyproject.toml $(wildcard $(CONSTRAINTS))

.PHONY: help install demo demo-full docs test test-lowest lint fuzz faults licences hashes mutants paper paper-quick branches clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^onnxruntime-gpu has/,$$d'

install: $(TOOLS)

$(STAMP): $(INPUTS)
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "error: no '$(PYTHON)' on the PATH"; \
	  echo "hint: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: bnpass needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1)"; \
	  echo "hint: name a newer one: make PYTHON=python3.12"; exit 3; }
	@echo "installing bnpass, torch and onnxruntime into $(VENV), once: about 1.5 GB and some"
	@echo "  minutes with torch for the CPU, more of both where pip's torch comes with CUDA"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot make a virtual environment"; \
	  echo "hint: on Debian and Ubuntu: apt-get install python3-venv"; exit 3; }
	$(PY) -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(PY) -m pip install --disable-pip-version-check \
	  $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[torch,$(ORT),plot,images]"
	@rm -f $(VENV)/.installed-*
	@touch $@

$(TOOLS): $(STAMP)
	$(PY) -m pip install --disable-pip-version-check \
	  $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --group dev
	@rm -f $(VENV)/.tools-*
	@touch $@

# Eight convolutions with sigmoids: without BN plain SGD cannot train them. Each arm takes its own
# best learning rate of the grid, chosen on held-out training images.
DEMO := run models/deep_sigmoid_conv.onnx --data models/data -o $(OUT) --force --compare-plain

# One thread: a network this small gains little from more, and waits for them on a busy machine.
demo: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) cli.py $(DEMO) --steps 600 --lr-grid 0.1,0.3 --grid-steps 80

demo-full: $(STAMP)
	$(PY) cli.py $(DEMO) --steps 1000 --lr-grid 0.03,0.1,0.3,1 --grid-steps 200

# A process a core, each with one thread: whole files are dealt out, for their tests share folders.
test: $(TOOLS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

docs: $(TOOLS)
	$(PY) -m pip install --quiet --disable-pip-version-check \
	  $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --group docs
	$(PY) -m mkdocs build --strict --quiet

lint: $(TOOLS)
	$(PY) -m ruff check .
	$(PY) -m mypy

fuzz: $(TOOLS)
	$(PY) -m tests.fuzz $(N)
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz.damage $$((5 * $(N)))

faults: $(TOOLS)
	BNPASS_FAULTS=all $(PY) -m pytest -q tests/faults

# An environment of its own: what other tests run with stays.
test-lowest: $(TOOLS)
	$(PY) -m tests.packaging.lowest > .venv-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet "pip>=25.1"
	.venv-lowest/bin/python -m pip install -c .venv-lowest.txt --group dev -e ".[torch,$(ORT),plot,images]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

licences: $(TOOLS)
	$(PY) -m tests.packaging.licences

hashes: $(TOOLS)
	@$(PY) -m tests.packaging.hashes torch $(ORT)

mutants: $(TOOLS)
	$(PY) -m pip install --quiet --group mutants
	$(PY) -m tests.mutants $(N)

# ONLY="inception cost" runs single rows; python -m benchmarks.paper --list names them. JOBS=4 runs
# so many at a time instead of one a core: the numbers are the same.
PAPER := -m benchmarks.paper $(if $(DATA),--data "$(DATA)") $(addprefix --only ,$(ONLY)) \
  $(if $(JOBS),--jobs $(JOBS))

paper: $(TOOLS)
	$(PY) $(PAPER) -o out/paper

paper-quick: $(TOOLS)
	$(PY) $(PAPER) -o out/paper-quick --quick

branches: $(TOOLS)
	$(PY) -m benchmarks.branches --data $(DATA) -o out/branches.json

clean:
	rm -rf $(VENV) .venv-lowest .venv-lowest.txt out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
