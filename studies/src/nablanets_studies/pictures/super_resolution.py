"""The super-resolution study: EDSR with every kind of skip, at equal epochs and at equal training time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.fitting.settings import decibels
from nablanets.parameters import count_parameters
from nablanets.residual import GradientResidual
from nablanets_studies.images.metrics import reconstruction
from nablanets_studies.images.models import Bicubic
from nablanets_studies.images.patches import middle
from nablanets_studies.images.super_resolution import average_quality
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.plots import learning_curves, panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.pictures.super_resolution_arms import (
    BUDGETS,
    CARRYING,
    METHODS,
    SuperResolutionConfig,
    choose,
    pictures_of,
    source_of,
    train_arm,
)
from nablanets_studies.pictures.super_resolution_findings import best_of, budget_sheet, conclusions_of, gates, psnrs

_CROP = 96
_BICUBIC = "bicubic"


class SuperResolutionExperiment(Experiment[SuperResolutionConfig]):
    """Enlarge photographs with EDSR whose skips carry gradients, or not."""

    name = "super-resolution"
    summary = "Enlarge photographs with EDSR: gradient residuals and every control, at equal epochs and at equal time."
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
        for kind, chosen, known in (("method", config.methods, METHODS), ("budget", config.budgets, BUDGETS)):
            for name in chosen:
                if name not in known:
                    raise unknown_name(kind, name, known)
        return [_BICUBIC, *(f"{method}-{budget}" for budget in config.budgets for method in config.methods)]

    def run_part(self, config: SuperResolutionConfig, arm: str, seed: int, report: Report) -> PartResult:
        if arm == _BICUBIC:
            metrics = _measured(config, [Bicubic(config.scale)])
            return PartResult(None, 0, 0.0, metrics | {"gain": 0.0})
        method, budget = arm.rsplit("-", maxsplit=1)
        choice = choose(config, method)
        net, trained = train_arm(config, method, choice, seed=seed, budget=budget, report=report)
        record = trained.record
        metrics = _measured(config, trained.last)
        metrics |= {
            "gain": metrics["psnr"] - _bicubic_psnr(config),
            "validation_psnr": -decibels(record.history[-1].validation_error),
            "milliseconds": 1000 * record.seconds / record.steps,
            "steps": float(record.steps),
            "rate": choice.rate,
        }
        gated = [layer for layer in net.body if isinstance(layer, GradientResidual) and hasattr(layer, "alpha")]
        if gated:
            metrics |= {"alpha": choice.alpha}
            metrics |= {f"gate_{i}": float(layer.gate().detach()) for i, layer in enumerate(gated, start=1)}
        return PartResult(net, count_parameters(net), record.seconds, metrics)

    def sheets(self, config: SuperResolutionConfig, run: RunFolder) -> list[Sheet]:
        return [sheet for budget in config.budgets if (sheet := budget_sheet(run.rows(), budget)) is not None]

    def conclusions(self, config: SuperResolutionConfig, run: RunFolder) -> list[str]:
        return conclusions_of(run.rows(), config.budgets)

    def notes(self, config: SuperResolutionConfig) -> list[str]:
        source = source_of(config)
        where = {
            "packaged": "45 photographs inside Debian packages to train on, 6 others to choose settings with, and ten test "
            "pictures: butterfly, barbara, kodim23, monarch, sail, tulips, astronaut, chelsea, coffee, flower",
            "embedded": "the few photographs inside scikit-image and scikit-learn, since those inside Debian packages are "
            "not on this machine (`nablanets data get`): eight to train on, many of them textures, two to choose settings "
            "with, four to test on",
        }.get(source, f"the folders {config.train}, {config.validation} and {', '.join(config.tests)} of {source}")
        return [
            "From the paper: EDSR and a simplified EDSR with gradient residuals, 3 seeds, 500 epochs on DIV2K, PSNR as mean "
            "over pictures, and the average of the evaluations in the last quarter. Simplified EDSR is not described: "
            "the quick preset's form (few blocks, one sub-pixel convolution, added to the bicubic enlargement) is ours. "
            "So are the equal time, the controls, and the arms that go through g or learn a probe.",
            f"Pictures: {where}. Reduced x{config.scale} by MATLAB's bicubic; PSNR and SSIM of the luminance (BT.601), of "
            f"outputs in bytes, without {config.scale} pixels at each border.",
            f"{config.blocks} blocks of width {config.width}; mean absolute error on patches of {config.patch} x "
            f"{config.patch} small pixels in batches of {config.batch_size}, mirrored and turned, more where there is "
            f"detail; Adam with cosine decay"
            + (f", average of weights with decay {config.ema}" if config.ema else "")
            + f". By epochs: {config.epochs:g} epochs of 16,000 patches. By time: {config.seconds:g} s of processor time "
            "without validation, the rate falling with the time that is spent.",
            f"Each arm takes the rate of {config.rates} and, where it has one, the initial alpha of {config.alphas} with "
            f"the highest PSNR of the validation pictures after {config.trial_epochs:g} epochs."
            if len(config.rates) * len(config.alphas) > 1
            else f"All arms have the rate {config.rates[0]} and start at alpha = {config.alphas[0]}.",
            "gradient: g of unit norm over the channels of each pixel, under stop-gradient. gradient-full: not normalised, "
            "with back-propagation through g. gradient-probe: J'v with v trained, g as in gradient; gradient-full-probe: "
            "both. damped: (1 - s) x; random: a fixed random unit vector in place of g; alpha of these two is that of "
            "gradient. All alphas are trained, one per block. guided: standard skips, with Sobel maps as further inputs. "
            "deeper: standard skips in 1.5 times the blocks, about the cost of going through g.",
            "Standard errors are those of the mean over seeds; differences are taken seed by seed.",
        ]  # fmt: skip

    def pictures(self, config: SuperResolutionConfig, run: RunFolder) -> Iterator[Picture]:
        caption = "PSNR of the validation pictures with its sign turned, by {}: mean and range over seeds."
        for budget, versus in (("epochs", "step"), ("time", "seconds")):
            if budget in config.budgets:
                arms = [f"{method}-{budget}" for method in config.methods]
                yield learning_curves(run, arms, caption.format(versus), versus=versus)
        yield from _gate_picture(run)
        yield from _crops(config, run)


def _measured(config: SuperResolutionConfig, nets: list) -> dict[str, float]:
    """PSNR and SSIM over all test pictures, and the PSNR of each set if there are several."""
    tests = pictures_of(config).tests
    found = {name: average_quality(nets, photographs.pictures, config.scale) for name, photographs in tests.items()}
    counts = {name: len(photographs.pictures) for name, photographs in tests.items()}
    total = sum(counts.values())
    means = {
        metric: sum(counts[name] * getattr(found[name], metric) for name in tests) / total
        for metric in ("psnr", "ssim")
    }
    return means | ({f"psnr_{name}": q.psnr for name, q in found.items()} if len(tests) > 1 else {})


@lru_cache(maxsize=4)
def _bicubic_psnr(config: SuperResolutionConfig) -> float:
    return _measured(config, [Bicubic(config.scale)])["psnr"]


def _gate_picture(run: RunFolder) -> Iterator[Picture]:
    found = gates(run.rows())
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


def _crops(config: SuperResolutionConfig, run: RunFolder) -> Iterator[Picture]:
    """The middle of the first test picture, enlarged by bicubic, the standard skip and the best gradient, with errors."""
    budget = config.budgets[-1]
    best = best_of(psnrs(run.rows(), budget), CARRYING)
    shown = [m for m in ("standard", best) if m is not None and (f"{m}-{budget}", 0) in run.finished()]
    name, photographs = next(iter(pictures_of(config).tests.items()))
    picture = photographs.pictures[0]
    nets = {_BICUBIC: Bicubic(config.scale)} | {m: run.load_model(f"{m}-{budget}", 0).eval() for m in shown}
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
