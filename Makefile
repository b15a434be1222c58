# `make tune` and `make test` do all of their set-up on a fresh machine with Python 3.11 or newer;
# a second call installs nothing. `make help` lists the rest.

PYTHON ?= python3
# torchvision (imported by lpips) must be the release made for torch's: this is the tested pair.
TORCH ?= 2.14.1
TORCHVISION ?= 0.29.1
THREADS ?= 1
# Forwarded to planner: make tune ARGS="--budget 3s --seed 1"
ARGS ?=
# Cores are often shared: waiting OpenMP threads must sleep, not spin, or timings swing.
export OMP_WAIT_POLICY = PASSIVE

bin := .venv/bin
made := .venv/.made
pair := .venv/.torch-$(TORCH)-$(TORCHVISION)
ready := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup tune publish claims test lint clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

setup: $(ready) ## make .venv and install planner there (tune, test and lint do so by themselves)

# The thread count belongs to the policy's device. One, because the embedded model's operations are
# too small to share: two threads took 1.2 times as long on two cores. make tune THREADS=8
tune: export OMP_NUM_THREADS = $(THREADS)
tune: $(ready) ## search a policy: the embedded model, two seconds an image, into build/
	$(bin)/planner tune --budget 2s --out build/ $(ARGS)

publish: $(ready) ## put what make tune concluded beside the code: policy, page, the README's picture
	mkdir -p policies reports
	cp -r build/policies/shapes policies/
	cp -r build/reports/shapes reports/
	$(bin)/python -m planner.reporting.front_picture build/.planner/shapes/cpu/2s reports/shapes/cpu/2s.png

claims: $(ready) ## what others state beside what planner computes, into reports/claims.md
	$(bin)/python reports/claims.py

# One thread: the models of the tests are tiny, worker processes run beside the test process, and
# results must not depend on the number of cores.
test: export OMP_NUM_THREADS = 1
test: lint ## ruff, mypy, then all tests
	$(bin)/python -m pytest

lint: $(ready) ## ruff and mypy alone
	$(bin)/ruff check .
	$(bin)/mypy

clean: ## remove the environment and everything generated (committed policies and reports stay)
	rm -rf .venv build dist .planner .mypy_cache .ruff_cache
	find planner tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted install is done again.
$(made):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "planner needs Python 3.11 or newer; this is $$($(PYTHON) --version 2>&1):" \
	    "set PYTHON, as in make test PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

$(pair): $(made)
	$(bin)/python -m pip install --quiet "torch==$(TORCH)" "torchvision==$(TORCHVISION)"
	@rm -f .venv/.torch-* && touch $@

$(ready): $(pair) pyproject.toml
	$(bin)/python -m pip install --quiet --editable '.[test]'
	@touch $@
