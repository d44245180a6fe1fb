# Everything a user types. `make demo`: from nothing to a benchmark table and a registered model.
# The newest Python that the tests pass on; 3.14 after these, for which the lock resolves and no test was run.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.14 python3; do \
  "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
    && { command -v "$$python"; break; }; done)
READY := .venv/installed
# The tools of .venv first; no telemetry from anything that the project starts.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: install demo pictures test test-tools test-slow lint format lock ui up down clean clean-runs distclean

# Paths are relative: the name of this folder may hold spaces.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "goal: no Python 3.11 to 3.14 with venv found;" \
	  "on Debian: apt install python3-venv; elsewhere set PYTHON=..."; exit 2; }
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; echo "goal: $(PYTHON) made no virtual environment;" \
	  "on Debian: apt install python3-venv; elsewhere set PYTHON=..."; exit 2; }

$(READY): requirements.lock pyproject.toml | .venv/bin/python
	@.venv/bin/python -c 'import sys; print("goal: installing for Python", sys.version.split()[0], "of", sys.base_prefix)'
	@.venv/bin/python -m pip install --quiet --upgrade uv
	@.venv/bin/python -m uv pip install --quiet --python .venv/bin/python --compile-bytecode --require-hashes -r requirements.lock
	@.venv/bin/python -m uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

install: $(READY)

# Draw scenes, mine pairs, train, measure, register; then show the table.
demo: $(READY)
	dvc --wait-for-lock repro
	@python -m goal table

# The README's pictures, of what `make demo` left behind.
pictures: $(READY)
	python -m docs.pictures.make

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
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11.0 --generate-hashes --no-header --quiet -o requirements.lock

# MLflow, Prefect and a worker on this machine, on 127.0.0.1 only; the pipeline needs none of them.
up: $(READY)
	@python -m infra.servers up

down: $(READY)
	@python -m infra.servers down

# The addresses of what is up, else the MLflow UI on this project's store.
ui: $(READY)
	@python -m infra.servers ui

# Checkouts and branches that flow runs left without a result; says what it keeps, and why.
clean-runs: $(READY)
	@python -m flows.clean

# What the pipeline made, its record and registered models included; the committed metrics stay. First: make down.
clean:
	rm -rf data/* models/* regions pairs reports work run dvc_plots .dvc/cache .dvc/tmp mlflow.db* mlartifacts

distclean: clean
	rm -rf .venv downloads
