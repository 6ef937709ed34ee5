# Needs python3 >= 3.10 with venv, and make. Everything else is installed into $(VENV).

PYTHON ?=
VENV ?= .venv
REPEAT ?= 1
# Tests wait more than they compute: one process more than a small machine has cores.
TEST_PROCESSES ?= 3
PYTEST_ARGS ?=
BENCH_ARGS ?=

PY := $(VENV)/bin/python
# Compiled modules are kept, as they are for users: workers start by the thousand here, and would compile theirs anew.
export PYTHONDONTWRITEBYTECODE :=

PIP := $(PY) -m pip --disable-pip-version-check --no-input -q

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-faults soak lint format types bench bench-smoke docs clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The interpreter: PYTHON=... where given, else the first one of a supported version.
$(PY):
	@for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11 python3.10); do \
	    "$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || continue; \
	    if ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then : "$${without_pip:=$$candidate}"; continue; fi; \
	    echo "creating $(VENV) with $$candidate"; \
	    "$$candidate" -m venv --clear "$(VENV)" && exit 0 || exit 1; \
	done; \
	if [ -n "$$without_pip" ]; then \
	    echo "$$without_pip cannot make an environment with pip: install its venv package" \
	         "(Debian, Ubuntu: apt install python3-venv), or name another interpreter: make PYTHON=..."; \
	else \
	    echo "no Python 3.10 to 3.14 found$(if $(PYTHON), at $(PYTHON)); name one: make PYTHON=/path/to/python3"; \
	fi >&2; exit 1

# One environment, filled as far as the target at hand needs it. It is filled anew where its
# interpreter is gone, or where it came here with a copied directory.
STAMPS := $(VENV)/.demo $(VENV)/.full $(VENV)/.docs
$(shell for stamp in $(STAMPS); do \
    test -x $(PY) && grep -qsxF "$(CURDIR)" $$stamp || rm -f $$stamp; done)

$(VENV)/.demo: pyproject.toml $(PY)
	@echo "installing executorlib and emcee into $(VENV)"
	@$(PIP) install -e ".[progress]" "emcee>=3.1,<4" "numpy>=1.26"
	@echo "$(CURDIR)" > $@

$(VENV)/.full: pyproject.toml $(PY)
	@echo "installing executorlib, its extras and the tests' libraries into $(VENV)"
	@$(PIP) install -e ".[all,test]"
	@echo "$(CURDIR)" | tee $(VENV)/.demo > $@

$(VENV)/.docs: pyproject.toml $(VENV)/.full
	@echo "installing the documentation's tools into $(VENV)"
	@$(PIP) install -e ".[all,docs,test]"
	@echo "$(CURDIR)" > $@

venv: $(VENV)/.full ## environment for development in .venv

demo: $(VENV)/.demo ## a real sampling run on all cores
	@$(PY) examples/demo.py

test: $(VENV)/.full ## the test suite (PYTEST_ARGS=...)
	@.ci/slurm status > /dev/null 2>&1 || { started=yes; .ci/slurm start || true; }; \
	$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadgroup $(PYTEST_ARGS); code=$$?; \
	[ -z "$$started" ] || .ci/slurm stop > /dev/null 2>&1; exit $$code

test-faults: $(VENV)/.full ## the tests of things that break, REPEAT=n times
	@export FUZZ_INPUTS=$${FUZZ_INPUTS:-$$((100000 / $(REPEAT)))}; for round in $$(seq 1 $(REPEAT)); do \
	    echo "faults: round $$round of $(REPEAT)"; \
	    $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadgroup -m "faults and not soak" $(PYTEST_ARGS) || exit 1; \
	done

soak: $(VENV)/.full ## minutes of load with deaths, resizes and cancels
	@$(PY) -m pytest -m soak -s $(PYTEST_ARGS)

lint: $(VENV)/.full ## ruff: rules and format
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

format: $(VENV)/.full ## ruff: mend what it can
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

types: $(VENV)/.full ## mypy over source, tests, examples and benchmarks
	@$(PY) -m mypy --strict src tests examples
	@MYPYPATH=benchmarks:benchmarks/cases $(PY) -m mypy --strict benchmarks/run.py benchmarks/cases/one.py

bench: $(PY) ## measure, beside other libraries (BENCH_ARGS=...)
	@$(PY) benchmarks/run.py $(BENCH_ARGS)

bench-smoke: $(PY) ## every benchmark once and short
	@$(PY) benchmarks/run.py --smoke $(BENCH_ARGS)

docs: $(VENV)/.docs ## documentation as HTML in docs/_build/html
	@$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html && echo "the pages are in docs/_build/html"

clean: ## remove what builds and tests leave behind
	rm -rf build dist docs/_build docs/notebooks .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf "$(VENV)"
