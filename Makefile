# make train   environment, pinned install, data, training, table of results
# make demo    the same, unless it is trained already, then its page in a browser
# make test    environment and all tests; make test-fast: unit tests only
# make env     environment alone; make clean removes it
# make lint    ruff, mypy, shellcheck, hadolint; make format mends what ruff can; make slow-test runs slow tests
# make docs    the guides and the API as a site, build/site/index.html (no network needed)
# make bench   speed against a PyTorch twin, RecTools and RecBole (an environment of their own, 3 GB)
# make bench-check   the same, and compare the ratios with benchmarks/baseline.json
# PYTHON names another interpreter (3.11 to 3.13), e.g. make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
# Processes that share the tests.
JOBS ?= 2
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
CONFIG ?= ml100k
WORKDIR ?= runs/ml100k

# Where the peers' environment finds PyTorch; --toys=FOLDER adds a data set to the benchmarks.
PEERS ?= .venv-peers
PEERS_PIP_FLAGS ?= --extra-index-url https://download.pytorch.org/whl/cpu
BENCH_FLAGS ?=

.PHONY: train demo test test-fast slow-test lint format docs bench bench-check env clean

train: env
	$(BIN)/tssr train --config=$(CONFIG) --workdir=$(WORKDIR)

demo: env
	test -f $(WORKDIR)/test_metrics.json || \
	  $(BIN)/tssr train --config=$(CONFIG) --workdir=$(WORKDIR)
	$(BIN)/tssr serve --workdir=$(WORKDIR) --open_page

test: env
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: env
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/unit

slow-test: env
	$(BIN)/python -m pytest -m slow

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch_tpu.sh examples/*.sh
	$(BIN)/hadolint Dockerfile

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: env $(PEERS)/installed
	$(BIN)/python -m benchmarks.bench --peers_python=$(PEERS)/bin/python $(BENCH_FLAGS)
	$(BIN)/python -m benchmarks.memories

bench-check: env $(PEERS)/installed
	$(BIN)/python -m benchmarks.bench --peers_python=$(PEERS)/bin/python --check $(BENCH_FLAGS)

$(PEERS)/installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet $(PEERS_PIP_FLAGS) -r $<
	touch $@

env: $(VENV)/installed

# uv takes half a minute where pip takes three. pip reads its own configuration of mirrors.
$(VENV)/installed: pyproject.toml requirements.txt constraints.txt tests/onnx.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV) || { echo 'On Debian: apt-get install python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet 'uv>=0.9,<1'
	$(UV) --constraint constraints.txt --editable '.[dev]' || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(UV) --no-deps --requirement tests/onnx.txt || \
	  $(BIN)/python -m pip install --quiet --no-deps --requirement tests/onnx.txt
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) *.egg-info
