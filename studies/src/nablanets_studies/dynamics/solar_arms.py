"""The fields of the solar-system study: what each is given, and how it is fitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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

METHODS = ("n-body", "radial", "gradnet-3d", "mlp-potential-3d", "mlp-3d", "kepler", "newton")
#: Coordinates that a radial law may be a function of; validation decides between whole fits.
KINDS = ("distance", "log", "inverse")
START, FIRST, LAST = 1990.0, 1900.0, 2050.0
#: Masses to start from, in solar masses.
_MASS = 1e-5


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

    methods: tuple[str, ...] = METHODS
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
    kind: str
    seconds: float
    history: list[HistoryRow]


def load(config: SolarConfig) -> Data:
    """The ephemeris that the configuration asks for; a fifth of the times before 1990 are for validation."""
    if config.source == "sample":
        whole = load_ephemeris()
    elif config.source == "de421":
        generator = np.random.default_rng(0)
        count = config.times * 5 // 4
        years = FIRST + (START - FIRST) * (np.arange(count) + generator.random(count)) / count
        years = np.concatenate([years, np.linspace(START, LAST, 1 + 60 * 24)])
        times = np.array([julian_date(year) for year in years])
        whole = read_spk(datasets.path("ephemeris") / "de421.bsp", times)
    else:
        raise InvalidInputError(f"solar-system: expected source sample or de421, got {config.source!r}.")
    past, future = whole.between(FIRST, START), whole.between(START, START + config.years + 1e-6)
    held_out = np.arange(len(past.times)) % 5 == 2
    return Data(past.select(~held_out), past.select(held_out), future)


def train(config: SolarConfig, method: str, data: Data, seed: int) -> Fitted:
    """A fitted field."""
    if method in ("n-body", "newton"):
        return _many_body(config, method, data, seed)
    samples, held_out = (one_body(part) for part in (data.train, data.validation))
    if method == "kepler":
        return _kepler(*samples)
    size = samples[1].square().mean().sqrt().repeat(3)
    if method == "radial":
        starts: Mapping[str, Callable[[], nn.Module]] = {
            kind: partial(_radial, config, kind, samples) for kind in KINDS
        }
    else:
        starts = {"position": partial(_on_positions, config, method, samples)}
    return _fit_best(config, starts, samples, held_out, size, seed)


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
        self.net, self.features = net, len(size)
        self.register_buffer("size", size)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x)) / cast(Tensor, self.size)


def _fit(
    config: SolarConfig,
    kind: str,
    start: Callable[[], nn.Module],
    samples: Samples,
    held_out: Samples,
    size: Tensor,
    seed: int,
) -> Fitted:
    """Levenberg-Marquardt in float64, all samples at once."""
    torch.manual_seed(seed)
    net = start().double()
    (x, a), (x_held, a_held) = samples, held_out
    result = fit(
        _Relative(net, size),
        x,
        a / size,
        validation=(x_held, a_held / size),
        optimizer="levenberg",
        batch_size=len(x),
        steps=config.steps,
        seed=seed,
        progress=False,
    )
    return Fitted(net, kind, result.seconds, result.history)


def _fit_best(
    config: SolarConfig,
    starts: Mapping[str, Callable[[], nn.Module]],
    samples: Samples,
    held_out: Samples,
    size: Tensor,
    seed: int,
) -> Fitted:
    """The fit of the kind that ends with the least validation error."""
    fits = [_fit(config, kind, start, samples, held_out, size, seed) for kind, start in starts.items()]
    return min(fits, key=_error)._replace(seconds=sum(fitted.seconds for fitted in fits))


def _error(fitted: Fitted) -> float:
    """The least validation error."""
    return min(row.validation_error for row in fitted.history)


def _radial(config: SolarConfig, kind: str, samples: Samples) -> nn.Module:
    """A force along the direction from the Sun, with a free law."""
    phi = distances_from(torch.zeros(1, 3, dtype=torch.float64), kind=kind)
    return CoordinatePullback(standardised_inside(_law(config), phi, *samples), phi)


def _law(config: SolarConfig) -> GradNetC:
    return GradNetC(1, config.hidden_features, 1, activation="tanh").double()


def _on_positions(config: SolarConfig, method: str, samples: Samples) -> nn.Module:
    """A field of the three coordinates, without any symmetry."""
    width = config.field_features
    budget = count_parameters(MLP(3, width))
    if method == "mlp-3d":
        net: nn.Module = MLP(3, width)
    elif method == "mlp-potential-3d":
        net = match_parameters(lambda h: mlp_potential(3, h), budget)
    else:
        net = match_parameters(lambda h: GradNetM(3, h, 4), budget)
    size = float(samples[1].square().mean().sqrt())
    return size * net if isinstance(net, GradientMap) else Rescaled(net, torch.ones(3), torch.zeros(3), size)


def _kepler(x: Tensor, a: Tensor) -> Fitted:
    """-GM x / r^3 with the GM of least squares, each planet's acceleration relative to its own size."""
    begin = time.perf_counter()
    phi = distances_from(torch.zeros(1, 3, dtype=torch.float64), kind="inverse")
    unit = CoordinatePullback(Constant(torch.ones(1, dtype=torch.float64)), phi)(x)
    gm = float(((a * unit).sum(dim=-1) / unit.square().sum(dim=-1)).mean())
    net = CoordinatePullback(Constant(torch.tensor([gm], dtype=torch.float64)), phi)
    return Fitted(net, "inverse", time.perf_counter() - begin, [])


def _many_body(config: SolarConfig, method: str, data: Data, seed: int) -> Fitted:
    """One law for all pairs of the nine bodies, and their masses; the law is free, or Newton's."""
    samples, held_out = all_bodies(data.train), all_bodies(data.validation)
    size = samples[1].unflatten(-1, (len(BODIES), 3)).square().sum(dim=-1).mean(dim=0).sqrt().repeat_interleave(3)
    kinds = KINDS if method == "n-body" else ("inverse",)
    starts = {kind: partial(_pairs, config, method, kind, samples) for kind in kinds}
    return _fit_best(config, starts, samples, held_out, size, seed)


def _pairs(config: SolarConfig, method: str, kind: str, samples: Samples) -> nn.Module:
    x, a = samples
    masses = [1.0] + [_MASS] * (len(BODIES) - 1)
    phi = pair_distances(len(BODIES), kind=kind).double()(x)
    # What the acceleration of the first planet asks of a law of unit mass.
    unit = float(a[:, 3:6].norm(dim=-1).mean() * (x[:, 3:6] - x[:, :3]).square().sum(dim=-1).mean())
    if method == "newton":
        law: GradientMap = Quadratic(1, 0).double()
        for name, parameter in law.named_parameters():
            if name != "bias":
                parameter.data.zero_()
                parameter.requires_grad_(False)
        return PairAcceleration(unit * law, masses, kind=kind)
    scale = (1 / phi.std()).reshape(1)
    inner = _law(config).pullback(scale, (-phi.mean() * scale).reshape(1))
    return PairAcceleration(unit * inner, masses, kind=kind)
