"""Weight ensembles that are *not* pseudo-iid, each built to fail one of the four conditions; the class says which.

They are drawn through ``Z = Phi W^T`` wherever their law allows it, as in :mod:`lib.ensembles`, so that a width of
10,000 stays cheap. A matrix of fixed rank ``r``, which violates (iv) alone, is :class:`lib.ensembles.LowRank` ``(r)``.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lib.ensembles import Ensemble, Gaussian
from lib.random_matrices import block_grams, cholesky, gaussian, gram, shuffle


class Counterexample(Ensemble):
    """An ensemble that violates some of the conditions (i)-(iv); ``violates`` names them."""

    violates: ClassVar[str] = ""


@dataclass(frozen=True)
class RowScales(Counterexample):
    """``W_ij ~ N(0, v_i / n)``: rows of unequal variance. Violates (iv): ``n^2 E[W_1j^2 W_1j'^2] -> mean(v^2) > 1``.

    Shuffled rows make it exchangeable, and turn it into a mixture of Gaussian ensembles, which it stays at every width.

    Args:
        variances: ``v``, of mean 1, given to equal shares of the rows.
        permuted: shuffle the rows. Otherwise they come in blocks, and (i) is violated as well.
    """

    variances: tuple[float, ...] = (0.2, 1.8)
    permuted: bool = True
    name: str = "row scales"
    violates: ClassVar[str] = "(iv)"

    def __post_init__(self):
        if min(self.variances) < 0 or abs(sum(self.variances) / len(self.variances) - 1) > 1e-12:
            raise ValueError(f"variances: got {self.variances}; they are >= 0 and their mean is 1")

    def matrix(self, m, n, generator, batch=()):
        return self._scales(m, batch, generator).mT * gaussian(*batch, m, n, generator=generator) / math.sqrt(n)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        return Gaussian().outputs(Phi, m, generator) * self._scales(m, Phi.shape[:-2], generator).to(Phi.dtype)

    def _scales(self, m: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """``sqrt(v_i)``, shape (*batch, 1, m)."""
        _check_multiple("m", m, len(self.variances))
        scales = torch.tensor(self.variances, dtype=torch.float64, device=generator.device).sqrt()
        scales = scales.repeat_interleave(m // len(scales)).expand(*batch, 1, m)
        return shuffle(scales, generator) if self.permuted else scales


@dataclass(frozen=True)
class BernoulliBlocks(Counterexample):
    """``W = P_1 (M o G) P_2`` with a mask of ``blocks x blocks`` independent coins: an *unbalanced* sparse ensemble.

    Violates (iv): the density of a row varies, and ``n^2 E[W_1j^2 W_1j'^2] -> 1 + (1 - p) / (p blocks)``. The mask of
    :class:`lib.ensembles.BlockSparse` gives every row the same density. Conditions (i)-(iii) hold.

    Args:
        blocks: block rows, and block columns; both ``m`` and ``n`` are multiples of it.
        density: ``p``, the chance that a block is kept; kept entries are N(0, 1/(pn)).
    """

    blocks: int = 3
    density: float = 0.5
    name: str = "Bernoulli blocks"
    violates: ClassVar[str] = "(iv)"

    def __post_init__(self):
        if not 0 < self.density <= 1:
            raise ValueError(f"density: got {self.density}; the chance to keep a block is in (0, 1]")

    def matrix(self, m, n, generator, batch=()):
        _check_blocks(m, n, self.blocks)
        mask = self._mask(batch, generator).repeat_interleave(m // self.blocks, -2)
        mask = shuffle(mask.repeat_interleave(n // self.blocks, -1), generator)  # (*batch, m, n), columns shuffled
        mask = shuffle(mask.mT, generator).mT
        return mask * gaussian(*batch, m, n, generator=generator) / math.sqrt(self.density * n)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        (k, n), batch, b = Phi.shape[-2:], Phi.shape[:-2], self.blocks
        _check_blocks(m, n, self.blocks)
        if not shuffled:
            Phi = shuffle(Phi, generator)
        G = block_grams(Phi, b)
        seen = torch.einsum("...rc,...cij->...rij", self._mask(batch, generator), G)
        M = cholesky(seen) / math.sqrt(self.density * n)
        A = gaussian(*batch, b, k, m // b, generator=generator, dtype=Phi.dtype)
        return shuffle((M.to(A.dtype) @ A).transpose(-2, -3).flatten(-2), generator)

    def _mask(self, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        coins = torch.rand(
            *batch, self.blocks, self.blocks, dtype=torch.float64, device=generator.device, generator=generator
        )
        return (coins < self.density).double()


@dataclass(frozen=True)
class RandomSigns(Counterexample):
    """``W_ij = eps_i w_j``: independent signs times one row ``w`` of N(0, 1/n) entries, common to all.

    Violates (iv) alone: entries are exchangeable, centred and uncorrelated, ``n^4 E|a . W_1|^8 = 105 ||a||^8``, yet
    ``n^2 E[W_1j W_2j W_1j' W_2j'] = 1``. All outputs agree up to sign.
    """

    name: str = "random signs"
    violates: ClassVar[str] = "(iv)"

    def matrix(self, m, n, generator, batch=()):
        return signs(*batch, m, 1, generator=generator) * gaussian(*batch, 1, n, generator=generator) / math.sqrt(n)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        eps = signs(*Phi.shape[:-2], 1, m, generator=generator).to(Phi.dtype)
        return Gaussian().outputs(Phi, 1, generator) * eps


@dataclass(frozen=True)
class CorrelatedRows(Counterexample):
    """``W_ij = (sqrt(rho) w_j + sqrt(1 - rho) g_ij) / sqrt(n)``: Gaussian, exchangeable, rows correlated.

    Violates (ii), which asks for uncorrelated entries, and with it (iv): ``n^2 E[W_1j W_2j W_1j' W_2j'] = rho^2``. One
    output of one layer is exactly that of independent weights.

    Args:
        correlation: ``rho``, of two entries of one column; 1 makes all rows equal.
    """

    correlation: float = 0.3
    name: str = "correlated rows"
    violates: ClassVar[str] = "(ii), (iv)"

    def __post_init__(self):
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation: got {self.correlation}; this construction gives values from 0 to 1")

    def matrix(self, m, n, generator, batch=()):
        return self._mix(batch, m, n, generator, torch.float64) / math.sqrt(n)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        A = self._mix(Phi.shape[:-2], m, Phi.shape[-2], generator, Phi.dtype).mT
        return (cholesky(gram(Phi)) / math.sqrt(Phi.shape[-1])).to(A.dtype) @ A

    def _mix(self, batch, m, n, generator, dtype) -> Tensor:
        common, own = (gaussian(*batch, rows, n, generator=generator, dtype=dtype) for rows in (1, m))
        return math.sqrt(self.correlation) * common + math.sqrt(1 - self.correlation) * own


EQUAL_ROWS = CorrelatedRows(1.0, name="equal rows")


@dataclass(frozen=True)
class FixedFanIn(Counterexample):
    """Each row has ``d`` entries N(0, 1/d) at places of its own, however large ``n``: an output is no long sum.

    Violates (iii): for ``a = e_1``, ``n^4 E|a . W_1|^8 = 105 (n/d)^3`` is unbounded; and (iv):
    ``n^2 E[W_1j^2 W_1j'^2] -> 1 - 1/d``.

    Args:
        fan_in: ``d``.
    """

    fan_in: int = 2
    name: str = "fixed fan-in"
    violates: ClassVar[str] = "(iii), (iv)"

    def __post_init__(self):
        if self.fan_in < 1:
            raise ValueError(f"fan_in: got {self.fan_in}; a row has at least 1 entry")

    def matrix(self, m, n, generator, batch=()):
        W = torch.zeros(*batch, m, n, dtype=torch.float64, device=generator.device)
        for place in self._places(m, n, generator, batch):
            entry = gaussian(*batch, m, 1, generator=generator) / math.sqrt(self.fan_in)
            W.scatter_(-1, place[..., None], entry)
        return W

    def outputs(self, Phi, m, generator, *, shuffled=False):
        batch, (k, n) = Phi.shape[:-2], Phi.shape[-2:]
        Z = Phi.new_zeros(*batch, k, m)
        for place in self._places(m, n, generator, batch):
            entry = gaussian(*batch, 1, m, generator=generator, dtype=Phi.dtype) / math.sqrt(self.fan_in)
            Z += Phi.gather(-1, place[..., None, :].expand(Z.shape)) * entry
        return Z

    def _places(self, m, n, generator, batch) -> list[Tensor]:
        """``d`` columns of each row, a uniform subset, each of shape (*batch, m), by Floyd's algorithm."""
        if self.fan_in > n:
            raise ValueError(f"fan_in: got {self.fan_in}; a row of {n} entries has at most {n}")
        places: list[Tensor] = []
        for last in range(n - self.fan_in, n):
            pick = torch.randint(last + 1, (*batch, m), generator=generator, device=generator.device)
            for earlier in tuple(places):  # taken already: the new column instead
                pick = torch.where(pick == earlier, last, pick)
            places.append(pick)
        return places


@dataclass(frozen=True)
class Stable(Counterexample):
    """Independent symmetric alpha-stable entries, ``E e^{itW} = exp(-|t|^alpha / n)``, of infinite variance.

    Violates (ii) and (iii). For one input, ``sum_j W_j phi_j`` is stable of scale ``(mean |phi|^alpha)^{1/alpha}``.

    Args:
        alpha: in (0, 2); 2 would be Gaussian of variance 2/n.
    """

    alpha: float = 1.0
    name: str = "stable"
    violates: ClassVar[str] = "(ii), (iii)"

    def __post_init__(self):
        if not 0 < self.alpha < 2:
            raise ValueError(f"alpha: got {self.alpha}; a stable law of infinite variance has 0 < alpha < 2")

    def matrix(self, m, n, generator, batch=()):
        return stable(self.alpha, *batch, m, n, generator=generator) / n ** (1 / self.alpha)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        if Phi.shape[-2] > 1:  # the spectral measure of several outputs is that of all columns of Phi
            return super().outputs(Phi, m, generator)
        scale = Phi.abs().pow(self.alpha).mean(-1, keepdim=True).pow(1 / self.alpha)
        return scale * stable(self.alpha, *Phi.shape[:-1], m, generator=generator).to(Phi.dtype)


@dataclass(frozen=True)
class StudentT(Counterexample):
    """Independent Student entries with ``nu`` degrees of freedom, over the scale that keeps a sum of ``n`` bounded.

    Variance ``1/n`` for ``nu > 2``, where only (iii) is violated, and only for ``nu <= 8``: there is no eighth moment.
    Variance infinite for ``nu <= 2``, which violates (ii): Student over ``n^{1/nu}``, and over ``sqrt(n log n)`` at 2.

    Args:
        nu: degrees of freedom, > 0.
    """

    nu: float = 5.0
    name: str = "Student"
    violates: ClassVar[str] = "(iii)"

    def __post_init__(self):
        if not (math.isfinite(self.nu) and self.nu > 0):
            raise ValueError(f"nu: got {self.nu}; degrees of freedom are finite and > 0")

    def scale(self, n: int) -> float:
        """What a Student variable is multiplied by."""
        if self.nu > 2:
            return math.sqrt((1 - 2 / self.nu) / n)
        return n ** (-1 / self.nu) if self.nu < 2 else 1 / math.sqrt(n * math.log(n))

    def matrix(self, m, n, generator, batch=()):
        # sqrt(nu (U^{-2/nu} - 1)) is the radius of a bivariate Student vector, and a coordinate of it is Student.
        U, V = uniforms(2, *batch, m, n, generator=generator)
        radius = torch.expm1(U.log_().mul_(-2 / self.nu)).mul_(self.nu).sqrt_()
        return radius.mul_(V.mul_(2 * math.pi).cos_()).mul_(self.scale(n))


@dataclass(frozen=True)
class BlockDiagonal(Counterexample):
    """``W`` block diagonal with N(0, blocks/n) entries, *not* shuffled. Violates (i) alone.

    Block row ``c`` sees block column ``c``, so that layers of it make ``blocks`` networks of width ``n / blocks`` side
    by side.

    Args:
        blocks: how many; both ``m`` and ``n`` are multiples of it.
    """

    blocks: int = 3
    name: str = "unpermuted blocks"
    violates: ClassVar[str] = "(i)"

    def matrix(self, m, n, generator, batch=()):
        _check_blocks(m, n, self.blocks)
        ones = torch.ones(m // self.blocks, n // self.blocks, dtype=torch.float64, device=generator.device)
        mask = torch.block_diag(*[ones] * self.blocks)
        return mask * gaussian(*batch, m, n, generator=generator) * math.sqrt(self.blocks / n)

    def outputs(self, Phi, m, generator, *, shuffled=False):
        _check_blocks(m, Phi.shape[-1], self.blocks)
        parts = Phi.unflatten(-1, (self.blocks, -1)).transpose(-2, -3)  # (..., blocks, k, n / blocks)
        return Gaussian().outputs(parts, m // self.blocks, generator).transpose(-2, -3).flatten(-2)


@dataclass(frozen=True)
class Rademacher(Counterexample):
    """``W_ij = +-1 / sqrt(n)``, independent. It violates nothing behind the first layer, where the CLT forgets it.

    As a *first* layer, with ``n = N_0`` fixed, it does: ``W x`` has another law than a Gaussian layer's.
    """

    name: str = "Rademacher"
    violates: ClassVar[str] = "first layer"

    def matrix(self, m, n, generator, batch=()):
        return signs(*batch, m, n, generator=generator) / math.sqrt(n)


def signs(*shape: int, generator: torch.Generator) -> Tensor:
    """Independent signs on the generator's device, float64."""
    bits = torch.randint(2, shape, generator=generator, device=generator.device, dtype=torch.int8)
    return bits.double().mul_(2).sub_(1)


def uniforms(*shape: int, generator: torch.Generator) -> Tensor:
    """Uniform on (0, 1], so that a logarithm of it is finite."""
    return 1 - torch.rand(*shape, dtype=torch.float64, device=generator.device, generator=generator)


def stable(alpha: float, *shape: int, generator: torch.Generator) -> Tensor:
    """Symmetric alpha-stable variables, ``E e^{itS} = exp(-|t|^alpha)``.

    ``S = sin(alpha V) / cos(V)^{1/alpha} (cos((1 - alpha) V) / E)^{(1 - alpha)/alpha}`` with ``V`` uniform on
    ``(-pi/2, pi/2)`` and ``E`` exponential.

    Source: Chambers, Mallows & Stuck (1976).
    """
    V, E = uniforms(2, *shape, generator=generator)
    V = math.pi * (V - 0.5)
    if alpha == 1:
        return torch.tan(V)
    E = -E.log()
    return torch.sin(alpha * V) / torch.cos(V).pow(1 / alpha) * (torch.cos((1 - alpha) * V) / E).pow(1 / alpha - 1)


def _check_multiple(name: str, size: int, blocks: int) -> None:
    if size % blocks:
        raise ValueError(f"{name}: got {size}; {blocks} equal blocks of it need a multiple of {blocks}")


def _check_blocks(m: int, n: int, blocks: int) -> None:
    _check_multiple("m", m, blocks)
    _check_multiple("n", n, blocks)
