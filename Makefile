# make demo: the whole way once, from nothing; make test: the tests; both do all the set-up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint clean
.DELETE_ON_ERROR:

demo: .venv/base
	$(BIN)/alignuser demo

# Thousands of small programs are compiled and run once: XLA need not optimize them. The slow
# tests, and pytest by hand, compile as users do.
QUICK := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
         --xla_cpu_use_fusion_emitters=false

test: .venv/test
	XLA_FLAGS="$(QUICK)" $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not tpu"

test-slow: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu and not tpu"

lint: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Say which one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/base: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/test: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf .venv
