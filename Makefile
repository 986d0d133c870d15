# Two commands do everything on a machine with Python and make:
#   make demo   sets up, then distils the quickstart recipe
#   make test   sets up, then runs the tests
# make bench times the engine against the ways it replaces; make audit looks for known holes in what we depend on.
# make torture kills, signals, damages and cramps real runs of tiny models, and writes torture.json.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo bench test torture check audit format clean

setup: $(STAMP)

# Nothing happens while the environment is newer than what it is made from.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 2; }
	@echo "setting up $(VENV) (once; PyTorch is the large part)"
	@start=$$(date +%s); \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' && \
	  echo "set up in $$(( $$(date +%s) - start )) s"
	@touch $@

demo: setup
	@$(BIN)/llm-neo fetch quickstart
	@start=$$(date +%s); $(BIN)/llm-neo distill quickstart --overwrite && \
	  echo "llm-neo distill took $$(( $$(date +%s) - start )) s"

# BENCH=... passes options on; python -m benchmarks --help lists them
bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

test: setup
	$(BIN)/python -m pytest

# KILLS, RUNS, FLIPS, SIGTERMS and DISK shorten it: make torture KILLS=20
torture: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 KILLS=$(KILLS) RUNS=$(RUNS) FLIPS=$(FLIPS) SIGTERMS=$(SIGTERMS) DISK=$(DISK) \
	  $(BIN)/python -m faults

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict, because pip-audit calls a package clean that its service has never heard of.
audit: setup
	@$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r constraints.txt $(AUDIT) || \
	  { echo "make audit: not passed: a package above has a known hole, or could not be audited, which counts as one" \
	    "(its service must be reachable: AUDIT='-s osv' asks another)"; exit 1; }

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage
