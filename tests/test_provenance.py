"""lib.provenance: the command on the page is one that papermill takes, with the chapter's own parameters."""

import shlex
from pathlib import Path

import yaml

from lib.provenance import provenance

CHAPTERS = Path(__file__).parent.parent / "chapters"


def test_the_command_reruns_the_page_with_the_parameters_of_the_chapter(monkeypatch):
    monkeypatch.chdir(CHAPTERS / "attention")
    page = provenance("attention/spectral_gap", seed=3)
    program, *arguments = shlex.split(page.command)
    assert program == "papermill"
    assert arguments[:2] == ["--cwd", "chapters/attention"]
    assert arguments[2] == "chapters/attention/spectral_gap.ipynb"
    expected = yaml.safe_load((CHAPTERS / "attention" / "paper.yml").read_text())["spectral_gap"]
    assert yaml.safe_load(arguments[arguments.index("-y") + 1]) == expected


def test_a_notebook_alone_takes_no_parameters(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "-y" not in provenance("attention/spectral_gap", seed=3).command


def test_the_line_says_where_the_numbers_come_from():
    text = provenance("attention/spectral_gap", seed=3)._repr_markdown_()
    for part in ("Seed 3", " s on ", "CPU", "torch 2.", "numpy ", "scipy ", "Python 3."):
        assert part in text
