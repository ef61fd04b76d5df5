"""Where the numbers of a page come from: versions, seed, device, seconds, and the command that reruns it."""

import platform
import shlex
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

_started = time.perf_counter()  # a page imports `lib` in its first cell


@dataclass(frozen=True)
class Provenance:
    """The last line of a page; shows itself as Markdown."""

    seed: int
    seconds: float
    versions: dict[str, str]
    device: str
    command: str

    def _repr_markdown_(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"**Provenance.** Seed {self.seed}; {self.seconds:.0f} s on {self.device}; {versions}. "
            f"At the paper's scale or beyond, from the root of the book:\n\n```sh\n{self.command}\n```"
        )


def provenance(notebook: str, seed: int, **parameters: object) -> Provenance:
    """The provenance line of ``chapters/<notebook>.ipynb``.

    Args:
        notebook: such as ``"attention/spectral_gap"``.
        seed: the page's.
        parameters: the values that the paper's scale would take, for the command.
    """
    versions = {"Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "numpy", "scipy")}
    chapter, name = notebook.split("/")
    overrides = " ".join(f"-p {key} {shlex.quote(str(value))}" for key, value in parameters.items())
    command = f"papermill --cwd {Path('chapters', chapter)} {Path('chapters', notebook)}.ipynb {name}.paper.ipynb"
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    return Provenance(seed, time.perf_counter() - _started, versions, device, f"{command} {overrides}".strip())
