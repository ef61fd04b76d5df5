"""One look for every figure: colours with a fixed meaning, type that stays readable on a phone.

Okabe and Ito's palette keeps its differences for colour-blind readers; the two colours that matter most also differ in
lightness. Figures are white cards, so that they look the same on a dark page.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from lib.claims import estimate

WITHOUT_FIX = "#D55E00"  # vermilion: attention as it is
WITH_FIX = "#0072B2"  # blue: attention with the fix
THEORY = "#000000"  # a prediction is always a black line
CASES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # neutral categories, in order of use
MARKERS = ("o", "s", "^", "D", "v", "P")  # the same cases without colour
FAMILIES = dict(zip(("i.i.d.", "orthogonal", "low rank", "product", "block sparse"), CASES, strict=False))  # chapter 2
MUTED = "#8A8A8A"  # what a figure shows only for comparison

_RC = {
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def use() -> None:
    """Apply the style to every figure of this process."""
    mpl.rcParams.update(_RC)


def panels(count: int = 1, *, height: float = 3.6, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of 1 or 2 panels side by side, 6 inches wide: at 400 px its type is still some 10 px high."""
    if count not in (1, 2):
        raise ValueError(f"count: got {count}; a figure has 1 or 2 panels side by side, to stay readable at 400 px")
    fig, axes = plt.subplots(1, count, figsize=(6.0, height), layout="constrained", sharey=sharey, squeeze=False)
    return fig, list(axes[0])


def size_axis(ax: Axes, sizes: Sequence[int], name: str = "$T$") -> None:
    """A logarithmic horizontal axis with a tick at each size that was run."""
    ax.set(xscale="log", xlabel=name, xticks=sizes, xticklabels=sizes)
    ax.xaxis.set_minor_locator(NullLocator())


def means(ax: Axes, x: Sequence[float] | Tensor, draws: Tensor, color: str, marker: str = "o", **kwargs) -> None:
    """Means over draws with 95 % intervals; ``draws`` has shape (points, draws)."""
    bars = [estimate(values).half_width(0.05) for values in draws]
    ax.errorbar(x, draws.mean(-1), bars, fmt=marker, color=color, **kwargs)


def label(ax: Axes, text: str, x: float, y: float, color: str, offset: tuple[float, float] = (4, 4)) -> None:
    """Name a curve where it runs, in its own colour, ``offset`` points away, in place of a legend."""
    ax.annotate(text, (x, y), color=color, xytext=offset, textcoords="offset points")
