# Every target sets up what it needs: a virtual environment and the packages, at the versions of
# constraints.txt. PYTHON and VENV may be set on the command line.
PYTHON ?= python3
VENV ?= .venv
# Not results/, which holds the published records.
DEMO ?= build/demo
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo test slurm browser check installed editable corpus models clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

# DISABLE_CUDA: the setup of hqq, a reference in tests, would otherwise try to compile kernels.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("edge_asr needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; give another with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	DISABLE_CUDA=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: $(INSTALLED)  ## virtual environment and packages

demo: setup  ## float, RTN and GPTQ at 3 and 2 bits on both embedded models, one table
	$(BIN)/python -m edge_asr.run -m experiment=demo results=$(DEMO)
	$(BIN)/python -m edge_asr.report --results $(DEMO)

test: setup  ## the test suite, in two processes
	$(BIN)/python -m pytest -n 2

# 77: it cannot be installed here, which has been said.
slurm: setup  ## sweeps on a Slurm of three nodes on this machine, where it can be installed
	bash scripts/slurm_local.sh with $(BIN)/python -m pytest -m slurm || [ $$? = 77 ]

browser: setup  ## the report's page in chromium, where that is installed
	@command -v chromium >/dev/null || { echo "browser: tests skipped, no chromium"; exit 0; }; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]' && \
	$(BIN)/python -m pytest -m browser

check: setup  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

installed:  ## install the package into an empty environment, and use it from an empty folder
	rm -rf build/installed
	$(PYTHON) -m venv build/installed
	build/installed/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
	bash scripts/check_install.sh build/installed/bin
	rm -rf build/installed

editable: setup  ## the same of the editable installation that development uses
	bash scripts/check_install.sh $(BIN)

corpus: setup  ## synthesize the training corpus and the shipped clips (needs Debian's synthesizers)
	$(BIN)/python scripts/make_speech_corpus.py --assets edge_asr/assets

models: setup  ## train both embedded models (hours; resumes)
	$(BIN)/python scripts/train_micro.py whisper-micro --out edge_asr/assets/whisper-micro
	$(BIN)/python scripts/train_micro.py moonshine-micro --out edge_asr/assets/moonshine-micro

clean:  ## remove the virtual environment and caches, never results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
