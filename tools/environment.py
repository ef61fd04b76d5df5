"""Make ``.venv`` from the lock, with nothing but a bare Python 3: ``python3 -m tools.environment``.

Runs before anything is installed, and must be readable by a Python that is too old, so as to say so.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LOCKED = ("requirements.txt", "pyproject.toml")


def key(root):
    """SHA-256 of what the environment is made of: the lock, the package, the interpreter, and the place."""
    digest = hashlib.sha256(f"{sys.version} {root}".encode())
    for name in LOCKED:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def torch_pin(lock):
    """The line of the lock that pins torch, such as ``torch==2.13.0``."""
    return re.search(r"^torch==\S+", lock, flags=re.MULTILINE).group()


def made_by_this_python(venv):
    """Whether an environment, finished or not, belongs to the interpreter that runs this."""
    config = venv / "pyvenv.cfg"
    return config.exists() and f"version = {platform.python_version()}\n" in config.read_text()


def pip(venv, *arguments):
    """Run the environment's pip quietly; what it says on failure is shown."""
    command = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})


def make(root):
    """Bring ``root/.venv`` in line with the lock; return whether there was anything to do."""
    venv = root / ".venv"
    stamp, unfinished = venv / "book-stamp", venv / "book-unfinished"
    if stamp.exists() and stamp.read_text() == key(root) and not unfinished.exists():
        return False
    began = time.monotonic()
    print("Installing the lock into .venv (2 GB of disk; some minutes the first time)", flush=True)
    # An install that was cut off may have left half a package behind; one of another Python cannot be carried over.
    if venv.exists() and (unfinished.exists() or not made_by_this_python(venv)):
        shutil.rmtree(str(venv))
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    unfinished.touch()
    # The CPU build first: where its index cannot be reached, pip falls back to the default one.
    torch = torch_pin((root / "requirements.txt").read_text())
    pip(venv, "install", "--no-deps", "--retries", "0", "--extra-index-url", TORCH_INDEX, torch)
    pip(venv, "install", "-r", root / "requirements.txt")
    pip(venv, "install", "--no-deps", "--no-build-isolation", "-e", root)
    stamp.write_text(key(root))
    unfinished.unlink()
    print(f"Installed in {time.monotonic() - began:.0f} s", flush=True)
    return True


def main():
    """Make the environment, or say in one line why not."""
    if sys.version_info < OLDEST:
        need, have = ".".join(map(str, OLDEST)), ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"The book needs Python {need} or newer; {sys.executable} is {have}. "
            f"Name another: make book PYTHON=python{need}"
        )
    try:
        make(Path(__file__).resolve().parent.parent)
    except subprocess.CalledProcessError as error:
        hint = "; on Debian and Ubuntu: apt install python3-venv" if "venv" in error.cmd else ""
        sys.exit(f"Set-up failed: {' '.join(error.cmd)}{hint}")


if __name__ == "__main__":
    main()
