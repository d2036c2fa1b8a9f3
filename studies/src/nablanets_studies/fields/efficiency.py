"""What gradient networks cost beside their peers: time, memory, accuracy per second and per parameter, growth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nablanets.fitting import FitSettings, decibels, error
from nablanets.fitting.loop import Report
from nablanets.maps import GradNetC, GradNetM, from_potential
from nablanets.parameters import count_parameters
from nablanets_studies.baselines import MLP, icnn_gradient, match_parameters, mlp_potential
from nablanets_studies.fields import efficiency_findings as findings
from nablanets_studies.fields.efficiency_findings import REFERENCE
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.costs import (
    Call,
    forward_pass,
    growth_exponent,
    interleaved_times,
    peak_bytes,
    training_step,
)
from nablanets_studies.machinery.selection import fit_best_rate, start_from_data
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import ConvexField, unit_grid

_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    REFERENCE: lambda d, h: GradNetC(d, h, 4, activation="tanh", monotone=True, linear=False),
    "gradnet-m": lambda d, h: GradNetM(d, h, 4, activation="softmax", monotone=True, linear=False),
    "mlp": MLP,
    "autograd-potential": lambda d, h: from_potential(MLP(d, h, outputs=1), d),
    "mlp-potential": mlp_potential,
    "icnn": icnn_gradient,
}
_MODES: dict[str, Callable[..., Call]] = {"forward": forward_pass, "step": training_step}


@dataclass(frozen=True)
class EfficiencyConfig:
    """Settings of a run.

    Attributes:
        budgets: parameters of the networks that learn the task; costs of the task are those of the last.
        samples, validation_samples: points to train on and to choose rates and checkpoints on.
        batch_size, steps: of every fit.
        rates: learning rates that every network of every seed and budget chooses from.
        hidden_features: h of the GradNet-C that sets the number of parameters at each d for the growth.
        features: d for the growth with d, in batches of ``growth_batch``.
        growth_batch: see there.
        batches: batch sizes for the growth with the batch, at d = ``batch_features``.
        batch_features: see there.
        large_features, large_batch: exponents are fitted over d, and batches, from here on.
        repeats: rounds of timing.
        at_least: seconds that each measurement of them lasts; short calls are repeated within it.
    """

    budgets: tuple[int, ...] = (100, 400, 1600)
    samples: int = 5000
    validation_samples: int = 1000
    batch_size: int = 256
    steps: int = 2000
    rates: tuple[float, ...] = (5e-3, 2e-2)
    hidden_features: int = 64
    features: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    growth_batch: int = 64
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    batch_features: int = 32
    large_features: int = 256
    large_batch: int = 256
    repeats: int = 15
    at_least: float = 2e-3


class EfficiencyExperiment(Experiment[EfficiencyConfig]):
    """Costs at equal parameters, and how they grow."""

    name = "efficiency"
    summary = (
        "Time, memory and accuracy of gradient networks and their peers on an equal task, and growth with d and batch."
    )
    presets = {  # noqa: RUF012
        "quick": EfficiencyConfig(
            budgets=(100, 400),
            steps=400,
            rates=(2e-2,),
            features=(2, 16, 128, 256, 512),
            batches=(1, 32, 256, 1024),
            large_features=128,
            repeats=6,
            at_least=1e-3,
        ),
        "paper": EfficiencyConfig(),
    }
    seeds = {"quick": 1, "paper": 5}  # noqa: RUF012
    columns = (
        Column("db", "test error, equal steps [dB]", ".1f"),
        Column("forward_task_ratio", "forward time / GradNet-C's"),
        Column("step_task_ratio", "step time / GradNet-C's"),
        Column("memory_step_task", "peak memory of a step [bytes]", ",.0f"),
        Column("forward_d_exponent", "forward ~ d^", ".2f"),
        Column("step_d_exponent", "step ~ d^", ".2f"),
    )

    def arms(self, config: EfficiencyConfig) -> list[str]:
        return list(_NETWORKS)

    def run_part(self, config: EfficiencyConfig, arm: str, seed: int, report: Report) -> PartResult:
        metrics, seconds = _learn(config, arm, seed, report)
        metrics |= _costs(config, arm, seed)
        return PartResult(None, int(metrics[f"parameters_{config.budgets[-1]}"]), seconds, metrics)

    def sheets(self, config: EfficiencyConfig, run: RunFolder) -> list[Sheet]:
        return findings.Findings(config, run).sheets()

    def conclusions(self, config: EfficiencyConfig, run: RunFolder) -> list[str]:
        return findings.Findings(config, run).conclusions()

    def pictures(self, config: EfficiencyConfig, run: RunFolder) -> Iterator[Picture]:
        yield from findings.Findings(config, run).pictures()

    def notes(self, config: EfficiencyConfig) -> list[str]:
        return [
            f"The task: the paper's convex field, {ConvexField.formula}, {config.samples:,} points, {config.steps:,} steps of "
            f"{config.batch_size} of Adam at a constant rate, the best checkpoint and the best of the rates {config.rates} by "
            "validation error. Errors are 10 log10 of the mean of ||f(x) - g(x)||² over a grid of 64 x 64 points. The study "
            "is ours: the paper asks for one and has none.",
            "All networks are the widest with at most the stated number of parameters: GradNet-C with four layers of tanh, "
            "GradNet-M with four softmax modules, both monotone and without linear term; MLP, MLP potential (its gradient by "
            "torch.func, and in closed form) and ICNN (in closed form) with two hidden layers.",
            "Times are processor times of one thread (on an idle machine the same as wall times; what other programs take from "
            "it does not count), medians of "
            f"{config.repeats} measurements of at least {1000 * config.at_least:g} ms in which the network, a GradNet-C, and all sizes take turns, so that a disturbance of the "
            "machine meets all of them; compare ratios, which are within one round, rather than seconds. The ratio of "
            "GradNet-C to another GradNet-C shows how exact ratios are. A step is forward, backward and Adam.",
            "Equal time: an arm's time per step is its ratio times the median time of GradNet-C; the fastest arm makes all its "
            "steps, and the others are taken at the last validation within its time.",
            "Memory is the most bytes of tensors that a call makes and holds at one time (saved activations, temporaries, "
            "gradients), counted from the storages that operations return; parameters and Adam's moments, which are equal for "
            "all, come on top.",
            f"Growth: parameters as those of a GradNet-C with h = {config.hidden_features}; with d in batches of "
            f"{config.growth_batch}, with the batch at d = {config.batch_features}. Exponents are slopes of the regression of "
            f"log cost on log size, over d >= {config.large_features} and batches >= {config.large_batch}; below that the "
            "overhead of calls prevails. The multiply-adds of all these networks grow in proportion to d, at the width that the "
            "parameters allow, and to the batch; an exponent below one says that the overhead is still a part of the time.",
        ]


def _learn(config: EfficiencyConfig, arm: str, seed: int, report: Report) -> tuple[dict[str, float], float]:
    """Test error and parameters for each budget; the last one's learning curve is reported."""
    field, generator = ConvexField(), torch.Generator().manual_seed(1000 + seed)
    train, validation = field.sample(config.samples, generator), field.sample(config.validation_samples, generator)
    settings = FitSettings(steps=config.steps, batch_size=config.batch_size, schedule="constant")
    x = unit_grid(64).flatten(0, 1)
    metrics: dict[str, float] = {}
    seconds = 0.0
    for budget in config.budgets:

        def build(budget: int = budget) -> nn.Module:
            net = match_parameters(lambda h: _NETWORKS[arm](2, h), budget)
            start_from_data(net, *train)
            return net

        net, result, tried = fit_best_rate(build, train, validation, rates=config.rates, seed=seed, settings=settings)
        seconds += sum(record.seconds for record in tried)
        metrics |= {f"db_{budget}": decibels(error(net, x, field.gradient(x)))}
        metrics |= {f"parameters_{budget}": count_parameters(net)}
    metrics["db"] = metrics[f"db_{config.budgets[-1]}"]
    for row in result.history:
        report(row)
    return metrics, seconds


def _costs(config: EfficiencyConfig, arm: str, seed: int) -> dict[str, float]:
    """Times of the arm and of the reference beside it, ratios, peak memory and exponents."""
    torch.manual_seed(seed)
    sizes = {"task": (2, config.batch_size)}
    sizes |= {f"d{d}": (d, config.growth_batch) for d in config.features}
    sizes |= {f"b{batch}": (config.batch_features, batch) for batch in config.batches}
    metrics: dict[str, float] = {}
    runs: dict[str, Call] = {}
    for size, (d, batch) in sizes.items():
        x = torch.rand(batch, d)
        budget = config.budgets[-1] if size == "task" else _budget(d, config.hidden_features)
        for mode, call in _MODES.items():
            for suffix, name in (("", arm), ("_reference", REFERENCE)):
                runs[f"{mode}_{size}{suffix}"] = call(_network(name, d, budget), x)
            metrics[f"memory_{mode}_{size}"] = peak_bytes(call(_network(arm, d, budget), x))
    times = interleaved_times(list(runs.values()), config.repeats, at_least=config.at_least, clock=time.process_time)
    metrics |= dict(zip(runs, times, strict=True))
    metrics |= {
        f"{key}_ratio": metrics[key] / metrics[f"{key}_reference"] for key in runs if f"{key}_reference" in runs
    }
    for mode in (*_MODES, *(f"memory_{mode}" for mode in _MODES)):
        metrics |= _exponent(metrics, mode, "d", [d for d in config.features if d >= config.large_features])
        metrics |= _exponent(metrics, mode, "b", [b for b in config.batches if b >= config.large_batch])
    return metrics


def _network(name: str, d: int, budget: int) -> nn.Module:
    return match_parameters(lambda h: _NETWORKS[name](d, h), budget)


def _budget(d: int, hidden_features: int) -> int:
    return count_parameters(_NETWORKS[REFERENCE](d, hidden_features))


def _exponent(metrics: dict[str, float], mode: str, axis: str, sizes: Sequence[int]) -> dict[str, float]:
    if len(sizes) < 2:
        return {}
    return {f"{mode}_{axis}_exponent": growth_exponent(sizes, [metrics[f"{mode}_{axis}{size}"] for size in sizes])}
