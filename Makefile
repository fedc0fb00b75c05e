# The commands a person types. Each does its own set-up, in .venv, and only what is missing.

ROBOT    ?= quadrotor
SEED     ?= 0
LAPS     ?= 0
PLANT    ?= sim
REALTIME ?= 0
GUI      ?= 0
ARGS     ?=
TESTS    ?=

VENV := $(CURDIR)/.venv
BIN  := $(VENV)/bin

# The interpreter that set-up uses: the one of .venv once that is there.
CANDIDATES := $(BIN)/python python3.11 python3.10 python3 python3.12
PYTHON     ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$p && break; done)

# A ROS 2 installation that was sourced in this shell would mix its libraries with those of .venv.
ifneq ($(AMENT_PREFIX_PATH)$(_ROS_WHEELS_BOOTSTRAP_COMPLETE),)
unexport PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
endif

FLY := --seed $(SEED) --laps $(LAPS) --plant $(PLANT)
ifneq ($(REALTIME),0)
FLY += --realtime
endif
ifneq ($(GUI),0)
FLY += --gui
endif

# What ROS needs in tests that start nodes; a value that is set already stays.
PROFILE := $(VENV)/share/safe_rl/config/fastdds_profile.xml
TEST_ENV = AMENT_PREFIX_PATH="$(VENV)" ROS_PYTHON_CHECK_FIELDS=1 \
	FASTRTPS_DEFAULT_PROFILES_FILE="$${FASTRTPS_DEFAULT_PROFILES_FILE:-$(PROFILE)}" \
	ROS_AUTOMATIC_DISCOVERY_RANGE="$${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}" \
	ROS_DOMAIN_ID="$${ROS_DOMAIN_ID:-$$((1 + $$$$ % 50))}"

.DEFAULT_GOAL := help
.PHONY: help run test bench train lint clean
.PHONY: setup-run setup-test setup-bench setup-train setup-lint

help:  ## this list
	@echo "make run    fly, record and judge; ROBOT=quadrotor|unicycle SEED=0 LAPS=5 REALTIME=1"
	@echo "            GUI=1 PLANT=sim|model ARGS='...' (see .venv/bin/safe-rl fly --help)"
	@echo "make test   all tests; TESTS='packages/safe_rl_core' ARGS='-k shield' for some"
	@echo "make bench  measure the shield and the ROS chain beside their peers; ARGS='--quick'"
	@echo "make train  train behind the shield, into runs/; ROBOT=... SEED=... ARGS='--quick'"
	@echo "make lint   ruff and pyright"
	@echo "make clean  remove .venv and what tools left; runs/ stays"
	@echo
	@echo "Set-up is part of each: Python 3.10 or 3.11 (PYTHON=... names one), a C compiler."

run: setup-run
	@$(BIN)/safe-rl fly $(ROBOT) $(FLY) $(ARGS)

test: setup-test
	@$(TEST_ENV) $(BIN)/pytest $(TESTS) $(ARGS)

bench: setup-bench
	@$(TEST_ENV) $(BIN)/python benchmarks $(ARGS)

train: setup-train
	@$(BIN)/safe-rl train ps2 $(ROBOT) --seed $(SEED) $(ARGS)

lint: setup-lint
	@$(BIN)/ruff check . ; r=$$?; $(BIN)/pyright && exit $$r

setup-run setup-test setup-bench setup-train setup-lint:
	@if [ -z "$(PYTHON)" ]; then \
	echo "set-up: expected Python 3.10 or 3.11, found: $$(python3 --version 2>&1);" \
	"install one (apt install python3.11 python3.11-venv) or name one: make run PYTHON=..." >&2; \
	exit 2; fi
	@$(PYTHON) requirements/environment.py $(@:setup-%=%)

clean:
	rm -rf .venv .pytest_cache .hypothesis .ruff_cache
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log
	find packages launch models benchmarks \( -name build -o -name __pycache__ -o -name '*.egg-info' \) \
	-prune -exec rm -rf {} +
