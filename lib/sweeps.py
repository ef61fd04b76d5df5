"""Monte Carlo sweeps: a measurement over a grid of parameters x independent draws.

Every draw has its own random stream, named after the sweep, the point and the number of the draw. So a parallel run
equals a serial one bit for bit, and adding a point or a draw moves no other.
"""

import functools
import hashlib
import inspect
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from tqdm import tqdm

Measure = Callable[..., Mapping[str, Any]]


def stream(seed: int, *names: object) -> torch.Generator:
    """The random stream of that name: a CPU generator that depends on the seed and the names, and on nothing else.

    The 64-bit state is a hash of both, so streams of different names are independent for every purpose of a simulation.
    """
    text = json.dumps([seed, *names], sort_keys=True, default=_unnamed)
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


@dataclass(frozen=True)
class Sweep:
    """Results of :func:`sweep`: ``result["s2"]`` has one axis per parameter of the grid, then one of draws."""

    grid: dict[str, list]
    draws: int
    records: dict[tuple[int, ...], list[dict[str, Tensor]]]

    def __getitem__(self, name: str) -> Tensor:
        """All values of that name, shape (*grid, draws, *value); their shapes must agree over the grid."""
        shape = [len(v) for v in self.grid.values()]
        flat = [self._stack(index, name) for index in itertools.product(*map(range, shape))]
        return torch.stack(flat).reshape(*shape, *flat[0].shape)

    def at(self, name: str, **point: object) -> Tensor:
        """The values of that name at one point of the grid, shape (draws, *value).

        Raises:
            KeyError: a parameter or a value that the grid does not have.
        """
        for key, value in point.items():
            if key not in self.grid or value not in self.grid[key]:
                raise KeyError(f"{key} = {value!r} is not in the grid {self.grid}")
        if missing := set(self.grid) - set(point):
            raise KeyError(f"name a value for {', '.join(sorted(missing))} as well")
        return self._stack(tuple(self.grid[key].index(point[key]) for key in self.grid), name)

    def _stack(self, index: tuple[int, ...], name: str) -> Tensor:
        if name not in self.records[index][0]:
            raise KeyError(f"{name!r} was not measured; there is {', '.join(self.records[index][0])}")
        return torch.stack([r[name] for r in self.records[index]])


def sweep(
    measure: Measure,
    grid: Mapping[str, Sequence],
    *,
    draws: int,
    seed: int,
    name: str | None = None,
    workers: int = -1,
    store: Path | str | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Run ``measure(generator, **point)`` for every point of the grid and every draw.

    Args:
        measure: returns named numbers or tensors of one draw; all randomness comes from its generator.
        grid: parameter -> values, each a JSON value (number, string, boolean, list).
        draws: independent draws per point, at least 1.
        seed: of the whole notebook; the streams descend from it.
        name: of this sweep among those of the seed; the name of ``measure`` unless given.
        workers: processes, as joblib's ``n_jobs``; every draw runs on one thread.
        store: folder that keeps each finished draw, so that a killed run resumes; the environment variable
            ``BOOK_SWEEPS`` unless given, and nothing is kept where that is not set.
            A draw is known by the sweep's name, the seed, its point and the source of ``measure``: what ``measure``
            reads besides its arguments belongs into the grid, or the folder to one value of it.
        progress: show a bar; by default only on a terminal.

    Returns:
        The values, as a :class:`Sweep`.

    Raises:
        ValueError: an empty grid, or fewer than one draw, before anything runs.
    """
    axes = {key: list(values) for key, values in grid.items()}
    if empty := [key for key, values in axes.items() if not values]:
        raise ValueError(f"grid: no values for {', '.join(empty)}")
    if int(draws) != draws or draws < 1:
        raise ValueError(f"draws: got {draws}; need an integer >= 1")
    name = measure.__name__ if name is None else name
    store = os.environ.get("BOOK_SWEEPS") if store is None else store
    source = "" if store is None else inspect.getsource(measure)  # a changed measurement must not meet old results

    tasks = []
    for index in itertools.product(*(range(len(v)) for v in axes.values())):
        point = {key: axes[key][i] for key, i in zip(axes, index, strict=True)}
        tasks += [(index, {"sweep": name, "seed": seed, "point": point, "draw": k}) for k in range(draws)]
    # The costliest points are usually the last of a grid: starting with them keeps the workers busy to the end.
    jobs = (joblib.delayed(_draw)(measure, key, source, store) for _, key in reversed(tasks))
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)
    bar = tqdm(results, total=len(tasks), desc=name, disable=None if progress is None else not progress)
    records: dict[tuple[int, ...], list] = {}
    for (index, _), record in zip(reversed(tasks), bar, strict=True):
        records.setdefault(index, []).insert(0, record)
    return Sweep(axes, draws, records)


def _draw(measure: Measure, key: dict, source: str, store: Path | str | None) -> dict[str, Tensor]:
    """One draw: from the store if it is there, else measured, and then stored."""
    path = None if store is None else Path(store) / f"{_digest({**key, 'source': source})}.joblib"
    if path is not None and (record := _load(path, key)) is not None:
        return record
    generator = stream(key["seed"], key["sweep"], key["point"], key["draw"])
    # Sums depend on the number of threads in their last bits: one thread here, in a worker and in a serial run alike.
    threads = torch.get_num_threads()
    with _thread_pools().limit(limits=1):
        torch.set_num_threads(1)
        try:
            measured = measure(generator, **key["point"])
        finally:
            torch.set_num_threads(threads)
    record = {
        k: torch.as_tensor(v, dtype=None if isinstance(v, Tensor) else torch.float64) for k, v in measured.items()
    }
    if path is not None:
        _save(path, key, record)
    return record


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """The BLAS and OpenMP pools of this process; finding them takes longer than a small draw."""
    return ThreadpoolController()


def _load(path: Path, key: dict) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        stored = joblib.load(path)
        if stored["key"] == key:
            return stored["record"]
        problem = "belongs to another draw"
    except Exception as error:  # a truncated pickle can raise nearly anything
        problem = f"cannot be read ({type(error).__name__})"
    warnings.warn(f"{path} {problem}; measuring it again", stacklevel=2)
    return None


def _save(path: Path, key: dict, record: dict[str, Tensor]) -> None:
    """Write under a temporary name and rename, so that a killed run never leaves half a file under the real one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        joblib.dump({"key": key, "record": record}, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _digest(key: dict) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=_unnamed).encode()).hexdigest()[:32]


def _unnamed(value: object):
    raise ValueError(f"a stream or a grid point is named by numbers, strings, booleans and lists; got {value!r}")
