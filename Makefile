# `make help` lists the targets. Variables to set on the command line or in the environment:
#   PYTHON=python3.12        the interpreter of the virtual environment
#   TORCH=torch==2.12.0      another PyTorch; the build (CPU or CUDA) is what your pip is configured to find
#   VENV=.venv               folder of the virtual environment
#   DEMO_ARGS="--seed 1"     arguments of `core-agent demo`
#   PYTEST_ARGS="-k cli"     arguments of pytest, instead of those for several processes
#   REPOSITORY=https://…     address on GitHub; `make build` makes the README's links absolute with it

PYTHON      ?= python3
VENV        ?= .venv
TORCH       ?= torch==2.13.0
TEST_EXTRAS ?= dev,zoo,export,hub,cluster,docs,report,window
DEMO_ARGS   ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile
REPOSITORY  ?=
export REPOSITORY

BIN := $(VENV)/bin
# Python compiles a module when it is first imported: few of the installed ones are. It has to keep the
# result, or each process compiles the modules again: 770 of PyTorch alone.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install -qq --no-input --no-compile --disable-pip-version-check \
	-c $(VENV)/constraints.txt
APT := env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0
GL_PACKAGES := libegl1 libgl1 libopengl0 libgl1-mesa-dri
PACKAGES := python3 python3-venv $(GL_PACKAGES)

# Without a screen MuJoCo must render off-screen.
ifeq ($(shell uname -s),Linux)
ifeq ($(DISPLAY)$(MUJOCO_GL),)
export MUJOCO_GL := egl
endif
endif

# If TORCH has changed, it is installed again.
ifneq ($(shell cat $(VENV)/.torch 2>/dev/null),$(TORCH))
.PHONY: $(VENV)/.torch
endif

define CHECK_PYTHON
import sys
if not (3, 10) <= sys.version_info < (3, 13):
    raise SystemExit("core-agent needs Python 3.10 to 3.12, got " + sys.version.split()[0] + ": set PYTHON=python3.x")
endef
export CHECK_PYTHON

define CHECK_GL
import ctypes, os
backend = os.environ.get("MUJOCO_GL") or "default"
if backend == "egl":
    ctypes.CDLL("libEGL.so.1")
try:
    import mujoco
except ModuleNotFoundError:
    print("OpenGL: the library loads (MuJoCo is not installed yet, so nothing was rendered)")
    raise SystemExit
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    if not renderer.render().any():
        raise SystemExit("MuJoCo rendered a black picture")
print(f"OpenGL: MuJoCo renders ({backend} back end)")
endef
export CHECK_GL

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup venv gl gl-first demo test test-all torture lint format build docs constraints clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.runtime ## virtual environment for the demo
	@echo "$(VENV) is ready"

venv: $(VENV)/.dev ## virtual environment with the test tools too
	@echo "$(VENV) is ready for tests"

demo: gl-first $(VENV)/.runtime gl ## set up, then train an agent on a real task (12 minutes on 2 cores after the installation)
	@$(BIN)/core-agent demo $(DEMO_ARGS)

test: gl-first $(VENV)/.dev gl ## set up, then run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: gl-first $(VENV)/.dev gl ## also the tests marked slow
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" $(PYTEST_ARGS)

torture: gl-first $(VENV)/.dev gl ## kill runs, break disks, corrupt files, attack, misuse, and count failures (an hour or two)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kills.py
	@[ "$$(id -u)" != 0 ] || $(BIN)/python benchmarks/survival.py disk
	@$(BIN)/python benchmarks/survival.py soak --picture runs/soak.png
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/survival.py soak --env Pendulum-v1 --n-envs 8 --steps 1000000
	@$(BIN)/python benchmarks/torture.py attacks
	@$(BIN)/python benchmarks/torture.py mutations
	@$(BIN)/python benchmarks/torture.py bad-inputs

lint: $(VENV)/.dev ## ruff, mypy, lint-imports (the direction of imports) and hadolint (the Dockerfile)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@$(BIN)/hadolint Dockerfile

format: $(VENV)/.dev ## fix and format the sources with ruff
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

build: $(VENV)/.dev ## wheel and source archive in dist/, checked
	@rm -rf build dist
	@$(BIN)/python -W ignore -m build --no-isolation . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@$(BIN)/twine check --strict dist/*

docs: $(VENV)/.dev ## the documentation as a website in site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

gl: ## check that MuJoCo can render; as root on Debian, install Mesa
	@python=$(PYTHON); if [ -x $(BIN)/python ]; then python=$(BIN)/python; fi; \
	if error=$$($$python -c "$$CHECK_GL" 2>&1); then printf '%s\n' "$$error" | tail -n 1; exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "Installing software OpenGL: $(GL_PACKAGES)"; \
		$(APT) update && $(APT) install -y --no-install-recommends $(GL_PACKAGES) > /dev/null && exec $$python -c "$$CHECK_GL"; \
	fi; \
	printf '%s\n' "$$error" | tail -n 3 >&2; \
	echo "MuJoCo cannot render. On Debian and Ubuntu this installs it; then run make again:" >&2; \
	echo "    sudo apt-get update && sudo apt-get install -y $(PACKAGES)" >&2; \
	exit 1

# A missing library is reported before minutes of installing, not after.
gl-first:
	@[ -x $(BIN)/python ] || ! command -v $(PYTHON) > /dev/null || $(MAKE) --no-print-directory gl

# NumPy 2.5 deprecates setting an array's shape, which dm_control 1.0.50 does.
constraints: $(VENV)/.dev ## update constraints.txt (needs uv: pip install uv)
	@printf '%s\n' "$(TORCH)" "numpy<2.5" > $(VENV)/pins.txt
	@uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --upgrade \
		-c $(VENV)/pins.txt --no-annotate --no-header --quiet -o $(VENV)/resolved.txt > /dev/null
	@{ sed -n '/^#/p' constraints.txt; grep -vE '^(cuda-|nvidia-|triton|setuptools)' $(VENV)/resolved.txt; } > $(VENV)/new.txt
	@mv $(VENV)/new.txt constraints.txt

clean: ## remove the files of builds and tests
	@rm -rf build dist site core_agent.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also remove the virtual environment
	@rm -rf $(VENV)

# The pip that comes with Python 3.11 takes three times as long to choose the versions.
$(BIN)/python:
	@if ! $(PYTHON) -c "import ensurepip, venv" 2> /dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
			echo "Installing python3-venv"; \
			$(APT) update && $(APT) install -y --no-install-recommends python3 python3-venv > /dev/null; \
		else \
			echo "$(PYTHON) with its venv module is needed. On Debian and Ubuntu this installs it; then run make again:" >&2; \
			echo "    sudo apt-get update && sudo apt-get install -y $(PACKAGES)" >&2; \
			exit 1; \
		fi; \
	fi
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --upgrade pip

# PyTorch is installed first and alone, so that the other requirements do not change its build.
$(VENV)/.torch: | $(BIN)/python
	@echo "Installing $(TORCH) (a few hundred MB; more with CUDA)"
	@: > $(VENV)/constraints.txt
	@$(PIP) "$(TORCH)"
	@echo "$(TORCH)" > $@

$(VENV)/constraints.txt: constraints.txt $(VENV)/.torch
	@grep -v '^torch==' constraints.txt > $@
	@$(BIN)/python -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" >> $@

$(VENV)/.runtime: pyproject.toml $(VENV)/constraints.txt
	@echo "Installing core-agent"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/constraints.txt
	@echo "Installing core-agent and the test tools"
	@$(PIP) -e ".[$(TEST_EXTRAS)]"
	@touch $(VENV)/.runtime $@
