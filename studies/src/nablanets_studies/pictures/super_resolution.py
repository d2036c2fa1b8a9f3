"""The super-resolution study: EDSR with every kind of skip, at equal epochs and at equal training time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from torch import nn

from nablanets.fitting.loop import Report
from nablanets.fitting.settings import decibels
from nablanets.parameters import count_parameters
from nablanets.residual import GradientResidual
from nablanets_studies.images.metrics import reconstruction
from nablanets_studies.images.models import Bicubic
from nablanets_studies.images.patches import middle
from nablanets_studies.images.super_resolution import average_quality
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.metrics import measured
from nablanets_studies.machinery.plots import learning_curves, panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.pictures.super_resolution_arms import (
    ARMS,
    BUDGETS,
    METHODS,
    STANDARD,
    SuperResolutionArm,
    SuperResolutionConfig,
    arms_of,
    choose,
    pictures_of,
    source_of,
    train_arm,
)
from nablanets_studies.pictures.super_resolution_findings import (
    SuperResolutionFindings,
    SuperResolutionMetrics,
    SuperResolutionResults,
    best_carrying,
    budget_sheet,
    find,
    gates,
    psnrs,
)

#: Side of the parts of pictures that are shown, in pixels.
_CROP = 96
#: The arm that is not trained.
_BICUBIC = "bicubic"


class SuperResolutionFacts(NamedTuple):
    """What the protocol says beside the configuration: where the pictures of this machine come from."""

    source: str


class Tested(NamedTuple):
    """PSNR and SSIM over all test pictures, and the PSNR of each set if there are several."""

    psnr: float
    ssim: float
    psnr_by_set: dict[str, float]


class SuperResolutionExperiment(Experiment[SuperResolutionConfig]):
    """Enlarge photographs with EDSR whose skips carry gradients, or not."""

    name = "super-resolution"
    summary = "Enlarge photographs with EDSR: gradient residuals and every control, at equal epochs and at equal time."
    template = "super_resolution.md.j2"
    columns = (
        Column("psnr", "PSNR [dB]", ".3f"),
        Column("gain", "over bicubic", ".3f"),
        Column("ssim", "SSIM", ".4f"),
        Column("validation_psnr", "validation", ".3f"),
        Column("milliseconds", "ms per step", ".1f"),
        Column("steps", "steps", ".0f"),
        Column("rate", "rate", ".0e"),
        Column("alpha", "alpha", ".0f"),
    )
    presets = {  # noqa: RUF012
        "quick": SuperResolutionConfig(
            data="packaged",
            blocks=4,
            width=16,
            tail="direct",
            onto_bicubic=True,
            epochs=0.25,
            seconds=6.0,
            batch_size=8,
            patch=24,
            rates=(1e-3, 3e-3),
            alphas=(-3.0, 0.0),
            trial_epochs=0.1,
            ema=0.99,
            validate_every=100,
            validation_side=200,
        ),
        "paper": SuperResolutionConfig(),
    }
    seeds = {"quick": 3, "paper": 3}  # noqa: RUF012

    def arms(self, config: SuperResolutionConfig) -> list[str]:
        return [_BICUBIC, *(arm.name for arm in arms_of(config))]

    def run_part(self, config: SuperResolutionConfig, arm: str, seed: int, report: Report) -> PartResult:
        if arm == _BICUBIC:
            metrics = SuperResolutionMetrics(**_measured(config, [Bicubic(config.scale)])._asdict(), gain=0.0)
            return PartResult(None, 0, 0.0, metrics.to_metrics())
        wanted = ARMS[arm]
        choice = choose(config, wanted.method.name)
        net, trained = train_arm(config, wanted.method, choice, seed=seed, budget=wanted.budget, report=report)
        record = trained.record
        tested = _measured(config, trained.last)
        gated = [layer for layer in net.body if isinstance(layer, GradientResidual) and hasattr(layer, "alpha")]
        metrics = SuperResolutionMetrics(
            **tested._asdict(),
            gain=tested.psnr - _bicubic_psnr(config),
            validation_psnr=-decibels(record.history[-1].validation_error),
            milliseconds=1000 * record.seconds / record.steps,
            steps=float(record.steps),
            rate=choice.rate,
            alpha=choice.alpha if gated else None,
            gates=tuple(float(layer.gate().detach()) for layer in gated),
        )
        return PartResult(net, count_parameters(net), record.seconds, metrics.to_metrics())

    def sheets(self, config: SuperResolutionConfig, run: RunFolder) -> list[Sheet]:
        results = measured(run.rows(), SuperResolutionMetrics)
        sheets = [budget_sheet(results, BUDGETS[name]) for name in config.budgets]
        return [sheet for sheet in sheets if sheet is not None]

    def facts(self, config: SuperResolutionConfig) -> SuperResolutionFacts:
        return SuperResolutionFacts(source_of(config))

    def findings(self, config: SuperResolutionConfig, run: RunFolder) -> SuperResolutionFindings:
        results = measured(run.rows(), SuperResolutionMetrics)
        return find(results, [BUDGETS[name] for name in config.budgets])

    def pictures(self, config: SuperResolutionConfig, run: RunFolder) -> Iterator[Picture]:
        results = measured(run.rows(), SuperResolutionMetrics)
        for budget in BUDGETS.values():
            arms = [arm.name for arm in arms_of(config) if arm.budget == budget]
            if arms:
                caption = f"PSNR of the validation pictures with its sign turned, by {budget.versus}: mean and range over seeds."
                yield learning_curves(run, arms, caption, versus=budget.versus)
        yield from _gate_picture(results)
        yield from _crops(config, run, results)


def _measured(config: SuperResolutionConfig, nets: list) -> Tested:
    """The quality of pictures enlarged by networks, mean over the networks."""
    tests = pictures_of(config).tests
    found = {name: average_quality(nets, photographs.pictures, config.scale) for name, photographs in tests.items()}
    counts = {name: len(photographs.pictures) for name, photographs in tests.items()}
    total = sum(counts.values())
    return Tested(
        psnr=sum(counts[name] * quality.psnr for name, quality in found.items()) / total,
        ssim=sum(counts[name] * quality.ssim for name, quality in found.items()) / total,
        psnr_by_set={name: quality.psnr for name, quality in found.items()} if len(tests) > 1 else {},
    )


@lru_cache(maxsize=4)
def _bicubic_psnr(config: SuperResolutionConfig) -> float:
    return _measured(config, [Bicubic(config.scale)]).psnr


def _gate_picture(results: SuperResolutionResults) -> Iterator[Picture]:
    found = gates(results)
    if not found:
        return
    figure, (ax,) = panels(1, 1, width=7, height=4)
    for arm, values in found.items():
        ax.plot(range(1, len(values) + 1), values, marker="o", label=arm)
    ax.set(xlabel="block", ylabel="s(alpha)", ylim=(0, 1))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    yield Picture(
        "gates", "The share s(alpha) of the skip that is g (or its stand-in) after training, by block.", figure
    )


def _crops(config: SuperResolutionConfig, run: RunFolder, results: SuperResolutionResults) -> Iterator[Picture]:
    """The middle of the first test picture, enlarged by bicubic, the standard skip and the best gradient, with errors."""
    budget = BUDGETS[config.budgets[-1]]
    finished = run.finished()
    nets: dict[str, nn.Module] = {_BICUBIC: Bicubic(config.scale)}
    for method in (STANDARD.name, best_carrying(psnrs(results, budget))):
        if method is not None:
            shown = SuperResolutionArm(METHODS[method], budget)
            if (shown.name, 0) in finished:
                nets[method] = run.load_model(shown.name, 0).eval()
    name, photographs = next(iter(pictures_of(config).tests.items()))
    picture = photographs.pictures[0]
    pairs = {arm: reconstruction(net, picture, config.scale) for arm, net in nets.items()}
    original = pairs[_BICUBIC][1]
    figure, axes = panels(2, 1 + len(pairs), width=2.8, height=2.8)
    for ax in axes:
        ax.set_axis_off()
    axes[0].imshow(middle(original, _CROP).permute(1, 2, 0).numpy())
    axes[0].set_title(f"{name}: {photographs.names[0]}")
    for column, (arm, (enlarged, _)) in enumerate(pairs.items(), start=1):
        axes[column].imshow(middle(enlarged, _CROP).permute(1, 2, 0).numpy())
        axes[column].set_title(arm)
        error = (middle(enlarged, _CROP) - middle(original, _CROP)).abs().mean(dim=0).numpy()
        axes[1 + len(pairs) + column].imshow(error, cmap="magma", vmin=0, vmax=0.15)
    yield Picture(
        "crops", "A part of a test picture (seed 0), and the absolute errors of its colours from 0 to 0.15.", figure
    )
