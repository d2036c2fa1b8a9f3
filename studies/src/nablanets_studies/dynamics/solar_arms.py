"""The fields of the solar-system study: what each is given, and how it is fitted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.fitting import fit
from nablanets.fitting.batches import Samples
from nablanets.fitting.settings import HistoryRow
from nablanets.maps import (
    Constant,
    CoordinatePullback,
    GradientMap,
    GradNetC,
    GradNetM,
    PairAcceleration,
    Quadratic,
    distances_from,
    pair_distances,
)
from nablanets.parameters import count_parameters
from nablanets.starts import standardised_inside
from nablanets_studies import datasets
from nablanets_studies.baselines import MLP, Rescaled, match_parameters, mlp_potential
from nablanets_studies.problems.ephemeris import (
    BODIES,
    Ephemeris,
    julian_date,
    load_ephemeris,
    read_spk,
)

#: Coordinates that a radial law may be a function of; validation decides between whole fits.
RADIAL_COORDINATES = ("distance", "log", "inverse")
#: Training data are from the first year to the start of the predictions; the ephemeris is read up to the last.
FIRST = 1900.0
START = 1990.0
LAST = 2050.0
#: Predictions are compared so many times a year.
_TIMES_PER_YEAR = 24
#: Of five times before 1990, this one is for validation.
_HELD_OUT_OF_FIVE = 2
#: Masses to start from, in solar masses.
_MASS = 1e-5
_SUN_AT_ORIGIN = torch.zeros(1, 3, dtype=torch.float64)


@dataclass(frozen=True)
class SolarConfig:
    """Settings of the study.

    Attributes:
        methods: which are compared.
        source: "sample" (260 times, in the package) or "de421" (all of it: ``nablanets data get ephemeris``).
        times: for training, from 1900 to 1990, where the source is de421; a quarter as many for validation.
        hidden_features: units of a radial law.
        field_features: width of the MLP on positions, which the other fields on positions match in parameters.
        steps: iterations of Levenberg-Marquardt.
        years: of prediction, from 1990 on.
    """

    methods: tuple[str, ...] = ("n-body", "radial", "gradnet-3d", "mlp-potential-3d", "mlp-3d", "kepler", "newton")
    source: str = "de421"
    times: int = 300
    hidden_features: int = 8
    field_features: int = 12
    steps: int = 200
    years: int = 60


class Data(NamedTuple):
    """Where the bodies were: for training, for validation, and from 1990 on."""

    train: Ephemeris
    validation: Ephemeris
    future: Ephemeris


class Fitted(NamedTuple):
    """A field in AU and days, the coordinate it is a function of, and the record of its fit."""

    net: nn.Module
    coordinate: str
    seconds: float
    history: list[HistoryRow]


#: (configuration, coordinate, samples) -> a fresh field.
Build = Callable[[SolarConfig, str, Samples], nn.Module]


@dataclass(frozen=True)
class SolarArm:
    """A field, and how it is fitted.

    Attributes:
        name: of the arm.
        fit: fits it: (arm, configuration, data, seed).
        build: makes a fresh field; None if the fit is in closed form.
        coordinates: what the field may be a function of; each is fitted, and validation decides.
        all_bodies: all nine bodies attract each other; else the Sun attracts the four inner planets.
        knows_law: it is given Newton's law, and finds the constants only.
    """

    name: str
    fit: Callable[[SolarArm, SolarConfig, Data, int], Fitted]
    build: Build | None = None
    coordinates: tuple[str, ...] = ("position",)
    all_bodies: bool = False
    knows_law: bool = False


def load(config: SolarConfig) -> Data:
    """The ephemeris that the configuration asks for; a fifth of the times before 1990 are for validation."""
    if config.source == "sample":
        whole = load_ephemeris()
    elif config.source == "de421":
        whole = _read_de421(config.times * 5 // 4)
    else:
        raise InvalidInputError(f"solar-system: expected source sample or de421, got {config.source!r}.")
    past = whole.between(FIRST, START)
    future = whole.between(START, START + config.years + 1e-6)
    held_out = np.arange(len(past.times)) % 5 == _HELD_OUT_OF_FIVE
    return Data(past.select(~held_out), past.select(held_out), future)


def _read_de421(count: int) -> Ephemeris:
    """``count`` times before 1990, one at random in each of as many equal spans, and 24 times a year from then on."""
    generator = np.random.default_rng(0)
    past = FIRST + (START - FIRST) * (np.arange(count) + generator.random(count)) / count
    future = np.linspace(START, LAST, 1 + round(LAST - START) * _TIMES_PER_YEAR)
    times = np.array([julian_date(year) for year in (*past, *future)])
    return read_spk(datasets.path("ephemeris") / "de421.bsp", times)


def one_body(part: Ephemeris) -> Samples:
    """Positions and accelerations of the inner planets relative to the Sun, all planets together."""
    x, a = part.heliocentric()
    return x.flatten(0, 1), a.flatten(0, 1)


def all_bodies(part: Ephemeris) -> Samples:
    """Positions and accelerations of the Sun and all planets, side by side."""
    return torch.from_numpy(part.positions).flatten(1), torch.from_numpy(part.accelerations).flatten(1)


class _Relative(nn.Module):
    """A field over the size of each component, so that all bodies count alike in a fit."""

    def __init__(self, net: nn.Module, size: Tensor) -> None:
        super().__init__()
        self.net = net
        self.features = len(size)
        self.register_buffer("size", size)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x)) / cast(Tensor, self.size)


def _sizes(arm: SolarArm, a: Tensor) -> Tensor:
    """How large accelerations (n, d) are: one number for all, or one for each of the nine bodies; (d,)."""
    if not arm.all_bodies:
        return a.square().mean().sqrt().repeat(3)
    by_body = a.unflatten(-1, (len(BODIES), 3))  # (times, bodies, 3)
    return by_body.square().sum(dim=-1).mean(dim=0).sqrt().repeat_interleave(3)


def _fit_best(arm: SolarArm, config: SolarConfig, data: Data, seed: int) -> Fitted:
    """A whole fit for each coordinate; the one that ends with the least validation error is kept."""
    fits = [_fit_levenberg(arm, config, coordinate, data, seed) for coordinate in arm.coordinates]
    seconds = sum(fitted.seconds for fitted in fits)
    return min(fits, key=_error)._replace(seconds=seconds)


def _fit_levenberg(arm: SolarArm, config: SolarConfig, coordinate: str, data: Data, seed: int) -> Fitted:
    """Levenberg-Marquardt in float64, all samples at once."""
    read = all_bodies if arm.all_bodies else one_body
    x, a = read(data.train)
    x_held_out, a_held_out = read(data.validation)
    size = _sizes(arm, a)
    torch.manual_seed(seed)
    build = cast(Build, arm.build)
    net = build(config, coordinate, (x, a)).double()
    result = fit(
        _Relative(net, size),
        x,
        a / size,
        validation=(x_held_out, a_held_out / size),
        optimizer="levenberg",
        batch_size=len(x),
        steps=config.steps,
        seed=seed,
        progress=False,
    )
    return Fitted(net, coordinate, result.seconds, result.history)


def _error(fitted: Fitted) -> float:
    """The least validation error."""
    return min(row.validation_error for row in fitted.history)


def _fit_constant(arm: SolarArm, config: SolarConfig, data: Data, seed: int) -> Fitted:
    """-GM x / r^3 with the GM of least squares, each planet's acceleration relative to its own size."""
    begin = time.perf_counter()
    (coordinate,) = arm.coordinates
    x, a = one_body(data.train)
    phi = distances_from(_SUN_AT_ORIGIN, kind=coordinate)
    unit = CoordinatePullback(Constant(torch.ones(1, dtype=torch.float64)), phi)(x)  # the field of GM = 1
    gm = float(((a * unit).sum(dim=-1) / unit.square().sum(dim=-1)).mean())
    net = CoordinatePullback(Constant(torch.tensor([gm], dtype=torch.float64)), phi)
    return Fitted(net, coordinate, time.perf_counter() - begin, [])


def _law(config: SolarConfig) -> GradNetC:
    """A free law of attraction, of one variable."""
    return GradNetC(1, config.hidden_features, 1, activation="tanh").double()


def _radial(config: SolarConfig, coordinate: str, samples: Samples) -> nn.Module:
    """A force along the direction from the Sun, with a free law."""
    phi = distances_from(_SUN_AT_ORIGIN, kind=coordinate)
    return CoordinatePullback(standardised_inside(_law(config), phi, *samples), phi)


def _on_positions(constructor: Callable[[int], nn.Module]) -> Build:
    """Fields of the three coordinates, without any symmetry, of the size of an MLP; ``constructor`` takes a width."""

    def build(config: SolarConfig, coordinate: str, samples: Samples) -> nn.Module:
        budget = count_parameters(MLP(3, config.field_features))
        net = match_parameters(constructor, budget)
        size = float(samples[1].square().mean().sqrt())
        if isinstance(net, GradientMap):
            return size * net
        return Rescaled(net, torch.ones(3), torch.zeros(3), size)

    return build


def _attraction_of_first_planet(samples: Samples) -> float:
    """What the acceleration of the first planet asks of a law of unit mass: mean |a| times mean r^2."""
    x, a = samples
    distance = x[:, 3:6] - x[:, :3]
    return float(a[:, 3:6].norm(dim=-1).mean() * distance.square().sum(dim=-1).mean())


def _first_masses() -> list[float]:
    """In units of the Sun's."""
    return [1.0] + [_MASS] * (len(BODIES) - 1)


def _free_pairs(config: SolarConfig, coordinate: str, samples: Samples) -> nn.Module:
    """One free law for all pairs of the nine bodies, and their masses."""
    phi = pair_distances(len(BODIES), kind=coordinate).double()(samples[0])  # (times, pairs)
    scale = (1 / phi.std()).reshape(1)
    shift = (-phi.mean() * scale).reshape(1)
    standardised = _law(config).pullback(scale, shift)
    unit = _attraction_of_first_planet(samples)
    return PairAcceleration(unit * standardised, _first_masses(), kind=coordinate)


def _newton_pairs(config: SolarConfig, coordinate: str, samples: Samples) -> nn.Module:
    """Newton's law, which is a constant as a function of 1 / r, for all pairs of the nine bodies, and their masses."""
    law = Quadratic(1, 0).double()
    for name, parameter in law.named_parameters():
        if name != "bias":
            parameter.data.zero_()
            parameter.requires_grad_(False)
    unit = _attraction_of_first_planet(samples)
    return PairAcceleration(unit * law, _first_masses(), kind=coordinate)


_ALL_ARMS = (
    SolarArm("n-body", _fit_best, _free_pairs, RADIAL_COORDINATES, all_bodies=True),
    SolarArm("radial", _fit_best, _radial, RADIAL_COORDINATES),
    SolarArm("gradnet-3d", _fit_best, _on_positions(lambda h: GradNetM(3, h, 4))),
    SolarArm("mlp-potential-3d", _fit_best, _on_positions(lambda h: mlp_potential(3, h))),
    SolarArm("mlp-3d", _fit_best, _on_positions(lambda h: MLP(3, h))),
    SolarArm("kepler", _fit_constant, coordinates=("inverse",), knows_law=True),
    SolarArm("newton", _fit_best, _newton_pairs, ("inverse",), all_bodies=True, knows_law=True),
)
ARMS = {arm.name: arm for arm in _ALL_ARMS}


def train(config: SolarConfig, arm: SolarArm, data: Data, seed: int) -> Fitted:
    """A fitted field."""
    return arm.fit(arm, config, data, seed)
