# Two commands for a newcomer: `make solve` and `make test`.  Both set up their own environment in .venv.
# PYTHON=/path/to/python chooses the interpreter; otherwise environment.sh looks for one.
PYTHON ?=
VENV   := .venv
BIN    := $(VENV)/bin
BASIC  := $(VENV)/.ready-solve
READY  := $(VENV)/.ready-dev
CODE   := refinemath tests book experiments

INSTALL = @PYTHON="$(PYTHON)" sh environment.sh $(VENV)

MINUTES ?= 10
RUN     ?= experiments/network/run

.PHONY: solve train-gpu test dev unit notebooks-test lint format hooks book pages browse slides pdf notebooks frame sync-check results clean

solve: $(BASIC)
	$(BIN)/python -m refinemath solve data/physics_data.npy

test: $(READY) lint unit sync-check notebooks-test book

dev: $(READY)

# two steps in one environment: what solving needs, then everything else
$(BASIC): pyproject.toml
	$(INSTALL) -e .
	@touch $@

$(READY): $(BASIC) requirements.txt
	$(INSTALL) -r requirements.txt
	@touch $@

lint: $(READY)
	$(BIN)/ruff format --check $(CODE) data
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format $(CODE) data
	$(BIN)/ruff check --fix $(CODE)

# format and lint before every commit
hooks: $(READY)
	$(BIN)/pre-commit install

unit: $(READY)
	$(BIN)/python -m pytest tests --ignore tests/book -n 2 --dist loadscope

# train the next network on a GPU for MINUTES, or go on from its checkpoint, which fits into a commit
train-gpu: $(READY)
	$(BIN)/python -m experiments.network.training run $(RUN) --minutes $(MINUTES) --bfloat16 --recipe '{"batch": 4096}'

# every notebook is a test: outputs are compared with the committed ones
notebooks-test: $(READY)
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg -n 2 --dist loadscope notebooks

# the text form of a notebook and the executed form must hold the same cells, complete and of the right size
sync-check: $(READY)
	$(BIN)/python -m pytest tests/book

# the address of the repository and the common set-up cell, written wherever they stand
frame: $(READY)
	$(BIN)/python book/frame.py

# re-execute the notebooks, all or those whose name begins with ONLY, and write both forms of each
notebooks: $(READY)
	$(BIN)/python book/execute.py $(ONLY)

# the strict build from the committed outputs; the slides are made with it, in _build/html/slides
pages slides: $(READY)
	$(BIN)/jupyter-book build . --all -W --keep-going -n

# the strict build, then every page, link, picture and slide is checked
book: pages
	$(BIN)/python -m codespell_lib *.md book/*.md book/chapters/*.md
	$(BIN)/python tests/book/check_pages.py
	$(MAKE) browse

# a real Chromium visits every page; skipped with a message where Chromium or Node.js is missing, unless BROWSE=--required
browse:
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
	  test -d tests/book/node_modules || npm ci --prefix tests/book --silent --no-fund --no-audit || true; \
	  node tests/book/browse.mjs $(BROWSE); \
	else \
	  echo "SKIPPED: browser check of the book: Node.js or npm is missing"; test -z "$(findstring required,$(BROWSE))"; \
	fi

# the whole book as one file, _build/refinemath.pdf, printed by Chromium
pdf: $(READY)
	$(BIN)/jupyter-book build . --builder singlehtml -W --keep-going -n
	test -d tests/book/node_modules || npm ci --prefix tests/book --silent --no-fund --no-audit
	node tests/book/print.mjs

# every record of results/ anew, a day of work; what is in runs/ is not done again.  QUICK=--quick goes through it in minutes and writes nothing
results: $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r experiments/requirements.txt
	$(BIN)/python -m experiments $(QUICK)
	$(BIN)/python -m experiments.tables

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache
