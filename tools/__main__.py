"""The command line behind the Makefile: ``python -m tools <command>``."""

import argparse
import sys
from pathlib import Path

from tools.exclusive import exclusive
from tools.kernels import isolate
from tools.layout import Book, BookError

COMMANDS = ("book", "test", "serve", "refresh", "paper", "lock")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools", description="The book's commands; see `make help`.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--notebook", help="refresh, paper: only this notebook, such as attention/spectral_gap")
    parser.add_argument("--port", default="8000", help="serve: the port")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the book's folder")
    options = parser.parse_args(arguments)
    book = Book(options.root.resolve())
    isolate(book.build)
    try:
        run(book, options)
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def run(book: Book, options: argparse.Namespace) -> None:
    """Dispatch; imports wait until they are needed, for torch takes seconds."""
    match options.command:
        case "serve":
            from tools.serve import serve

            serve(book, options.port)
        case "lock":
            from tools.lock import lock

            lock(book)
        case _:
            book.select(options.notebook)  # a wrong name is an error before any work
            with exclusive(book.build):
                _work(book, options)


def _work(book: Book, options: argparse.Namespace) -> None:
    match options.command:
        case "book":
            from tools.book import make_book

            make_book(book)
        case "refresh":
            from tools.refresh import refresh

            refresh(book, options.notebook)
        case "paper":
            from tools.paper import make_paper

            make_paper(book, options.notebook)
        case "test":
            from tools.suite import make_test

            make_test(book)


if __name__ == "__main__":
    sys.exit(main())
