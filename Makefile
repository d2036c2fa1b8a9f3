# `make demo` and `make test` each work from a fresh clone. PYTHON chooses the interpreter (3.10 to 3.13).
# On Linux without a GPU, PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu" avoids CUDA packages.
PYTHON ?= python3
PIP_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
export OMP_NUM_THREADS = 1

.PHONY: demo test lint benchmark clean

$(DONE): pyproject.toml studies/pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[dev]' -e './studies[images,nifti,ephemeris]'
	touch $@

demo: $(DONE)
	$(BIN)/nablanets run field2d-convex --seeds 1 --out runs/demo-field2d --resume
	$(BIN)/nablanets run terrain --seeds 1 --out runs/demo-terrain --resume
	$(BIN)/nablanets verify runs/demo-terrain/models/gradnet-0.safetensors
	@echo "Open runs/demo-terrain/report.html and runs/demo-field2d/report.html in a browser."

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python scripts/check_wheels.py $(PIP_OPTIONS)
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"
	cd studies && ../$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

benchmark: $(DONE)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/maps.py
	$(BIN)/python benchmarks/calculus.py
	$(BIN)/python benchmarks/many.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/exports.py
	$(BIN)/python benchmarks/estimators.py
	$(BIN)/python benchmarks/residual.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
