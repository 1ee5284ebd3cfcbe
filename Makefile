PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PART ?=
ROUNDS ?=
OUTPUT ?=
VERSIONS ?= 5.5 5.6 5.7

# What is started a thousand times is compiled once.
unexport PYTHONDONTWRITEBYTECODE

# Debian's python3 has neither ensurepip nor a pip that may touch it: its pip fills an environment from outside.
define new_venv
$(PYTHON) -m venv --without-pip --clear $(1)
$(PYTHON) -m pip --python $(1)/bin/python install --quiet --disable-pip-version-check
endef

.PHONY: help demo test test-long test-faults simulate simulate-changes mutants fuzz test-celery test-python test-compatibility test-airflow test-airflow-long test-helm chaos-airflow check docs bench bench-docs bench-quick bench-scale lock clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | column -t -s '|'

$(VENV)/run: requirements/run.txt pyproject.toml
	$(call new_venv,$(VENV)) -r requirements/run.txt
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/dev: $(VENV)/run requirements/dev.txt
	tools/install.sh $(PYTHON) $(VENV) -r requirements/dev.txt
	@touch $@

demo: $(VENV)/run  ## Compress, hash and verify Python's standard library with celeriac run
	rm -rf demo-output
	$(BIN)/python examples/stdlib/make_jobs.py demo-output
	$(BIN)/celeriac run demo-output/jobs.jsonl --events demo-output/events.jsonl
	$(BIN)/python examples/stdlib/check_results.py demo-output

test: $(VENV)/dev  ## Every test, with the servers they need
	tools/install_servers.sh parallel
	$(BIN)/pytest -n 6 --dist worksteal

test-long: $(VENV)/dev  ## The long runs: 1,000 random histories of the executor, long faults of brokers and backends
	CELERIAC_LONG=1 $(BIN)/pytest -n 2 --timeout 3600 -m "(slow or long) and not fault"

test-faults: $(VENV)/dev  ## Hundreds of random faults under load, and each refusal of a server from each moment on: an hour
	tools/install_servers.sh
	CELERIAC_LONG=1 $(BIN)/pytest -n 2 --timeout 3600 -rP --log-level=info -m fault

SEEDS ?= 1..10000
OPTIONS ?=

simulate: $(VENV)/dev  ## Histories of executors and workers under faults and a virtual clock: SEEDS=1..10000 OPTIONS=--decisions
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation --seeds $(SEEDS) $(OPTIONS)

simulate-changes: $(VENV)/dev  ## Changes of the code that break the protocol: which histories find each: SEEDS=1..10000
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation.teeth --seeds $(SEEDS)

SAMPLE ?= 700
SAMPLE_SEED ?= 1

mutants: $(VENV)/dev  ## Small changes of the executor and the claims: which of them no test finds: SAMPLE=0 for all, SAMPLE_SEED=2
	tools/install_servers.sh
	PYTHONHASHSEED=0 $(BIN)/python -m tests.mutation --sample $(SAMPLE) --seed $(SAMPLE_SEED) $(OPTIONS)

SECONDS ?= 3600

fuzz: $(VENV)/run  ## Fuzz each decoder of stored values and messages with atheris, for SECONDS in all
	$(call new_venv,.venv-fuzz) -r requirements/run.txt
	$(PYTHON) -m pip --python .venv-fuzz/bin/python install --quiet --disable-pip-version-check atheris
	for target in lease claim result result-row pickle control gate ledger; do \
	  PYTHONPATH=src .venv-fuzz/bin/python tools/fuzz.py $$target -max_total_time=$$(($(SECONDS) / 8)) \
	    -timeout=20 -rss_limit_mb=3000 -max_len=65536 || exit 1; \
	done

TESTS ?= tests

test-celery: $(VENV)/dev  ## What touches Celery, on each version that is supported: VERSIONS=5.5 for one, TESTS for a part
	for version in $(VERSIONS); do tools/test_celery.sh $(PYTHON) $$version $(TESTS) || exit 1; done

PYTHONS ?= 3.12 3.13

test-python: $(VENV)/dev  ## The suite on each other version of Python that is here; TESTS="tests/unit tests/cli" for a part
	tools/install_servers.sh
	for version in $(PYTHONS); do tools/test_python.sh $(PYTHON) $$version -n 4 --dist worksteal $(TESTS) || exit 1; done

PREVIOUS ?= 0d988e8

test-compatibility: $(VENV)/dev  ## This version beside the one before, both ways; PREVIOUS is its commit
	tools/install_servers.sh
	tools/install_previous.sh $(PYTHON) $(PREVIOUS)
	CELERIAC_PREVIOUS=$(CURDIR)/.venv-previous/bin/python $(BIN)/pytest -n 2 -m compatibility

AIRFLOWS ?= 3.1 3.2 3.3 3.4

test-airflow: $(VENV)/dev  ## The Airflow door on each version, and whole deployments of one; AIRFLOWS=3.3 for one version
	tools/install_servers.sh
	for version in $(AIRFLOWS); do tools/test_airflow.sh $(PYTHON) $$version -n 4 --dist worksteal -m "not deployment" || exit 1; done
	tools/test_airflow.sh $(PYTHON) 3.3 -n 2 --dist loadfile -m deployment --timeout 1200 -k "ours-ours or features or teams or half_of_the_workers-there"

test-airflow-long: $(VENV)/dev  ## Every deployment: executors and workers mixed, RabbitMQ, faults as long as in earnest; AIRFLOWS=3.3
	tools/install_servers.sh
	for version in $(AIRFLOWS); do CELERIAC_LONG=1 TEST_TIMEOUT=14400 tools/test_airflow.sh $(PYTHON) $$version -m deployment --timeout 3600 || exit 1; done

test-helm: $(VENV)/dev  ## Render Airflow's Helm chart with deploy/helm: CHART=airflow-1.22.0.tgz
	tools/test_helm.sh $(BIN) $(CHART)

SEED ?=
CHAOS_AIRFLOW ?= 3.3

chaos-airflow:  ## Random faults in an Airflow under load, one every 20 s, for SECONDS; SEED repeats a run; CHAOS_AIRFLOW=3.2
	tools/install_servers.sh
	CELERIAC_CHAOS_SECONDS=$(SECONDS) CELERIAC_CHAOS_SEED=$(SEED) TEST_TIMEOUT=$$(($(SECONDS) + 5400)) \
	  tools/test_airflow.sh $(PYTHON) $(CHAOS_AIRFLOW) -s -m deployment -k chaos

check: $(VENV)/dev  ## Format, lint, types, import directions, generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/vulture
	$(BIN)/python tools/check_style.py
	$(BIN)/python tools/states.py --check
	$(BIN)/python tools/prepared_statements.py --check
	$(BIN)/python tools/metrics.py --check
	$(BIN)/python tools/dashboard.py --check
	$(BIN)/python tools/man_pages.py --check

docs: $(VENV)/dev  ## Write the pages that are generated: states, SQL, metrics, man pages, completion of shells
	$(BIN)/python tools/states.py
	$(BIN)/python tools/prepared_statements.py
	$(BIN)/python tools/metrics.py
	$(BIN)/python tools/dashboard.py
	$(BIN)/python tools/man_pages.py

.venv-incumbent/made: | $(VENV)/dev
	@echo "making .venv-incumbent, once: Airflow and its CeleryExecutor, to be measured beside ours"
	$(PYTHON) -m venv --without-pip --clear .venv-incumbent
	tools/install.sh $(PYTHON) .venv-incumbent apache-airflow==3.3.2 apache-airflow-providers-celery==3.26.0 celery==5.6.3 \
		"redis[hiredis]" "psycopg[binary]" psycopg2-binary "dramatiq[redis,rabbitmq]" msgspec
	@touch $@

# A whole deployment needs more. Again after each change of the entry points.
.venv-incumbent/installed: .venv-incumbent/made pyproject.toml
	tools/install.sh $(PYTHON) .venv-incumbent asyncpg pytest
	tools/install.sh $(PYTHON) .venv-incumbent --no-deps -e .
	@touch $@

bench: .venv-incumbent/installed  ## Each figure beside its rival's in the same run; PART=help for one of them, ROUNDS=9 for less noise
	tools/install_servers.sh parallel
	$(BIN)/python -m bench.run $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(OUTPUT),--output $(OUTPUT)) $(PART)

bench-docs: .venv-incumbent/installed  ## The whole benchmark, some 35 minutes; writes docs/benchmarks.md and the short table of README.md
	tools/install_servers.sh parallel
	$(BIN)/python -m bench.run --write --rounds $(or $(ROUNDS),2)

bench-quick: .venv-incumbent/installed  ## Ten parts of the benchmark in four minutes; fails if a figure is below half of its bar, twice
	tools/install_servers.sh parallel
	$(BIN)/python -m bench.run --quick

bench-scale: $(VENV)/dev  ## How the costs grow with workers and tasks; writes docs/scale.md
	tools/install_servers.sh
	$(BIN)/python -m bench.scale --write

lock: $(VENV)/dev  ## Renew requirements/*.txt
	tools/lock.sh $(BIN)

clean:  ## Remove all that was made
	rm -rf $(VENV) .venv-celery-* .venv-python-* .venv-airflow-* .venv-incumbent .venv-previous demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
