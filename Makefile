# Each target makes .venv where there is none, so every one of them starts from a bare checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PACKAGE := build/package

.PHONY: test test-long lint types docs timm-suite demo compat gpu clean

$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

lint: $(VENV)/.installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An installed copy: there the modules of kernels/ are where their name says, and tools that do not import find them.
$(PACKAGE): $(VENV)/.installed $(shell find metala_vision kernels -name '*.py')
	rm -rf $@ build/lib
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $@ .
	touch $@

# The whole package, as people get it.
types: $(PACKAGE)
	$(BIN)/mypy --follow-imports silent $(PACKAGE)/metala_vision

docs: $(PACKAGE)
	$(BIN)/mkdocs build --quiet --strict

# Long files come first (tests/conftest.py), and xdist is not to put those of many tests before them.
# The Triton kernels run in their interpreter, which is chosen when Triton is imported: a process of its own.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/interpreter

test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "long and not slow and not gpu"

timm-suite: $(VENV)/.installed
	$(BIN)/python tools/timm_suite.py

demo: $(VENV)/.installed
	$(BIN)/python tools/train.py configs/digits/metala_vit_digits.py --resume auto
	$(BIN)/python tools/test.py configs/digits/metala_vit_digits.py work_dirs/metala_vit_digits/best.pth

# An environment for each row of a table of versions, some gigabytes each, in build/compat.
compat:
	$(PYTHON) tools/compat.py --compile-matrix

# From a bare checkout: the Python that has a GPU's torch, not .venv.
gpu:
	$(PYTHON) tools/gpu_report.py --minutes 9

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
