# make demo    the shipped model answers a spoken question about a picture, aloud (under a minute after installation)
# make demo-from-nothing   the same with a small model that is trained first (under 10 minutes on two cores)
# make test    the tests              make check   format, lint, types, import contract, fast tests
# make test-browser   the page in Chromium (apt-get install chromium chromium-driver)
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: install demo demo-from-nothing test test-browser check format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/muomni demo

demo-from-nothing: install
	$(BIN)/muomni demo --from-nothing --out runs/pocket-nano

test: install
	$(BIN)/python -m pytest -n 2 -m 'not browser' --durations 10

test-browser: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 -m 'not slow and not browser'

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info
