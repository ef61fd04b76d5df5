"""Exact regression with a Gaussian process: posterior mean, posterior variance, marginal likelihood."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from torch import Tensor


@dataclass(frozen=True)
class GaussianProcess:
    """``Y = f(X) + sqrt(noise) E`` with columns ``f ~ N(0, K)`` independent; ``C = K + noise I`` is factorised once.

    Args:
        K: kernel of the training inputs, shape (N, N).
        Y: targets, shape (N,) or (N, outputs).
        noise: variance of the noise, >= 0.

    Raises:
        ValueError: the shapes do not fit, or ``C`` is not positive definite to working accuracy.

    Source: Rasmussen & Williams (2006), algorithm 2.1; equivalent to scikit-learn's ``GaussianProcessRegressor``.
    """

    K: Tensor
    Y: Tensor
    noise: float

    def __post_init__(self):
        N = len(self.Y)
        if self.K.shape != (N, N) or self.Y.ndim not in (1, 2):
            shapes = f"{tuple(self.K.shape)}, {tuple(self.Y.shape)}"
            raise ValueError(f"K, Y: got shapes {shapes}; need (N, N), (N, outputs)")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise: got {self.noise}; a variance is finite and >= 0")
        try:
            _ = self._factor
        except LinAlgError as error:
            raise ValueError(f"noise: K + {self.noise:g} I is not positive definite; use a larger noise") from error

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        return cho_factor(self.K.double().cpu().numpy() + self.noise * np.eye(len(self.Y)), lower=True)

    @cached_property
    def _weights(self) -> np.ndarray:
        return cho_solve(self._factor, self.Y.double().cpu().numpy())  # C^{-1} Y

    @property
    def misfit(self) -> float:
        """``tr(Y^T C^{-1} Y)``: convex in ``K``; over ``Y.numel()`` it is 1 on average where the model is right."""
        return float((self.Y.double().cpu().numpy() * self._weights).sum())

    @property
    def log_likelihood(self) -> float:
        """``-(1/2) tr(Y^T C^{-1} Y) - (outputs / 2) (ln det C + N ln 2 pi)``."""
        N = len(self.Y)
        half_log_det = float(np.log(np.diagonal(self._factor[0])).sum())
        return -self.misfit / 2 - self.Y.numel() / N * (half_log_det + N * math.log(2 * math.pi) / 2)

    def predict(self, K_cross: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """``mean = K_* C^{-1} Y``, ``var = k - diag(K_* C^{-1} K_*^T)`` of ``f`` itself, without the noise.

        Args:
            K_cross: kernel of new against training inputs, ``K_*``, shape (M, N).
            k: variances of the new inputs, shape (M,).

        Returns:
            The mean, shape (M,) or (M, outputs), and the variance of every output, shape (M,).
        """
        if K_cross.shape != (len(k), len(self.Y)):
            raise ValueError(f"K_cross: got shape {tuple(K_cross.shape)}; need ({len(k)}, {len(self.Y)})")
        # C = L L^T: one triangular solve, half the work of C^{-1} K_*^T
        half = solve_triangular(self._factor[0], K_cross.double().cpu().numpy().T, lower=True)
        explained = np.einsum("ij,ij->j", half, half)
        return self.mean(K_cross), k.double().cpu() - torch.from_numpy(explained)

    def mean(self, K_cross: Tensor) -> Tensor:
        """The mean alone, ``K_* C^{-1} Y``, at a small part of the cost of :meth:`predict`."""
        if K_cross.ndim != 2 or K_cross.shape[1] != len(self.Y):
            raise ValueError(f"K_cross: got shape {tuple(K_cross.shape)}; need (M, {len(self.Y)})")
        return torch.from_numpy(K_cross.double().cpu().numpy() @ self._weights)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """``1 - 1/classes`` at the label and ``-1/classes`` elsewhere, so that rows sum to 0; (N,) -> (N, classes)."""
    if labels.ndim != 1 or labels.numel() == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels: need shape (N,) with values 0..{classes - 1}")
    return torch.nn.functional.one_hot(labels.long(), classes).double() - 1 / classes
