PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
BENCHMARKS := profile_fidelity predictors base_ablation temporal_speed sae env_gates env_speed examples self_play main_job agents agent_choices packets

.PHONY: setup run test check test-all test-ray test-clients bench
.DEFAULT_GOAL := run

$(READY): requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)

setup: $(READY)  ## make the virtual environment

run: $(READY)  ## train the predictor, then the agent, and print the results
	$(BIN)/python main.py --phase all --preset quick

test: $(READY)  ## the test suite
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(READY)  ## the test suite and the longer proofs
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

bench: $(READY)  ## every committed result, measured again, and the documents' tables from them
	@for script in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$script || exit 1; done
	$(BIN)/python -m benchmarks.report
