r"""Levenberg-Marquardt for small networks, on many starts at once.

Least squares have more structure than other minimisations: with residuals r and their Jacobian J, the Hessian of
:math:`\tfrac12 \|r\|^2` is nearly :math:`J^\top J` where the residuals are small. The Gauss-Newton step uses that, but
overshoots far from a solution, where the model of r as linear does not hold. Levenberg and Marquardt shorten the step
by a damping mu: large, it is a small step down the gradient; zero, it is the Gauss-Newton step.

One iteration, for each start:

1. Solve :math:`(J^\top J + \mu D)\, \delta = -J^\top r` by Cholesky.
2. Evaluate the error at :math:`\theta + \delta`, and compare its fall with that of the linear model: the gain ratio.
3. If the error has fallen, take the step, divide the damping by up to three (the more, the better the model was), and
   compute J anew. If not, stay, and multiply the damping by 2, then 4, then 8, ... until a step succeeds.

D is the diagonal of :math:`J^\top J`, the largest that was seen, so that a parameter in other units takes the same
steps. Everything is in float64: :math:`J^\top J` squares the condition number of J.

Beside this stands a search over starts, which is where a small network gains most: every so many iterations the worse
half of the starts, by validation error, is dropped, and the rest go on with twice the samples. An iteration costs
starts x samples x d x p^2 multiply-adds, hence the same throughout while several starts remain. This is successive
halving with samples and iterations as the budget.

Reference:
    Damped equations: Marquardt, J. SIAM 11 (1963). D as a running maximum: More, The Levenberg-Marquardt algorithm,
    1978, section 6 (MINPACK). The damping: Nielsen, Damping parameter in Marquardt's method, IMM-REP-1999-05, eq. 2.4.
    Successive halving: Jamieson and Talwalkar, AISTATS 2016; ours doubles the samples at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablanets.fitting.batches import Samples
from nablanets.fitting.closed_form import make_loss
from nablanets.fitting.derivatives import Workspace
from nablanets.fitting.normal_equations import solve_positive, times_residual, write_gram
from nablanets.fitting.settings import StartRecord
from nablanets.fitting.stack import Stack
from nablanets.fitting.stepper import Stepper

# Numbers in the Jacobians that are held at once: about what fits into a cache.
_CHUNK = 2**20
# Samples in a chunk at least; fewer would leave nothing to vectorise.
_CHUNK_ROWS = 16
# Validation samples that starts are compared by: enough to rank them, few beside the training samples.
_RANKING_ROWS = 500
# An iteration is without progress if the error falls by less than this fraction.
_LEAST_PROGRESS = 1e-7
# A start has converged after so many iterations without progress in a row.
_PATIENCE = 10
# The damping at the beginning, beside a D that has the size of J^T J: cautious, and soon divided away.
_FIRST_DAMPING = 1.0
# Where the damping stays: above the rounding of J^T J, and below the overflow of repeated doublings.
_LEAST_DAMPING = 1e-15
_LARGEST_DAMPING = 1e15
# Of the entries of D: a parameter that nothing depends on must not make the system singular.
_LEAST_SCALE = 1e-12


class Levenberg(Stepper):
    r"""Minimise the mean of :math:`\|f_\theta(x_i) - g_i\|^2` by damped Gauss-Newton steps, in float64.

    .. math:: (J^\top J + \mu D)\,\delta = -J^\top r, \qquad D = \max_{\text{iterations}} \mathrm{diag}\, J^\top J,

    with the residuals r and their Jacobian J (n d rows, p columns) on fixed samples, and a damping mu for each start,
    see the module. The samples are also doubled when all starts stand still; when there are no more samples, the fit
    has converged. A start takes the same steps whichever others there are, up to rounding.

    Args:
        nets: the starts; the best validated weights are shown in the first.
        train: training samples in random order.
        validation: samples to compare the starts by.
        rows: how many training samples are used at the beginning, from the first on.
        halve_every: iterations between halvings; if None, all starts stay.
        unit: that of the targets. Residuals are in multiples of it, so that constants here mean the same for any data.
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        train: Samples,
        validation: Samples,
        *,
        rows: int,
        halve_every: int | None,
        unit: float = 1.0,
    ) -> None:
        self.unit = unit
        self.net = nets[0]
        self.stack = Stack(nets, torch.float64)
        self.loss = make_loss(self.stack)
        self.workspace = Workspace(self.stack.theta)
        self.x, self.g = (part.double() for part in train)
        self.validation = [part[:_RANKING_ROWS].double() for part in validation]
        self.rows = min(rows, len(self.x))
        self.halve_every = halve_every
        self.iteration = 0
        # Of all starts, dropped ones too: (starts,)
        self.steps_taken = torch.zeros(len(nets), dtype=torch.long, device=self.x.device)
        self.last_errors = torch.full((len(nets),), torch.inf, dtype=torch.float64, device=self.x.device)
        # Of those that are left: their places among all, and their damping, (alive,)
        self.alive = torch.arange(len(nets), device=self.x.device)
        self.dampings = torch.full_like(self.theta[:, 0], _FIRST_DAMPING)
        # What _begin sets: iterations without progress in a row, and the mean |r|^2, (alive,)
        self.without_progress: Tensor
        self.error: Tensor
        self._begin()

    @property
    def theta(self) -> Tensor:
        """Parameters of the starts that are left, (alive, p)."""
        return self.stack.theta

    @theta.setter
    def theta(self, value: Tensor) -> None:
        self.stack.theta = value

    @property
    def damping(self) -> float:
        """The damping of the start that does best on the training samples."""
        return float(self.dampings[self.error.argmin()])

    @property
    def error_unit(self) -> float:
        return self.unit**2

    @property
    def stop_reason(self) -> str:
        return "converged" if self._all_stand_still() else ""

    @torch.no_grad()
    def advance(self, learning_rate: float) -> Tensor:
        self.iteration += 1
        self.steps_taken[self.alive] += 1
        before = self.error.clone()
        self._iterate()
        progress = self.error < (1 - _LEAST_PROGRESS) * before
        self.without_progress = torch.where(progress, 0.0, self.without_progress + 1)
        due = self.halve_every is not None and self.iteration % self.halve_every == 0
        if due and len(self.alive) > 1:
            self._halve()
        elif (due or self._all_stand_still()) and self.rows < len(self.x):
            self._enlarge()
        return self.error.min()

    def publish(self) -> int:
        best = int(self.validation_errors().argmin())
        self.stack.write(best, self.net)
        return int(self.alive[best])

    @torch.no_grad()
    def validation_errors(self) -> Tensor:
        """Of the starts that are left, on the samples that they are compared by; infinite where it is not a number."""
        error = self._errors(self.theta, *self.validation)
        error = torch.where(torch.isfinite(error), error, torch.inf)
        self.last_errors[self.alive] = error
        return error

    def starts(self) -> tuple[StartRecord, ...]:
        last_errors = self.last_errors * self.error_unit
        pairs = zip(self.steps_taken.tolist(), last_errors.tolist(), strict=True)
        return tuple(StartRecord(steps, error) for steps, error in pairs)

    def signature(self) -> dict[str, Any]:
        return {"starts": len(self.steps_taken), "halve_every": self.halve_every}

    #: What a resumed fit needs beside the numbers of iterations and samples.
    _tensors = (
        "alive", "theta", "dampings", "growth", "without_progress", "scale", "normal", "gradient", "error",
        "steps_taken", "last_errors",
    )  # fmt: skip

    def state(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in self._tensors}
        return {"iteration": self.iteration, "rows": self.rows, "tensors": tensors}

    def restore(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.rows = state["rows"]
        self.stack.keep(state["tensors"]["alive"].to(self.x.device))
        for name in self._tensors:
            setattr(self, name, state["tensors"][name].to(self.x.device))
        self.system = torch.empty_like(self.normal)

    def _all_stand_still(self) -> bool:
        return bool((self.without_progress >= _PATIENCE).all())

    def _begin(self) -> None:
        """The normal equations of all starts on the present samples, and an end to what was counted on fewer."""
        everyone = torch.arange(len(self.alive), device=self.x.device)
        self.growth = torch.full_like(self.dampings, 2.0)  # what the damping is multiplied by when a step fails
        self.without_progress = torch.zeros_like(self.dampings)
        size = self.theta.shape[1]
        self.normal = self.theta.new_empty(len(everyone), size, size)  # the upper triangle
        self.system = torch.empty_like(self.normal)  # what it becomes with damping, to be overwritten
        self.gradient = torch.empty_like(self.theta)
        self.error = torch.empty_like(self.dampings)
        self._set_normal_equations(everyone)
        self.scale = self.normal.diagonal(dim1=-2, dim2=-1).clone()  # D: (alive, p)

    def _halve(self) -> None:
        """Drop the worse half of the starts, and double the samples."""
        order = self.validation_errors().argsort(stable=True)
        num_kept = (len(order) + 1) // 2
        best = order[:num_kept].sort().values
        self.stack.keep(best)
        self.alive = self.alive[best]
        self.dampings = self.dampings[best]
        self._enlarge()

    def _enlarge(self) -> None:
        self.rows = min(2 * self.rows, len(self.x))
        self._begin()

    def _iterate(self) -> None:
        """One iteration of all starts: solve, compare with the linear model, accept or damp."""
        damped = self.dampings.unsqueeze(1) * self.scale.clamp(min=_LEAST_SCALE)  # mu D, (alive, p)
        self.system.copy_(self.normal)
        self.system.diagonal(dim1=-2, dim2=-1).add_(damped)
        ascent, solved = solve_positive(self.system, self.gradient)
        step = -ascent  # (alive, p)

        tried = self.theta + step
        error = self._errors(tried, self.x[: self.rows], self.g[: self.rows])
        # The linear model's |r|^2 - |r + J step|^2 = -2 step . gradient - step . normal step, where the step solves
        # normal step = -gradient - mu D step.
        fall = (step * (damped * step - self.gradient)).sum(-1)
        gain = (self.error - error) / fall
        accepted = (gain > 0) & torch.isfinite(error) & solved
        self.theta = torch.where(accepted.unsqueeze(1), tried, self.theta)

        shrink = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
        damping = self.dampings * torch.where(accepted, shrink, self.growth)
        self.dampings = damping.clamp(_LEAST_DAMPING, _LARGEST_DAMPING)
        self.growth = torch.where(accepted, 2.0, 2 * self.growth)

        moved = accepted.nonzero().squeeze(1)
        if len(moved):
            self._set_normal_equations(moved)
            self.scale = torch.maximum(self.scale, self.normal.diagonal(dim1=-2, dim2=-1))

    def _set_normal_equations(self, members: Tensor) -> None:
        """J^T J / n (p, p), J^T r / n (p) and |r|^2 / n of some starts, summed over chunks of samples."""
        theta = self.theta if len(members) == len(self.theta) else self.theta[members]
        count = self.rows * self.error_unit  # a number of rows, in the units of squared targets
        rows = max(_CHUNK_ROWS, _CHUNK // (theta.numel() * self.x.shape[1]))
        everyone = len(members) == len(self.normal)
        normal = self.normal if everyone else self.workspace("normal", len(theta), *self.normal.shape[1:])
        gradient = torch.zeros_like(theta)
        error = torch.zeros_like(theta[:, 0])
        for begin in range(0, self.rows, rows):
            x = self.x[begin : min(begin + rows, self.rows)]
            g = self.g[begin : min(begin + rows, self.rows)]
            derivatives = self.stack.derivatives(theta, x, members)
            residual = derivatives.value - g.mT  # (m, d, n)
            part = normal if begin == 0 else self.workspace("part", *normal.shape)
            write_gram(part, derivatives, 1 / count, self.workspace)
            if begin > 0:
                normal += part
            gradient += times_residual(derivatives, residual)
            error += residual.square().sum(dim=(1, 2))
        if not everyone:
            self.normal[members] = normal
        self.gradient[members] = gradient / count
        self.error[members] = error / count

    def _values(self, theta: Tensor, x: Tensor) -> Tensor:
        """f(x) of each row of parameters, (alive, n, d): one network as it is, several by hand where that is known."""
        return self.stack.values(theta, x) if len(theta) == 1 else self.loss.values(theta, x)

    def _errors(self, theta: Tensor, x: Tensor, g: Tensor) -> Tensor:
        """Mean |f(x) - g|^2 of each row of parameters, (alive,)."""
        rows = max(_CHUNK_ROWS, _CHUNK // theta.numel())
        sums = []
        for points, targets in zip(x.split(rows), g.split(rows), strict=True):
            residual = self._values(theta, points) - targets  # (alive, n, d)
            sums.append(residual.square().sum(dim=(1, 2)))
        return torch.stack(sums).sum(dim=0) / (len(x) * self.error_unit)
