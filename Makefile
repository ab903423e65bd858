# make app   set everything up and open the studio
# make test  set everything up and run all checks and tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: app test trackers check format pocket clean browser

app: $(VENV)/.base
	$(BIN)/python -m app $(ARGS)

test: $(VENV)/.dev browser check
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

# The packages of W&B and trackio themselves: 150 MB, and another event loop for the server than users have. So they have an environment of their own,
# which sees that of the tests.
TRACKERS := build/trackers
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
trackers: $(VENV)/.dev
	$(BIN)/python -m venv $(TRACKERS)
	@$(BIN)/python $(SITE) > "$$($(TRACKERS)/bin/python $(SITE))/tests.pth"
	@if $(TRACKERS)/bin/python -m pip install --quiet --disable-pip-version-check "wandb>=0.31,<0.32" "trackio>=0.43,<0.44"; then \
		$(TRACKERS)/bin/python -m pytest tests/test_tracker.py; \
	else \
		echo "SKIPPED: wandb and trackio cannot be installed here, so they are not known to take what they are sent."; \
	fi

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pocket: $(VENV)/.base
	$(BIN)/python -m pocket.recipe $(ARGS)

# The browser tests need a Chromium. Where it is missing and can be installed, it is; where it cannot, the tests say so and are skipped.
browser:
ifeq ($(CHROMIUM),)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-noto-color-emoji; \
	else \
		echo "Chromium is missing: the browser tests will be skipped. Debian: sudo apt-get install chromium"; \
	fi
endif

$(VENV)/.base: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.base

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache
