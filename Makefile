# make demo         create the environment, run a small benchmark and make its report
# make results      make docs/leaderboard and the tables of docs/results.md from results/published
# make readme       put the table and the picture of the demo's report into README.md
# make env          create only the environment, .venv, with the packages of requirements.lock and the command `fedbench`
# make test         run the fast tests (five minutes on two cores); test-all: also the slow tests and those on Slurm
# make kernels      count the kernels of a step and the waits for a GPU on a pretended GPU, and write them to tests/gpu_counts.csv
# make check        check lint and types; coverage: run the fast tests and list the lines that they miss
# make paper        make all tables and figures of a paper from shrunk sweep files (21 minutes on two idle cores)
# make docs         update the generated parts of the pages, and build the site in site/
# make mutants      plant one small fault at a time in FILES (or in files that differ from main), and list those that no test detects
# make pin          write the numbers of every method to tests/pinned.csv again, after an intended change
# make lock         update requirements.lock; audit: list known vulnerabilities of its packages (needs a network)
# make bench-peers  compare with Flower, pfl-research and plain loops on an idle machine; their environment is .peers
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help env demo readme results paper test test-all coverage mutants audit pin kernels check docs lock bench-peers

help:
	@sed -n 's/^# //p' Makefile

env: .venv/installed

.venv/installed: requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing what requirements.lock pins into .venv (torch is large: a few minutes on a slow line)"
	@$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: env
	$(BIN)/python -m fedbench.sweep sweeps/quickstart.yaml --cluster local
	$(BIN)/python reports/make_figures.py sweeps/quickstart.yaml

readme: env
	$(BIN)/python reports/make_readme.py

results: env
	$(BIN)/python reports/make_results.py

paper: env
	$(BIN)/python reports/make_paper.py

test: env
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm"

test-all: test
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 10 -m "slow and not slurm"
	$(BIN)/python -m pytest -m slurm

coverage: env
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm" --cov --cov-report term-missing:skip-covered

mutants: env
	$(BIN)/python tests/mutants --files $(FILES) --tests $(TESTS) --count $(or $(COUNT),30) --seed $(or $(SEED),0) --seconds $(or $(SECONDS),60)

audit: env
	$(BIN)/python -m uv tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock

pin: env
	PYTHONPATH=. $(BIN)/python tests/test_roster.py

kernels: env
	PYTHONPATH=.:tests $(BIN)/python tests/test_pretended_gpu.py

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env
	$(BIN)/python -m fedbench.cli.docs_generator --write
	$(BIN)/python -m mkdocs build --quiet --strict

lock:
	$(BIN)/python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --constraint constraints.txt --output-file requirements.lock

bench-peers: .peers/installed
	$(BIN)/python -m benchmarks.peers --out benchmarks/peers/measured.json

.peers/installed: benchmarks/peers/requirements.txt | env
	$(BIN)/python -m uv venv --quiet --allow-existing --python $(BIN)/python .peers
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python .peers/bin/python -r benchmarks/peers/requirements.txt
	@touch $@
