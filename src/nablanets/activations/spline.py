"""A learnable activation: the spline whose slope is piecewise linear between knots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nablanets.activations.base import ElementwiseActivation
from nablanets.errors import InvalidInputError
from nablanets.parameters import constrained, inverse_softplus


class Spline(ElementwiseActivation):
    r"""Learnable quadratic spline per unit ("neural activation").

    The slope s' interpolates linearly between learnable values at ``knots`` equally spaced points of
    ``[-radius, radius]`` and is constant outside, so s is once continuously differentiable, psi is a cubic
    spline in closed form, and the slope interval is exactly the range of the knot values. With
    ``monotone=True`` the knot values are softplus of free parameters. Starts as s(z) = z / 2 + tanh-like bend
    (our choice).
    """

    def __init__(
        self, units: Sequence[int] = (), *, monotone: bool = False, knots: int = 9, radius: float = 3.0
    ) -> None:
        super().__init__(units, monotone=monotone)
        if knots < 2 or not radius > 0:
            raise InvalidInputError(f"Spline: expected knots >= 2 and radius > 0, got {knots} and {radius}.")
        self.knots, self.radius = knots, radius
        start = 1 - torch.linspace(-radius, radius, knots).tanh().square() * 0.8
        if monotone:
            start = torch.tensor([inverse_softplus(value) for value in start.tolist()])
        self.slope_raw = nn.Parameter(start.expand(*self.units, knots).clone())

    @property
    def increasing(self) -> bool:
        return self.monotone

    def _knot_slopes(self) -> Tensor:
        return constrained(self.slope_raw, nonnegative=self.monotone)

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        slopes = self._knot_slopes()
        return slopes.amin(-1), slopes.amax(-1)

    def _pieces(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Offset t into the piece that holds z, then s'' (constant), s', s and psi at its left end.

        Pieces are counted from left: piece 0 lies left of all knots, piece K right of them.
        """
        slope = self._knot_slopes()
        step = 2 * self.radius / (self.knots - 1)
        bend = slope.diff(dim=-1) / step
        value = torch.cumsum((slope[..., 1:] + slope[..., :-1]) * (step / 2), dim=-1)
        value = torch.cat([torch.zeros_like(slope[..., :1]), value], dim=-1)
        rise = value[..., :-1] * step + slope[..., :-1] * step**2 / 2 + bend * step**3 / 6
        height = torch.cat([torch.zeros_like(slope[..., :1]), torch.cumsum(rise, dim=-1)], dim=-1)
        zero = torch.zeros_like(slope[..., :1])
        table = torch.stack(
            [
                torch.cat([zero, bend, zero], dim=-1),
                torch.cat([slope[..., :1], slope], dim=-1),
                torch.cat([zero, value], dim=-1),
                torch.cat([zero, height], dim=-1),
            ]
        )
        piece = torch.clamp(torch.floor((z.detach() + self.radius) / step) + 1, 0, self.knots).long()
        left = (piece - 1).clamp(min=0).to(z.dtype) * step - self.radius
        batch = z.ndim - len(self.units)
        table = table.reshape(4, *[1] * batch, *self.units, self.knots + 1).expand(4, *z.shape, self.knots + 1)
        picked = torch.gather(table, -1, piece.expand(4, *z.shape).unsqueeze(-1)).squeeze(-1)
        return z - left, picked[0], picked[1], picked[2], picked[3]

    def forward(self, z: Tensor) -> Tensor:
        t, bend, slope, value, _ = self._pieces(z)
        return value + t * (slope + t * bend / 2)

    def potential(self, z: Tensor) -> Tensor:
        t, bend, slope, value, height = self._pieces(z)
        return height + t * (value + t * (slope / 2 + t * bend / 6))

    def derivative(self, z: Tensor) -> Tensor:
        t, bend, slope, _, _ = self._pieces(z)
        return slope + t * bend
