# Every target does its own set-up: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# What `make test-matrix` runs the tests under: instruction sets as other CPUs have them (fewer than this CPU's own, never
# more) and numbers of threads, set together where a comma joins them. Each value is there once or more, not every pair.
COMMA := ,
HAS_AVX512 := $(shell grep -o -m 1 avx512f /proc/cpuinfo 2> /dev/null)
AVX512 := ATEN_CPU_CAPABILITY=avx512$(COMMA)ONEDNN_MAX_CPU_ISA=AVX512_CORE
SETTINGS := OMP_NUM_THREADS=1 \
	ATEN_CPU_CAPABILITY=default,ONEDNN_MAX_CPU_ISA=SSE41,OMP_NUM_THREADS=4 \
	ATEN_CPU_CAPABILITY=avx2,ONEDNN_MAX_CPU_ISA=AVX2,OMP_NUM_THREADS=2 \
	$(if $(HAS_AVX512),$(AVX512)$(COMMA)OMP_NUM_THREADS=4 $(AVX512)_BF16$(COMMA)OMP_NUM_THREADS=2)
# ... and once more with each of these Pythons, in a virtual environment of its own.
PYTHONS ?= $(foreach python,python3.12 python3.13 python3.14,$(shell $(python) -c 'print("$(python)")' 2> /dev/null))
TESTS := tests
# The default suite takes one thread a test, so several processes share its tests.
DEFAULT_SUITE := -m pytest -m "not slow" --numprocesses auto --maxprocesses 4

.PHONY: run test test-slow test-matrix lint

run: .venv/installed
	$(BIN)/python -m marble_sweep experiment=quick

test: .venv/installed-dev
	$(BIN)/python $(DEFAULT_SUITE)

# One after the other: many of them train in processes of their own, with as many threads as there are cores.
test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

# One line of result a setting, and the whole output in .test-matrix/. TESTS=tests/model runs a part of the tests.
test-matrix: .venv/installed-dev
	@mkdir -p .test-matrix; failed=0; \
	for setting in $(SETTINGS); do \
		log=.test-matrix/$$setting.log; \
		env $$(echo $$setting | tr , ' ') $(BIN)/python $(DEFAULT_SUITE) $(TESTS) > $$log 2>&1 || failed=1; \
		echo "$$setting: $$(tail -n 1 $$log)"; \
	done; \
	for python in $(PYTHONS); do \
		venv=.test-matrix/$$(basename $$python); log=$$venv.log; \
		{ $$python -m venv $$venv && \
		  $$venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' && \
		  $$venv/bin/python $(DEFAULT_SUITE) $(TESTS); } > $$log 2>&1 || failed=1; \
		echo "$$python: $$(tail -n 1 $$log)"; \
	done; \
	exit $$failed

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) '.[dev]'
	touch $@
