"""Dials: a map whose curvature stays between two numbers, whatever its parameters are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.maps.base import GradientMap
from nablanets.operators import StructuredOperator, SymmetricOperator
from nablanets.serialization import savable


@savable
class Constrained(GradientMap):
    r"""f(x) = c g(x) + s x with c <= 1 and s such that lower <= J_f(x) <= upper for every x.

    c and s follow from the certified bounds of g at every evaluation, so they hold at every training step: c is 1 and
    s is 0 as long as g keeps the bounds by itself. With ``lower = mu > 0`` f is mu-strongly monotone; with
    ``lower = 0`` it is 1/upper-cocoercive; with ``lower = 0, upper = 1`` it is firmly nonexpansive, a proximal map.

    Args:
        inner: g, with finite ``curvature_bounds``.
        lower, upper: the bounds, lower < upper.

    Each evaluation computes eigenvalues of two d x d matrices.

    Raises:
        InvalidInputError: the bounds are no interval, or nothing is known about the curvature of ``inner``.

    >>> from nablanets import GradNetM
    >>> f = Constrained(GradNetM(3, 8), lower=0.0, upper=1.0)
    >>> eigenvalues = f.jacobian(torch.randn(50, 3)).eigvalsh()
    >>> bool(eigenvalues.min() >= -1e-6) and bool(eigenvalues.max() <= 1 + 1e-6)
    True
    """

    def __init__(self, inner: GradientMap, lower: float, upper: float) -> None:
        if not lower < upper:
            raise InvalidInputError(f"Constrained: expected lower < upper, got {lower} and {upper}.")
        if not bool(torch.isfinite(torch.stack(inner.curvature_bounds())).all()):
            raise InvalidInputError(
                f"Constrained: nothing finite is known about the curvature of this {type(inner).__name__} "
                "(curvature_bounds). Polynomial activations and potentials of arbitrary networks have no bound."
            )
        super().__init__(inner.features, monotone=lower >= 0)
        self.inner = inner
        self.lower, self.upper = float(lower), float(upper)

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "lower": self.lower, "upper": self.upper}

    def _dials(self) -> tuple[Tensor, Tensor]:
        """c and s."""
        low, high = (_eigenvalues(bound) for bound in self.inner.curvature_envelope())
        least, most = low[0], high[-1]
        spread = (most - least).clamp(min=torch.finfo(most.dtype).tiny)
        c = ((self.upper - self.lower) / spread).clamp(max=1.0)
        # Where c < 1 the interval is filled, and s has no freedom left (clamp would lose its gradient there).
        free = torch.zeros_like(c).clamp(min=self.lower - least, max=self.upper - most)
        s = torch.where(c < 1, self.lower - c * least, free)
        dtype = next(self.parameters()).dtype
        return c.to(dtype), s.to(dtype)

    def _forward(self, x: Tensor) -> Tensor:
        c, s = self._dials()
        return c * self.inner(x) + s * x

    def _potential(self, x: Tensor) -> Tensor:
        c, s = self._dials()
        return c * self.inner.potential(x) + s * x.square().sum(dim=-1) / 2

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        c, s = self._dials()
        return self.inner.jacobian(x).scale(c) + StructuredOperator(self.features, (), s.expand_as(x))

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        c, s = self._dials()
        inner, xp, pp = self.inner.along(x, p), (x * p).sum(dim=-1), p.square().sum(dim=-1)
        return lambda t: c * inner(t) + s * (xp + t * pp)

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        c, s = self._dials()
        lower, upper = self.inner.curvature_envelope()
        shift = s * torch.eye(self.features, dtype=lower.dtype, device=lower.device)
        return c * lower + shift, c * upper + shift


def constrain(net: GradientMap, *, lower: float, upper: float) -> Constrained:
    """The map with its curvature held between ``lower`` and ``upper``. See :class:`Constrained`."""
    return Constrained(net, lower, upper)


def _eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
