"""Which activation? All of them, in both networks, on smooth and on non-differentiable targets."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nablanets import verify
from nablanets.activations import ACTIVATIONS, GroupActivation
from nablanets.fitting import FitSettings, HistoryRow, decibels, error
from nablanets.fitting.batches import Samples
from nablanets.fitting.loop import Report
from nablanets.maps import GradientMap, GradNetC, GradNetM
from nablanets.parameters import count_parameters
from nablanets.pieces import fit_pieces
from nablanets.pieces.gating import count_stored
from nablanets_studies.baselines import MLP, AffineField, match_parameters, mlp_potential
from nablanets_studies.fields import activation_findings as findings
from nablanets_studies.fields.activation_findings import IDENTIFIED
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.selection import fit_best_rate, start_from_data
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import ConvexField, Field, NonconvexField, unit_grid
from nablanets_studies.problems.nonsmooth import L1Norm, MaxAffine, NonsmoothField, Staircase

TARGETS: dict[str, Field] = {
    field.name: field for field in (ConvexField(), NonconvexField(), MaxAffine(), L1Norm(), Staircase())
}
_NETWORKS: dict[str, type[GradNetC] | type[GradNetM]] = {"c": GradNetC, "m": GradNetM}
_BASELINES: dict[str, Callable[[int], nn.Module]] = {
    "mlp-tanh": lambda width: MLP(2, width),
    "mlp-relu": lambda width: MLP(2, width, activation="relu"),
    "mlp-potential": lambda width: mlp_potential(2, width),
}
#: How many affine pieces are looked for by identification.
_PIECES = 6
#: Bounds of test errors: what one counts as that is not finite, and what one counts as that is zero.
_WORST_DB, _BEST_DB = 100.0, -200.0
#: A fit fails if its last validation error is more than this times that of the affine map.
_FAILURE = 1.05


@dataclass(frozen=True)
class ActivationsConfig:
    """Settings of a run.

    Attributes:
        activations: their names; group activations are in GradNet-M only.
        targets: fields to learn, by name.
        parameters: every network is the widest with at most so many.
        samples, validation_samples: points to train on and to choose rates and checkpoints on.
        batch_size, steps: of every fit.
        rates: learning rates that every network of every seed and target chooses from.
        test_side: the test points are a grid of this side.
        margin: test points farther than this from every kink count as away from the kinks.
    """

    activations: tuple[str, ...] = tuple(ACTIVATIONS)
    targets: tuple[str, ...] = tuple(TARGETS)
    parameters: int = 400
    samples: int = 5000
    validation_samples: int = 1000
    batch_size: int = 128
    steps: int = 1000
    rates: tuple[float, ...] = (1e-2, 4e-2)
    test_side: int = 64
    margin: float = 0.05


class ActivationsExperiment(Experiment[ActivationsConfig]):
    """All activations at equal parameters, steps and choice of rates."""

    name = "activations"
    summary = "Compare all activations in GradNet-C and GradNet-M on smooth and non-differentiable fields."
    presets = {  # noqa: RUF012
        "quick": ActivationsConfig(targets=("convex", "max-affine"), steps=350, rates=(4e-2,), test_side=40),
        "paper": ActivationsConfig(),
    }
    seeds = {"quick": 1, "paper": 5}  # noqa: RUF012
    columns = (
        *(Column(f"{name}_db", f"{name} [dB]", ".1f") for name in TARGETS),
        Column("asymmetry32", "asymmetry, float32", ".0e"),
        Column("asymmetry64", "asymmetry, float64", ".0e"),
        Column("failures", "failed fits", ".0%"),
    )

    def arms(self, config: ActivationsConfig) -> list[str]:
        return [*gradient_arms(config.activations), "affine", *_BASELINES, IDENTIFIED]

    def run_part(self, config: ActivationsConfig, arm: str, seed: int, report: Report) -> PartResult:
        metrics: dict[str, float] = {}
        learned = [_learn(config, arm, TARGETS[target], seed) for target in config.targets]
        for target, part in zip(config.targets, learned, strict=True):
            metrics |= {f"{target}_{name}": value for name, value in part.metrics.items()}
        metrics |= {name: max(part.asymmetry[name] for part in learned) for name in learned[0].asymmetry}
        if learned[0].failed:
            metrics["failures"] = statistics.fmean(failed for part in learned for failed in part.failed)
        for row in learned[0].history:
            report(row)
        net = learned[-1].net
        parameters = {"affine": 6, IDENTIFIED: count_stored(net)}.get(arm, count_parameters(net))
        return PartResult(net, parameters, sum(part.seconds for part in learned), metrics)

    def sheets(self, config: ActivationsConfig, run: RunFolder) -> list[Sheet]:
        return findings.sheets(config.targets, run.rows())

    def conclusions(self, config: ActivationsConfig, run: RunFolder) -> list[str]:
        return findings.conclusions(config.targets, run.rows())

    def pictures(self, config: ActivationsConfig, run: RunFolder) -> Iterator[Picture]:
        yield findings.heat_map(config.targets, run.rows())
        models = {arm: run.load_model(arm, 0) for arm in self.arms(config) if (arm, 0) in run.finished()}
        yield findings.cuts(TARGETS[config.targets[-1]], models)

    def notes(self, config: ActivationsConfig) -> list[str]:
        formulas = "; ".join(f"{name}: {TARGETS[name].formula}" for name in config.targets)
        return [
            f"Targets, on the unit square: {formulas}. Convex and nonconvex are the paper's, the others, whose fields "
            "jump, are ours. The study as a whole is ours: the paper asks for one and has none.",
            "Errors are 10 log10 of the mean of ||f(x) - g(x)||² over a grid of "
            f"{config.test_side} x {config.test_side} points (of the square itself, not relative to g); one that is not "
            f"finite counts as {_WORST_DB:.0f} dB, one of zero as {_BEST_DB:.0f} dB. “Away from the kinks” are the points farther than {config.margin} from "
            "every kink. Potential errors are root mean squares after removing the mean, over the standard deviation of "
            "the true potential. “Overshoot” is the largest |f| over the largest |g| on the grid.",
            f"All networks are the widest with at most {config.parameters} parameters (so learnable activations have fewer "
            "units): GradNet-C with four layers (c-), GradNet-M with four modules (m-), without linear term; MLPs with two "
            "hidden layers; the potential is a tanh MLP. Monotone where the target is convex and the activation allows it "
            "(sine, gaussian and abs do not), else free. “identified” is no network of the study but what the library offers for "
            f"such targets: {_PIECES} affine pieces from samples (fit_pieces) and the mixture they make, monotone where the target "
            "is convex.",
            f"{config.samples:,} points, {config.steps:,} steps of {config.batch_size} of Adam with cosine decay, the "
            f"best checkpoint and the best of the rates {config.rates} by the error on {config.validation_samples:,} "
            "validation points, for each activation, target and seed. Before that the outer coefficients of the gradient "
            "networks are scaled so that their start is as large as the data, for every activation alike (our choice).",
            "Caution: “the best” of each group is the one of the least mean test error, and there are many more gradient "
            "networks than baselines, which favours them; the median and the share that beats the best baseline do not gain "
            "from their number.",
            f"A fit (of any rate, chosen or not) fails if it diverges or its last validation error is more than {_FAILURE:g} "
            "times that of the best affine map. Asymmetry is the largest |J - J'| over the largest |J| at 64 test points, by automatic "
            "differentiation, the worst of all targets; float64 is the same trained network converted.",
        ]


class _Learned(NamedTuple):
    """A network that has learned one target; ``failed`` has one entry for each rate that was tried."""

    net: nn.Module
    metrics: dict[str, float]
    asymmetry: dict[str, float]
    failed: list[bool]
    seconds: float
    history: list[HistoryRow]


def _learn(config: ActivationsConfig, arm: str, field: Field, seed: int) -> _Learned:
    generator = torch.Generator().manual_seed(1000 + seed)
    train = field.sample(config.samples, generator)
    validation = field.sample(config.validation_samples, generator)
    affine = AffineField(2)
    affine.fit(*train)
    if arm in ("affine", IDENTIFIED):
        begin = time.perf_counter()
        net: nn.Module = affine
        if arm == IDENTIFIED:
            net = fit_pieces(*train, _PIECES, monotone=field.convex, seed=seed)[0]
        return _Learned(net, measure(config, field, net), asymmetry(net), [], time.perf_counter() - begin, [])
    every = max(1, config.steps // 20)
    net, result, tried = fit_best_rate(
        lambda: build(config, arm, field, train),
        train,
        validation,
        rates=config.rates,
        seed=seed,
        settings=FitSettings(steps=config.steps, batch_size=config.batch_size, validate_every=every),
    )
    limit = _FAILURE * error(affine, *validation)
    failed = [not record.history[-1].validation_error <= limit for record in tried]
    metrics = measure(config, field, net) | {"failures": statistics.fmean(failed)}
    return _Learned(net, metrics, asymmetry(net), failed, sum(r.seconds for r in tried), result.history)


def gradient_arms(names: tuple[str, ...]) -> list[str]:
    """The gradient networks: elementwise activations in C, all in M.

    >>> gradient_arms(("tanh", "softmax"))
    ['c-tanh', 'm-tanh', 'm-softmax']
    """
    pairs = ((net, name) for name in names for net in _NETWORKS)
    return [f"{net}-{name}" for net, name in pairs if net == "m" or not issubclass(ACTIVATIONS[name], GroupActivation)]


def build(config: ActivationsConfig, arm: str, field: Field, train: Samples) -> nn.Module:
    """A fresh network of an arm for a field, at the start that the data suggest if it is a gradient network."""
    if arm in _BASELINES:
        return match_parameters(_BASELINES[arm], config.parameters)
    kind, _, name = arm.partition("-")
    monotone = field.convex and ACTIVATIONS[name]((1,), monotone=True).increasing
    constructor = _NETWORKS[kind]
    net = match_parameters(
        lambda h: constructor(2, h, 4, activation=name, monotone=monotone, linear=False), config.parameters
    )
    start_from_data(net, *train)
    return net


@torch.no_grad()
def measure(config: ActivationsConfig, field: Field, net: nn.Module) -> dict[str, float]:
    """Errors of a network on the test grid: overall, away from the kinks, of the potential; and its overshoot."""
    x = unit_grid(config.test_side).flatten(0, 1)
    f, g = net(x), field.gradient(x)
    square = (f - g).square().sum(dim=-1)
    metrics = {"db": _decibels(square), "overshoot": float(f.norm(dim=-1).max() / g.norm(dim=-1).max())}
    if isinstance(field, NonsmoothField):
        away = field.kink_distance(x) > config.margin
        metrics |= {"away_db": _decibels(square[away]), "near_fraction": float((~away).float().mean())}
    if isinstance(net, GradientMap):
        truth = field.potential(x)
        metrics["potential"] = float((net.potential(x) - truth).std() / truth.std())
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _decibels(square: Tensor) -> float:
    mean = float(square.mean())
    return max(decibels(mean), _BEST_DB) if math.isfinite(mean) else _WORST_DB


def asymmetry(net: nn.Module) -> dict[str, float]:
    """The asymmetry of the Jacobian in float32 and, of the same network converted, in float64."""
    x = unit_grid(8).flatten(0, 1)
    double = copy.deepcopy(net).double()
    return {
        "asymmetry32": verify.symmetry_error(net, x),
        "asymmetry64": verify.symmetry_error(double, x.double()),
    }
