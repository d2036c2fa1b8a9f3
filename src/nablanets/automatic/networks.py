"""Networks that are trained: small ones by Levenberg-Marquardt, larger ones by Adam."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nablanets.automatic.recipes import Recipe, Trained
from nablanets.automatic.task import Fold, Task
from nablanets.errors import DataWarning
from nablanets.fitting import FitSettings, error, fit, fit_best_start
from nablanets.fitting.batches import Samples
from nablanets.maps import GradientMap, GradNetC, GradNetM, GradNetTransformed, Scale
from nablanets.maps.protocols import HasAffinePart, HasUnits, supports
from nablanets.parameters import count_parameters
from nablanets.starts import initialise_from_data, initialise_ridges

# Iterations of Levenberg-Marquardt at most: most fits have converged or overfit long before,
_LEVENBERG_STEPS = 300
# and between halvings of the starts.
_START_STEPS = 30
# Starts of small networks, and of those whose iterations are dear.
_STARTS = 4
_STARTS_OF_LARGER = 2
_SMALL = 150
# Of the iterations that were best on the folds, so many are repeated on all samples from the trained weights,
_REFIT_SHARE = 0.5
# and at least so many.
_LEAST_REFIT_STEPS = 10
# Steps of Adam at most; the time decides.
_MANY_STEPS = 10_000_000
_BATCH_SIZE = 512
_STEPS_BETWEEN_VALIDATIONS = 100
# Free profiles: their directions, knots, and how they are trained, as in the study of terrain.
_PROFILE_RATE = 1e-2
_PROFILE_DECAY = 2e-4
_NETWORK_RATE = 5e-3
# Points this many times their spread away from zero are still held to 1e-4 of it by float32.
_LARGEST_OFFSET = 1e3


@dataclass(frozen=True)
class SmallNetwork(Recipe):
    """A network of up to some hundred parameters, by Levenberg-Marquardt from several starts.

    Attributes:
        kind: GradNetC, GradNetM or GradNetTransformed.
        hidden: units, or units of each module.
        depth: layers, or modules.
        options: further arguments of the network, such as its activation.
    """

    kind: type[GradNetC] | type[GradNetM] | type[GradNetTransformed]
    hidden: int
    depth: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        options = "".join(f", {value}" for _, value in self.options)
        return f"{self.kind.__name__} {self.hidden} x {self.depth}{options}"

    def build(self, task: Task, samples: Samples) -> GradientMap:
        core = self.kind(task.features, self.hidden, self.depth, monotone=task.monotone, **dict(self.options))
        net = task.framed(core.double(), samples)
        initialise_from_data(net, samples[0])
        return net

    def parameters(self, task: Task) -> int:
        """How many parameters its networks have."""
        return count_parameters(self.kind(task.features, self.hidden, self.depth, **dict(self.options)))

    def train(self, task: Task, fold: Fold, seconds: float) -> Trained:
        samples = task.training(fold)
        starts = _STARTS if self.parameters(task) <= _SMALL else _STARTS_OF_LARGER
        settings = FitSettings(
            steps=_LEVENBERG_STEPS, optimizer="levenberg", max_seconds=seconds, seed=task.seed, patience=20
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            net, result = fit_best_start(
                lambda: self.build(task, samples),
                *samples,
                starts=starts,
                start_steps=_START_STEPS,
                settings=settings,
                validation=task.validation(fold),
                progress=False,
            )
        return _trained(net, result.best_validation_error, result.best_step, result.history, result.stop_reason)

    def refit(self, task: Task, trained: Sequence[Trained], seconds: float) -> GradientMap:
        """A few more iterations on all samples from the weights of each fold, and the best of them."""
        everything = (task.x, task.g)
        steps = max(_LEAST_REFIT_STEPS, round(_REFIT_SHARE * median(each.steps for each in trained)))
        settings = FitSettings(
            steps=steps, optimizer="levenberg", max_seconds=seconds, seed=task.seed, validate_every=steps
        )
        nets = iter([each.net for each in trained])
        net, _ = fit_best_start(
            lambda: next(nets),
            *everything,
            starts=len(trained),
            start_steps=steps,
            settings=settings,
            validation=everything,
            progress=False,
        )
        return _as_map(net)


class Descent(Recipe):
    """A network that is trained by Adam for as long as there is time. Abstract: a subclass builds it."""

    learning_rate = _NETWORK_RATE
    weight_decay = 0.0

    @abstractmethod
    def build(self, task: Task, samples: Samples) -> GradientMap:
        """A fresh network for the training samples, for gradients in multiples of their size."""

    def train(self, task: Task, fold: Fold, seconds: float) -> Trained:
        x, g = task.training(fold)
        size = float(g.square().mean().sqrt()) or 1.0  # weight decay means the same for any data
        samples = (x, g / size)
        points, targets = task.validation(fold)
        settings = FitSettings(
            steps=_MANY_STEPS,
            max_seconds=seconds,
            batch_size=_BATCH_SIZE,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            validate_every=_STEPS_BETWEEN_VALIDATIONS,
            seed=task.seed,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            net = self.build(task, samples)
        dtype = _cheapest_type(task.x)
        net.to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # the frame has the units of the data
            held_out = (points, targets / size)
            result = fit(net, *samples, validation=held_out, settings=settings, progress=False)
        whole = Scale(net.double(), size)
        value = error(whole, points, targets)
        return _trained(whole, value, result.best_step, result.history, result.stop_reason)

    def refit(self, task: Task, trained: Sequence[Trained], seconds: float) -> GradientMap:
        """The best map of the folds: the samples held out are few beside the others."""
        best = min(trained, key=lambda each: each.error)
        return best.net


@dataclass(frozen=True)
class FreeProfiles(Descent):
    """A sum of ridge functions with free spline profiles in fixed directions: for fine structure in few dimensions.

    Attributes:
        directions: spread evenly over the half circle, or at random in more dimensions.
        knots: of each profile.
    """

    directions: int
    knots: int

    learning_rate = _PROFILE_RATE
    weight_decay = _PROFILE_DECAY

    @property
    def name(self) -> str:
        return f"{self.directions} spline profiles of {self.knots} knots"

    @torch.no_grad()
    def build(self, task: Task, samples: Samples) -> GradientMap:
        x, _ = samples
        activation = ("spline", {"knots": self.knots, "radius": 1.0})
        core = GradNetM(task.features, self.directions, 1, activation=activation, linear=False)
        core.set_inner(self._frame(task.features), torch.zeros(self.directions), sharpness=1.0)
        for parameter in core.parameters():
            parameter.requires_grad_(False)
        for parameter in core.units.parameters():
            parameter.zero_().requires_grad_()
        core.bias.requires_grad_()
        core.to(torch.float64)
        centre = (x.amin(dim=0) + x.amax(dim=0)) / 2
        radius = float((x - centre).norm(dim=1).max()) or 1.0
        scale = torch.full_like(centre, 1 / radius)
        return Scale(core.pullback(scale, -centre / radius), radius)

    def _frame(self, features: int) -> torch.Tensor:
        """Unit vectors, (directions, d)."""
        if features == 1:
            return torch.ones(self.directions, 1)
        if features > 2:
            return torch.nn.functional.normalize(torch.randn(self.directions, features))
        angle = (torch.arange(self.directions) + 0.5) * (math.pi / self.directions)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


@dataclass(frozen=True)
class LargeNetwork(Descent):
    """A network for many samples or many dimensions, from the affine map and the ridges that explain most.

    Attributes:
        kind: GradNetC or GradNetM.
        hidden, depth: units and layers, or units and modules.
    """

    kind: type[GradNetC] | type[GradNetM]
    hidden: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind.__name__} {self.hidden} x {self.depth} by Adam"

    def build(self, task: Task, samples: Samples) -> GradientMap:
        core = self.kind(task.features, self.hidden, self.depth, monotone=task.monotone).double()
        net = task.framed(core, samples)
        if supports(net, HasAffinePart) and supports(net, HasUnits) and task.features > 2:
            initialise_ridges(net, *samples)
        else:
            initialise_from_data(net, samples[0])
        return net


def _cheapest_type(x: Tensor) -> torch.dtype:
    """float32, which is twice as fast, where it holds the points to a small part of their spread."""
    spread = x.std(dim=0, correction=0)
    is_near = (x.abs().amax(dim=0) <= _LARGEST_OFFSET * spread) | (spread == 0)
    return torch.float32 if bool(is_near.all()) else torch.float64


def _trained(net: torch.nn.Module, validation_error: float, steps: int, history: Any, reason: str) -> Trained:
    return Trained(_as_map(net), validation_error, steps, tuple(history), stop_reason=reason)


def _as_map(net: torch.nn.Module) -> GradientMap:
    if not isinstance(net, GradientMap):  # what a recipe builds is one
        raise TypeError(f"expected a gradient map, got {type(net).__name__}.")
    return net


#: Small networks in the order in which they are tried.
SMALL_NETWORKS: tuple[SmallNetwork, ...] = (
    SmallNetwork(GradNetM, 6, 2),
    SmallNetwork(GradNetM, 12, 3),
    SmallNetwork(GradNetC, 12, 1),
    SmallNetwork(GradNetC, 8, 2),
    SmallNetwork(GradNetTransformed, 4, 4),
    SmallNetwork(GradNetM, 16, 4),
    SmallNetwork(GradNetC, 32, 1),
    SmallNetwork(GradNetM, 6, 2, (("activation", "pnorm"),)),
)
