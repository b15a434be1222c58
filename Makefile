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
.PHONY: help setup tune publish claims predicted test lint clean

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

# Each file's own provenance names its command again.
predicted: $(ready) ## what planner predicts for devices that are not here, into policies/
	$(bin)/planner plan flux.2-dev --target b200 --budget 4s --emit policies/flux.2-dev/b200/4s.yaml
	$(bin)/planner plan flux.2-dev --target rtx-5090 --vram 32GB --emit policies/flux.2-dev/rtx-5090/32GB.yaml
	$(bin)/planner plan qwen-image --target h20 --budget 40s --emit policies/qwen-image/h20/40s.yaml
	$(bin)/planner plan qwen-image --target h100-sxm --budget 20s --emit policies/qwen-image/h100-sxm/20s.yaml
	$(bin)/planner plan sd3.5-large --target rtx-4070 --vram 12GiB --emit policies/sd3.5-large/rtx-4070/12GiB.yaml
	$(bin)/planner plan wan2.2-t2v-a14b --target h100-sxm --height 720 --width 1280 --budget 20m --emit policies/wan2.2-t2v-a14b/h100-sxm/20m.yaml
	$(bin)/planner plan flux.1-dev --target rtx-4090 --budget 8s --emit policies/flux.1-dev/rtx-4090/8s.yaml

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
