"""High-dimensional fields: the paper's piecewise quadratic one, and nonconvex ones of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from nablanets.errors import unknown_name
from nablanets.fitting import FitResult, FitSettings, decibels, error, fit
from nablanets.fitting.batches import Samples
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets.pieces import fit_pieces
from nablanets.pieces.gating import count_stored
from nablanets_studies.baselines import AffineField
from nablanets_studies.fields.high_dimensional_methods import (
    METHODS,
    AffineMethod,
    HighDimensionalConfig,
    IdentifiedMethod,
    Method,
    TrainedMethod,
)
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.metrics import Metrics
from nablanets_studies.machinery.plots import learning_curves
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import Field
from nablanets_studies.problems.piecewise import HIGH_DIMENSIONAL

#: Published, recomputed from the authors' weights: best of three rates.
PUBLISHED = "C -10.64 and -8.75, M -11.30 and -10.42 at d = 256 and 1024"
#: Learning rates of the settings are those at this dimension; they fall in proportion to 1 / d.
_RATE_FEATURES = 32
#: Validations of a training, and the share of it that warms up.
_VALIDATIONS = 50
_WARM_UP = 0.05


class Arm(NamedTuple):
    """A method, and the field and dimension that it learns."""

    field: str
    method: Method
    features: int


@dataclass(frozen=True, kw_only=True)
class HighDimensionalMetrics(Metrics):
    """What is measured of a map.

    Attributes:
        test_db: mean square error over fresh points.
        rate: that was chosen, of networks that are trained.
        pieces, unexplained_db: how many pieces were identified, and the part of the gradients that they leave.
    """

    test_db: float
    rate: float | None = None
    pieces: float | None = None
    unexplained_db: float | None = None


class Facts(NamedTuple):
    """What the protocol says of the fields."""

    fields: list[Field]
    convex: bool
    published: str


class HighDimensionalExperiment(Experiment[HighDimensionalConfig]):
    """Learn fields of many dimensions within a budget of parameters, by training and by identification."""

    template = "high_dimensional.md.j2"
    columns = (
        Column("test_db", "test error [dB]"),
        Column("rate", "rate", ".0e"),
        Column("pieces", "pieces", ".0f"),
        Column("unexplained_db", "unexplained [dB]", ".1f"),
    )

    def __init__(self, name: str, summary: str, fields: tuple[str, ...], quick: HighDimensionalConfig) -> None:
        self.name = name
        self.summary = summary
        self.fields = fields
        convex = all(_field(each, 2).convex for each in fields)
        methods = [each.name for each in METHODS.values() if convex or not each.convex_only]
        self.presets = {"quick": quick, "paper": HighDimensionalConfig(methods=tuple(methods))}
        self.seeds = {"quick": 1, "paper": 5}

    def arms(self, config: HighDimensionalConfig) -> list[str]:
        return list(self._arms(config))

    def _arms(self, config: HighDimensionalConfig) -> dict[str, Arm]:
        arms: dict[str, Arm] = {}
        for field in self.fields:
            prefix = f"{field}-" if len(self.fields) > 1 else ""
            for d in config.features:
                for method in config.methods:
                    if method not in METHODS:
                        raise unknown_name("method", method, METHODS)
                    arms[f"{prefix}{method}-{d}"] = Arm(field, METHODS[method], d)
        return arms

    def run_part(self, config: HighDimensionalConfig, arm: str, seed: int, report: Report) -> PartResult:
        name, method, d = self._arms(config)[arm]
        field = _field(name, d)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        data = _Data(
            samples=field.sample(config.points_for(method, d), generator),
            validation=field.sample(config.validation_samples, generator),
            test=field.sample(config.test_samples, generator),
        )
        if isinstance(method, AffineMethod):
            return _solve_affine(data)
        if isinstance(method, IdentifiedMethod):
            return _identify(config, method, data, seed)
        return _train(config, method, field, data, seed, report)

    def facts(self, config: HighDimensionalConfig) -> Facts:
        fields = [_field(name, 2) for name in self.fields]
        return Facts(fields, all(field.convex for field in fields), PUBLISHED)

    def pictures(self, config: HighDimensionalConfig, run: RunFolder) -> Iterator[Picture]:
        groups: dict[tuple[str, int], list[str]] = {}
        for name, arm in self._arms(config).items():
            if isinstance(arm.method, TrainedMethod):
                groups.setdefault((arm.field, arm.features), []).append(name)
        for (field, d), arms in groups.items():
            curves = learning_curves(run, arms, f"{field}, d = {d}: validation error by step.")
            yield curves._replace(name=f"learning-curves-{field}-{d}")


class _Data(NamedTuple):
    """What a part learns from, chooses by, and is tested on."""

    samples: Samples
    validation: Samples
    test: Samples


def _test_db(model: nn.Module, data: _Data) -> float:
    return decibels(error(model, *data.test))


def _solve_affine(data: _Data) -> PartResult:
    """The best affine map."""
    begin = time.perf_counter()
    x, _ = data.samples
    affine = AffineField(x.shape[1])
    affine.fit(*data.samples)
    seconds = time.perf_counter() - begin
    measured = HighDimensionalMetrics(test_db=_test_db(affine, data))
    return PartResult(affine, count_stored(affine), seconds, measured.to_metrics())


def _identify(config: HighDimensionalConfig, method: IdentifiedMethod, data: _Data, seed: int) -> PartResult:
    """A maximum of quadratics whose pieces are identified from the samples."""
    x, g = data.samples
    if method.noisy:
        size = g.square().mean().sqrt()
        g = g + config.noise * size * torch.randn_like(g)
    budget = config.budget(x.shape[1]) if method.limited else None
    begin = time.perf_counter()
    net, found, _ = fit_pieces(x, g, method.pieces, parameters=budget, seed=seed)
    seconds = time.perf_counter() - begin
    measured = HighDimensionalMetrics(
        test_db=_test_db(net, data), pieces=len(found), unexplained_db=decibels(found.unexplained)
    )
    return PartResult(net, count_stored(net), seconds, measured.to_metrics())


def _train(
    config: HighDimensionalConfig, method: TrainedMethod, field: Field, data: _Data, seed: int, report: Report
) -> PartResult:
    """A network trained on fresh points, with the rate that was best by validation data in a short training."""

    def attempt(rate: float, steps: int) -> tuple[nn.Module, FitResult]:
        torch.manual_seed(seed)
        net = method.build(field, config.budget(field.features), *data.samples)
        settings = FitSettings(
            batch_size=config.batch_size,
            seed=seed,
            steps=steps,
            learning_rate=rate,
            validate_every=max(1, steps // _VALIDATIONS),
            warmup=_WARM_UP,
        )
        return net, fit(net, field.sample, validation=data.validation, progress=False, settings=settings)

    def trial_error(rate: float) -> float:
        _, result = attempt(rate, config.trial_steps)
        return result.best_validation_error

    begin = time.perf_counter()
    rates = [rate * _RATE_FEATURES / field.features for rate in config.rates]
    rate = min(rates, key=trial_error) if len(rates) > 1 else rates[0]
    model, result = attempt(rate, config.steps)
    for row in result.history:
        report(row)
    seconds = time.perf_counter() - begin
    measured = HighDimensionalMetrics(test_db=_test_db(model, data), rate=rate)
    return PartResult(model, count_parameters(model), seconds, measured.to_metrics())


@lru_cache(maxsize=4)
def _field(name: str, features: int) -> Field:
    return HIGH_DIMENSIONAL[name](features)


#: d = 32, a few hundred steps and one rate.
_QUICK = HighDimensionalConfig(
    features=(32,),
    methods=(
        "affine",
        "gradnet-c-ridge-start",
        "gradnet-m-ridge-start",
        "mixture",
        "identified",
        "identified-noisy",
        "identified-6",
        "mlp",
    ),
    steps=300,
    rates=(3e-3,),
    samples=2000,
    test_samples=5000,
)

PIECEWISE_QUADRATIC = HighDimensionalExperiment(
    "piecewise-quadratic",
    "Learn the paper's convex piecewise quadratic field at d = 32, 256, 1024, by training and identification.",
    ("piecewise-quadratic",),
    _QUICK,
)

NONCONVEX_FIELDS = HighDimensionalExperiment(
    "nonconvex-fields",
    "Learn two high-dimensional nonconvex fields of ours: a difference of maxima, and sinusoidal ridges.",
    ("piecewise-difference", "sinusoidal-ridges"),
    replace(_QUICK, methods=("affine", "gradnet-c-ridge-start", "gradnet-m-affine-start", "mlp")),
)
