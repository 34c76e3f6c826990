# Everything that a developer, an operator trying the formula, or CI runs.
.POSIX:
.SILENT:

BIN = .venv/bin
LOCK_FLAGS =

help: ## list the targets
	awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-12s  %s\n", $$1, $$2 }' Makefile

setup: ## make .venv: Salt 3008, the laboratory (.venv/bin/lab), the test tools
	test/setup/environment .venv requirements/salt-3008.txt requirements/test.txt
	test/setup/laboratory

setup-3007: setup ## make .venv/salt-3007, for lab up --salt 3007
	test/setup/environment .venv/salt-3007 requirements/salt-3007.txt

setup-3006: setup ## make .venv/salt-3006, for lab up --salt 3006
	test/setup/environment .venv/salt-3006 requirements/salt-3006.txt

demo: setup ## see one master become three, and a master lost, on this machine
	$(BIN)/python -m lab.demo

test: image lint ## lint, unit, render, and one whole walk by each driver that there is
	status=0; \
	$(BIN)/pytest -n 2 --dist worksteal test/unit test/render || status=1; \
	$(BIN)/pytest -m walk test/integration || status=1; \
	exit $$status

test-all: image ## every integration test that is not in make test, nor takes long
	$(BIN)/pytest -n 2 --dist loadfile -m 'not walk' test/integration test/hostile test/operators

# Ahead of the tests that need it, while others run; whoever comes meanwhile waits for it.
image: setup ## build the image of docker hosts in the background, where an engine answers
	if docker version >/dev/null 2>&1; then $(BIN)/python -m lab.docker_image >/dev/null 2>&1 & fi

lint: setup ## check formatting, style, types, YAML and states
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary salt/_utils test/lab
	$(BIN)/yamllint --strict .
	find salt -name '*.sls' -exec $(BIN)/salt-lint {} +

unit: setup ## test the pure core and the modules
	$(BIN)/pytest -n 2 --dist worksteal test/unit

render: setup ## test what the states and pillars render to
	$(BIN)/pytest -n 2 --dist worksteal test/render

integration: image ## test in the laboratory: process driver, and Docker where an engine answers
	$(BIN)/pytest -n 2 --dist loadfile test/integration test/hostile test/operators

chaos: setup ## test what every single fault does, under load, and long what anybody may say
	status=0; \
	$(BIN)/pytest --long test/chaos || status=1; \
	$(BIN)/pytest --hypothesis-profile=long test/unit/test_fuzz.py || status=1; \
	exit $$status

test-long: setup ## run the tests that take long
	$(BIN)/pytest --long -m long

test-salt: ## run ten of Salt's own tests with what the formula derives for their masters and minions
	test/salt_scenarios/run

test-matrix: setup-3007 setup-3006 ## run the tests of the other Salt series
	$(BIN)/pytest --matrix -m matrix

bench: setup ## measure the costs as ratios, side by side
	status=0; for part in formula replication roots status failover; do \
	    $(BIN)/python test/bench/$$part.py || status=1; \
	done; exit $$status

kitchen: setup ## Test Kitchen: create, converge, verify, destroy; SUITE="hot failover clean"
	test/kitchen/run $(SUITE)

audit: ## look for known vulnerabilities in what the lock files name; "Error 3": not reached
	test/setup/audit

lock: ## resolve requirements/*.in again; LOCK_FLAGS=--upgrade for newer releases
	test/setup/environment .venv/lock requirements/lock.txt
	for name in lock audit salt-3008 salt-3007 salt-3006 test salt-tests; do \
	    echo "requirements/$$name.txt"; \
	    .venv/lock/bin/uv pip compile --quiet --no-config --default-index https://pypi.org/simple \
	        --universal --python-version 3.10 --generate-hashes --custom-compile-command 'make lock' \
	        $(LOCK_FLAGS) --output-file requirements/$$name.txt requirements/$$name.in; \
	done

clean: ## remove the laboratory in .lab, the environments and all caches
	if [ -d .lab ] && [ -x $(BIN)/lab ]; then $(BIN)/lab down; fi
	rm -rf .venv .lab .salt-tests .mypy_cache .pytest_cache .ruff_cache .hypothesis .kitchen
	find salt pillar test -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup setup-3007 setup-3006 demo test test-all image lint unit render integration chaos \
        test-long test-salt test-matrix bench kitchen audit lock clean
