"""High-dimensional fields: the paper's piecewise quadratic one, and nonconvex ones of ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nablanets.errors import unknown_name
from nablanets.fitting import FitResult, FitSettings, decibels, error, fit
from nablanets.fitting.batches import Samples
from nablanets.fitting.loop import Report
from nablanets.maps import GradNetC, GradNetM, GradNetMixture, Quadratic
from nablanets.parameters import count_parameters
from nablanets.pieces import fit_pieces
from nablanets.pieces.gating import count_stored
from nablanets.starts import initialise_affine, initialise_from_data, initialise_ridges
from nablanets_studies.baselines import MLP, AffineField, icnn_gradient, match_parameters, mlp_potential
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.plots import learning_curves
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import Field
from nablanets_studies.problems.piecewise import HIGH_DIMENSIONAL

#: Published, recomputed from the authors' weights: best of three rates.
PUBLISHED = "C -10.64 and -8.75, M -11.30 and -10.42 at d = 256 and 1024"


@dataclass(frozen=True)
class HighDimensionalConfig:
    """Settings of a run.

    Attributes:
        features: the dimensions d.
        methods: which of the arms to run; the names are those of the table without field and dimension.
        parameters_per_feature: the budget is this times d.
        steps, batch_size: of training, each batch of fresh points.
        rates, trial_steps: each trained arm takes the best of the rates, times 32 / d, by validation after so many steps.
        samples_per_feature, samples: identification uses d times the first, but at least the second, many points.
        affine_samples_per_feature, start_samples: the affine baseline and the starts use d times the first, but at least
            the second.
        noise: of the gradients in the noisy arms, relative to their root mean square.
        validation_samples, test_samples: further points.
    """

    features: tuple[int, ...] = (32, 256, 1024)
    methods: tuple[str, ...] = (
        "affine", "gradnet-c", "gradnet-m", "gradnet-c-affine-start", "gradnet-m-affine-start",
        "gradnet-c-ridge-start", "gradnet-m-ridge-start", "mixture",
        "identified", "identified-unlimited", "identified-noisy", "identified-2", "identified-6",
        "mlp", "mlp-potential", "icnn",
    )  # fmt: skip
    parameters_per_feature: int = 1024
    steps: int = 10_000
    batch_size: int = 100
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    trial_steps: int = 500
    samples_per_feature: int = 10
    affine_samples_per_feature: int = 50
    samples: int = 4000
    start_samples: int = 20_000
    noise: float = 0.01
    validation_samples: int = 2000
    test_samples: int = 10_000


class _Arm(NamedTuple):
    field: str
    method: str
    features: int


_NETWORKS: dict[str, Callable[[int, int, bool, bool | int], nn.Module]] = {
    "gradnet-c": lambda d, h, monotone, linear: GradNetC(d, h, monotone=monotone, linear=linear),
    "gradnet-m": lambda d, h, monotone, linear: GradNetM(d, h, monotone=monotone, linear=linear),
    "mlp": lambda d, h, *_: MLP(d, h),
    "mlp-potential": lambda d, h, *_: mlp_potential(d, h),
    "icnn": lambda d, h, *_: icnn_gradient(d, h),
}


_STARTS: dict[str, Callable[[GradNetC | GradNetM, Tensor, Tensor], None]] = {
    "-affine-start": initialise_affine,
    "-ridge-start": initialise_ridges,
}


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
        self.name, self.summary, self.fields = name, summary, fields
        paper = HighDimensionalConfig()
        if any(not _field(field, 2).convex for field in fields):
            kept = tuple(m for m in paper.methods if not m.startswith("identified") and m != "gradnet-m-ridge-start")
            paper = HighDimensionalConfig(methods=kept)
        self.presets = {"quick": quick, "paper": paper}
        self.seeds = {"quick": 1, "paper": 5}

    def arms(self, config: HighDimensionalConfig) -> list[str]:
        return list(self._arms(config))

    def _arms(self, config: HighDimensionalConfig) -> dict[str, _Arm]:
        known = HighDimensionalConfig().methods
        for method in config.methods:
            if method not in known:
                raise unknown_name("method", method, known)
        arms = [_Arm(f, m, d) for f in self.fields for d in config.features for m in config.methods]
        prefix = {field: f"{field}-" if len(self.fields) > 1 else "" for field in self.fields}
        return {f"{prefix[a.field]}{a.method}-{a.features}": a for a in arms}

    def run_part(self, config: HighDimensionalConfig, arm: str, seed: int, report: Report) -> PartResult:
        name, method, d = self._arms(config)[arm]
        field = _field(name, d)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        identified = method.startswith("identified")
        count = max(config.samples, config.samples_per_feature * d)
        started = max(config.start_samples, config.affine_samples_per_feature * d)
        samples = field.sample(count if identified else started, generator)
        validation = field.sample(config.validation_samples, generator)
        test = field.sample(config.test_samples, generator)
        begin = time.perf_counter()
        if method == "affine":
            affine = AffineField(d)
            affine.fit(*samples)
            return self._result(affine, d * d + d, time.perf_counter() - begin, test, {})
        if identified:
            return self._identify(config, method, samples, test, seed)
        model, result, rate = self._train(config, field, method, seed, samples, validation)
        for row in result.history:
            report(row)
        return self._result(model, count_parameters(model), time.perf_counter() - begin, test, {"rate": rate})

    def _result(
        self, model: nn.Module, parameters: int, seconds: float, test: Samples, metrics: dict[str, float]
    ) -> PartResult:
        return PartResult(model, parameters, seconds, {"test_db": decibels(error(model, *test)), **metrics})

    def _identify(
        self, config: HighDimensionalConfig, method: str, samples: Samples, test: Samples, seed: int
    ) -> PartResult:
        x, g = samples
        if method == "identified-noisy":
            g = g + config.noise * g.square().mean().sqrt() * torch.randn_like(g)
        budget = None if method == "identified-unlimited" else config.parameters_per_feature * x.shape[1]
        pieces = {"identified-2": 2, "identified-6": 6}.get(method, 3)
        begin = time.perf_counter()
        net, found, _ = fit_pieces(x, g, pieces, parameters=budget, seed=seed)
        seconds = time.perf_counter() - begin
        metrics = {"pieces": float(len(found)), "unexplained_db": decibels(found.unexplained)}
        return self._result(net, count_stored(net), seconds, test, metrics)

    def _train(
        self, config: HighDimensionalConfig, field: Field, method: str, seed: int, samples: Samples, validation: Samples
    ) -> tuple[nn.Module, FitResult, float]:
        """The network of an arm, trained on fresh points with the rate that was best on validation data."""

        def attempt(rate: float, steps: int) -> tuple[nn.Module, FitResult]:
            torch.manual_seed(seed)
            net = _build(method, field, config.parameters_per_feature * field.features, *samples)
            options = {"steps": steps, "learning_rate": rate, "validate_every": max(1, steps // 50), "warmup": 0.05}
            settings = FitSettings(batch_size=config.batch_size, seed=seed).update(**options)
            return net, fit(net, field.sample, validation=validation, progress=False, settings=settings)

        def trial(rate: float) -> float:
            return attempt(rate, config.trial_steps)[1].best_validation_error

        rates = [rate * 32 / field.features for rate in config.rates]
        rate = min(rates, key=trial) if len(rates) > 1 else rates[0]
        return *attempt(rate, config.steps), rate

    def facts(self, config: HighDimensionalConfig) -> Facts:
        fields = [_field(name, 2) for name in self.fields]
        return Facts(fields, all(field.convex for field in fields), PUBLISHED)

    def pictures(self, config: HighDimensionalConfig, run: RunFolder) -> Iterator[Picture]:
        groups: dict[tuple[str, int], list[str]] = {}
        for name, arm in self._arms(config).items():
            if arm.method != "affine" and not arm.method.startswith("identified"):
                groups.setdefault((arm.field, arm.features), []).append(name)
        for (field, d), arms in groups.items():
            curves = learning_curves(run, arms, f"{field}, d = {d}: validation error by step.")
            yield curves._replace(name=f"learning-curves-{field}-{d}")


@lru_cache(maxsize=4)
def _field(name: str, features: int) -> Field:
    return HIGH_DIMENSIONAL[name](features)


def _build(method: str, field: Field, budget: int, x: Tensor, g: Tensor) -> nn.Module:
    d = field.features
    if method == "mixture":
        rank = min(d, (budget - 4) // (3 * d) - 3)
        experts = [Quadratic(d, rank, monotone=field.convex) for _ in range(3)]
        return GradNetMixture(experts).pullback(torch.ones(d), torch.full((d,), -0.5))
    start = next((suffix for suffix in _STARTS if method.endswith(suffix)), "")
    base = method.removesuffix(start)
    linear: bool | int = start in _STARTS and not field.convex
    if linear and d * d + 2 * d > budget / 2:
        linear = max(1, (budget // 2) // d - 2)
    net = match_parameters(lambda h: _NETWORKS[base](d, h, field.convex, linear), budget)
    if isinstance(net, GradNetC | GradNetM):
        initialise_from_data(net, x)
        if start:
            _STARTS[start](net, x, g)
    return net
