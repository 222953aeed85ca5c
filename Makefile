# `make demo` and `make test` do all set-up; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard quant/kernels/*)

.PHONY: demo test lint types clean

demo: $(INSTALLED)
	$(BIN)/weightcast demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# An editable install: Python edits are live, C++ edits run this rule again.
$(INSTALLED): $(BUILD_INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--config-settings=cmake.define.WEIGHTCAST_WERROR=$(if $(CI),ON,OFF) \
		--editable ".[dev,llama-cpp]"
	touch $(INSTALLED)

clean:
	rm -rf .venv build out
