# make demo   set up, train the reference model once, search, report (resumes; finds itself done)
# make test   set up and run all tests
# make check  ruff and mypy
# make bench  the benchmarks that the README quotes

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt torch==2.13.0
DEMO_BUDGET ?= 240s

.PHONY: demo test check bench clean

$(VENV)/.runs: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP)
	$(PIP) -e ".[openvino]"
	@touch $@

$(VENV)/.develops: $(VENV)/.runs
	$(PIP) -e ".[openvino,dev]"
	@touch $@

demo: $(VENV)/.runs
	$(BIN)/autocompress search --task digits --budget $(DEMO_BUDGET) --out runs/demo

test: $(VENV)/.develops
	$(BIN)/python -m pytest -q

check: $(VENV)/.develops
	$(BIN)/ruff format --check autocompress tests benchmarks examples
	$(BIN)/ruff check autocompress tests benchmarks examples
	$(BIN)/mypy

bench: $(VENV)/.runs
	$(BIN)/python benchmarks/main_job.py

clean:
	rm -rf $(VENV) runs
