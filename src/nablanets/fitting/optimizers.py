"""The optimisers behind fit, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import Batches, BatchSource, Sampler, Samples
from nablanets.fitting.levenberg import Levenberg
from nablanets.fitting.objective import Objective, squared_error
from nablanets.fitting.settings import FitSettings
from nablanets.fitting.stepper import Stepper

# Where "auto" takes Levenberg-Marquardt: J^T J of this many parameters takes milliseconds.
_AUTO_PARAMETERS, _AUTO_FEATURES = 500, 16


def make_stepper(
    nets: Sequence[nn.Module],
    batches: BatchSource,
    test: Samples,
    settings: FitSettings,
    halve_every: int | None,
    objective: Objective,
) -> Stepper:
    """The optimiser that the settings ask for; several networks are several starts of Levenberg-Marquardt."""
    if settings.optimizer == "lbfgs":
        return LbfgsStepper(nets[0], batches.next(), objective)
    if settings.optimizer != "levenberg":
        return GradientStepper(nets[0], batches, settings, objective)
    if not isinstance(batches, Batches):
        raise InvalidInputError(
            "fit: optimizer 'levenberg' works on fixed samples, and got a function that draws fresh ones. Draw as "
            "many as fit into memory and give them as x and g, or take optimizer='adam'."
        )
    if objective is not squared_error:
        raise InvalidInputError(
            f"fit: optimizer 'levenberg' fits complete gradients only, and got {type(objective).__name__}. Take "
            "optimizer='adam' or 'lbfgs'."
        )
    return Levenberg(nets, batches.epoch(), test, rows=settings.batch_size, halve_every=halve_every)


def resolve(settings: FitSettings, net: nn.Module, x: Tensor | Sampler, g: object) -> FitSettings:
    """The settings with "auto" replaced by an optimiser.

    "auto" is Levenberg-Marquardt for at most 500 trained parameters and 16 features, fixed samples of complete
    gradients, and no weight decay or clipping, else Adam.
    """
    if settings.optimizer != "auto":
        return settings
    parameters = sum(p.numel() for p in _trained(net))
    complete = isinstance(x, Tensor) and isinstance(g, Tensor) and x.shape[-1] <= _AUTO_FEATURES
    small = complete and parameters <= _AUTO_PARAMETERS
    plain = settings.weight_decay == 0 and settings.clip_norm is None
    return settings.update(optimizer="levenberg" if small and plain else "adam")


class GradientStepper(Stepper):
    """Adam, AdamW or Muon on batches that are reshuffled every epoch."""

    def __init__(self, net: nn.Module, batches: BatchSource, settings: FitSettings, objective: Objective) -> None:
        self.net, self.batches, self.clip_norm, self.objective = net, batches, settings.clip_norm, objective
        self.optimizers = _make_optimizers(net, settings)

    @property
    def rate(self) -> float:
        return self.optimizers[0].param_groups[0]["lr"]

    def advance(self, rate: float) -> Tensor:
        x, g = self.batches.next()
        loss = self.objective(self.net, x, g)
        self.net.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "batches": self.batches.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.batches.restore(state["batches"])


class LbfgsStepper(Stepper):
    """L-BFGS with a strong Wolfe line search on fixed samples; one step is one iteration."""

    def __init__(self, net: nn.Module, samples: Samples, objective: Objective) -> None:
        self.net, self.samples, self.objective = net, samples, objective
        self.optimizer = torch.optim.LBFGS(
            _trained(net),
            max_iter=1,
            max_eval=25,
            history_size=30,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )
        self.error, self.still = torch.inf, 0

    @property
    def rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def advance(self, rate: float) -> Tensor:
        def closure() -> Tensor:
            self.net.zero_grad()
            loss = self.objective(self.net, *self.samples)
            loss.backward()
            return loss

        loss = self.optimizer.step(closure).detach()
        self.still = self.still + 1 if float(loss) >= self.error else 0
        self.error = min(self.error, float(loss))
        return loss

    @property
    def stop_reason(self) -> str:
        return "converged" if self.still >= 10 else ""

    def state(self) -> dict[str, Any]:
        counts = {"error": self.error, "still": self.still}
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), **counts}

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.error, self.still = state["error"], state["still"]


def _trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def _make_optimizers(net: nn.Module, settings: FitSettings) -> list[torch.optim.Optimizer]:
    parameters, decay = _trained(net), settings.weight_decay
    if settings.optimizer != "muon":
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        return [kind(parameters, settings.learning_rate, weight_decay=decay, fused=True)]
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise InvalidInputError(
            f"fit: optimizer 'muon' needs torch.optim.Muon, which torch {torch.__version__} does not have. Install "
            "torch >= 2.9, or take optimizer='adamw'."
        )
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    # match_rms_adamw gives a matrix steps of AdamW's size, so that one learning rate serves both.
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": decay}
    optimizers = [muon(matrices, adjust_lr_fn="match_rms_adamw", **options)] if matrices else []
    return optimizers + ([torch.optim.AdamW(others, fused=True, **options)] if others else [])
