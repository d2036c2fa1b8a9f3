"""The optimisers behind fit, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import Batches, BatchSource, Sampler, Samples
from nablanets.fitting.checkpoint import restore_optimizer
from nablanets.fitting.closed_form import own_gradient
from nablanets.fitting.levenberg import Levenberg
from nablanets.fitting.objective import squared_error
from nablanets.fitting.problem import Problem
from nablanets.fitting.scale import unit_for_adam
from nablanets.fitting.settings import FitSettings
from nablanets.fitting.stepper import Stepper

# Where "auto" takes Levenberg-Marquardt: J^T J of this many parameters takes milliseconds,
_AUTO_PARAMETERS = 500
# and its n d rows stay few.
_AUTO_FEATURES = 16
# Curvature pairs that L-BFGS keeps; more than torch's ten repay themselves where nothing is drawn at random.
_LBFGS_PAIRS = 30
# Evaluations of one line search at most; more mean that the direction is useless.
_LBFGS_EVALUATIONS = 25
# L-BFGS has converged when so many iterations in a row have not lowered the error.
_LBFGS_PATIENCE = 10


#: The loss at samples (x, g), whose gradient it adds to those of the parameters.
Backward: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def make_backward(net: nn.Module, problem: Problem, unit: float) -> Backward:
    """The objective of a problem in multiples of unit^2: its gradient is by hand where known, else by autograd."""
    by_hand = own_gradient(net, unit) if problem.objective is squared_error else None
    if by_hand is not None:
        return by_hand.backward
    objective = problem.loss_in(unit)

    def backward(x: Tensor, g: Tensor) -> Tensor:
        loss = objective(net, x, g)
        loss.backward()
        return loss.detach()

    return backward


def make_stepper(net: nn.Module, problem: Problem, settings: FitSettings) -> Stepper:
    """The optimiser that the settings ask for, with one start."""
    if settings.optimizer == "lbfgs":
        return LbfgsStepper(net, problem.batches.next(), make_backward(net, problem, problem.unit), problem.unit)
    if settings.optimizer == "levenberg":
        return make_levenberg([net], problem, settings)
    unit = unit_for_adam(problem.unit)
    return GradientStepper(net, problem.batches, settings, make_backward(net, problem, unit), unit)


def make_levenberg(
    nets: list[nn.Module], problem: Problem, settings: FitSettings, halve_every: int | None = None
) -> Levenberg:
    """Levenberg-Marquardt from one or several starts.

    Raises:
        InvalidInputError: samples that are drawn afresh, or an objective other than the squared error.
    """
    if not isinstance(problem.batches, Batches):
        raise InvalidInputError(
            "fit: optimizer 'levenberg' works on fixed samples, and got a function that draws fresh ones. Draw as "
            "many as fit into memory and give them as x and g, or take optimizer='adam'."
        )
    if problem.objective is not squared_error:
        raise InvalidInputError(
            f"fit: optimizer 'levenberg' fits complete gradients only, and got {type(problem.objective).__name__}. "
            "Take optimizer='adam' or 'lbfgs'."
        )
    return Levenberg(
        nets,
        problem.batches.epoch(),
        problem.validation,
        rows=settings.batch_size,
        halve_every=halve_every,
        unit=problem.unit,
    )


def resolve(settings: FitSettings, net: nn.Module, x: Tensor | Sampler, g: object) -> FitSettings:
    """The settings with "auto" replaced by an optimiser.

    "auto" is Levenberg-Marquardt for at most 500 trained parameters and 16 features, fixed samples of complete
    gradients, and no weight decay or clipping, else Adam.
    """
    if settings.optimizer != "auto":
        return settings
    num_parameters = sum(parameter.numel() for parameter in _trained(net))
    complete = isinstance(x, Tensor) and isinstance(g, Tensor) and x.shape[-1] <= _AUTO_FEATURES
    small = complete and num_parameters <= _AUTO_PARAMETERS
    plain = settings.weight_decay == 0 and settings.clip_norm is None
    return settings.update(optimizer="levenberg" if small and plain else "adam")


class GradientStepper(Stepper):
    """Adam, AdamW or Muon on batches that are reshuffled every epoch.

    Args:
        net: what is trained.
        batches: an endless source of them.
        settings: optimizer, weight_decay, clip_norm.
        backward: the loss on a batch, with its gradient.
        unit: that of the targets; the loss is in multiples of its square.

    Reference:
        Adam: Kingma and Ba, ICLR 2015. AdamW: Loshchilov and Hutter, ICLR 2019. Muon: Jordan et al., 2024,
        kellerjordan.github.io/posts/muon, with the step size of Liu et al., arXiv:2502.16982.
    """

    def __init__(
        self,
        net: nn.Module,
        batches: BatchSource,
        settings: FitSettings,
        backward: Backward,
        unit: float = 1.0,
    ) -> None:
        self.net = net
        self.unit = unit
        self.batches = batches
        self.clip_norm = settings.clip_norm
        self.backward = backward
        self.optimizers = _make_optimizers(net, settings)
        self._learning_rate: float | None = None

    @property
    def error_unit(self) -> float:
        return self.unit**2

    @property
    def learning_rate(self) -> float | None:
        return self._learning_rate

    def advance(self, learning_rate: float) -> Tensor:
        self._learning_rate = learning_rate
        x, g = self.batches.next()
        self.net.zero_grad()
        loss = self.backward(x, g)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "batches": self.batches.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, saved)
        self.batches.restore(state["batches"])


class LbfgsStepper(Stepper):
    """L-BFGS with a strong Wolfe line search on fixed samples; one step is one iteration.

    The search starts from the full quasi-Newton step, so there is no learning rate. It has converged when ten
    iterations in a row have not lowered the error.

    Args:
        net: what is trained.
        samples: all that it is trained on.
        backward: the loss on the samples, with its gradient.
        unit: that of the targets; the loss is in multiples of its square.

    Reference:
        Nocedal and Wright, Numerical Optimization, 2nd ed., algorithms 7.4, 7.5 and 3.5, in torch.optim.LBFGS.
    """

    def __init__(self, net: nn.Module, samples: Samples, backward: Backward, unit: float = 1.0) -> None:
        self.net = net
        self.unit = unit
        self.samples = samples
        self.backward = backward
        self.optimizer = torch.optim.LBFGS(
            _trained(net),
            max_iter=1,
            max_eval=_LBFGS_EVALUATIONS,
            history_size=_LBFGS_PAIRS,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )
        self.lowest_error = torch.inf
        self.without_progress = 0  # iterations in a row

    def advance(self, learning_rate: float) -> Tensor:
        def closure() -> Tensor:
            self.net.zero_grad()
            return self.backward(*self.samples)

        loss = self.optimizer.step(closure)
        value = float(loss)
        self.without_progress = self.without_progress + 1 if value >= self.lowest_error else 0
        self.lowest_error = min(self.lowest_error, value)
        return loss

    @property
    def error_unit(self) -> float:
        return self.unit**2

    @property
    def stop_reason(self) -> str:
        return "converged" if self.without_progress >= _LBFGS_PATIENCE else ""

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "lowest_error": self.lowest_error,
            "without_progress": self.without_progress,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.lowest_error = state["lowest_error"]
        self.without_progress = state["without_progress"]


def _trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def _make_optimizers(net: nn.Module, settings: FitSettings) -> list[torch.optim.Optimizer]:
    parameters = _trained(net)
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adam":
        return [torch.optim.Adam(parameters, fused=True, **options)]
    if settings.optimizer == "adamw":
        return [torch.optim.AdamW(parameters, fused=True, **options)]
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise InvalidInputError(
            f"fit: optimizer 'muon' needs torch.optim.Muon, which torch {torch.__version__} does not have. Install "
            "torch >= 2.9, or take optimizer='adamw'."
        )
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        # match_rms_adamw gives a matrix steps of AdamW's size, so that one learning rate serves both.
        optimizers.append(muon(matrices, adjust_lr_fn="match_rms_adamw", **options))
    if others:
        optimizers.append(torch.optim.AdamW(others, fused=True, **options))
    return optimizers
