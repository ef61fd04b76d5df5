# Two commands: `make book` and `make test`. Each sets up .venv first; the logic is in tools/.
PYTHON ?= python3
PORT ?= 8000
NOTEBOOK ?=

TOOLS = @.venv/bin/python -m tools
ONLY = $(if $(NOTEBOOK),--notebook '$(NOTEBOOK)')

.DEFAULT_GOAL := help
.PHONY: help env book test serve refresh paper lock clean

help: ## list these commands
	@echo "make COMMAND [NAME=VALUE]"
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

env: ## make .venv and install the lock into it (PYTHON=python3.12 chooses the interpreter)
	@$(PYTHON) -m tools.environment

book: env ## run every notebook that changed and build the site in _build/site
	$(TOOLS) book

test: env ## lint, tests, stored outputs against fresh ones, strict site, site in a browser
	$(TOOLS) test

serve: env ## show the built site at http://127.0.0.1:8000/ (PORT=8001 chooses another port)
	$(TOOLS) serve --port '$(PORT)'

refresh: env ## run the committed notebooks and rewrite them (NOTEBOOK=attention/spectral_gap limits it)
	$(TOOLS) refresh $(ONLY)

paper: env ## run the notebooks at the papers' scale, results in _build/paper (NOTEBOOK= limits it)
	$(TOOLS) paper $(ONLY)

lock: env ## resolve pyproject.toml into requirements.txt (needs uv)
	$(TOOLS) lock

clean: ## delete _build; .venv and the notebooks stay
	@echo "Clean: deletes _build"
	@rm -rf _build
