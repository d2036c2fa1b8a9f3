"""Levenberg-Marquardt for small networks, on many starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablanets.fitting.batches import Samples
from nablanets.fitting.stack import Stack
from nablanets.fitting.stepper import Stepper

# Numbers in the Jacobians that are held at once: about what fits into a cache.
_CHUNK = 2**20
_RANKING_ROWS = 500
# A start stands still when its error falls by less than this fraction over an iteration, so often in a row.
_STILL, _PATIENCE = 1e-7, 10


class Levenberg(Stepper):
    r"""Minimise the mean of :math:`\|f_\theta(x_i) - g_i\|^2` by damped Gauss-Newton steps, in float64.

    .. math:: (J^\top J + \mu D)\,\delta = -J^\top r, \qquad D = \max_{\text{iterations}} \mathrm{diag}\, J^\top J,

    with the residuals r and their Jacobian J (n d rows, p columns) on fixed samples, and the damping mu of Nielsen's
    gain-ratio rule, for each start by itself. Every ``halve_every`` iterations the better half of the starts by
    validation error goes on with twice the samples, so that an iteration costs the same as long as there are several:
    starts x samples x d x p^2 multiply-adds. The samples are also doubled when all starts stand still; when there are
    no more samples, the fit has converged.

    Args:
        nets: the starts; the best validated weights are shown in the first.
        train: training samples in random order.
        test: validation samples.
        rows: how many of them are used at the beginning, from the first on.
        halve_every: iterations between halvings; if None, all starts stay.

    Reference:
        Marquardt, J. SIAM 11 (1963); the damping: Nielsen, IMM-REP-1999-05. The halving of starts is ours.
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        train: Samples,
        test: Samples,
        *,
        rows: int,
        halve_every: int | None,
    ) -> None:
        self.net = nets[0]
        self.stack = Stack(nets, torch.float64)
        self.x, self.g = (part.double() for part in train)
        self.test = [part[:_RANKING_ROWS].double() for part in test]
        self.rows, self.halve_every = min(rows, len(self.x)), halve_every
        self.iteration = 0
        self.alive = torch.arange(len(nets), device=self.x.device)
        self.damping = torch.ones_like(self.theta[:, 0])
        self.error: Tensor
        self.still: Tensor
        self._begin()

    @property
    def rate(self) -> float:
        """The damping of the start that does best on the training samples."""
        return float(self.damping[self.error.argmin()])

    @torch.no_grad()
    def advance(self, rate: float) -> Tensor:
        self.iteration += 1
        before = self.error.clone()
        self._iterate()
        fallen = self.error < (1 - _STILL) * before
        self.still = torch.where(fallen, torch.zeros_like(self.still), self.still + 1)
        due = self.halve_every is not None and self.iteration % self.halve_every == 0
        if due and len(self.alive) > 1:
            self._halve()
        elif (due or bool((self.still >= _PATIENCE).all())) and self.rows < len(self.x):
            self._enlarge()
        return self.error.min()

    @property
    def stop_reason(self) -> str:
        return "converged" if bool((self.still >= _PATIENCE).all()) else ""

    def publish(self) -> None:
        self.stack.write(int(self._ranking().argmin()), self.net)

    def state(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "rows": self.rows} | {name: getattr(self, name) for name in self._tensors}

    def restore(self, state: dict[str, Any]) -> None:
        self.stack.keep(state["alive"])
        for name, value in state.items():
            setattr(self, name, value)

    _tensors = ("alive", "theta", "damping", "growth", "still", "scale", "normal", "slope", "error")

    @property
    def theta(self) -> Tensor:
        return self.stack.theta

    @theta.setter
    def theta(self, value: Tensor) -> None:
        self.stack.theta = value

    def _begin(self) -> None:
        """The normal equations of all starts on the present samples."""
        self.growth = torch.full_like(self.damping, 2.0)
        self.still = torch.zeros_like(self.damping)
        self.normal, self.slope, self.error = self._normal_equations(torch.arange(len(self.alive)))
        self.scale = self.normal.diagonal(dim1=-2, dim2=-1).clone()

    def _halve(self) -> None:
        order = self._ranking().argsort(stable=True)
        best = order[: (len(order) + 1) // 2].sort().values
        self.stack.keep(best)
        self.alive, self.damping = self.alive[best], self.damping[best]
        self._enlarge()

    def _enlarge(self) -> None:
        self.rows = min(2 * self.rows, len(self.x))
        self._begin()

    def _iterate(self) -> None:
        system = self.normal + torch.diag_embed(self.damping.unsqueeze(1) * self.scale.clamp(min=1e-12))
        factor, failed = torch.linalg.cholesky_ex(system)
        step = -torch.cholesky_solve(self.slope.unsqueeze(-1), factor).squeeze(-1)
        tried = self.theta + step
        error = self._errors(tried, self.x[: self.rows], self.g[: self.rows])
        curvature = (step * (self.normal @ step.unsqueeze(-1)).squeeze(-1)).sum(-1)
        gain = (self.error - error) / (-2 * (step * self.slope).sum(-1) - curvature)
        accepted = (gain > 0) & torch.isfinite(error) & (failed == 0)
        self.theta = torch.where(accepted.unsqueeze(1), tried, self.theta)
        shrink = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
        self.damping = torch.where(accepted, self.damping * shrink, self.damping * self.growth).clamp(1e-15, 1e15)
        self.growth = torch.where(accepted, torch.full_like(self.growth, 2.0), 2 * self.growth)
        moved = accepted.nonzero().squeeze(1)
        if len(moved):
            self.normal[moved], self.slope[moved], self.error[moved] = self._normal_equations(moved)
            self.scale = torch.maximum(self.scale, self.normal.diagonal(dim1=-2, dim2=-1))

    def _normal_equations(self, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """J^T J / n, J^T r / n and |r|^2 / n of some starts, summed over chunks of samples."""
        theta = self.theta[members]
        count, size = theta.shape
        chunk = max(16, _CHUNK // (count * size * self.x.shape[1]))
        normal, slope, error = (
            theta.new_zeros(count, size, size),
            torch.zeros_like(theta),
            torch.zeros_like(theta[:, 0]),
        )
        for x, g in zip(self.x[: self.rows].split(chunk), self.g[: self.rows].split(chunk), strict=True):
            jacobian, value = self.stack.jacobians(theta, x, members)
            jacobian, residual = jacobian.flatten(1, 2), (value - g).flatten(1)
            normal += jacobian.mT @ jacobian
            slope += (jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1)
            error += residual.square().sum(-1)
        return normal / self.rows, slope / self.rows, error / self.rows

    def _errors(self, theta: Tensor, x: Tensor, g: Tensor) -> Tensor:
        chunk = max(16, _CHUNK // theta.numel())
        parts = zip(x.split(chunk), g.split(chunk), strict=True)
        sums = [(self.stack.values(theta, a) - b).square().sum(dim=(1, 2)) for a, b in parts]
        return torch.stack(sums).sum(dim=0) / len(x)

    @torch.no_grad()
    def _ranking(self) -> Tensor:
        """Validation error of each start; infinite where it is not a number."""
        error = self._errors(self.theta, *self.test)
        return torch.where(torch.isfinite(error), error, torch.inf)
