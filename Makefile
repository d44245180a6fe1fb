# Everything a user types. `make demo`: from nothing to a benchmark table and a registered model.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
READY := .venv/installed
# The tools of .venv first; no telemetry from anything that the project starts.
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: install demo test test-tools test-slow lint format lock ui up down clean distclean

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "goal: no python3.11 found; install it or set PYTHON=..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "goal: no virtual environment could be made; on Debian: apt install python3.11-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

install: $(READY)

# Draw scenes, mine pairs, train, measure, register; then show the table.
demo: $(READY)
	dvc --wait-for-lock repro
	@python -m goal table

# What some tests use beside Python, from Debian; without it they are skipped and say so.
test-tools:
	@command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	  { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes \
	      --no-install-recommends chromium fonts-liberation postgresql; } || \
	  echo "goal: could not install chromium and postgresql (needs Debian's apt-get and root): tests of pages and servers are skipped"

test: $(READY)
	python -m pytest -q -m "not slow"

test-slow: $(READY)
	python -m pytest -q

lint: $(READY)
	ruff check .
	ruff format --check .

format: $(READY)
	ruff check --fix .
	ruff format .

# The one place where versions change.
lock: $(READY)
	uv pip compile pyproject.toml --all-extras --generate-hashes --no-header --quiet -o requirements.lock

# MLflow, Prefect and a worker on this machine, on 127.0.0.1 only; the pipeline needs none of them.
up: $(READY)
	@python -m infra.servers up

down: $(READY)
	@python -m infra.servers down

# The addresses of what is up, else the MLflow UI on this project's store.
ui: $(READY)
	@python -m infra.servers ui

# What the pipeline made, its record and registered models included; the committed metrics stay. First: make down.
clean:
	rm -rf data/* models/* regions pairs reports work run dvc_plots .dvc/cache .dvc/tmp mlflow.db* mlartifacts

distclean: clean
	rm -rf .venv downloads
