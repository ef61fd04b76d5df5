"""Do draws of a weight matrix contradict the pseudo-iid conditions? Tests with a stated level, for any ensemble.

A test takes one number per independent draw, or per pair of draws, and a level. What a level means is said at each:
exact for (i) and for the variance of a heavy-tailed ensemble, asymptotic in the number of draws for the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from lib.claims import Estimate, estimate
from lib.random_matrices import shuffle

Samples = Mapping[str, Sequence[Tensor]]  # statistic -> one value a draw, for each size
UNCORRELATED = {"mean": 0.0, "variance": 1.0, "in a row": 0.0, "in a column": 0.0, "neither": 0.0}
EIGHTH = ("flat", "random", "one entry")
FOURTH = {"same_row": 1.0, "crossed": 0.0, "two_rows": 1.0}
ROUNDING = 1e-9  # what sums over exact identities, such as those of orthogonal matrices, may miss


@dataclass(frozen=True)
class Finding:
    """What the draws say about one condition: it ``holds`` (no sign against it), fails, or None: they do not tell."""

    condition: str
    holds: bool | None
    reason: str


def symmetry_pvalue(differences: Tensor) -> float:
    """Two-sided p-value for independent ``x_d`` with symmetric laws: ``2 exp(-t^2/2)``, ``t = sum x / sqrt(sum x^2)``.

    Valid for every number of draws and any tails: given the sizes, the signs are independent coins, and
    ``E exp(lambda sum eps_d x_d) <= exp(lambda^2 sum x_d^2 / 2)``.

    Source: Hoeffding's inequality, given ``|x_d|``.
    """
    size = float(differences.square().sum())
    return min(1.0, 2 * math.exp(-(float(differences.sum()) ** 2) / (2 * size))) if size > 0 else 1.0


def exchangeability_pvalues(W: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Condition (i): p-values for five ways in which the law of ``W`` may depend on position; (draws, m, n).

    With the bounded entries ``B = x / sqrt(1 + x^2)``, ``x = sqrt(n) W``, and ``S = B^2``, both centred:

    - *signs*, *sizes*: the means of ``B_ij`` and of ``S_ij`` over draws depend on ``(i, j)``;
    - *columns*, *rows*: the dependence of ``S`` in two columns, or in two rows, depends on which they are;
    - *diagonals*: ``S_ij`` and its diagonal neighbours depend on each other more than two distant entries do.

    Each compares a draw with the next one, or its neighbours, before and after a random shuffle of rows and columns. If
    (i) holds then the difference of the two has a symmetric law, so :func:`symmetry_pvalue` is exact. A law whose
    position dependence has none of these forms is not found out.
    """
    pairs = len(W) // 2
    B = W * math.sqrt(W.shape[-1])
    B = B / (1 + B.square()).sqrt()
    S = B.square()
    first = [_centred(X[:pairs]) for X in (B, S)]
    second = [X[pairs : 2 * pairs] for X in (B, S)]
    both = torch.stack(second, 1).flatten(0, 1)  # B and S of a draw, shuffled alike below
    both = _shuffle_alike(both, 2, generator).unflatten(0, (pairs, 2))
    mixed, second = [_centred(X) for X in both.unbind(1)], [_centred(X) for X in second]

    def inner(X: Tensor, Y: Tensor) -> Tensor:
        return (X * Y).flatten(1).sum(-1)

    differences = {
        name: inner(X, Y) - inner(X, M) for name, X, Y, M in zip(("signs", "sizes"), first, second, mixed, strict=True)
    }
    for name, transpose in (("columns", True), ("rows", False)):
        X, Y, M = (_off_diagonal(A[1].mT if transpose else A[1]) for A in (first, second, mixed))
        differences[name] = inner(X, Y) - inner(X, M)
    differences["diagonals"] = _clean(_diagonal_neighbours(second[1]) - _diagonal_neighbours(mixed[1]))
    return {name: symmetry_pvalue(d) for name, d in differences.items()}


def _centred(X: Tensor) -> Tensor:
    return _clean(X - X.mean((-2, -1), keepdim=True))


def _clean(X: Tensor) -> Tensor:
    """Rounding has patterns of its own, which are no property of the ensemble."""
    return torch.where(X.abs() < ROUNDING, 0.0, X)


def _off_diagonal(A: Tensor) -> Tensor:
    """``A A^T`` without its diagonal, what is left centred."""
    G = A @ A.mT
    off = 1 - torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    G = G * off
    return _clean((G - G.sum((-2, -1), keepdim=True) / off.sum()) * off)


def _diagonal_neighbours(A: Tensor) -> Tensor:
    falling, rising = A[..., :-1, :-1] * A[..., 1:, 1:], A[..., :-1, 1:] * A[..., 1:, :-1]
    return (falling + rising).mean((-2, -1))


def _shuffle_alike(X: Tensor, group: int, generator: torch.Generator) -> Tensor:
    """Rows and columns in random orders, the same for each ``group`` of consecutive matrices."""
    for _ in range(2):
        stacked = X.unflatten(0, (-1, group)).flatten(1, 2)  # one tall matrix, whose columns move together
        X = shuffle(stacked, generator).unflatten(1, (group, -1)).flatten(0, 1).mT.contiguous()
    return X


def differs(samples: Sequence[Tensor], target: float, level: float) -> bool:
    """Student's test, at any size, that the draws have another mean than ``target``, up to rounding.

    One tensor of draws a size. A mean that is too low is judged by the largest spread of all sizes: a law with a long
    right tail gives a low mean and a small spread together, whenever the tail is missed. What is not finite differs.
    """
    if not all(x.isfinite().all() for x in samples):
        return True
    spread, rounding = max(float(x.std()) for x in samples), ROUNDING * max(1.0, abs(target))
    for x in samples:
        e = estimate(x)
        widest = Estimate(e.value, spread / math.sqrt(e.n), e.n)
        if e.value - target > e.half_width(level) + rounding or target - e.value > widest.half_width(level) + rounding:
            return True
    return False


def too_large(values: Tensor, level: float, bound: float = 4.0) -> bool:
    """Test of ``E v <= 1`` for ``v >= 0``, exact for any tails: by Markov ``P(v >= 4) <= 1/4``, a binomial test."""
    above = int((~(values < bound)).sum())  # what is not a number is above
    return bool(stats.binom.sf(above - 1, len(values), 1 / bound) < level)


def growth(sizes: Sequence[int], samples: Sequence[Tensor]) -> Estimate:
    """Exponent of ``n`` in the mean of positive samples: slope of ``log mean`` against ``log n``, one tensor a size.

    The error of a logarithm is the relative error of its mean. Samples without a finite mean show a large exponent,
    because their averages grow with the number of entries in them.
    """
    means, errors = [], []
    for x in samples:
        e = estimate(x.clamp(1e-300, 1e300).nan_to_num(1e300))
        means.append(math.log(e.value))
        errors.append(max(e.stderr / e.value, ROUNDING))
    return _slope(sizes, means, errors, len(samples[0]))


def bounded(
    sizes: Sequence[int], samples: Sequence[Tensor], level: float, exponent: float = 1.0, miss: float = 0.02
) -> bool | None:
    """Does the mean grow more slowly than ``n^exponent``? None where the error bar holds that exponent.

    No finite sizes can tell a bound from slow growth; ``exponent`` is the resolution of the answer. A bounded mean is
    called growing with a chance of at most ``level``, one that grows like ``n^exponent`` bounded with at most ``miss``.
    """
    e = growth(sizes, samples)
    if e.value + e.half_width(miss) < exponent:
        return True
    return False if e.value - e.half_width(level) > exponent else None


def vanishes(
    sizes: Sequence[int], deviations: Sequence[Tensor], level: float, exponent: float = 0.25, negligible: float = 0.02
) -> bool | None:
    """Does ``E d`` vanish as ``n`` grows, faster than ``n^{-exponent}``? One tensor of draws a size.

    Yes if ``n^exponent |E d|`` falls with ``n``, or if at the largest size ``|E d| < negligible``, error included. No
    if ``n^exponent |E d|`` grows and the last ``E d`` is not zero. None else. ``exponent`` and ``negligible`` are the
    resolution of the answer: decay like ``1/log n`` counts as none.
    """
    if not all(d.isfinite().all() for d in deviations):
        return None
    estimates = [estimate(d) for d in deviations]
    scale = [n**exponent for n in sizes]
    errors = [s * max(e.stderr, ROUNDING) for s, e in zip(scale, estimates, strict=True)]
    scaled = [s * e.value for s, e in zip(scale, estimates, strict=True)]
    sign = math.copysign(1, sum(y / e**2 for y, e in zip(scaled, errors, strict=True)))
    slope = _slope(sizes, [sign * y for y in scaled], errors, len(deviations[0]))
    half, last = slope.half_width(level), estimates[-1]
    least = abs(last.value) - last.half_width(level) - ROUNDING
    if slope.value > half and least > 0:
        return False
    if slope.value < -half or abs(last.value) + last.half_width(level) < negligible:
        return True
    return None


def _slope(sizes: Sequence[int], y: Sequence[float], errors: Sequence[float], draws: int) -> Estimate:
    """Weighted least squares of ``y`` against ``log n``; the error is that of the ``y``, not of the fit."""
    x, y, w = (torch.tensor(v, dtype=torch.float64) for v in ([math.log(n) for n in sizes], list(y), list(errors)))
    w = (w / w.min()).pow(-2)
    centred = x - (w * x).sum() / w.sum()
    denominator = float((w * centred.square()).sum())
    return Estimate(float((w * centred * y).sum()) / denominator, min(errors) / math.sqrt(denominator), draws)


def without_scale(values: Tensor, scale: Tensor) -> Tensor:
    """Control variate: ``values`` less their regression on ``scale - 1``, whose mean is zero by condition (ii).

    The scale of a whole matrix is what moves its fourth moments most from draw to draw.
    """
    centred = scale - scale.mean()
    spread = float(centred.square().sum())
    if spread < ROUNDING**2 * len(scale):
        return values
    return values - float((centred * values).sum()) / spread * (scale - 1)


def exchangeable(W: Tensor, generator: torch.Generator, level: float) -> Finding:
    """Condition (i), Bonferroni over the five p-values; see :func:`exchangeability_pvalues`."""
    pvalues = exchangeability_pvalues(W, generator)
    seen = [name for name, p in pvalues.items() if p < level / len(pvalues)]
    if seen:
        return Finding("(i)", False, f"position matters ({', '.join(seen)}); shuffled() repairs it")
    return Finding("(i)", True, "no dependence on position seen")


def off_target(columns: Samples, sizes: Sequence[int], level: float, heavy: bool) -> list[str]:
    """Which of the statistics of condition (ii) differ from their targets, Bonferroni over all of them and the sizes.

    By :func:`differs`, and the variance by :func:`too_large` as well; by that alone where tails are ``heavy``.
    """
    each = level / (len(sizes) * (len(UNCORRELATED) + 1))
    large = any(too_large(x, each) for x in columns["variance"])
    off = {name: differs(columns[name], target, each) for name, target in UNCORRELATED.items()}
    off["variance"] = large or (off["variance"] and not heavy)
    return [name for name, is_off in off.items() if is_off]


def uncorrelated(off: Sequence[str]) -> Finding:
    """Condition (ii), from :func:`off_target`."""
    if off:
        return Finding("(ii)", False, f"off: {', '.join(off)}")
    return Finding("(ii)", True, "centred, uncorrelated, variance 1/n within the error")


def bounded_eighth(columns: Samples, sizes: Sequence[int], level: float) -> Finding:
    """Condition (iii), by :func:`bounded`."""
    answers = {name: bounded(sizes, columns[name], level / len(EIGHTH)) for name in EIGHTH}
    if all(answers.values()):
        return Finding("(iii)", True, "eighth moments grow more slowly than n")
    open_ones = {name: growth(sizes, columns[name]) for name, answer in answers.items() if not answer}
    text = ", ".join(
        f"{name} n^({e.value:.1f} ± {e.half_width(level / len(EIGHTH)):.1f})" for name, e in open_ones.items()
    )
    grow = False in answers.values()
    return Finding("(iii)", False if grow else None, f"eighth moments {'grow' if grow else 'may grow'}: {text}")


def fourth_limits(columns: Samples, sizes: Sequence[int], level: float) -> Finding:
    """Condition (iv), by :func:`vanishes`."""
    deviations = {name: [x - target for x in columns[name]] for name, target in FOURTH.items()}
    answers = {name: vanishes(sizes, d, level / (2 * len(FOURTH))) for name, d in deviations.items()}
    if all(answers.values()):
        return Finding("(iv)", True, "the distance from (1, 0, 1) vanishes")
    stays = [name for name, answer in answers.items() if answer is False]
    if stays:
        return Finding("(iv)", False, f"no limit (1, 0, 1): {', '.join(stays)}")
    return Finding("(iv)", None, f"not resolved: {', '.join(name for name, answer in answers.items() if not answer)}")
