# make demo   scans to videos, scores and a page, on a simulated subject (under fourteen minutes)
# make test   the tests          make check   lint, types, layer contract
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo smoke test check clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/neuroclips demo

smoke: .venv/installed
	$(BIN)/neuroclips run smoke

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,judges,test,check]"
	touch $@

clean:
	rm -rf .venv runs
