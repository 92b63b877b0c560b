# Two commands matter: `make demo` and `make test`. Both do their own set-up in .venv; nothing outside this
# folder changes, but that `make test` installs Java where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE ?= .headrace-demo
# Processes that share the tests, file by file.
JOBS ?= 2
# Not in the locks: the CPU build where the package index offers it, else gigabytes of CUDA.
TORCH ?= torch==2.13.0

.PHONY: demo test check sanitize lock bench clean setup setup-dev java

demo: setup
	$(BIN)/headrace demo --state $(STATE)

test: setup-dev java
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sanitize: setup-dev
	PYTHON=$(BIN)/python sh tests/sanitize_kernel.sh

# Spark's tests need Java 17 or newer; Python's packages do not bring a whole one.
java:
	@java -version >/dev/null 2>&1 || test -x "$$JAVA_HOME/bin/java" || \
	  { apt-get update -qq && apt-get install -qq -y openjdk-17-jre-headless; } || \
	  { echo "Spark's tests need Java 17: install it, or set JAVA_HOME"; exit 1; }

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headrace needs Python 3.11 or newer; PYTHON=/path/to/python3.11 make ..."; exit 1; }
	@echo "Set-up: a virtual environment in $(VENV) (delete the folder to undo it)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(VENV)/pyvenv.cfg requirements/demo.txt requirements/build.txt pyproject.toml hatch_build.py $(wildcard src/headrace/features/*.[ch])
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/demo.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

# Locks hold hashes and no URL. They are made for Linux and CPython 3.11 upwards.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url
lock: setup-dev
	$(LOCK) pyproject.toml --extra demo -o requirements/demo.txt
	$(LOCK) requirements/build.in -o requirements/build.txt
	$(LOCK) pyproject.toml --extra demo --group dev -c requirements/demo.txt -o requirements/dev.txt

bench: setup-dev
	$(BIN)/python bench/kernel.py
	$(BIN)/python bench/feature_store.py
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/serving.py
	$(BIN)/python bench/yardstick.py
	$(BIN)/python bench/validation.py
	$(BIN)/python bench/redis_faults.py
	$(BIN)/python bench/engines.py

clean:
	rm -rf $(VENV) $(STATE) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
