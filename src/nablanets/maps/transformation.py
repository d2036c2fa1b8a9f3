"""Learnable transformations of one variable with their first two derivatives in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nablanets.activations.base import ParameterColumns
from nablanets.intervals import Interval
from nablanets.maps.modular import difference_scales
from nablanets.parameters import constrained, inverse_softplus, softplus, through_constraint

#: Arguments at which the sigmoids start to be spread, and their steepness there.
_SPREAD, _STEEPNESS = 2.0, 2.0


class Transformation(nn.Module):
    r"""M functions rho_m of one variable each, with a sum of K sigmoids as the derivative,

    .. math:: \rho'(v) = a_0 + \sum_{k=1}^K a_k \sigma(q_k v + c_k), \qquad
        \rho(v) = a_0 v + \sum_k \frac{a_k}{q_k} \log(1 + e^{q_k v + c_k}), \qquad q_k > 0 \text{ (softplus)}.

    With ``monotone`` all a >= 0 (softplus), so rho is convex and nondecreasing on the whole line. All methods act on
    (*, M). Sums of sigmoids approximate every continuous rho' on an interval; the family and its start are our choice.
    """

    def __init__(self, count: int, num_sigmoids: int, *, monotone: bool) -> None:
        super().__init__()
        self.monotone = monotone
        level = torch.full((count,), inverse_softplus(0.5)) if monotone else 0.5 * difference_scales(count)
        step = torch.full((count, num_sigmoids), 1 / num_sigmoids)
        knots = _SPREAD * (torch.arange(num_sigmoids) + 0.5) / num_sigmoids
        self.level_raw = nn.Parameter(level)
        self.step_raw = nn.Parameter(inverse_softplus(step) if monotone else difference_scales(count)[:, None] * step)
        self.steepness_raw = nn.Parameter(torch.full((count, num_sigmoids), inverse_softplus(_STEEPNESS)))
        self.offset = nn.Parameter((-_STEEPNESS * knots).repeat(count, 1))

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """a_0 (M), a_k and q_k (M, K)."""
        level = constrained(self.level_raw, nonnegative=self.monotone)
        return level, constrained(self.step_raw, nonnegative=self.monotone), softplus(self.steepness_raw)

    def forward(self, v: Tensor) -> Tensor:
        """rho(v)."""
        level, steps, steepness = self._coefficients()
        return level * v + (steps / steepness * softplus(v.unsqueeze(-1) * steepness + self.offset)).sum(dim=-1)

    def sigmoids(self, v: Tensor) -> Tensor:
        """sigma(q_k v + c_k), (*, M, K), which the steps a_k multiply in rho'."""
        return torch.sigmoid(v.unsqueeze(-1) * softplus(self.steepness_raw) + self.offset)

    @torch.no_grad()
    def set_coefficients(self, level: Tensor, steps: Tensor) -> None:
        """Let a_0 be ``level`` (M) and a_k be ``steps`` (M, K), positive where the function is monotone."""
        self.level_raw.copy_(inverse_softplus(level) if self.monotone else level)
        self.step_raw.copy_(inverse_softplus(steps) if self.monotone else steps)

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """rho'(v) and rho''(v)."""
        level, steps, steepness = self._coefficients()
        s = torch.sigmoid(v.unsqueeze(-1) * steepness + self.offset)
        return level + (steps * s).sum(dim=-1), (steps * steepness * s * (1 - s)).sum(dim=-1)

    def parameter_columns(self, v: Tensor) -> list[ParameterColumns]:
        """The derivatives of rho'(v) in all parameters: 1 in a_0, sigma in a_k, a_k sigma' v in q_k, a_k sigma' in c_k.

        They are (*, M) and (*, M, K).
        """
        _, steps, _ = self._coefficients()
        s = self.sigmoids(v)
        in_offset = steps * s * (1 - s)
        level = torch.ones_like(v)
        return [
            ParameterColumns(self.level_raw, through_constraint(level, self.level_raw, nonnegative=self.monotone)),
            ParameterColumns(self.step_raw, through_constraint(s, self.step_raw, nonnegative=self.monotone)),
            ParameterColumns(
                self.steepness_raw,
                through_constraint(v.unsqueeze(-1) * in_offset, self.steepness_raw, nonnegative=True),
            ),
            ParameterColumns(self.offset, in_offset),
        ]

    def derivative(self, v: Tensor) -> Tensor:
        """rho'(v)."""
        level, steps, steepness = self._coefficients()
        return level + (steps * torch.sigmoid(v.unsqueeze(-1) * steepness + self.offset)).sum(dim=-1)

    def derivative_intervals(self) -> tuple[Interval, Interval]:
        """Bounds of rho'(v) and of rho''(v) for every v, of shape (M) each."""
        level, steps, steepness = self._coefficients()
        down, up = steps.clamp(max=0), steps.clamp(min=0)
        first = level + down.sum(dim=-1), level + up.sum(dim=-1)
        return first, ((down * steepness).sum(dim=-1) / 4, (up * steepness).sum(dim=-1) / 4)
