"""lib.sweeps: streams, equality of parallel and serial runs, and what a killed run leaves behind."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import joblib
import pytest
import torch

from lib.sweeps import stream, sweep


def draw(generator, n, scale=1.0):
    """A draw with sums long enough for their last bits to depend on the number of threads."""
    x = scale * torch.randn(n, 400, dtype=torch.float64, generator=generator)
    return {"norm": (x @ x.mT).square().sum(), "first": x[0, :3]}


def test_streams_depend_on_the_seed_and_the_names_alone():
    assert torch.equal(torch.rand(5, generator=stream(1, "a", 2)), torch.rand(5, generator=stream(1, "a", 2)))
    others = [stream(2, "a", 2), stream(1, "a", 3), stream(1, "b", 2), stream(1, "a2"), stream(1, "a", "2")]
    values = {float(torch.rand(1, generator=g, dtype=torch.float64)) for g in [stream(1, "a", 2), *others]}
    assert len(values) == 6
    with pytest.raises(ValueError, match="named by numbers"):
        stream(1, object())


def test_streams_are_uncorrelated():
    x = torch.stack([torch.randn(2000, generator=stream(7, "point", k)) for k in range(30)])
    off = torch.corrcoef(x)[~torch.eye(30, dtype=torch.bool)]
    assert off.abs().max() < 6 / 2000**0.5


def test_parallel_equals_serial_bit_for_bit():
    runs = [sweep(draw, {"n": [3, 300], "scale": [1.0, 2.0]}, draws=3, seed=5, workers=w) for w in (1, 2)]
    assert torch.equal(runs[0]["norm"], runs[1]["norm"])
    assert runs[0]["norm"].shape == (2, 2, 3)
    assert runs[0]["first"].shape == (2, 2, 3, 3)


def test_threads_of_the_caller_do_not_matter_and_are_left_alone():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sweep(draw, {"n": [300]}, draws=1, seed=1, workers=1)["norm"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_adding_points_or_draws_moves_no_other():
    small = sweep(draw, {"n": [4]}, draws=2, seed=1, workers=1)
    large = sweep(draw, {"n": [2, 4, 8]}, draws=5, seed=1, workers=1)
    assert torch.equal(small.at("norm", n=4), large.at("norm", n=4)[:2])
    renamed = sweep(draw, {"n": [4]}, draws=2, seed=1, workers=1, name="other")
    assert not torch.equal(small["norm"], renamed["norm"])


def test_values_of_different_shapes_are_read_point_by_point():
    result = sweep(
        lambda generator, n: {"x": torch.rand(n, generator=generator)}, {"n": [2, 3]}, draws=4, seed=0, workers=1
    )
    assert result.at("x", n=3).shape == (4, 3)
    with pytest.raises(KeyError, match="n = 5 is not in the grid"):
        result.at("x", n=5)
    with pytest.raises(KeyError, match="'y' was not measured; there is x"):
        result.at("y", n=2)
    with pytest.raises(KeyError, match="name a value for n"):
        result.at("x")


def test_bad_arguments_are_named_before_anything_runs():
    def never(generator, **point):
        raise AssertionError

    with pytest.raises(ValueError, match="no values for n"):
        sweep(never, {"n": []}, draws=1, seed=0)
    for draws in (0, 1.5):
        with pytest.raises(ValueError, match=f"draws: got {draws}"):
            sweep(never, {"n": [1]}, draws=draws, seed=0)
    with pytest.raises(ValueError, match="named by numbers"):
        sweep(never, {"n": [torch.tensor(1)]}, draws=1, seed=0, workers=1)


def counted(generator, n, log):
    """Leaves a line for every measurement that really ran."""
    with Path(log).open("a") as f:
        f.write(f"{n}\n")
    return {"x": torch.rand(1, generator=generator)}


def run_counted(tmp_path, ns=(1, 2), draws=2, seed=0):
    log = tmp_path / "log"
    log.write_text("")
    grid = {"n": list(ns), "log": [str(log)]}
    result = sweep(counted, grid, draws=draws, seed=seed, workers=1, store=tmp_path / "store")
    return result["x"], len(log.read_text().splitlines())


def test_a_finished_draw_is_not_repeated(tmp_path):
    first, measured = run_counted(tmp_path)
    assert measured == 4
    again, measured = run_counted(tmp_path)
    assert measured == 0
    assert torch.equal(first, again)
    _, measured = run_counted(tmp_path, ns=(1, 2, 3))
    assert measured == 2
    _, measured = run_counted(tmp_path, seed=1)
    assert measured == 4


@pytest.mark.parametrize("damage", ["truncated", "foreign", "garbage"])
def test_a_bad_file_is_measured_again_with_a_warning(tmp_path, damage):
    first, _ = run_counted(tmp_path)
    victim, other, *_ = sorted((tmp_path / "store").glob("*.joblib"))
    match = "belongs to another draw" if damage == "foreign" else "cannot be read"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-20])
    else:
        victim.write_bytes(other.read_bytes() if damage == "foreign" else b"not a pickle")
    with pytest.warns(UserWarning, match=match):
        again, measured = run_counted(tmp_path)
    assert measured == 1
    assert torch.equal(first, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_counted(tmp_path)[1] == 0


def test_a_changed_measurement_does_not_meet_old_results(tmp_path):
    def measure(generator, n):
        return {"x": 1.0}

    sweep(measure, {"n": [1]}, draws=1, seed=0, workers=1, store=tmp_path)

    def measure(generator, n):
        return {"x": 2.0}

    assert float(sweep(measure, {"n": [1]}, draws=1, seed=0, workers=1, store=tmp_path)["x"]) == 2


def test_the_store_of_the_environment_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_SWEEPS", str(tmp_path))
    sweep(draw, {"n": [2]}, draws=3, seed=0, workers=1)
    assert len(list(tmp_path.glob("*.joblib"))) == 3


SCRIPT = """
import sys, time, torch
from lib.sweeps import sweep

def slow(generator, n):
    time.sleep(0.05)
    return {"x": torch.rand(n, generator=generator)}

if __name__ == "__main__":
    x = sweep(slow, {"n": [3]}, draws=40, seed=9, workers=2, store=sys.argv[1])["x"]
    print(x.sum().item())
"""


def test_sigkill_at_any_moment_then_the_same_numbers(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    clean = subprocess.run(
        [sys.executable, script, tmp_path / "clean"], capture_output=True, text=True, check=True
    ).stdout
    store = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, script, store], start_new_session=True, stdout=subprocess.DEVNULL)
    while len(list(store.glob("[!.]*.joblib"))) < 7:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = list(store.glob("[!.]*.joblib"))
    assert 7 <= len(finished) < 40
    assert all(joblib.load(path)["record"]["x"].shape == (3,) for path in finished)  # no half-written file
    times = {path: path.stat().st_mtime_ns for path in finished}
    resumed = subprocess.run([sys.executable, script, store], capture_output=True, text=True, check=True).stdout
    assert resumed == clean
    assert all(path.stat().st_mtime_ns == times[path] for path in finished)
