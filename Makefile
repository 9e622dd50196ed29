# Every target makes what it needs. PYTHON is the interpreter that the environment is made from.
# Inside an active environment (venv or conda) that one is used, and a torch that is already there is kept.
PYTHON ?= python3
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
RUN := $(ENV)/bin/python

.PHONY: tour test trainings stress lab course site claims experiment grid bench smollm2 setup
tour: setup
	$(RUN) -m minirlhf.cli tour
test: setup
	$(RUN) -m ruff check minirlhf tests notebooks/src
	$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist worksteal
trainings: setup # one file stays in one process: what a file trains, it trains once
	$(RUN) -m pytest -q -m slow -n 2 --dist loadfile
stress: setup
	$(RUN) -m pytest -q -m stress tests/stress -n 2 --dist worksteal
lab: setup
	$(RUN) -m jupyter lab --preferred-dir notebooks
course: setup
	$(RUN) -m minirlhf.cli course
site: setup
	$(RUN) -m pip install -q -r requirements-site.txt
	$(RUN) docs/site/build.py
claims: setup
	$(RUN) -m minirlhf.cli claims
experiment grid: setup
	$(RUN) -m minirlhf.cli experiment
bench: setup
	$(RUN) tests/benchmarks/bench.py
smollm2: setup
	$(RUN) -m minirlhf.cli smollm2

setup: $(ENV)/.minirlhf
	@$(RUN) -m minirlhf.cli data
$(ENV)/.minirlhf: requirements.txt requirements-dev.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install -q "$$(grep ^torch== requirements.txt)"
	$(RUN) -c "import torch; print('torch', torch.__version__, 'is there')"
	grep -v ^torch== requirements.txt | $(RUN) -m pip install -q -r /dev/stdin -r requirements-dev.txt
	$(RUN) -m pip install -q --no-deps -e .
	touch $@
