# Every target sets up .venv by itself; python3, pip and make are all that must be there.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench

.PHONY: demo test test-slow check format bench bench-quick clean

$(READY): pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[all]' --group dev
	touch $@

demo: $(READY)  ## the whole way: teachers, store, server, students, one table
	$(BIN)/logitstore demo --out demo

test: $(READY)
	$(BIN)/pytest

test-slow: $(READY)
	$(BIN)/pytest -m slow

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY_BENCH): $(READY)  # nginx is one of the peers; without it its rows say "not run"
	command -v nginx >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq -y nginx; } || true
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --group bench
	touch $@

bench: $(READY_BENCH)  ## our figures beside their targets and other stores': about 12 minutes
	$(BIN)/python -m tests.bench

bench-quick: $(READY_BENCH)  ## the same with less of everything: under 3 minutes
	$(BIN)/python -m tests.bench --quick

clean:
	rm -rf $(VENV) demo build dist *.egg-info
