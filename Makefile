# Everything below sets up .venv and .engine by itself; second runs find them ready.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test comfy clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@$(PYTHON) dev/setup.py

demo: setup ## a picture through ComfyUI to a clip, free and offline (LIVE=1: on RunComfy, paid)
	@$(BIN)/python dev/demo.py

test: ## all checks and tests
	@$(PYTHON) dev/setup.py --browser
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/ruff check --isolated --extend-exclude .engine --select S102,S307,E702
	$(BIN)/mypy --strict nodes/core
	$(BIN)/pytest --cov=nodes --cov-report=term

comfy: setup ## ComfyUI with this pack in the browser, at PORT (8188), rehearsed unless LIVE=1
	@$(BIN)/python dev/serve.py

clean: ## remove what the set-up and the runs made
	rm -rf .venv .engine .demo .coverage .pytest_cache .mypy_cache .ruff_cache
