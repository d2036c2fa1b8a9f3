"""What is measured of the fields of the solar-system study: GM, masses, and where they say that planets go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from nablanets.dynamics import SecondOrder, integrate
from nablanets.errors import ConvergenceError
from nablanets.maps import CoordinatePullback, PairAcceleration, distances_from
from nablanets_studies.dynamics.solar_arms import START, Data, Fitted, all_bodies, one_body
from nablanets_studies.machinery.metrics import Metrics, choice, group, nested, series
from nablanets_studies.problems.ephemeris import BODIES, INNER, INVERSE_MASSES, KILOMETRES, SUN_GM, Ephemeris

#: A planet this far from where it should be has left: 100 AU, in 1000 km.
_LOST = KILOMETRES / 10
_DAYS_PER_YEAR = 365.25
#: A prediction that ends this many decades after a full one, by rounding, has no further decade.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class PositionErrors(Metrics):
    """Root mean square distances of the inner planets from the ephemeris, in 1000 km.

    Attributes:
        lost: 1 if planets left, fell, or could not be integrated; then there is nothing else.
        position: over all planets and times.
        mercury, venus, earth, mars: of each planet.
        decades: over all planets, in each decade.
    """

    lost: float
    position: float | None = None
    mercury: float | None = None
    venus: float | None = None
    earth: float | None = None
    mars: float | None = None
    decades: tuple[float, ...] = field(default=(), metadata=series("decade", first=1))


@dataclass(frozen=True, kw_only=True)
class SolarMetrics(Metrics):
    """What is measured of a field.

    Attributes:
        gm_error: relative error of GM of the Sun, as the mean of r^2 |f| where the inner planets are from 1990 on.
        gm_spread: standard deviation of r^2 |f| / GM there.
        exponent: of a power law fitted to |f| there; -2 for Newton's.
        masses: relative errors of the masses of all bodies, for fields that know them.
        acceleration: mean of |f - a| / |a| over the inner planets from 1990 on.
        positions: of the planets that move by the field.
        coordinate: what the field is a function of.
    """

    gm_error: float
    gm_spread: float
    exponent: float
    masses: Mapping[str, float] = field(default_factory=dict, metadata=group("mass_"))
    acceleration: float
    positions: PositionErrors = field(metadata=nested(PositionErrors))
    coordinate: str | None = field(default=None, metadata=choice("function of "))


def first_year(decade: int) -> int:
    """The year in which a decade of :attr:`PositionErrors.decades` begins, counted from 0."""
    return round(START) + 10 * decade


def sun_field(net: nn.Module, x: Tensor) -> Tensor:
    """The Sun's attraction of a body without mass at x (n, 3), in AU / day^2."""
    if not isinstance(net, PairAcceleration):
        return cast(Tensor, net(x))
    phi = distances_from(torch.zeros(1, 3, dtype=torch.float64), kind=net.kind)
    return CoordinatePullback(net.pairs.law, phi)(x)


@torch.no_grad()
def measure(fitted: Fitted, data: Data) -> SolarMetrics:
    """What is reported of a field."""
    net = fitted.net
    x = data.future.heliocentric()[0].flatten(0, 1)  # (times planets, 3)
    radius = x.norm(dim=-1)
    strength = sun_field(net, x).norm(dim=-1)
    gm = radius.square() * strength / SUN_GM - 1  # relative error at each point
    slope, _ = np.polyfit(radius.log().numpy(), strength.log().numpy(), 1)
    return SolarMetrics(
        gm_error=float(gm.mean().abs()),
        gm_spread=float(gm.std()),
        exponent=float(slope),
        masses=mass_errors(net),
        acceleration=acceleration_error(net, data.future),
        positions=position_errors(net, data.future),
        coordinate=fitted.coordinate,
    )


def mass_errors(net: nn.Module) -> dict[str, float]:
    """Relative errors of the masses that a field has learned, by body; none for a field of one body."""
    if not isinstance(net, PairAcceleration):
        return {}
    masses = net.pairs.masses()
    return {name: float(mass) * inverse - 1 for name, mass, inverse in zip(BODIES, masses, INVERSE_MASSES, strict=True)}


def acceleration_error(net: nn.Module, future: Ephemeris) -> float:
    """Mean of |f - a| / |a| over the inner planets and all times."""
    many = isinstance(net, PairAcceleration)
    states, accelerations = all_bodies(future) if many else one_body(future)
    predicted = net(states).unflatten(-1, (-1, 3))
    truth = accelerations.unflatten(-1, (-1, 3))
    relative = (predicted - truth).norm(dim=-1) / truth.norm(dim=-1)  # (times, 9) or (times planets, 1)
    if many:
        relative = relative[:, 1 : 1 + len(INNER)]
    return float(relative.mean())


def position_errors(net: nn.Module, future: Ephemeris) -> PositionErrors:
    """How far the inner planets are from where the ephemeris has them, if they move by the field."""
    try:
        predicted = predict(net, future)
    except ConvergenceError:
        return PositionErrors(lost=1.0)
    truth, _ = future.heliocentric()
    error = (predicted - truth).norm(dim=-1) * KILOMETRES / 1000  # (times, planets)
    if not bool((error < _LOST).all()):
        return PositionErrors(lost=1.0)
    by_planet = {name: _root_mean_square(error[:, k]) for k, name in enumerate(INNER)}
    return PositionErrors(
        lost=0.0, position=_root_mean_square(error), decades=_by_decade(error, future.times), **by_planet
    )


def _by_decade(error: Tensor, times: np.ndarray) -> tuple[float, ...]:
    years = (times - times[0]) / _DAYS_PER_YEAR
    decades = math.ceil(years[-1] / 10 - _ROUNDING)
    found = []
    for decade in range(decades):
        inside = (years >= 10 * decade) & (years < 10 * decade + 10)
        found.append(_root_mean_square(error[torch.from_numpy(inside)]))
    return tuple(found)


def _root_mean_square(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


@torch.no_grad()
def predict(net: nn.Module, future: Ephemeris) -> Tensor:
    """Positions of the inner planets relative to the Sun, (times, planets, 3), from their state at the first time."""
    x = torch.from_numpy(future.positions[0])  # (bodies, 3)
    v = torch.from_numpy(future.velocities[0])
    if isinstance(net, PairAcceleration):
        system = SecondOrder(net, x.numel())
        state = torch.cat([x.flatten(), v.flatten()])
    else:
        inner = [BODIES.index(name) for name in INNER]
        system = SecondOrder(net, 3)
        state = torch.cat([x[inner] - x[0], v[inner] - v[0]], dim=-1)  # (planets, 6)
    states = integrate(system.double(), state, future.times.tolist(), method="dop853", rtol=1e-10, atol=1e-12)
    if not isinstance(net, PairAcceleration):
        return states[..., :3]
    positions = states[..., : x.numel()].unflatten(-1, (len(BODIES), 3))
    return positions[:, 1 : 1 + len(INNER)] - positions[:, :1]
