# Every target brings its own .venv up to date first, with the versions of constraints.txt: nothing else is needed
# than make and a Python. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install -c constraints.txt
NEEDS := $(BIN)/python pyproject.toml constraints.txt

# What `make reproduce` and `make test` pass on, for example: make reproduce ARGS="figure3 --device cuda"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help reproduce test soak lint docs bench compat dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=python3.12 chooses the Python of a new .venv, ARGS="..." goes to the command.'

reproduce: $(VENV)/.runtime ## measure and judge the paper's figures; ends with the path of the report
	@$(BIN)/normscope reproduce $(ARGS)

# One process a core, one thread each: twice as fast on two cores as one process with two threads.
test: $(VENV)/.dev ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

soak: $(VENV)/.dev ## run all attacks of tests/hostile, which `make test` runs in their short form
	@NORMSCOPE_SOAK=$${NORMSCOPE_SOAK:-1} $(BIN)/python -m pytest tests/hostile -o faulthandler_timeout=0 $(ARGS)

lint: $(VENV)/.dev ## check style and types: ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs: $(VENV)/.docs ## build the site into docs/_build: pages, API, and a gallery of examples that run
	@$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build $(ARGS)
	@echo docs/_build/index.html

bench: $(VENV)/.bench ## compare speed and quality with the floors and with other libraries
	@$(BIN)/python -m benchmarks $(ARGS)

dist: $(VENV)/.runtime ## wheel and sdist, in dist/
	@rm -rf dist && $(INSTALL) build && $(BIN)/python -m build --no-isolation --outdir dist . >&2
	@ls dist/*

# A pair that this machine cannot install (no such Python, no such torch for it) is named and left out.
compat: dist ## the wheel, installed alone, passes the tests on Python 3.11 to 3.13, with the pinned torch and with 2.6
	@.ci/compat $(ARGS)

clean: ## remove .venv and all caches; results stay
	rm -rf $(VENV) build dist docs/_build docs/api docs/gallery .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps below say when .venv was last brought up to date, and for what.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "normscope needs Python 3.11 or newer; $(PYTHON): $$($(PYTHON) --version 2>&1 | sed 's/.*: //'); try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The build backend is installed first and used without isolation, so that its version is pinned too.
$(VENV)/.runtime: $(NEEDS)
	@echo "installing normscope into $(VENV): torch is large, so the first time takes minutes" >&2
	@$(INSTALL) hatchling editables
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@$(INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

# A rival that does not install is left out, and tried again the next time. BackPACK requires torchvision but imports it
# only for its own examples, and torchvision's wheels do not load beside every build of torch: so it comes without its
# requirements, and those it does use are in the extra.
RIVALS = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])'

$(VENV)/.bench: $(VENV)/.runtime
	@failed=; for rival in $$($(RIVALS)); do \
	  $(INSTALL) "$$rival" || { failed=1; echo "$$rival does not install: the benchmarks go on without it" >&2; }; done; \
	$(INSTALL) --no-deps backpack-for-pytorch || { failed=1; echo "BackPACK does not install: the benchmarks go on without it" >&2; }; \
	[ -n "$$failed" ] || touch $@
