# Two commands for a newcomer: `make solve` and `make test`.  Both set up their own environment in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: solve test unit notebooks-test lint book browse notebooks sync-check clean

solve: $(READY)
	$(BIN)/python -m refinemath solve data/physics_data.npy

test: $(READY) lint unit sync-check notebooks-test book

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -e ".[sklearn]"
	touch $(READY)

lint: $(READY)
	$(BIN)/ruff check refinemath tests book
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest tests --ignore tests/book -n 2 --dist loadscope

# every notebook is a test: outputs are compared with the committed ones
notebooks-test: $(READY)
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg -n 2 --dist loadscope notebooks

# the text form of a notebook and the executed form must hold the same cells
sync-check: $(READY)
	$(BIN)/python -m pytest tests/book/test_pairs.py

# re-execute everything and write both forms of every notebook
notebooks: $(READY)
	for n in $(NOTEBOOKS); do $(BIN)/jupytext --sync $$n && $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 $$n && $(BIN)/jupytext --sync $$n || exit 1; done

# the strict build from the committed outputs; every page, link and picture is checked
book: $(READY)
	$(BIN)/jupyter-book build . -W --keep-going -n
	$(BIN)/python -m codespell_lib book/*.md book/chapters/*.md README.md
	$(BIN)/python tests/book/check_pages.py
	$(MAKE) browse

# a real Chromium visits every page; skipped with a message where Chromium or its npm packages are missing
browse:
	@if command -v node >/dev/null; then node tests/book/browse.mjs --out _build/screenshots $(BROWSE); \
	else echo "SKIPPED: browser check of the book: Node.js is missing"; fi

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache
