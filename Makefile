# A thin front: what each target runs is what an operator or CI would type.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help up verify down lint test test-quick test-times audit-mutate bench-converge bench-verify bench-app \
	bench-backup bench-adoption drill-outage drill-cold drill-fanout drill-recovery drill-interrupt clean
# Compiled once, not by each of hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# molecule calls ansible-config from PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## Make the lab and deploy Redis and the application on it; again: keep it as it is
	@molecule/default/check
	@requirements/install controller
	@molecule/default/up

verify: ## Check the lab's hosts against the inventory
	@ansible-playbook playbooks/verify.yml

down: ## Remove the lab; with PURGE=1 also its image, secrets, keys and built wheels
	@if [ -x .venv/bin/ansible-playbook ]; then \
	  ansible-playbook molecule/default/destroy.yml -e lab_all=true -e lab_purge=$(if $(PURGE),true,false); \
	else echo "There is no .venv, so there is no lab of this checkout."; fi

lint: ## ansible-lint, yamllint, ruff, mypy, check-jsonschema
	@requirements/install test
	@tests/lint

test: ## Everything: linters, unit tests, and each scenario in a lab of its own; prints how many tests ran
	@requirements/install test
	@python tests/run.py $(PARTS)

test-quick: ## The tests without a lab, and the hosts of `make up` when they are there (three minutes)
	@requirements/install test
	@python tests/run.py --quick

test-times: ## List where the minutes of the last `make test` went
	@python3 tests/times/report.py

audit-mutate: ## Remove each protection of the lab and expect verify.yml to name it (about twenty minutes)
	@requirements/install test
	@.venv/bin/python tests/audit_mutate.py $(CONTROL)

bench-converge: ## Time the role redis against a minimal playbook, on the lab's bare host
	@requirements/install controller
	@.venv/bin/python tests/bench_converge.py

bench-verify: ## Count the controller's CPU seconds of verify.yml for 5 and for 20 Redis hosts, on the lab's one (three minutes)
	@requirements/install controller
	@.venv/bin/python tests/bench_verify.py

bench-app: ## Time the application's cached reads against other stacks; OPTIONS=--quick (about eight minutes)
	@requirements/install bench
	@PYTHONPATH=. .venv-bench/bin/python tests/bench_app.py $(OPTIONS)

drill-outage: ## Kill, freeze and isolate Redis under load, and report the effects on clients (about a minute)
	@requirements/install bench
	@.venv-bench/bin/python -m drills.outage $(OPTIONS)

drill-cold: ## Send a thousand requests at once for a price that is not cached, and count the queries
	@requirements/install bench
	@.venv-bench/bin/python -m drills.cold $(OPTIONS)

drill-fanout: ## Send updates through two instances to 200 WebSockets; OPTIONS="--updates 10000" (about five minutes)
	@requirements/install bench
	@.venv-bench/bin/python -m drills.fanout $(OPTIONS)

drill-recovery: ## Lose both hosts of the lab, rebuild them from the backup, and report how long it took (about three minutes)
	@requirements/install test
	@drills/recovery

drill-interrupt: ## Kill site.yml at each task that changes something, run it again, and check; OPTIONS="--places 10"
	@requirements/install test
	@.venv/bin/python -m drills.interrupt $(OPTIONS)

bench-backup: ## Time a backup and a restore of 1 GB against the bare work (about three minutes)
	@requirements/install test
	@PYTHONPATH=.:databackup/src:databackup/tests:tests .venv/bin/python tests/bench_backup.py $(OPTIONS)

bench-adoption: ## Time the takeover of a Redis of 1 GB against a bare restart of it (about three minutes)
	@requirements/install test
	@PYTHONPATH=.:databackup/src:databackup/tests:tests .venv/bin/python tests/bench_adoption.py $(OPTIONS)

clean: ## make down PURGE=1, and remove the virtual environments and caches
	@$(MAKE) --no-print-directory down PURGE=1
	rm -rf .venv .venv-bench output .ansible .mypy_cache .ruff_cache .pytest_cache
