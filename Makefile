# make help lists the commands. PYTHON chooses the interpreter that .venv is made with (3.11 or later), PIP_ARGS goes
# to pip: on a machine without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" gets the small torch.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow faults clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo ## from a fresh clone to a reward that rises: fetch SmolLM2, SFT, GRPO, the table
	$(RUN) recipes/demo_model.py
	$(RUN) recipes/pipeline.py --config recipes/presets/demo.toml

test: $(VENV)/.installed-test ## ruff, mypy, pytest, and the demo cut to a few steps
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) recipes/demo_model.py
	$(RUN) -m pytest
	rm -rf runs/smoke
	$(RUN) recipes/pipeline.py --config recipes/presets/smoke.toml

test-slow: $(VENV)/.installed-test ## the tests that are too long for make test
	$(RUN) recipes/demo_model.py
	$(RUN) -m pytest -m slow

faults: $(VENV)/.installed-test ## kill -9 at 100 random moments, and every other fault that the tests know
	$(RUN) recipes/demo_model.py
	KILLS=100 $(RUN) -m pytest tests/faults --durations=5 -s

clean: ## remove build products and caches; .venv, .models and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps lie inside .venv, so they go when it goes; a changed setup.py or constraints.txt installs anew.
$(VENV)/.installed-%: setup.py pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(RUN) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$*]'
	touch $@

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)
