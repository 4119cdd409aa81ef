PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
BENCHMARKS := profile_fidelity predictors base_ablation temporal_speed sae env_gates env_speed examples self_play main_job agents agent_choices packets

# The version of torch is in requirements.txt; which build of it (for a CPU, for CUDA) is the machine's choice, so the lock file leaves it out.
TORCH := $(shell grep ^torch== requirements.txt)

.PHONY: setup run test check test-all test-ray test-clients bench lock audit
.DEFAULT_GOAL := run

$(READY): requirements.txt requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@touch $(READY)

setup: $(READY)  ## make the virtual environment

run: $(READY)  ## train the predictor, then the agent, and print the results
	$(BIN)/python main.py --phase all --preset quick

test: $(READY)  ## the test suite
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(READY) test-ray  ## the test suite and the longer proofs
	$(BIN)/python -m pytest -n 2

.venv-%/.installed: requirements.txt requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-$*.txt
	@touch $@

test-ray: .venv-ray/.installed  ## trainings by a Ray cluster, in an environment of their own
	.venv-ray/bin/python -m pytest tests/test_cluster.py

test-clients: .venv-examples/.installed .venv-ray/.installed  ## the examples of TorchRL and RLlib, each in an environment of its own
	.venv-examples/bin/python -m pytest tests/test_examples.py -k "torchrl or rllib"
	.venv-ray/bin/python -m pytest tests/test_examples.py -k "torchrl or rllib"

check: $(READY)  ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_architecture.py
	$(BIN)/python -m benchmarks.report --check

bench: $(READY) .venv-ray/.installed  ## every committed result, measured again, and the documents' tables from them
	@for script in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$script || exit 1; done
	.venv-ray/bin/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.report

.venv-supply/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
	@touch $@

lock: .venv-supply/.installed  ## requirements.lock from requirements.txt: every package with its hashes; UV_FIND_LINKS=FOLDER_OR_PAGE says where torch's CPU build is
	echo "$(TORCH)+cpu" > .venv-supply/torch.txt
	.venv-supply/bin/uv pip compile --quiet requirements.txt --overrides .venv-supply/torch.txt --no-emit-package torch --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command "make lock" --no-emit-index-url --no-emit-find-links --output-file requirements.lock

audit: .venv-supply/.installed  ## what is known to be vulnerable among the locked packages and torch; asks an advisory service, so it is no part of CI
	echo "$(TORCH)" > .venv-supply/torch.txt
	.venv-supply/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock
	.venv-supply/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv-supply/torch.txt
