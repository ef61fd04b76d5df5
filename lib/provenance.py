"""Where the numbers of a page come from: versions, seed, device, seconds, and the command that reruns it."""

import json
import platform
import shlex
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
import yaml

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


def provenance(notebook: str, seed: int) -> Provenance:
    """The provenance line of ``chapters/<notebook>.ipynb``, which is run in its own folder.

    The command takes the parameters of the paper's scale from the chapter's ``paper.yml``; where that file is not at
    hand, as in a copy of the notebook alone, it takes none.

    Args:
        notebook: such as ``"attention/spectral_gap"``.
        seed: the page's.
    """
    chapter, name = notebook.split("/")
    versions = {"Python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in ("torch", "numpy", "scipy")}
    file = Path("paper.yml")
    parameters = (yaml.safe_load(file.read_text()) or {}).get(name, {}) if file.exists() else {}
    source = f"chapters/{notebook}.ipynb"
    overrides = f" -y {shlex.quote(json.dumps(parameters))}" if parameters else ""
    command = f"papermill --cwd chapters/{chapter} {source} {name}.paper.ipynb{overrides}"
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    return Provenance(seed, time.perf_counter() - _started, versions, device, command)
