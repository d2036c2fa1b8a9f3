"""What the activation study measures of a network, on each target and on all."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nablanets import verify
from nablanets.fitting import decibels
from nablanets.maps import GradientMap
from nablanets_studies.fields.activation_arms import TARGETS, ActivationsConfig
from nablanets_studies.machinery.metrics import Metrics, keyed
from nablanets_studies.problems.fields import Field, unit_grid
from nablanets_studies.problems.nonsmooth import NonsmoothField

#: What an error counts as that is not finite, and one of zero.
WORST_DB = 100.0
BEST_DB = -200.0
#: The asymmetry of a Jacobian is measured on a grid of this side.
_ASYMMETRY_SIDE = 8


@dataclass(frozen=True, kw_only=True)
class TargetMetrics(Metrics):
    """How well a target is learned.

    Attributes:
        db: the error on the test grid.
        overshoot: the largest |f| over the largest |g|; None where it is not finite.
        away_db: the error away from the kinks, of targets that have some.
        near_fraction: the part of the test points that is near them.
        potential: the error of the potential over its standard deviation, of gradient maps.
        failures: the share of the rates at which the fit failed, of networks that are trained.
    """

    db: float
    overshoot: float | None = None
    away_db: float | None = None
    near_fraction: float | None = None
    potential: float | None = None
    failures: float | None = None


@dataclass(frozen=True, kw_only=True)
class ActivationMetrics(Metrics):
    """All targets, by name; the worst asymmetry of the Jacobian in two precisions; the share of fits that failed."""

    targets: Mapping[str, TargetMetrics] = field(metadata=keyed(TargetMetrics, tuple(TARGETS)))
    asymmetry32: float
    asymmetry64: float
    failures: float | None = None


@torch.no_grad()
def measure(config: ActivationsConfig, target: Field, net: nn.Module, failures: float | None = None) -> TargetMetrics:
    """A network on the test grid of a target."""
    x = unit_grid(config.test_side).flatten(0, 1)  # (points, 2)
    f = net(x)
    g = target.gradient(x)
    square = (f - g).square().sum(dim=-1)  # (points,)
    away_db = None
    near_fraction = None
    if isinstance(target, NonsmoothField):
        away = target.kink_distance(x) > config.margin
        away_db = _decibels(square[away])
        near_fraction = float((~away).float().mean())
    potential = None
    if isinstance(net, GradientMap):
        truth = target.potential(x)
        potential = _finite((net.potential(x) - truth).std() / truth.std())
    return TargetMetrics(
        db=_decibels(square),
        overshoot=_finite(f.norm(dim=-1).max() / g.norm(dim=-1).max()),
        away_db=away_db,
        near_fraction=near_fraction,
        potential=potential,
        failures=failures,
    )


def _finite(value: Tensor) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def _decibels(square: Tensor) -> float:
    mean = float(square.mean())
    return max(decibels(mean), BEST_DB) if math.isfinite(mean) else WORST_DB


def asymmetry(net: nn.Module) -> tuple[float, float]:
    """The asymmetry of the Jacobian in float32 and, of the same network converted, in float64."""
    x = unit_grid(_ASYMMETRY_SIDE).flatten(0, 1)
    single = verify.symmetry_error(net, x)
    double = verify.symmetry_error(copy.deepcopy(net).double(), x.double())
    return single, double
