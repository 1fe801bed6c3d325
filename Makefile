# Everything from nothing but Python 3.10+ and a C++ compiler: each target makes its own environment.
#   make quickstart                                                 install, train, export, sample
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu   with torch's build for CPUs
#   make test                                                       lint, types, layers, all tests

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(abspath $(VENV))/bin
# deepspeed compiles a small operator at first use, with the environment's own ninja
export PATH := $(BIN):$(PATH)

INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable

.PHONY: install quickstart test lint clean constraints

install: $(INSTALLED)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(TESTABLE): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: $(INSTALLED)
	deepspeed launch/pretrain.py --config ds_configs/quickstart.yaml
	test -d runs/quickstart/export || ds-pretrain export runs/quickstart --to runs/quickstart/export
	ds-pretrain sample runs/quickstart/export "def __init__(self"

lint: $(TESTABLE)
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test: lint
	pytest -n 2 --dist loadfile

# after an upgrade that passed the tests
constraints: $(TESTABLE)
	(echo "# The versions that the tests ran with. Regenerate: make constraints"; \
	 $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//') > constraints.txt

clean:
	rm -rf $(VENV)
