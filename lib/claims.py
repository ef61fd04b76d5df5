"""Claims: a prediction, a measurement, a tolerance with its reason, and a control that must fail.

A claim holds when ``measured`` lies within ``tolerance`` of ``predicted``, where

    tolerance = t_{n-1}(1 - alpha/2) * stderr + finite_size,    alpha = 1e-4.

The first term is the Monte Carlo error of the measurement, the second the known distance between the size that was run
and the limit that the theorem speaks of. A control is a second measurement, or a second prediction, judged by the same
rule: it must *not* hold. Records travel inside the notebook as data (``MIME``) beside the readable table.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats

MIME = "application/vnd.book.claims+json"
# A book of a hundred claims then shows one false alarm in a hundred runs at a fresh seed.
ALPHA = 1e-4
SIGNS = {"=": "", "<": "≤ ", ">": "≥ "}
TAGS = ("paper", "sharp", "beyond")
ROUNDING = 1e-12  # relative: below it a spread differs from machine to machine
# Six digits travel in the record: enough for every reader, few enough to be the same on every machine.
_DIGITS = 6


def number(x: float | None) -> str:
    """Three significant digits, since BLAS and the number of threads move the rest; a dash for what is not there."""
    return "–" if x is None else f"{x:.3g}"


@dataclass(frozen=True)
class Estimate:
    """A measured mean with its standard error over ``n`` independent draws (``n = 1``, ``stderr = 0``: exact)."""

    value: float
    stderr: float = 0.0
    n: int = 1

    def __post_init__(self):
        if self.n < 1 or (self.n == 1 and self.stderr):
            raise ValueError(f"n: got {self.n} with stderr {self.stderr:.3g}; an error bar needs at least 2 draws")

    def half_width(self, alpha: float = ALPHA) -> float:
        """Half-width ``t_{n-1}(1 - alpha/2) * stderr`` of the ``1 - alpha`` Student interval."""
        return 0.0 if self.n == 1 else float(stats.t.ppf(1 - alpha / 2, self.n - 1)) * self.stderr


def estimate(samples: torch.Tensor | Sequence[float]) -> Estimate:
    """Mean and standard error ``std / sqrt(n)`` of independent draws; a spread that is rounding noise counts as none.

    Args:
        samples: at least two real numbers, one per draw.

    Raises:
        ValueError: fewer than two draws (no error bar can be given), or a value that is not finite.
    """
    x = torch.as_tensor(samples, dtype=torch.float64).flatten().cpu()
    if x.numel() < 2:
        raise ValueError(f"samples: got {x.numel()} draw(s); an error bar needs at least 2")
    if not x.isfinite().all():
        raise ValueError(f"samples: {int((~x.isfinite()).sum())} of {x.numel()} values are not finite")
    mean, std = float(x.mean()), float(x.std())
    return Estimate(mean, std / math.sqrt(x.numel()) if std > ROUNDING * abs(mean) else 0.0, x.numel())


def slope(log_x: torch.Tensor | Sequence[float], log_y: torch.Tensor) -> Estimate:
    """Least-squares slope of ``log y`` against ``log x``, with its standard error over draws.

    Args:
        log_x: shape (points,).
        log_y: shape (points, draws); draws are independent, and so is the slope of each.
    """
    x = torch.as_tensor(log_x, dtype=torch.float64).cpu()
    y = torch.as_tensor(log_y, dtype=torch.float64).cpu()
    if x.ndim != 1 or y.ndim != 2 or y.shape[0] != x.shape[0] or x.shape[0] < 2:
        raise ValueError(
            f"log_x, log_y: shapes {tuple(x.shape)}, {tuple(y.shape)}; need (points >= 2,), (points, draws)"
        )
    weights = (x - x.mean()) / (x - x.mean()).square().sum()
    return estimate(weights @ y)


@dataclass(frozen=True)
class Control:
    """A negative control: what was changed, and the estimate or the prediction that replaces the claim's own.

    Exactly one of ``measured`` and ``predicted`` is given; the other is the claim's.
    """

    description: str
    measured: Estimate | None = None
    predicted: float | None = None

    def __post_init__(self):
        if (self.measured is None) == (self.predicted is None):
            raise ValueError("control: give either measured (another ensemble) or predicted (another theory), not both")


@dataclass(frozen=True)
class Claim:
    """One claim, as :func:`claim` or :func:`not_attempted` makes it.

    ``holds`` is the comparison; ``as_stated`` whether it came out as the book says, which is the opposite where the
    statement is wrong; ``passed`` also asks the control to fail.
    """

    id: str
    case: str
    tag: str
    statement: str
    source: str
    holds: bool
    as_stated: bool
    passed: bool
    status: str
    relation: str = "="
    predicted: float | None = None
    measured: float | None = None
    half_width: float | None = None
    n: int = 0
    tolerance: float | None = None
    tolerance_from: str = ""
    control: dict[str, Any] | None = None
    no_control: str = ""
    reason: str = ""

    @property
    def key(self) -> str:
        """``id`` and, where a claim has several cases, the case: unique in a notebook."""
        return f"{self.id} ({self.case})" if self.case else self.id

    @property
    def bound(self) -> str:
        """The prediction as text, such as ``≤ 2``."""
        return SIGNS[self.relation] + number(self.predicted)

    @property
    def interval(self) -> str:
        """The measurement as text, such as ``1.93 ± 0.2``."""
        return number(self.measured) + (f" ± {self.half_width:.2g}" if self.half_width else "")

    @property
    def verdict(self) -> str:
        """The status, or why the check fails."""
        if self.passed:
            return self.status
        return "FAILS: the control passes" if self.control and not self.control["fails"] else f"FAILS: {self.status}"

    @property
    def control_outcome(self) -> str:
        """What became of the control, such as ``2.6 against ≤ 2, rejected``; empty where there is none."""
        if self.control is None:
            return ""
        values = f"{number(self.control['measured'])} against {SIGNS[self.relation]}{number(self.control['predicted'])}"
        return f"{values}, {'rejected' if self.control['fails'] else 'NOT rejected'}"


def _holds(measured: Estimate, relation: str, predicted: float, finite_size: float) -> tuple[bool, float]:
    """Whether ``measured relation predicted`` within the tolerance, and the tolerance."""
    tolerance = measured.half_width() + finite_size
    distance = measured.value - predicted
    signed = {"=": abs(distance), "<": distance, ">": -distance}[relation]
    # A NaN never holds, and an infinite error bar excuses nothing.
    return bool(signed <= tolerance < math.inf), tolerance


def _fails(measured: Estimate, relation: str, predicted: float, finite_size: float) -> bool:
    """Whether the comparison can be made and does not hold: a NaN refutes nothing."""
    broken = any(math.isnan(x) for x in (measured.value, measured.stderr, predicted))
    return not broken and not _holds(measured, relation, predicted, finite_size)[0]


def claim(
    id: str,
    statement: str,
    *,
    predicted: float,
    measured: Estimate,
    source: str,
    tag: str = "paper",
    case: str = "",
    relation: str = "=",
    finite_size: float = 0.0,
    finite_size_from: str = "",
    control: Control | None = None,
    no_control: str = "",
    trend: bool = False,
    differs: str = "",
) -> Claim:
    """Check one claim and its negative control.

    Args:
        id: the claim's name in the book, such as ``"A1"``; ``case`` tells apart several checks of one claim.
        statement: one line, formulas between dollar signs.
        predicted: the value theory gives, from a formula, never from a run of the same code.
        measured: the value of this run, with its error; see :func:`estimate`.
        source: where the statement comes from.
        tag: ``paper``, ``sharp`` (a stronger form than the paper's) or ``beyond``.
        relation: ``"="``, ``"<"`` (at most) or ``">"`` (at least).
        finite_size: the known distance from the limit at the size that was run, added to the Monte Carlo error.
        finite_size_from: the formula or the reason behind ``finite_size``; required if that is not zero.
        control: what must fail by the same rule; ``no_control`` says why where none exists.
        trend: the check concerns a trend rather than a value; reported as "agrees in trend".
        differs: the reason why the statement is wrong, where the book says so. The check must then fail.

    Raises:
        ValueError: an unknown tag or relation, a tolerance without a reason, or neither control nor ``no_control``.
    """
    if tag not in TAGS:
        raise ValueError(f"tag: got {tag!r}; use one of {', '.join(TAGS)}")
    if relation not in SIGNS:
        raise ValueError(f"relation: got {relation!r}; use one of {', '.join(SIGNS)}")
    if not (math.isfinite(finite_size) and finite_size >= 0):
        raise ValueError(f"finite_size: got {finite_size}; it is a distance, finite and >= 0")
    if finite_size and not finite_size_from:
        raise ValueError(f"finite_size_from: {id} allows {finite_size:.3g} for finite size; say where that comes from")
    if control is None and not no_control:
        raise ValueError(f"control: {id} has none; give one, or say in no_control why none exists")
    if control is not None and no_control:
        raise ValueError(f"no_control: {id} has a control; drop one of the two")

    holds, tolerance = _holds(measured, relation, predicted, finite_size)
    record, control_fails = None, True
    if control is not None:
        c_measured, c_predicted = control.measured or measured, predicted
        if control.predicted is not None:
            c_predicted = control.predicted
        c_tolerance = _holds(c_measured, relation, c_predicted, finite_size)[1]
        control_fails = _fails(c_measured, relation, c_predicted, finite_size)
        record = {
            "description": control.description,
            "predicted": _round(c_predicted),
            "measured": _round(c_measured.value),
            "half_width": _round(c_measured.half_width()),
            "tolerance": _round(c_tolerance),
            "fails": control_fails,
        }
    as_stated = _fails(measured, relation, predicted, finite_size) if differs else holds
    agrees = "agrees in trend" if trend else "agrees"
    status = agrees if holds else "differs"
    monte_carlo = f"{100 * (1 - ALPHA):g} % Student interval over {measured.n} draws" if measured.n > 1 else ""
    return Claim(
        id=id,
        case=case,
        tag=tag,
        statement=statement,
        source=source,
        relation=relation,
        predicted=_round(predicted),
        measured=_round(measured.value),
        half_width=_round(measured.half_width()),
        n=measured.n,
        tolerance=_round(tolerance),
        tolerance_from=" + ".join(filter(None, [monte_carlo, finite_size_from])) or "exact",
        control=record,
        no_control=no_control,
        holds=holds,
        as_stated=as_stated,
        passed=as_stated and control_fails,
        status=status,
        reason=differs,
    )


def not_attempted(id: str, statement: str, *, reason: str, source: str, tag: str = "paper", case: str = "") -> Claim:
    """A claim that the book lists but does not check, with the reason."""
    if not reason:
        raise ValueError(f"reason: say why {id} was not attempted")
    return Claim(id, case, tag, statement, source, False, True, True, "not attempted", reason=reason)


class Claims:
    """The claims of one notebook: a table for the reader, a record for the Claims page, the tests and papermill.

    Args:
        claims: the checked claims; no two may share id and case.
    """

    def __init__(self, *claims: Claim):
        keys = [c.key for c in claims]
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"claims: {sorted({k for k in keys if keys.count(k) > 1})} given twice; tell them apart by case"
            )
        self.claims = claims

    def __iter__(self):
        return iter(self.claims)

    def __len__(self):
        return len(self.claims)

    @property
    def failed(self) -> list[Claim]:
        """Claims whose comparison or whose control did not come out as it must."""
        return [c for c in self if not c.passed]

    def record(self) -> list[dict[str, Any]]:
        """The claims as plain JSON data."""
        return [asdict(c) for c in self]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._html(), MIME: self.record()}

    def __repr__(self) -> str:
        return "\n".join(f"{c.key}: {c.verdict}; predicted {c.bound}, measured {c.interval}" for c in self)

    def _html(self) -> str:
        head = "".join(f"<th>{h}</th>" for h in ("Claim", "Predicted", "Measured", "Tolerance", "Control", "Verdict"))
        rows = "".join(_row(c) for c in self)
        return f'<div class="claims"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _round(x: float) -> float | None:
    """To the digits of the record; values that are not finite have no JSON and become None."""
    return float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None


def text_and_math(s: str) -> list[str]:
    """Text and, at the odd places, the formulas that stand between dollar signs."""
    return re.split(r"\$([^$]+)\$", s)


def _text(s: str) -> str:
    """Escape for HTML; formulas are marked for MathJax."""
    marked = [
        f'<span class="tex2jax_process mathjax_process">\\({html.escape(p)}\\)</span>' if i % 2 else html.escape(p)
        for i, p in enumerate(text_and_math(s))
    ]
    return "".join(marked)


def _row(c: Claim) -> str:
    control = c.no_control if c.control is None else f"{c.control['description']}: {c.control_outcome}"
    cells = [
        f"<strong>{_text(c.key)}</strong> {_text(c.statement)}",
        c.bound,
        c.interval,
        f'<span title="{html.escape(c.tolerance_from)}">{number(c.tolerance)}</span>',
        _text(control),
        c.verdict + (f": {_text(c.reason)}" if c.reason else ""),
    ]
    state = "pass" if c.passed else "fail"
    return f'<tr class="claim-{state}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
