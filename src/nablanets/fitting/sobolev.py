"""Sobolev fitting: targets that mix gradients, potential values and Hessian-vector products, also incomplete ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.fitting.objective import PackedTargets
from nablanets.keywords import explain_keywords
from nablanets.maps import GradientMap


@explain_keywords
@dataclass(frozen=True)
class SobolevTargets(PackedTargets):
    r"""What is known of a potential F at n points: give at least one of gradients, values and products.

    ``fit(net, x, SobolevTargets(...))`` minimises

    .. math:: \overline{\|f - g\|^2} + \lambda_F\, \overline{(F_\theta - F - c)^2} +
        \lambda_H\, \overline{\|J v - H v\|^2},

    means over what is observed, with c the best constant for each batch, since f knows F up to a constant only. A
    missing component is NaN; each mean is over the components that are there, times d where it stands for a vector.

    Attributes:
        gradient: g, (n, d).
        potential: F, (n).
        directions: v, (n, d), and
        products: H v with H the Hessian of F, (n, d); both or none.
        weights: of the samples, (n), all >= 0; one if None.
        potential_weight: lambda_F, in units of gradient^2 / potential^2.
        product_weight: lambda_H.

    >>> from nablanets import GradNetM, fit
    >>> x = torch.rand(200, 2)
    >>> half = torch.where(torch.rand(200, 2) < 0.5, torch.nan, 2 * x)       # half of the components are missing
    >>> targets = SobolevTargets(gradient=half, potential=x.square().sum(dim=1))
    >>> fit(GradNetM(2, 8), x, targets, steps=50, progress=False).stop_reason
    'steps'
    """

    gradient: Tensor | None = None
    potential: Tensor | None = None
    directions: Tensor | None = None
    products: Tensor | None = None
    weights: Tensor | None = None
    potential_weight: float = 1.0
    product_weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.directions is None) != (self.products is None):
            raise InvalidInputError("SobolevTargets: expected directions and products, or neither.")
        if self.gradient is None and self.potential is None and self.products is None:
            raise InvalidInputError("SobolevTargets: expected at least one of gradient, potential and products.")
        for name in ("gradient", "potential", "directions", "products", "weights"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, as_tensor(given, owner="SobolevTargets", name=name))
        for name in ("potential_weight", "product_weight"):
            if not getattr(self, name) >= 0:
                raise InvalidInputError(f"SobolevTargets: expected {name} >= 0, got {getattr(self, name)}.")

    def signature(self) -> dict[str, Any]:
        return {"weights": [self.potential_weight, self.product_weight]}

    def pack(self, x: Tensor) -> Tensor:
        """All targets of points (n, d) side by side, (n, columns), with zeros where nothing was observed.

        Raises:
            ShapeError: targets that do not belong to n points in d dimensions.
            InvalidInputError: infinite targets, directions with NaN, or negative weights.
        """
        n, d = x.shape
        columns = [self._column("weights", torch.ones(n) if self.weights is None else self.weights, (n,), x)]
        if bool((columns[0] < 0).any()) or not bool(torch.isfinite(columns[0]).all()):
            raise InvalidInputError("SobolevTargets: expected finite weights >= 0.")
        for name, shape in (("gradient", (n, d)), ("potential", (n,)), ("products", (n, d))):
            value = getattr(self, name)
            if value is not None:
                column = self._column(name, value, shape, x)
                columns += [column.nan_to_num(nan=0.0), (~column.isnan()).to(x)]
        if self.directions is not None:
            directions = self._column("directions", self.directions, (n, d), x)
            if bool(directions.isnan().any()):
                raise InvalidInputError("SobolevTargets: expected directions without NaN; mark missing products.")
            columns.append(directions)
        return torch.cat(columns, dim=1)

    def _column(self, name: str, value: Tensor, shape: tuple[int, ...], x: Tensor) -> Tensor:
        if value.shape != shape:
            raise ShapeError(
                f"SobolevTargets: expected {name} of shape {shape} for points of shape {tuple(x.shape)}, got "
                f"{tuple(value.shape)}."
            )
        if bool(value.isinf().any()):
            raise InvalidInputError(
                f"SobolevTargets: expected {name} without infinite values (NaN marks missing ones)."
            )
        return value.detach().to(x).reshape(len(x), -1)

    def __call__(self, net: nn.Module, x: Tensor, packed: Tensor) -> Tensor:
        """The objective on points and their packed targets."""
        parts = self._unpack(packed, x.shape[1])
        loss = packed.new_zeros(())
        if parts.gradient is not None:
            loss = loss + x.shape[1] * _mean_square(net(x), parts.gradient, parts.weights)
        if parts.potential is None and parts.products is None:
            return loss
        if not isinstance(net, GradientMap):
            raise InvalidInputError(
                f"fit: potential values and Hessian-vector products can be fitted by a GradientMap only, got "
                f"{type(net).__name__}, which has no potential."
            )
        if parts.potential is not None:
            values = net.potential(x).unsqueeze(1)
            weights = parts.weights * parts.potential.observed
            constant = ((values - parts.potential.value) * weights).sum() / _positive(weights.sum())
            loss = loss + self.potential_weight * _mean_square(values - constant, parts.potential, parts.weights)
        if parts.products is not None and parts.directions is not None:
            products = net.hvp(x, parts.directions)
            loss = loss + self.product_weight * x.shape[1] * _mean_square(products, parts.products, parts.weights)
        return loss

    def size(self, x: Tensor, packed: Tensor) -> float:
        """The root of the objective of a map that is zero, divided by the number of features."""
        parts = self._unpack(packed.double(), x.shape[1])
        total = 0.0
        if parts.gradient is not None:
            total += float(_mean_square(torch.zeros_like(parts.gradient.value), parts.gradient, parts.weights))
        if parts.potential is not None:
            values = parts.potential.value
            weights = parts.weights * parts.potential.observed
            mean = (values * weights).sum() / _positive(weights.sum())
            total += self.potential_weight * float(_mean_square(mean, parts.potential, parts.weights)) / x.shape[1]
        if parts.products is not None:
            zero = torch.zeros_like(parts.products.value)
            total += self.product_weight * float(_mean_square(zero, parts.products, parts.weights))
        return math.sqrt(total)

    def _unpack(self, packed: Tensor, d: int) -> _Parts:
        present = (self.gradient is not None, self.potential is not None, self.products is not None)
        widths = [size for size, there in zip((d, 1, d), present, strict=True) if there for _ in range(2)]
        weights, *columns = packed.split([1, *widths, *([d] if present[2] else [])], dim=1)
        directions = columns.pop() if present[2] else None
        pairs = iter(zip(columns[::2], columns[1::2], strict=True))
        gradient, potential, products = (_Observed(*next(pairs)) if there else None for there in present)
        return _Parts(weights, gradient, potential, products, directions)


class _Observed(NamedTuple):
    """Values, and one where they were observed, zero elsewhere."""

    value: Tensor
    observed: Tensor


class _Parts(NamedTuple):
    weights: Tensor
    gradient: _Observed | None
    potential: _Observed | None
    products: _Observed | None
    directions: Tensor | None


def _mean_square(predicted: Tensor, target: _Observed, weights: Tensor) -> Tensor:
    """The weighted mean of squared differences over what was observed; zero if nothing was."""
    w = weights * target.observed
    return ((predicted - target.value).square() * w).sum() / _positive(w.sum())


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)
