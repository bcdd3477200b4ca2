# make demo: from nothing to samples of digits.
# make test: from nothing to the tests of every part.   make runs: those of whole commands, runs and pipelines.
# make parity: our samplers, nets and training beside those of PyTorch and diffusers (installs both;
#   --help of each script in tests/parity says how long it takes).
# make hub-check REPO=CompVis/stable-diffusion-v1-4: the numbers of diffusers' tests, on real weights (5 GB).
# make faults: every fault a run is to survive, many times (about an hour).
# make mutants: break the code in 293 ways, one at a time; each must turn a test red (an hour).
# make bench DEW_PYTHON=...: how fast, beside diffusers on PyTorch (installs PyTorch) and dew, in the environment of
#   DEW_PYTHON with dewml and jaxtyping; OLDER_PYTHON=... also with that one's JAX; TORCH_PYTHON=... with that PyTorch.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test runs check parity hub-check faults mutants bench dew-python

demo: $(VENV)/.demo
	$(RUN) train.py --config digits
	$(RUN) sample.py --ckpt runs/digits --num 256 --batch-size 256 --out runs/digits/samples.png runs/digits/samples.npz

PYTEST = $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: $(VENV)/.test
	$(PYTEST) -m "not runs and not faults"

runs: $(VENV)/.test
	$(PYTEST) -m runs

check: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

parity: $(VENV)/.parity
	$(RUN) tests/parity/samplers.py
	$(RUN) tests/parity/nets.py
	$(RUN) tests/parity/chains.py
	$(RUN) tests/parity/training.py
	$(RUN) tests/parity/tutorials.py
	$(RUN) tests/parity/stable_diffusion.py
	$(RUN) tests/parity/lora.py
	$(RUN) tests/parity/features.py

hub-check: $(VENV)/.hub
	$(RUN) tests/parity/hub_check.py $(REPO)

faults: $(VENV)/.test
	$(RUN) tests/faults.py
	$(PYTEST) -m faults

mutants: $(VENV)/.test
	$(RUN) tests/mutants.py

bench: dew-python $(if $(TORCH_PYTHON),$(VENV)/.test,$(VENV)/.parity)
	$(RUN) benchmarks/bench.py --out docs/benchmarks.md --dew-python $(DEW_PYTHON) \
		$(if $(OLDER_PYTHON),--older-python $(OLDER_PYTHON)) $(if $(TORCH_PYTHON),--torch-python $(TORCH_PYTHON))

dew-python:
	@test -n "$(DEW_PYTHON)" || { echo "make bench needs DEW_PYTHON=..., a Python with dewml and jaxtyping."; exit 2; }

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(RUN) -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.parity: $(VENV)/.demo
	$(RUN) -m pip install --quiet --editable ".[parity]"
	touch $@

$(VENV)/.hub: $(VENV)/.demo
	$(RUN) -m pip install --quiet --editable ".[hub,text]"
	touch $@
