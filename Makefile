# A fresh machine needs Python >= 3.11, make and a package index. `make demo` and `make test` do the rest.
PYTHON ?= python3
RUN := .venv/bin/python
PYTEST := OMP_WAIT_POLICY=passive $(RUN) -m pytest --numprocesses 2 --dist worksteal --quiet  # threads that spin stall others
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: help demo docs docs-serve playground test proofs coverage lint lowest wheel bench device fuzz clean

help:
	@echo "make demo        declare, solve and train: two examples, their plots and tables under out/"
	@echo "make docs        the documentation as a site, under out/docs; make docs-serve shows it in a browser"
	@echo "make playground  a page on this machine: drag scores, see best structures, nearest points and gradients"
	@echo "make test        the tests: of those with very many cases, an even choice (some minutes)"
	@echo "make proofs      all tests with all of their cases (20 minutes)"
	@echo "make lint        style and types"
	@echo "make coverage    the tests of make test, and which lines they reach"
	@echo "make wheel       an sdist, and the wheel that is built from it, under out/wheel/"
	@echo "make lowest      the tests with the oldest packages that pyproject.toml admits, in out/lowest/ (TORCH=2.13.0: with that torch)"
	@echo "make bench       speed, as ratios to other libraries measured in the same run (installs them)"
	@echo "make device      the tests and the speed of a CUDA GPU, in some 6 minutes; without one, of the same code on the CPU"
	@echo "make fuzz        10,000 random instances of all kinds, judged in exact arithmetic (10 minutes; it can be resumed)"
	@echo "make clean       remove .venv, out/ and caches"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "optlayers needs Python >= 3.11, but $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once; some minutes) ..."
	@$(PIP) --constraint constraints.txt --editable '.[test,lint]'
	@$(RUN) -m optlayers.warm
	@touch $@

demo: .venv/installed
	$(RUN) examples/define_a_polytope.py
	$(RUN) examples/syntax_to_semantics.py --output out/syntax_to_semantics

docs: .venv/installed  # anew, so that no page stays of what is gone
	rm -rf out/docs docs/gallery docs/api/generated
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going -E --doctree-dir out/doctrees docs out/docs
	@echo "open out/docs/index.html, or make docs-serve"

PORT ?= 0
docs-serve: docs  # port 0: one that is free, which is printed
	$(RUN) -m http.server --bind 127.0.0.1 --directory out/docs $(PORT)

playground: .venv/installed
	$(RUN) examples/playground

test: .venv/installed
	$(PYTEST) -m "not slow"

proofs: .venv/installed  # with the checks of types that would take make test too long
	OPTLAYERS_CHECK_EVERYTHING=1 $(PYTEST)

coverage: .venv/installed
	$(PYTEST) -m "not slow" --cov --cov-report=term

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

wheel: .venv/installed
	rm -rf out/wheel optlayers.egg-info/SOURCES.txt  # an old list of files would be taken over
	$(RUN) -m build --outdir out/wheel

OLDEST := import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  asked = p["dependencies"] + p["optional-dependencies"]["cvxpylayers"]; torch = sys.argv[1:]; \
  print(*(f"torch=={torch[0]}" if torch and d.startswith("torch") else d.replace(">=", "==") for d in asked), sep="\n")

lowest:  # where packages for CPUs have an index of their own, PIP_EXTRA_INDEX_URL says so: else this torch brings CUDA
	test -x out/lowest/bin/python || $(PYTHON) -m venv out/lowest
	out/lowest/bin/python -c '$(OLDEST)' $(TORCH) > out/lowest/oldest.txt
	out/lowest/bin/python -m pip install --quiet --constraint out/lowest/oldest.txt --editable '.[test]'
	out/lowest/bin/python -m pip list
	NUMBA_CACHE_DIR=out/lowest/numba out/lowest/bin/python -m optlayers.warm
	NUMBA_CACHE_DIR=out/lowest/numba out/lowest/bin/python -m pytest --numprocesses 2 --dist worksteal --quiet -m "not slow"

PEERS := $(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["peers"])'

.venv/peers: .venv/installed
	@$(PIP) --constraint constraints.txt --editable '.[peers]' || for peer in $$($(PEERS)); do \
	  $(PIP) --constraint constraints.txt "$$peer" || echo "$$peer could not be installed; it is left out"; done
	@$(PIP) --no-deps qpth==0.0.18 || echo "qpth could not be installed; it is left out"  # it says numpy<2, and works with 2
	@touch $@

bench: .venv/peers
	$(RUN) benchmarks/compare.py projection --output out/benchmarks
	$(RUN) benchmarks/compare.py argmax --output out/benchmarks
	$(RUN) benchmarks/structures.py --output out/benchmarks
	$(RUN) benchmarks/rules.py --output out/benchmarks
	$(RUN) benchmarks/decisions.py --output out/benchmarks
	$(RUN) benchmarks/training_with_pyepo.py --output out/benchmarks
	$(RUN) benchmarks/integers.py --output out/benchmarks
	$(RUN) benchmarks/regularized.py --output out/benchmarks
	$(RUN) benchmarks/growth.py --output out/benchmarks
	$(RUN) benchmarks/overhead.py --output out/benchmarks

device: .venv/peers  # an empty name leaves the tests their own choice
	@began=$$(date +%s); OPTLAYERS_DEVICE=$$($(RUN) -c 'import torch; print("cuda" if torch.cuda.is_available() else "")') \
	  $(PYTEST) -m "device and not slow" tests; tested=$$?; \
	  $(RUN) benchmarks/device.py --minutes 6 --began $$began --output out/device && exit $$tested

fuzz: .venv/installed
	$(RUN) benchmarks/fuzz.py --count 10000 --output out/fuzz

clean:
	rm -rf .venv out docs/gallery docs/api/generated docs/sg_execution_times.rst build *.egg-info .ruff_cache .mypy_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
