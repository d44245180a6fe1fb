# Everything a user types. `make demo`: from nothing to a benchmark table and a registered model.
# The newest Python that the tests pass on; 3.14 after these, for which the lock resolves and no test was run.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.14 python3; do \
  "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
    && { command -v "$$python"; break; }; done)
READY := .venv/installed
# The tools of .venv first.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install pictures test test-tools test-slow lint format docs lock distclean

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

# demo, up, down, ui, clean: what projects that `goal init` writes have too.
include goal/assets/project/Makefile

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

# The documentation as a site, in work/site; a broken link fails.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet

# The one place where versions change.
lock: $(READY)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11.0 --generate-hashes --no-header --quiet -o requirements.lock

distclean: clean
	rm -rf .venv downloads
