"""The inverse of a strongly monotone gradient map, which is a gradient map itself: the gradient of the conjugate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.maps.base import GradientMap
from nablanets.operators import InverseOperator, SymmetricOperator
from nablanets.serialization import savable


@savable
class Conjugate(GradientMap):
    r"""f^{-1} for a strongly monotone f = grad F: the gradient of the convex conjugate :math:`F^*`.

    Its Jacobian at y is J_f(x)^{-1} with x = f^{-1}(y). Values are solved for, to rounding, and differentiable.

    Args:
        inner: f.

    Raises:
        InvalidInputError: f is not strongly monotone as far as ``curvature_bounds`` knows.

    >>> from nablanets import GradNetC
    >>> net, x = GradNetC(3, 8, monotone=True).double(), torch.randn(5, 3, dtype=torch.double)
    >>> inverse = Conjugate(net)
    >>> torch.allclose(inverse(net(x)), x)
    True
    >>> fenchel_young = net.potential(x) + inverse.potential(net(x)) - (x * net(x)).sum(-1)
    >>> bool((fenchel_young.abs() < 1e-9).all())
    True
    """

    def __init__(self, inner: GradientMap) -> None:
        if not inner.monotone or not bool(inner.curvature_bounds()[0] > 0):
            raise InvalidInputError(
                f"Conjugate: expected a strongly monotone map, got a {type(inner).__name__} whose curvature is known "
                f"to be at least {float(inner.curvature_bounds()[0]):.3g} only. Build it with monotone=True and a "
                "linear term, or take constrain(net, lower=mu, upper=L) with mu > 0."
            )
        super().__init__(inner.features, monotone=True)
        self.inner = inner

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner}

    def _forward(self, y: Tensor) -> Tensor:
        return self.inner.inverse(y)

    def _potential(self, y: Tensor) -> Tensor:
        return self.inner.conjugate(y)

    def _jacobian(self, y: Tensor) -> SymmetricOperator:
        return InverseOperator(self.inner.jacobian(self.inner.inverse(y)))

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        """Inverses of the inner bounds, exchanged: L <= J <= U implies U^{-1} <= J^{-1} <= L^{-1}."""
        lower, upper = self.inner.curvature_envelope()
        least = torch.linalg.inv(upper) if bool(torch.isfinite(upper).all()) else torch.zeros_like(lower)
        return least, torch.linalg.inv(lower)
