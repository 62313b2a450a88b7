# make help lists the commands. PYTHON chooses the interpreter that .venv is made with (3.11 or later), PIP_ARGS goes
# to pip: on a machine without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" gets the small torch.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BENCH_VENV := .venv-bench
BENCH := $(BENCH_VENV)/bin/python
FUZZ_VENV := .venv-fuzz
FUZZ_SECONDS ?= 120
FUZZ_EXAMPLES ?= 5000
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
COUNSEL_CHAT ?= ../shared/data/counsel_chat/counsel_chat.jsonl
.PHONY: help demo test test-slow faults bench reproduce fuzz audit clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo ## from a fresh clone to a reward that rises: fetch SmolLM2, compose, curate, SFT, GRPO, the table
	$(RUN) recipes/demo_model.py
	$(RUN) recipes/pipeline.py --config recipes/presets/demo.toml

test: $(VENV)/.installed-test ## ruff, mypy, bandit, pytest, and the demo cut to a few steps
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy & types=$$!; \
	  $(RUN) -m bandit -q -c pyproject.toml -r psychecore kernels recipes benchmarks && $(RUN) recipes/demo_model.py; \
	  others=$$?; wait $$types && exit $$others
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --timeout 600 --timeout-method signal
	rm -rf runs/smoke
	$(RUN) recipes/pipeline.py --config recipes/presets/smoke.toml

test-slow: $(VENV)/.installed-test ## the tests that are too long for make test
	$(RUN) recipes/demo_model.py
	$(RUN) -m pytest -m slow

faults: $(VENV)/.installed-test ## kill -9 at 100 random moments, and every other fault that the tests know
	$(RUN) recipes/demo_model.py
	KILLS=100 $(RUN) -m pytest tests/faults -m 'slow or not slow' --durations=5 -s

# trl, transformers and llama-cpp-python are peers, never dependencies: a venv of their own (llama.cpp compiles in it)
bench: $(BENCH_VENV)/.installed ## measure rollouts, GRPO and SFT steps, the loss; ends with the table, which it puts into README (COUNSEL_CHAT=FILE for SFT)
	$(BENCH) recipes/demo_model.py
	$(BENCH) benchmarks/rollouts.py
	$(BENCH) benchmarks/shared_prompt.py
	$(BENCH) benchmarks/loss_memory.py --growth
	$(BENCH) benchmarks/training_step.py grpo --rounds 2
	@if [ -f "$(COUNSEL_CHAT)" ]; then set -x; \
	  $(BENCH) benchmarks/training_step.py sft --rounds 2 --conversations "$(COUNSEL_CHAT)" && \
	  $(BENCH) benchmarks/where_time_goes.py --conversations "$(COUNSEL_CHAT)"; \
	else echo "no SFT step: '$(COUNSEL_CHAT)' is not there, give COUNSEL_CHAT=FILE"; \
	  $(BENCH) benchmarks/where_time_goes.py; fi
	$(BENCH) benchmarks/table.py

reproduce: $(VENV)/.installed-demo ## does the paper's recipe beat its parts? hours; continues where it stopped
	$(RUN) recipes/demo_model.py
	$(RUN) benchmarks/reproduction/run.py --counsel-chat $(COUNSEL_CHAT)
	$(RUN) benchmarks/reproduction/pages.py

# atheris instruments the code that it runs, so it has a venv of its own; a finding ends the target with its input's file.
fuzz: $(FUZZ_VENV)/.installed ## look for inputs that break a promise of SECURITY.md: FUZZ_SECONDS for each surface
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(FUZZ_VENV)/bin/python -m pytest tests/fuzz
	mkdir -p runs/fuzz
	for target in answers rows preset template folder weights chat; do \
	  $(FUZZ_VENV)/bin/python tests/fuzz/atheris_targets.py $$target \
	    -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=runs/fuzz/$$target- -print_final_stats=1 || exit 1; \
	done

audit: $(VENV)/.installed-test ## ask PyPI's advisory database about the pinned versions (needs the real pypi.org)
	$(RUN) -m pip install --disable-pip-version-check $(PIP_ARGS) pip-audit
	$(RUN) -m pip_audit --strict --no-deps --disable-pip -r constraints.txt

clean: ## remove build products and caches; .venv, .models and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps lie inside .venv, so they go when it goes; a changed setup.py or constraints.txt installs anew.
$(VENV)/.installed-%: setup.py pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(RUN) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$*]'
	touch $@

$(BENCH_VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	touch $@

$(FUZZ_VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test]' atheris
	touch $@

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)
