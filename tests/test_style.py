"""lib.style: what a figure may rely on."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb

from lib import style
from lib.claims import estimate


@pytest.fixture(autouse=True)
def _clean():
    with mpl.rc_context():
        style.use()
        yield
        plt.close("all")


def luminance(color: str) -> float:
    """Relative luminance (WCAG)."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("color", [style.WITH_FIX, style.WITHOUT_FIX, style.THEORY, style.MUTED])
def test_colours_of_labels_stand_out_on_white(color):
    assert 1.05 / (luminance(color) + 0.05) > 3  # WCAG's ratio for large type and graphics


def test_a_figure_has_one_or_two_panels():
    assert [len(style.panels(count)[1]) for count in (1, 2)] == [1, 2]
    with pytest.raises(ValueError, match="count: got 3"):
        style.panels(3)


def test_means_carry_the_interval_of_their_draws():
    _, (ax,) = style.panels()
    draws = torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.5, 5.0]])
    style.means(ax, [1, 2], draws, style.THEORY)
    (container,) = ax.containers
    (segments,) = (bars.get_segments() for bars in container.lines[2])
    for segment, values in zip(segments, draws, strict=True):
        half = (segment[1][1] - segment[0][1]) / 2
        assert half == pytest.approx(estimate(values).half_width(0.05), rel=1e-6)


def test_size_axis_marks_the_sizes_that_were_run():
    _, (ax,) = style.panels()
    ax.loglog([100, 800], [1, 10])
    style.size_axis(ax, [100, 400, 800])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["100", "400", "800"]
    assert len(ax.get_xticks(minor=True)) == 0
