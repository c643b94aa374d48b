# Everything below sets up .venv and .engine by itself; second runs find them ready.

PYTHON ?= python3
BIN := .venv/bin
# Isolated, so that this folder is not on sys.path: its `nodes` would hide ComfyUI's own.
# Not the commands that pip writes into .venv/bin: they fail where a folder has a $ in its name.
RUN := $(BIN)/python -I -m

.DEFAULT_GOAL := help
.PHONY: help setup demo test comfy clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@$(PYTHON) dev/start_setup.py

demo: setup ## a picture through ComfyUI to a clip, free and offline (LIVE=1: on RunComfy, paid)
	@$(BIN)/python dev/demo.py

test: ## all checks and tests
	@$(PYTHON) dev/start_setup.py --browser
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) ruff check --isolated --extend-exclude .engine --select S102,S307,E702
	$(RUN) mypy --strict nodes/core
	$(RUN) pytest -n auto --maxprocesses 4 --dist loadfile --cov=nodes --cov-report=term

comfy: setup ## ComfyUI with this pack in the browser, at PORT (8188), rehearsed unless LIVE=1
	@$(BIN)/python dev/serve.py

clean: ## remove what the set-up and the tests made; .demo with your clips stays
	rm -rf .venv .engine .coverage .pytest_cache .mypy_cache .ruff_cache
	@if [ -d .demo ]; then echo "Kept: your clips in .demo/output, and in .demo/user your" \
		"workflows and the record of paid jobs. Delete .demo yourself to be rid of them."; fi
