"""Run notebooks, several at once, and keep the outcome of each."""

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import nbformat
import zmq
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

from tools.kernels import environment, kill
from tools.keys import code_cells
from tools.layout import Book
from tools.progress import Progress
from tools.records import failures

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Job:
    """A notebook to run; a run that is cut off leaves the finished points of its sweeps in ``sweeps``."""

    name: str
    notebook: nbformat.NotebookNode
    sweeps: Path


@dataclass(frozen=True)
class Outcome:
    """A notebook that has run. ``errors`` is empty when every cell ran and every claim passed."""

    job: Job
    seconds: float
    errors: list[str]


def without_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook with nothing left of an earlier run, so that no old claim passes for a new one."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def execute(book: Book, jobs: list[Job], *, workers: int, keep: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every job, in the order given, ``workers`` at a time; a failure stops no other.

    ``keep`` is called with each outcome as soon as it is there: a run that is cut off loses no finished notebook.
    Each has a thread: in the main thread nbclient sets signal handlers for one notebook and unsets them for all.
    """
    progress = Progress({job.name: len(code_cells(job.notebook)) for job in jobs})
    clients: list[NotebookClient] = []
    stop = Event()

    def run(job: Job) -> Outcome:
        return _run(book, job, alone=min(workers, len(jobs)) == 1, progress=progress, clients=clients, stop=stop)

    outcomes = []
    with _terminable(), ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                outcome = future.result()
                keep(outcome)
                progress.done(outcome.job.name, "FAILED" if outcome.errors else f"{outcome.seconds:.1f} s")
                outcomes.append(outcome)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for client in list(clients):
                kill(client)
            raise
        finally:
            progress.close()
    return outcomes


def _run(
    book: Book, job: Job, *, alone: bool, progress: Progress, clients: list[NotebookClient], stop: Event
) -> Outcome:
    """Run one notebook in a kernel of its own, in its own folder."""
    numbers = {id(cell): number for number, cell in enumerate(code_cells(job.notebook), 1)}
    errors, last = [], [0]

    def on_cell_start(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        if id(cell) in numbers:
            last[0] = numbers[id(cell)]
            progress.cell(job.name, last[0])

    client = NotebookClient(
        job.notebook,
        timeout=None,
        kernel_name="python3",
        kernel_manager_class=AsyncKernelManager,
        # Other users of this machine could read what a kernel says on a plain local port; it warns of that, too.
        config=Config(KernelManager={"transport_encryption": "auto" if zmq.has("curve") else "disabled"}),
        record_timing=False,
        coalesce_streams=True,
        on_cell_start=on_cell_start,
        resources={"metadata": {"path": str(book.path(job.name).parent)}},
    )
    clients.append(client)
    began = time.monotonic()
    try:
        client.execute(env=environment(book.root, job.sweeps, alone=alone))
    except CellExecutionError as error:
        errors.append(f"cell [{last[0]}]: {error.ename}: {_ANSI.sub('', error.evalue)}\n{_where(error)}")
    except DeadKernelError:
        errors.append(f"cell [{last[0]}]: the kernel died (out of memory?)")
    finally:
        clients.remove(client)
    errors += failures(job.notebook)
    if not errors:
        shutil.rmtree(job.sweeps.parent, ignore_errors=True)  # the points are in the notebook now
    return Outcome(job, time.monotonic() - began, errors)


def _where(error: CellExecutionError) -> str:
    """The last lines of the traceback, indented."""
    lines = _ANSI.sub("", error.traceback).strip().splitlines()
    return "\n".join(f"      {line}" for line in lines[-12:])


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, kernels included."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report(outcomes: list[Outcome]) -> str:
    """What failed, by notebook, cell and claim."""
    return "\n".join(f"{o.job.name}, {error}" for o in outcomes for error in o.errors)
