"""pyproject.toml says what is needed; the lock and environment.yml agree with it."""

import platform
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
# conda-forge's names where they are not PyPI's; -base leaves out the Qt windows that no notebook opens.
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch": "torch"}


def specifiers(lines) -> dict[str, SpecifierSet]:
    """Name to specifier."""
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


LOCK = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]
NEEDED = specifiers([*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["networks"], *EXTRAS["test"]])


def pins(name: str) -> list[Requirement]:
    """The lock's lines for a package; there are several where versions of Python need different ones."""
    return [r for r in LOCK if canonicalize_name(r.name) == name]


@pytest.mark.parametrize(("name", "specifier"), NEEDED.items(), ids=NEEDED)
def test_the_lock_satisfies_the_project(name, specifier):
    assert pins(name), f"{name} is not locked; run make lock"
    for pin in pins(name):
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert specifier.contains(exact.version), f"{pin} is locked, the project wants {specifier}; run make lock"


@pytest.mark.parametrize("python", ["3.11.9", "3.12.4", "3.13.1", "3.14.0"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_lock_has_one_version_of_each_package(python, system):
    here = {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": system}
    machine = here | {"platform_machine": platform.machine(), "implementation_name": "cpython"}
    names = [canonicalize_name(r.name) for r in LOCK if r.marker is None or r.marker.evaluate(machine)]
    assert len(set(names)) == len(names)
    assert set(NEEDED) <= set(names)


def test_no_gpu_package_is_locked():
    assert [r.name for r in LOCK if re.match("nvidia|triton|cuda", r.name)] == []


def test_conda_lists_the_same():
    (from_pip,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    lines = [entry for entry in CONDA if isinstance(entry, str) and not re.match(r"(python=|pip$)", entry)]
    listed = specifiers([*lines, *(line for line in from_pip if not line.startswith("-"))])
    listed = {CONDA_NAMES.get(name, name): specifier for name, specifier in listed.items()}
    assert listed == specifiers([*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["networks"]])
    assert "-e ." in from_pip


def test_conda_takes_a_python_that_the_project_allows():
    (python,) = [entry.removeprefix("python=") for entry in CONDA if str(entry).startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_the_oldest_python_is_the_same_everywhere():
    from tools.environment import OLDEST

    oldest = ".".join(map(str, OLDEST))
    assert PROJECT["requires-python"] == f">={oldest}"
    assert f"Python >= {oldest}" in (ROOT / "README.md").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"] == "py311"
