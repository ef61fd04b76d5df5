"""A few pre-activations at once: their squared Mahalanobis radius is chi-square in the limit, and how far from it.

``R^2 = z^T Sigma^{-1} z`` for ``d`` pre-activations with limiting covariance ``Sigma``: of one neuron at several
inputs, or of several neurons at one input. At width ``n`` its distribution function moves by ``shift / n``.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.joint_corrections import JointCorrection
from lib.weight_conditions import FourthMoments
from lib.width_corrections import Correction


@dataclass(frozen=True)
class RadiusCorrection:
    """What corrects ``R^2 ~ chi^2_d``: ``E R^2 = d (1 + a / n)``, and ``d (d + 2) b / n``, the sum of fourth cumulants.

    The second is Mardia's measure of kurtosis.

    Args:
        d: how many pre-activations.
        a: ``tr(Sigma^{-1} mean) / d`` where ``E z z^T = Sigma + mean / n``.
        b: ``sum_ij cumulant(y_i, y_i, y_j, y_j) n / (d (d + 2))`` for the whitened ``y = Sigma^{-1/2} z``.
    """

    d: int
    a: float
    b: float

    def shift(self, t: Tensor) -> Tensor:
        """``n (P(R^2 <= t) - P(chi^2_d <= t)) = -a t p(t) + (b/2) (t^2 p(t))'``, ``p`` the density of ``chi^2_d``."""
        half = self.d / 2
        density = torch.exp((half - 1) * t.log() - t / 2 - half * math.log(2) - math.lgamma(half))
        return t * density * (-self.a + self.b / 2 * (half + 1 - t / 2))

    @property
    def kolmogorov(self) -> float:
        """Limit of ``n`` times the Kolmogorov-Smirnov distance of ``R^2`` from ``chi^2_d``."""
        t = torch.linspace(0, 4 * self.d + 40, 8001, dtype=torch.float64)[1:]
        return float(self.shift(t).abs().max())


def radius_at_inputs(c: JointCorrection) -> RadiusCorrection:
    """One neuron at ``k`` inputs."""
    root = torch.linalg.inv(torch.linalg.cholesky(c.K))
    d = len(c.K)
    C = torch.einsum("ia,ib,jc,jd,abcd->ij", root, root, root, root, c.C)
    crossed = torch.einsum("ia,jb,ic,jd,abcd->ij", root, root, root, root, c.C)
    a = float(torch.trace(root @ c.m @ root.mT)) / d
    return RadiusCorrection(d, a, float((C + 2 * crossed).sum()) / (d * (d + 2)))


def radius_of_neurons(own: Correction, shared: Correction, d: int = 2) -> RadiusCorrection:
    """``d`` neurons at one input.

    Args:
        own: of one neuron, as :func:`lib.width_corrections.corrections` gives it.
        shared: the same for the moments :func:`between_neurons`.
    """
    cumulants = d * (3 * own.C + (d - 1) * shared.C) / own.K**2
    return RadiusCorrection(d, own.m / own.K, cumulants / (d * (d + 2)))


def between_neurons(weights: FourthMoments) -> FourthMoments:
    """Moments for which ``C`` is that of two neurons, ``cumulant(z_1, z_1, z_2, z_2) = C / n``.

    The recursion of :func:`lib.width_corrections.corrections` for a single neuron feeds on that of two.
    """
    return dataclasses.replace(weights, same_row=weights.two_rows + 2 * weights.crossed, entry=3 * weights.column)
