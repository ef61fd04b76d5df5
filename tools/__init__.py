"""The book's commands: ``python -m tools <command>``, one idea per file. ``make help`` lists them."""
