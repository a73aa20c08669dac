# Everything runs in a virtual environment of its own, made on first use. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV ?= .venv
BIN = $(VENV)/bin
PY = $(BIN)/python
STAMP = $(VENV)/.installed
PYTEST_ARGS ?=
# Each worker takes whole files; JOBS=0 runs in one process. (`nproc` would answer with OMP_NUM_THREADS where that is set.)
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q -n $(JOBS) --dist loadfile
SLOW_ARGS ?=

.PHONY: setup demo test check lint format names types docs notebooks slow kernels bench dist mutate coverage clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt -e ".[test]"
	$(PY) -m pip install -q -c constraints.txt --no-deps vit-pytorch
	touch $@

$(VENV)/.docs: $(STAMP)
	$(PY) -m pip install -q -c constraints.txt -e ".[test,docs]"
	touch $@

demo: setup
	$(BIN)/tubelet demo $(DEMO_ARGS)

test: setup
	$(PYTEST) $(PYTEST_ARGS)

check: lint types
	$(PYTEST) -x --ignore=tests/demo --ignore=tests/models $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

names: setup
	$(PY) tests/test_public.py

types: setup
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

notebooks: dist
	PYTHON=$(PY) scripts/notebooks.sh

slow: setup
	$(PYTEST) -m "slow and not gpu" $(SLOW_ARGS)

kernels: setup
	$(BIN)/tubelet kernels check

bench: setup
	$(PY) -m benchmarks

dist: setup
	rm -rf dist
	$(PY) -m build -q
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

mutate: setup
	$(PY) scripts/mutate.py

coverage: setup
	$(PYTEST) --cov=tubelet --cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

clean:
	rm -rf dist build docs/_build .pytest_cache .mypy_cache .ruff_cache
