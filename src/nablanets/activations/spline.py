"""A learnable activation: a quadratic B-spline per unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nablanets.activations.base import ElementwiseActivation, ParameterColumns
from nablanets.errors import InvalidInputError
from nablanets.parameters import inverse_softplus, softplus, through_constraint


class Spline(ElementwiseActivation):
    r"""Learnable quadratic spline per unit ("neural activation").

    s(z) = sum_k c_k B_k(z) with quadratic B-splines over ``knots`` equally spaced points of ``[-radius, radius]`` and
    straight continuation outside. s is once continuously differentiable, psi is a cubic spline in closed form, and the
    slope interpolates linearly between its values (c_{k+1} - c_k) / step at the knots, so the slope interval is
    exactly their range. Only three coefficients act at any z: evaluation costs the same for any number of knots.
    With ``monotone=True`` the coefficients increase (steps by softplus). Starts with slopes between 0.2 and 1, steepest
    at 0 (our choice).
    """

    def __init__(
        self, units: Sequence[int] = (), *, monotone: bool = False, knots: int = 9, radius: float = 3.0
    ) -> None:
        super().__init__(units, monotone=monotone)
        if knots < 2 or not radius > 0:
            raise InvalidInputError(f"Spline: expected knots >= 2 and radius > 0, got {knots} and {radius}.")
        self.knots, self.radius = knots, radius
        self.step = 2 * radius / (knots - 1)
        slopes = 1 - 0.8 * torch.linspace(-2, 2, knots).tanh().square()
        first = -slopes.sum() * self.step / 2
        if monotone:
            raw = torch.cat([first.unsqueeze(0), inverse_softplus(slopes)])
        else:
            raw = torch.cat([first.unsqueeze(0), first + self.step * slopes.cumsum(0)])
        self.raw = nn.Parameter(raw.expand(*self.units, knots + 1).clone())

    @property
    def increasing(self) -> bool:
        return self.monotone

    def coefficients(self) -> Tensor:
        """c_0 .. c_knots, of shape (*units, knots + 1)."""
        if not self.monotone:
            return self.raw
        first, steps = self.raw[..., :1], softplus(self.raw[..., 1:]) * self.step
        return torch.cat([first, first + steps.cumsum(dim=-1)], dim=-1)

    def parameter_columns(self, z: Tensor) -> list[ParameterColumns]:
        """The B-splines B_k(z), of which three are not zero; where the c_k are sums of steps, sums of them."""
        index, t = self._place(z)
        interior = (index > 0) & (index < self.knots)
        bend = torch.where(interior, t.square() / 2, 0.0)  # both ends are straight
        weights = (0.5 - t + bend, 0.5 + t - 2 * bend, bend)
        first = (index - 1).clamp(min=0).unsqueeze(-1)
        numbers = torch.arange(self.knots + 1, device=z.device)
        basis = torch.zeros_like(z).unsqueeze(-1)
        for k, weight in enumerate(weights):
            basis = basis + torch.where(numbers == first + k, weight.unsqueeze(-1), 0.0)  # (*, *units, knots + 1)
        if self.monotone:
            sums = basis.flip(-1).cumsum(dim=-1).flip(-1)  # over all B_k from this one on
            steps = through_constraint(self.step * sums[..., 1:], self.raw[..., 1:], nonnegative=True)
            basis = torch.cat([sums[..., :1], steps], dim=-1)
        return [ParameterColumns(self.raw, basis)]

    def bends(self) -> tuple[float, ...]:
        return tuple(k * self.step - self.radius for k in range(self.knots))

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        slopes = self.coefficients().diff(dim=-1) / self.step
        return slopes.amin(-1), slopes.amax(-1)

    def _pieces(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the piece that holds z, t = (z - its left knot) / step, and a0, a1, a2 with s = a0 + a1 t + a2 t^2.

        Piece 0 lies left of all knots and piece ``knots`` right of them; both are straight (a2 = 0).
        """
        c = self.coefficients()
        value, rise = (c[..., 1:] + c[..., :-1]) / 2, c.diff(dim=-1)
        bend = nn.functional.pad(rise.diff(dim=-1) / 2, (1, 1))
        start = torch.cat([value[..., :1], value], dim=-1), torch.cat([rise[..., :1], rise], dim=-1), bend
        index, t = self._place(z)
        return index, t, self._pick(torch.stack(start, dim=-1), index)

    def _place(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the piece that holds z, counted from zero, and t = (z - its left knot) / step."""
        position = (z + self.radius) / self.step
        piece = position.detach().floor().clamp(-1, self.knots - 1)
        piece = torch.where(piece.isnan(), 0.0, piece)  # NaN has no piece; t carries it on
        return (piece + 1).long(), position - piece.clamp(min=0)

    def _pick(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows of a table (*units, pieces, n), at one index per unit and sample (*batch, *units)."""
        pieces = table.shape[-2]
        first = torch.arange(0, table[..., 0, 0].numel() * pieces, pieces, device=table.device)
        place = index + first.reshape(table.shape[:-2])
        rows = table.reshape(-1, table.shape[-1])
        differentiated = torch.is_grad_enabled() and table.requires_grad
        if torch.compiler.is_compiling() or not differentiated:  # exports know this word
            return nn.functional.embedding(place, rows)
        # The same, with a derivative that takes a tenth of the time: sums along n long rows, not of many short ones.
        picked = rows.mT.index_select(1, place.flatten())  # (n, samples and units)
        return picked.unflatten(1, place.shape).movedim(0, -1)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        _, t, row = self._pieces(z)
        a0, a1, a2 = row.unbind(-1)
        return a0 + t * (a1 + t * a2), (a1 + 2 * t * a2) / self.step

    def forward(self, z: Tensor) -> Tensor:
        _, t, row = self._pieces(z)
        a0, a1, a2 = row.unbind(-1)
        return a0 + t * (a1 + t * a2)

    def derivative(self, z: Tensor) -> Tensor:
        return self.value_and_derivative(z)[1]

    def potential(self, z: Tensor) -> Tensor:
        index, t, row = self._pieces(z)
        a0, a1, a2 = row.unbind(-1)
        c = self.coefficients()
        areas = (c[..., :-2] + 4 * c[..., 1:-1] + c[..., 2:]) / 6
        heights = nn.functional.pad(areas.cumsum(dim=-1), (2, 0)).unsqueeze(-1)
        height = self._pick(heights, index).squeeze(-1)
        return self.step * (height + t * (a0 + t * (a1 / 2 + t * a2 / 3)))
