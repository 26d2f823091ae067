# Every target calls plain commands that the README shows. Needed from the system: Python >= 3.10 with venv, a C compiler.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
test check test-slow test-compat: export OMP_NUM_THREADS := 1

# LOCKED=1: `make setup` installs the exact versions of requirements.lock, with a GPU those of requirements-gpu.lock.
LOCKED ?=
GPU := $(shell command -v nvidia-smi)
LOCK := $(if $(LOCKED),$(if $(GPU),requirements-gpu.lock,requirements.lock))

# The python of test-gpu and bench-gpu. Named on the command line (make test-gpu PY=python3), it needs no .venv.
PY ?= $(BIN)/python
GPU_SETUP := $(if $(filter $(BIN)/python,$(PY)),setup)

# An annotation file in AnyWord format for smoke-official; empty: drawn pictures.
DATA ?=

.PHONY: setup lock demo page screenshots check test test-slow lint test-official test-slurm test-compat test-browser smoke-official torture clean
.PHONY: rehearse-gpu bench bench-step bench-memory bench-data bench-zero bench-soak
.DEFAULT_GOAL := setup

setup: .venv/.complete

.venv/.complete: pyproject.toml setup.py $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "setup: Python 3.10 or newer is needed; make PYTHON=python3.11 names another one" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "setup: python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "setup: a C compiler is missing: apt-get install gcc" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(if $(LOCK),-r $(LOCK)) -e '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	  echo "setup: opencv-python needs libGL, which this system lacks: opencv-python-headless takes its place"; \
	  version=$$($(BIN)/pip show opencv-python | sed -n 's/^Version: //p'); \
	  $(BIN)/pip uninstall -y opencv-python && $(BIN)/pip install --force-reinstall --no-deps "opencv-python-headless==$$version"; }
	@touch $@

# Writes the versions that .venv holds, and with them what torch's CUDA build needs, into both lock files.
lock: setup
	$(BIN)/pip install --quiet uv
	$(BIN)/pip freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p' > .venv/versions.txt
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --constraint .venv/versions.txt --python-platform linux \
	  --no-header --no-annotate --output-file .venv/all.lock
	sed -i '/^[^#]/d' requirements.lock && grep -v '^nvidia-\|^cuda-\|^triton=' .venv/all.lock >> requirements.lock
	sed -i '/^[^#-]/d' requirements-gpu.lock && grep '^nvidia-\|^cuda-\|^triton=' .venv/all.lock >> requirements-gpu.lock

demo: setup
	$(BIN)/deepspeed launch/train.py --deepspeed ds_configs/zero2.json
	$(BIN)/python launch/evaluate.py --run runs/demo --count 48

# The page of launch/demo.py, with the student of `make demo` if there is one. It trains nothing.
page: setup
	$(BIN)/python launch/demo.py

# The pictures of the page in docs/, made with the student of `make demo`.
screenshots: setup
	tests/browser/chromium.sh install
	$(BIN)/python -m tests.browser.screenshots

# What one runs before every commit. Types and imports are checked beside the tests: both take about as long.
QUICK := not process and not heavy and not slow and not official and not slurm and not gpu and not browser and not torchao

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j2 types quick-tests

.PHONY: types quick-tests all-tests
types:
	$(BIN)/mypy
	$(BIN)/lint-imports

quick-tests:
	$(BIN)/python -m pytest -n 2 -m '$(QUICK)'

# Everything that must hold. Here too types are checked beside the tests.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j2 types all-tests

all-tests:
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-official: setup
	$(BIN)/python -m pytest -n 2 -m official tests/official

# One NVIDIA GPU, and two where there are; fails where there is none.
test-gpu: $(GPU_SETUP)
	PYTHONPATH=$$PWD:$(PYTHONPATH) $(PY) -m pytest -o addopts= -q --strict-markers -m gpu tests/gpu

test-slurm: setup
	tests/slurm/cluster.sh with $(BIN)/python -m pytest -n 0 -m slurm tests/slurm

# Adapters of trainings, read by the oldest PEFT, one in between and the newest, each in an environment of its own; and
# 8-bit activations with torchao, in a folder of its own: wherever it is installed, PEFT imports it.
TORCHAO := build/compat/torchao
test-compat: setup
	$(BIN)/python -m tests.compat.peft_releases
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(TORCHAO) 'torchao>=0.18,<0.19'
	PYTHONPATH=$(TORCHAO) $(BIN)/python -m pytest -n 0 -m torchao tests/distill/quantization

# The page in Debian's Chromium, which is installed where it is missing (root).
test-browser: setup
	tests/browser/chromium.sh install
	$(BIN)/python -m pytest -n 0 -m browser tests/browser

smoke-official: setup
	$(BIN)/deepspeed launch/train.py --deepspeed ds_configs/zero2.json --config launch/recipes/smoke_official.yaml \
	  checkpoint.resume=never name=smoke_official_$(shell date +%Y%m%d_%H%M%S) 'data.sources=[$(DATA)]'

torture: setup
	$(BIN)/python -m tests.helpers.processes.torture --kills 50

# Ours beside the public recipe, each saving switched off in turn, on a CPU; bench-step only counts operations.
bench: setup
	$(BIN)/python -m tests.peers.bench

bench-gpu: $(GPU_SETUP)
	PYTHONPATH=$$PWD:$(PYTHONPATH) $(PY) -m tests.peers.bench_gpu

# bench-gpu on a CPU: PyTorch's CUDA build on a CUDA whose kernels do nothing. The environment takes 6 GB.
NULL_CUDA := build/null_cuda
rehearse-gpu: $(NULL_CUDA)/.complete
	PYTHONPATH=$$PWD $(NULL_CUDA)/venv/bin/python -m tests.null_cuda.rehearse

$(NULL_CUDA)/.complete: requirements.lock
	$(PYTHON) -m venv $(NULL_CUDA)/venv
	$(NULL_CUDA)/venv/bin/pip install --quiet torch==2.11.0 torchvision==0.26.0
	sed '/^torch/d' requirements.lock > $(NULL_CUDA)/requirements.txt
	$(NULL_CUDA)/venv/bin/pip install --quiet --no-deps -r $(NULL_CUDA)/requirements.txt
	$(NULL_CUDA)/venv/bin/pip install --quiet --no-deps --target $(NULL_CUDA)/headers nvidia-cuda-crt==13.0.88
	@touch $@

bench-step: setup
	$(BIN)/python launch/bench/bench_step.py

bench-memory: setup
	$(BIN)/python launch/bench/bench_memory.py

bench-data: setup
	$(BIN)/python launch/bench/bench_data.py

bench-zero: setup
	$(BIN)/python launch/bench/zero/bench_zero.py

bench-soak: setup
	$(BIN)/python launch/bench/bench_soak.py

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
