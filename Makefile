# Every command a developer needs. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARTS := simulator backends hardware_profiles traces validation

.DEFAULT_GOAL := help
.PHONY: help demo dev format lint types imports check test bench reference-report traces clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 20

$(BIN)/moesim: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@rm -rf moesim.egg-info
	$(BIN)/python -m pip install --quiet --editable '.[validation]' --constraint constraints.txt
	@touch $@

# The tests need torch (the recorder runs a real model on the CPU).
# An old egg-info in the checkout would shadow the installed entry points.
$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/moesim
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	@rm -rf moesim.egg-info
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[validation,torch,dev]'
	@touch $@

# mypy does not run the import hook of an editable install: it reads this farm of links instead.
.types/moesim:
	@mkdir -p .types/moesim
	@for part in $(PARTS); do ln -sfn ../../$$part .types/moesim/$$part; done

demo: $(BIN)/moesim  ## the main job on the trace that ships: install (no torch), simulate, print the table
	@$(BIN)/python examples/demo.py

dev: $(VENV)/dev.stamp .types/moesim  ## everything a developer needs, in .venv

format: dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: dev  ## formatter, linter, docstrings of the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/interrogate --quiet tests

types: dev  ## mypy --strict
	MYPYPATH=.types $(BIN)/mypy -p moesim

imports: dev  ## the import contracts of pyproject.toml
	$(BIN)/lint-imports

check: lint types imports  ## all that must be clean before a commit

test: dev  ## the tests, in parallel
	$(BIN)/python -m pytest -n auto --quiet

bench: dev  ## benchmarks (never part of the tests)
	$(BIN)/python benchmarks/run.py

reference-report: dev  ## the reference model's gates, beside the untrained model
	$(BIN)/python -m moesim.backends.reference.report

traces: dev  ## train the twins and record 1,000 prompts each (a GPU; CORPORA="DIR DIR")
	$(BIN)/python -m moesim.backends.reference.twins $(CORPORA) -o build/twins --batch-rows 32

clean:  ## remove what the commands above made
	rm -rf $(VENV) .types build dist *.egg-info
