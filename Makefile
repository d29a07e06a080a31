# make train   environment, pinned install, data, training of configs/ml100k.py, table of results
# make test    environment and tests
# PYTHON names another interpreter (3.11 to 3.13), e.g. make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
# Processes that share the tests.
JOBS ?= 2
BIN := $(VENV)/bin
WORKDIR ?= runs/ml100k

.PHONY: train test slow-test lint format env clean

train: env
	$(BIN)/python -m tssr_jax.main --config=configs/ml100k.py --workdir=$(WORKDIR)

test: env
	$(BIN)/python -m pytest -n $(JOBS)

slow-test: env
	$(BIN)/python -m pytest -m slow

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch_tpu.sh

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV) || { echo 'On Debian: apt-get install python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
