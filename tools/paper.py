"""``make paper``: the notebooks at the paper's own scale, as artefacts beside the book.

``chapters/<chapter>/paper.yml`` maps each notebook's name to its parameters. Results go to
``_build/paper/<chapter>/<notebook>.ipynb``; a run that was cut off goes on from the last finished point of its sweeps.
"""

import json
from pathlib import Path
from typing import Any

import nbformat
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tools.execute import Job, Outcome, execute, report, without_outputs
from tools.keys import notebook_key
from tools.layout import Book, BookError, read, write
from tools.parameters import misfits
from tools.records import claims_of, table


def make_paper(book: Book, name: str | None) -> None:
    """Check all parameters, then run what is not up to date, one notebook at a time with all cores."""
    names = book.select(name)
    parameters = _checked_parameters(book, names)
    ready = current_results(book)
    todo = [name for name in names if name not in ready]
    counts = f"{len(todo)} to run, {len(names) - len(todo)} up to date"
    print(f"Paper's scale: {len(names)} notebook(s), {counts}", flush=True)
    keys = {name: _key(book, name, parameters[name]) for name in names}

    def keep(outcome: Outcome) -> None:
        name, notebook = outcome.job.name, outcome.job.notebook
        if not outcome.errors:
            notebook.metadata["book"] = {"key": keys[name]}
        write(_result(book, name), nbformat.writes(notebook) + "\n")

    jobs = [_job(book, name, parameters[name], keys[name]) for name in todo]
    failed = [outcome for outcome in execute(book, jobs, workers=1, keep=keep) if outcome.errors]
    for name in names:
        path = _result(book, name)
        print(f"\n{name} at {parameters[name]}\n{path}\n{table([claim for _, claim in claims_of(read(path))])}")
    if failed:
        raise BookError(f"\n{report(failed)}\n{len(failed)} notebook(s) failed at the paper's scale")


def current_results(book: Book) -> dict[str, Path]:
    """Results that belong to the notebooks, the library and the parameters as they are now."""
    found = {}
    for name in book.notebooks():
        path, given = _result(book, name), _given(book, name)
        if given is not None and path.exists():
            key = read(path).metadata.get("book", {}).get("key")
            if key == _key(book, name, given):
                found[name] = path
    return found


def _result(book: Book, name: str) -> Path:
    return book.build / "paper" / f"{name}.ipynb"


def _key(book: Book, name: str, parameters: dict[str, Any]) -> str:
    return notebook_key(book, name, extra=json.dumps(parameters, sort_keys=True, default=str))


def _given(book: Book, name: str) -> dict[str, Any] | None:
    """The notebook's entry in its chapter's ``paper.yml``; None where there is none."""
    file, entry = _parameter_file(book, name), Path(name).name
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    except yaml.YAMLError as error:
        raise BookError(f"{file} is not YAML: {error}") from error
    if not isinstance(entries, dict) or entry not in entries:
        return None
    return entries[entry] or {}


def _parameter_file(book: Book, name: str) -> Path:
    return book.path(name).with_name("paper.yml")


def _checked_parameters(book: Book, names: list[str]) -> dict[str, dict[str, Any]]:
    """The parameters of every notebook, or one error that lists all that is wrong with them."""
    found, problems = {}, []
    for name in names:
        given, entry = _given(book, name), Path(name).name
        where = f"{_parameter_file(book, name).relative_to(book.root)}: {entry}"
        if given is None:
            problems.append(f"{where}: no such entry; write '{entry}: {{}}' to run it at its defaults")
        elif not isinstance(given, dict):
            problems.append(f"{where}: is {given!r}; map parameters to values")
        else:
            problems += [f"{where}: {problem}" for problem in misfits(read(book.path(name)), given)]
            found[name] = given
    if problems:
        raise BookError("\n".join([*problems, "Nothing was run"]))
    return found


def _job(book: Book, name: str, parameters: dict[str, Any], key: str) -> Job:
    notebook = without_outputs(load_notebook_node(str(book.path(name))))
    notebook = parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")
    return Job(name, notebook, book.build / "sweeps" / "paper" / name / key)
