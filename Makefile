# One environment for everything: whichever target comes first makes it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Two test processes share two cores; more threads than that only wait for each other.
TESTING := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.PHONY: demo test test-all check lint bench install clean

demo: $(READY)
	$(BIN)/fspmu demo --out runs/demo

test: check

check: lint
	$(TESTING) $(BIN)/python -m pytest -n 2

test-all: lint
	$(TESTING) $(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All cores, nothing else running: the clock is what is measured.
bench: $(READY)
	$(BIN)/python benchmarks/run.py --device cpu

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'fspmu needs Python 3.11 or newer; name one: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[timm,hf,ray,tsne,tensorboard,cleanlab,dev]'
	touch $(READY)

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
