# `make demo` and `make test` do all set-up; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt \
	$(wildcard quant/kernels/*.* quant/kernels/*/*.*)

.PHONY: demo test lint types clean

demo: .venv/.demo
	$(BIN)/weightcast demo

test: .venv/.development
	$(BIN)/python -m pytest -q -n 2 --dist loadscope

lint: .venv/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.development
	$(BIN)/mypy
	$(BIN)/pyright

# Editable installs: Python edits are live, C++ edits run these rules again.
define install
test -x $(BIN)/python || $(PYTHON) -m venv .venv
$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	--config-settings=cmake.define.WEIGHTCAST_WERROR=$(if $(CI),ON,OFF) --editable ".[$(1)]"
touch $@
endef

.venv/.demo: $(BUILD_INPUTS)
	$(call install,llama-cpp)

.venv/.development: $(BUILD_INPUTS)
	$(call install,dev$(comma)cuda$(comma)llama-cpp$(comma)report$(comma)torch)
	touch .venv/.demo

comma := ,

clean:
	rm -rf .venv build
