"""Will these weights give a Gaussian process? Estimates of the pseudo-iid conditions for any ensemble, and a verdict.

``assess`` needs nothing but a way to draw a matrix. It draws at several widths, estimates what the conditions (i)-(iv)
ask, tests each at a stated level, and predicts the correction of order ``1/n`` from the fourth moments.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.activations import TANH
from lib.claims import Estimate, estimate
from lib.condition_tests import (
    EIGHTH,
    FOURTH,
    UNCORRELATED,
    Finding,
    bounded_eighth,
    exchangeable,
    fourth_limits,
    off_target,
    uncorrelated,
    without_scale,
)
from lib.ensembles import Ensemble
from lib.gaussian_moments import Activation
from lib.random_matrices import gaussian
from lib.structured_ensembles import Shuffled
from lib.weight_conditions import FourthMoments, estimated_moments, estimated_second_moments
from lib.width_corrections import corrections

Draw = Callable[[int, int, torch.Generator], Tensor]
_CHUNK = 1 << 18  # entries drawn at a time: what a cache holds


@dataclass(frozen=True)
class Drawn(Ensemble):
    """A function ``draw(m, n, generator)`` that returns one matrix, as an ensemble."""

    draw: Draw
    name: str = "ensemble"

    def matrix(self, m, n, generator, batch=()):
        matrices = [_checked(self.draw(m, n, generator), (m, n), self.name) for _ in range(math.prod(batch))]
        return torch.stack(matrices).reshape(*batch, m, n) if matrices else torch.empty(*batch, m, n).double()


def as_ensemble(ensemble: Ensemble | Draw) -> Ensemble:
    """An ensemble as it is, a function ``draw(m, n, generator)`` as :class:`Drawn`.

    Raises:
        ValueError: neither of the two.
    """
    if isinstance(ensemble, Ensemble):
        return ensemble
    if isinstance(ensemble, type) or not callable(ensemble):
        raise ValueError(f"ensemble: got {ensemble!r}; give an Ensemble, or a function draw(m, n, generator)")
    return Drawn(ensemble, getattr(ensemble, "__name__", "ensemble"))


def shuffled(ensemble: Ensemble | Draw) -> Shuffled:
    """The ensemble with its rows and its columns in random order: exchangeable, whatever it was."""
    return Shuffled(as_ensemble(ensemble))


@dataclass(frozen=True)
class Report:
    """What :func:`assess` found.

    - ``estimates[name]``: one estimate a size; the names are those of the table;
    - ``findings``: one for each condition;
    - ``expected``: True, False, or None where the theorem does not cover the ensemble or the draws do not tell.
    """

    name: str
    sizes: tuple[int, ...]
    draws: int
    level: float
    estimates: dict[str, list[Estimate]]
    findings: tuple[Finding, ...]

    @property
    def expected(self) -> bool | None:
        by_name = {f.condition: f.holds for f in self.findings}
        if by_name["(ii)"] is False or by_name["(iv)"] is False:
            return False
        return True if all(by_name.values()) else None

    @property
    def verdict(self) -> str:
        """``expected``, or which conditions stand in its way."""
        if self.expected:
            return "expected"
        against = [f.condition for f in self.findings if f.holds is False]
        open_ones = [f.condition for f in self.findings if f.holds is None]
        if self.expected is False:
            return f"not expected: {_conditions(against)}"
        return "undecided: " + ", ".join(
            filter(None, [against and _conditions(against), open_ones and f"{' and '.join(open_ones)} not resolved"])
        )

    def __getitem__(self, name: str) -> list[Estimate]:
        return self.estimates[name]

    def _sections(self) -> list[tuple[str, tuple[str, ...]]]:
        """Headings, each with the names of the estimates below it."""
        names = {"(ii)": tuple(UNCORRELATED), "(iii)": EIGHTH, "(iv)": tuple(FOURTH)}
        judged = [(f"{f.condition} {_word(f.holds)}: {f.reason}", names.get(f.condition, ())) for f in self.findings]
        seen = {name for _, below in judged for name in below}
        return [*judged, ("the correction of order 1/n", tuple(name for name in self.estimates if name not in seen))]

    def __repr__(self) -> str:
        wide = max(map(len, self.estimates)) + 2
        lines = [f"{self.name}: a Gaussian process is {self.verdict}"]
        lines += ["n".rjust(wide) + "".join(str(n).rjust(20) for n in self.sizes)]
        for heading, names in self._sections():
            lines += ["", heading]
            lines += [name.rjust(wide) + "".join(_cell(e).rjust(20) for e in self.estimates[name]) for name in names]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str = "td") -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        rows = []
        for heading, names in self._sections():
            rows.append(f'<tr><th colspan="{1 + len(self.sizes)}">{html.escape(heading)}</th></tr>')
            rows += [row([name, *map(_cell, self.estimates[name])]) for name in names]
        return (
            f'<div class="report"><p><strong>{html.escape(self.name)}</strong>: a Gaussian process is '
            f"<strong>{html.escape(self.verdict)}</strong></p><table><thead>"
            f"{row(['n', *map(str, self.sizes)], 'th')}</thead><tbody>{''.join(rows)}</tbody></table></div>"
        )


def assess(
    ensemble: Ensemble | Draw,
    sizes: Sequence[int],
    generator: torch.Generator,
    *,
    draws: int = 400,
    level: float = 1e-3,
    phi: Activation = TANH,
    sigma_w: float = 2.0,
    sigma_b: float = 0.0,
    layer: int = 3,
) -> Report:
    """Estimates and tests the conditions (i)-(iv) on ``n x n`` draws, and predicts the correction of order ``1/n``.

    A condition that holds is rejected with a chance of at most ``level``: exactly so for (i), asymptotically in
    ``draws`` for the others. (iii) and (iv) speak of limits, so their answers have a resolution, see
    :func:`lib.condition_tests.bounded` and :func:`~lib.condition_tests.vanishes`. Moments are averages over rows and
    columns; for a law that is not exchangeable they are those of its shuffled version.

    - (i): :func:`~lib.condition_tests.exchangeability_pvalues`, at the smallest size;
    - (ii): ``n E W_1j`` (mean), ``n E W_1j^2`` (variance), and the covariances of entries of one row, of one column
      and of neither, summed as the output for a constant vector sums them: many small ones count;
    - (iii): ``n^4 E |a . W_1|^8`` for ``a`` flat, one entry, and uniform on the sphere;
    - (iv): ``same_row``, ``crossed``, ``two_rows`` of :class:`lib.weight_conditions.FourthMoments`.

    Args:
        ensemble: an ensemble of variance ``1/n``, or a function ``draw(m, n, generator)`` that returns an m x n matrix.
        sizes: at least three widths ``n``.
        draws: matrices of the largest size; of a smaller one more, so that all sizes give as many rows.
        level: of the test of each condition.
        phi, sigma_w, sigma_b, layer: the network for which the correction is predicted; its input has norm
            ``sqrt(N_0)``.

    Raises:
        ValueError: what is given is no ensemble, or a draw is not a finite real matrix of the shape asked for.
    """
    law, sizes = as_ensemble(ensemble), tuple(sizes)
    if len(set(sizes)) < 3 or list(sizes) != sorted(set(sizes)) or any(int(n) != n or n < 4 for n in sizes):
        raise ValueError(f"sizes: got {list(sizes)}; need at least 3 widths >= 4 that grow, to see a trend")
    if int(draws) != draws or draws < 50:
        raise ValueError(f"draws: got {draws}; an error bar at level {level:g} needs at least 50")
    if not 0 < level < 0.5:
        raise ValueError(f"level: got {level}; it is a probability between 0 and 1/2")
    if int(layer) != layer or layer < 2:
        raise ValueError(f"layer: got {layer}; the first one is Gaussian, so it is an integer >= 2")
    samples = []
    for n in sizes:
        parts = [_statistics(W, generator) for W in _batches(law, n, draws * sizes[-1] // n, generator)]
        samples.append({name: torch.cat([p[name] for p in parts]) for name in parts[0]})
        samples[-1]["one entry"] = samples[-1]["one entry"][:draws]  # its tails show as the number of entries grows
    columns = {name: [s[name] for s in samples] for name in samples[0]}
    smallest = torch.cat(list(_batches(law, sizes[0], draws, generator)))
    first, third = exchangeable(smallest, generator, level), bounded_eighth(columns, sizes, level)
    off = off_target(columns, sizes, level, heavy=third.holds is False)
    fields = FourthMoments.__dataclass_fields__
    if "variance" not in off:
        for name in fields:
            columns[name] = list(map(without_scale, columns[name], columns["variance"]))
    fourth = fourth_limits(columns, sizes, level)
    limit = sigma_b**2 + sigma_w**2
    for i, n in enumerate(sizes):
        moments = FourthMoments(*(columns[name][i] for name in fields))
        recursion = corrections(phi, moments, n, limit, sigma_w=sigma_w, sigma_b=sigma_b)
        for _ in range(layer):
            correction = next(recursion)
        columns.setdefault("n x kurtosis", []).append(correction.kurtosis)
        columns.setdefault("n x W1", []).append(_wasserstein(correction))
    estimates = {name: [_estimate(x) for x in values] for name, values in columns.items()}
    return Report(law.name, sizes, draws, level, estimates, (first, uncorrelated(off), third, fourth))


def second_layer_kurtosis(moments: FourthMoments, n: int, phi: Activation, K: float) -> float:
    """Excess kurtosis of ``z_1^(2)`` without biases, exact at every ``n``, for odd ``phi`` and a Gaussian first layer.

    ``3 ((1 - 1/n) same_row - 1) + (entry / n) E phi^4 / (E phi^2)^2``, moments at the variance ``K`` of layer 1: the
    activations are i.i.d. and symmetric, so only pairs survive. The neuron is a random one unless (i) holds.
    """
    g, fourth = float(phi.second_moment(K)), float(phi.fourth_moment(K))
    return 3 * ((1 - 1 / n) * float(moments.same_row) - 1) + float(moments.entry) / n * fourth / g**2


def _batches(law: Ensemble, n: int, draws: int, generator: torch.Generator):
    size = max(1, _CHUNK // n**2)
    for start in range(0, draws, size):
        batch = min(size, draws - start)
        yield _checked(law.matrix(n, n, generator, (batch,)), (batch, n, n), law.name)


def _checked(W: object, shape: tuple[int, ...], name: str) -> Tensor:
    """``W`` as a float64 tensor, or an error that says what a draw of the ensemble is to be."""
    wanted = f"a draw is a real matrix of shape {shape[-2:]}"
    if not isinstance(W, Tensor | np.ndarray):
        raise ValueError(f"{name}: returned {type(W).__name__}; {wanted}, a tensor or an array")
    W = torch.as_tensor(W)
    if W.is_complex() or tuple(W.shape) != shape:
        raise ValueError(f"{name}: returned {W.dtype} of shape {tuple(W.shape)}; {wanted}")
    W = W.double()
    if not W.isfinite().all():
        raise ValueError(f"{name}: returned {int((~W.isfinite()).sum())} entries that are not finite; {wanted}")
    return W


def _statistics(W: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """One value a draw; (draws, n, n)."""
    n = W.shape[-1]
    second = estimated_second_moments(W)
    a = gaussian(n, 8, generator=generator)
    vectors = {"flat": W.sum(-1), "random": math.sqrt(n) * (W @ (a / a.norm(dim=0))), "one entry": math.sqrt(n) * W}
    return {
        "mean": math.sqrt(n) * second["mean"],
        "variance": 1 + second["variance"],
        "in a row": (n - 1) * second["same row"],  # the output for a constant vector sums n - 1 of these
        "in a column": second["same column"],
        "neither": (n - 1) * second["apart"],
        **{name: vectors[name].square().square().square().flatten(1).mean(-1) for name in EIGHTH},
        **vars(estimated_moments(W)),
    }


def _wasserstein(correction) -> Tensor:
    """Draws of ``n W_1``, linear in the moments with the signs of the shift at their mean: right to first order."""
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    C, m = (torch.as_tensor(v, dtype=torch.float64) * one for v in (correction.C, correction.m))
    a, b = m / (2 * correction.K), C / (8 * correction.K**2)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    sign = torch.sign(a.mean() * x + b.mean() * (x**3 - 3 * x)) * density
    return math.sqrt(correction.K) * (a * torch.trapezoid(sign * x, x) + b * torch.trapezoid(sign * (x**3 - 3 * x), x))


def _estimate(x: Tensor) -> Estimate:
    return estimate(x) if x.isfinite().all() else Estimate(math.nan)


def _cell(e: Estimate) -> str:
    """Up to three digits and a 95 % half-width of one; what is zero but for rounding is 0."""
    half = e.half_width(0.05)
    value = 0.0 if abs(e.value) < max(1e-8, half / 50) else e.value
    if half <= 1e-8 * max(1, abs(value)):
        return _digits(value, 3)
    return f"{_digits(value, 1 if abs(value) < half else 3)} ± {_digits(half, 1)}"


def _digits(x: float, digits: int) -> str:
    text = f"{x:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text and abs(x) < 1e6 else text


def _conditions(names: list[str]) -> str:
    return f"condition {names[0]} fails" if len(names) == 1 else f"conditions {', '.join(names)} fail"


def _word(holds: bool | None) -> str:
    return {True: "holds", False: "fails", None: "undecided"}[holds]
