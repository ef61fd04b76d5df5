"""``make lock``: write ``requirements.txt`` anew from ``pyproject.toml``. Needs uv (https://docs.astral.sh/uv)."""

import re
import shutil
import subprocess

from tools.layout import Book, BookError, write

HEADER = (
    "# The lock: every package of pyproject.toml and its extras, for Python >= 3.11 on any platform. "
    "Made by `make lock`.\n"
)
# torch's own dependencies on Linux with a GPU. Without them the CPU build installs from the same lock; with the
# default build pip adds them again.
_GPU_ONLY = re.compile(r"^(triton|nvidia|cuda)\b")


def lock(book: Book) -> None:
    """Resolve the newest versions that fit together, for every Python and platform."""
    uv = shutil.which("uv")
    if uv is None:
        raise BookError("make lock needs uv; one way to get it: python3 -m pip install uv")
    print("Lock: resolves pyproject.toml and rewrites requirements.txt", flush=True)
    command = [uv, "pip", "compile", "pyproject.toml", "--all-extras", "--universal", "--python-version", "3.11"]
    command += ["--no-annotate", "--no-header", "--quiet"]
    result = subprocess.run(command, cwd=book.root, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BookError(f"uv could not resolve pyproject.toml:\n{result.stderr.strip()}")
    pins = sorted(line for line in result.stdout.splitlines() if line and not _GPU_ONLY.match(line))
    write(book.root / "requirements.txt", HEADER + "\n".join(pins) + "\n")
    print(f"requirements.txt: {len(pins)} packages")
