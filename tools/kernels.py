"""The processes that run notebooks: their environment, and their end."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from nbclient import NotebookClient

# Several kernels at once, or a result that must not depend on the number of cores: one thread each.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
}


def isolate(build: Path) -> None:
    """Keep the user's own Jupyter, IPython and matplotlib set-up out of this process and those it starts.

    Without the user's data folder the only ``python3`` kernel that comes before the system's is the one in this
    environment, which Jupyter starts with the interpreter that runs this line.
    """
    (build / "ipython").mkdir(parents=True, exist_ok=True)  # IPython warns of a folder it cannot write to
    os.environ.update(
        JUPYTER_DATA_DIR=str(build / "jupyter"),
        JUPYTER_CONFIG_DIR=str(build / "jupyter" / "config"),
        JUPYTER_PREFER_ENV_PATH="1",
        IPYTHONDIR=str(build / "ipython"),
        PYDEVD_DISABLE_FILE_VALIDATION="1",  # the kernel's debugger warns on every start of Python 3.11
    )
    for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "MPLBACKEND", "BOOK_SWEEPS", "PYTHONSTARTUP"):
        os.environ.pop(name, None)


def environment(root: Path, sweeps: Path, *, alone: bool) -> dict[str, str]:
    """A kernel's environment: the book's own ``lib``, where sweeps keep their points, and its share of the cores."""
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "BOOK_SWEEPS": str(sweeps)}
    return os.environ | own | ({} if alone else ONE_THREAD)


def kill(client: NotebookClient) -> None:
    """End a kernel and the workers it has started, at once; they form one process group."""
    provisioner = getattr(client.km, "provisioner", None)
    pid = getattr(provisioner, "pid", None)
    if pid:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
