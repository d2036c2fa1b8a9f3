"""What the experiments on a sinusoid share: how arms run, how errors are gathered, and the pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from scipy import stats

from nablanets.errors import unknown_name
from nablanets.fitting import error
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, SeedReport
from nablanets_studies.machinery.comparison import Comparison
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.sinusoid import Sinusoid
from nablanets_studies.sinusoid.arms import SinusoidConfig, choose, gated, train
from nablanets_studies.sinusoid.nets import VARIANTS

#: The head of a sheet of comparisons; see :func:`comparison_row`.
COMPARISON = ("ratio of means", "of medians", "difference [95 %]", "effect d_z", "p (t)", "p (Wilcoxon)")
#: Of a run, where errors during training are reported.
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


class SinusoidStudy(Experiment[SinusoidConfig]):
    """Learn sin(d pi x) from noisy samples with several networks; the seeds of an arm train as one program."""

    columns = (
        Column("test_mse", "test MSE", ".4f"),
        Column("validation_mse", "validation MSE", ".4f"),
        Column("rate", "rate", ".0e"),
        Column("alpha", "alpha", ".0f"),
    )

    def arms(self, config: SinusoidConfig) -> list[str]:
        arms = config.arms()
        for method, _ in arms.values():
            if method not in VARIANTS:
                raise unknown_name("method", method, VARIANTS)
        return list(arms)

    def run_part(self, config: SinusoidConfig, arm: str, seed: int, report: Report) -> PartResult:
        ((_, result),) = self.run_arm(config, arm, [seed], lambda _, row: report(row))
        return result

    def run_arm(
        self, config: SinusoidConfig, arm: str, seeds: Sequence[int], report: SeedReport
    ) -> Iterator[tuple[int, PartResult]]:
        """All seeds as one program; the network of seed 0 is kept."""
        method, frequency = config.arms()[arm]
        alpha, rate = choose(config, method, frequency)
        x, y = Sinusoid(frequency).grid(config.test_points)
        members = train(config, (method, frequency), alpha, [rate], seeds, steps=config.steps, slots=config.slots)
        for seed, _, net, result in members:
            for row in result.history:
                report(seed, row)
            errors = {"test_mse": error(net, x, y), "validation_mse": result.best_validation_error}
            metrics = {**errors, "rate": rate, **({"alpha": alpha} if gated(method) else {})}
            yield seed, PartResult(net if seed == 0 else None, count_parameters(net), result.seconds, metrics)

    def pictures(self, config: SinusoidConfig, run: RunFolder) -> Iterator[Picture]:
        frequencies = [d for d in (*config.frequencies, *config.other_frequencies) if errors_of(run, config, d)]
        if frequencies:
            yield _curves(config, run, frequencies)
        for d in frequencies:
            yield _functions(config, run, d)


def methods_at(config: SinusoidConfig, d: int) -> list[str]:
    """The methods that run at a frequency."""
    return [method for method, frequency in config.arms().values() if frequency == d]


def errors_of(run: RunFolder, config: SinusoidConfig, d: int, metric: str = "test_mse") -> dict[str, list[float]]:
    """Errors in the order of seeds, by method; without methods of which seeds are missing."""
    rows = sorted(run.rows(), key=lambda row: row.seed)
    errors = {m: [row.metrics[metric] for row in rows if row.arm == f"{m}-{d}"] for m in methods_at(config, d)}
    return _complete(errors)


def errors_after(run: RunFolder, config: SinusoidConfig, d: int, share: float) -> dict[str, list[float]]:
    """Validation errors of the best weights so far when a share of the run is over, like :func:`errors_of`."""
    errors: dict[str, list[float]] = {m: [] for m in methods_at(config, d)}
    for (arm, _), rows in sorted(run.histories().items(), key=lambda item: item[0][1]):
        method, frequency = config.arms()[arm]
        if frequency == d:
            past = rows[: max(1, math.ceil(share * len(rows)))]
            errors[method].append(min(row.validation_error for row in past))
    return _complete(errors)


def _complete(errors: dict[str, list[float]]) -> dict[str, list[float]]:
    most = max(map(len, errors.values()), default=0)
    return {method: values for method, values in errors.items() if values and len(values) == most}


def lowest_mean(errors: dict[str, list[float]], methods: Sequence[str]) -> str | None:
    """The method of the least mean error among those that have errors."""
    return min((m for m in methods if m in errors), key=lambda m: float(np.mean(errors[m])), default=None)


def convergence(run: RunFolder, config: SinusoidConfig, d: int) -> list[str]:
    """Which methods were still getting better in the second half of training."""
    middle, end = (errors_after(run, config, d, share) for share in (0.5, 1.0))
    ratios = {m: float(np.mean(end[m]) / np.mean(middle[m])) for m in end if m in middle}
    moving = [f"{m} ({ratio:.2f})" for m, ratio in ratios.items() if ratio < 0.9]
    if not ratios:
        return []
    if not moving:
        return [
            f"d = {d}: converged, in that no arm's validation error fell by a tenth in the second half of training."
        ]
    return [
        f"d = {d}: not converged, in that the validation error fell by more than a tenth in the second half of training (in "
        f"brackets: end over middle): {', '.join(moving)}. Some of that is the rate, which falls to zero. For these, what is "
        "said holds at this budget."
    ]


def comparison_row(name: str, c: Comparison) -> list[str]:
    """A line of a sheet of comparisons."""
    low, high = c.interval
    difference = f"{c.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    return [
        name,
        f"{c.ratio:.3f}",
        f"{c.median_ratio:.3f}",
        difference,
        f"{c.effect:+.2f}",
        f"{c.p_t:.1g}",
        f"{c.p_wilcoxon:.1g}",
    ]


def protocol(config: SinusoidConfig) -> list[str]:
    """The paragraphs that all these experiments begin their notes with."""
    epochs = config.steps * config.batch_size / config.samples
    alphas = f" and, where it has one, the alpha of {config.alphas}" if len(config.alphas) > 1 else ""
    chosen = (
        f"Each arm takes the rate of {config.rates}{alphas} with the least mean validation error after "
        f"{config.trial_steps:,} steps on {config.trial_seeds} seeds of their own."
        if len(config.rates) * len(config.alphas) > 1
        else f"All arms have the rate {config.rates[0]} and alpha = {config.alphas[0]:g}; nothing was chosen."
    )
    return [
        f"y = sin(d pi x) on [-1, 1] with d periods; {config.samples} uniform points with noise of standard deviation "
        f"{config.noise} on y; {config.validation_samples} noisy validation points; test MSE over {config.test_points} "
        "regular points without noise. Zero has a test MSE of 0.5. Each seed has its own points, noise, initial weights "
        "and order of samples, the same for all arms of one d.",
        f"{config.blocks} blocks Linear-{config.activation}-Linear of width {config.width} between two linear layers, He's "
        f"initial weights, but weights and biases of the first layer uniform within {config.first_scale:g}, "
        "which makes high frequencies come sooner than PyTorch's 1 (docs/log.md). Adam with cosine decay after a warm-up over "
        f"{config.warmup:.0%} of the run, "
        f"{config.steps:,} steps of {config.batch_size} ({epochs:.0f} epochs), the weights of the best validation. "
        f"{chosen}",
    ]  # fmt: skip


def _curves(config: SinusoidConfig, run: RunFolder, frequencies: Sequence[int]) -> Picture:
    histories = run.histories()
    names = list(dict.fromkeys(method for method, _ in config.arms().values()))
    crowded = len(names) > 20
    figure, axes = panels(1, len(frequencies), width=9 if crowded else 5, height=4.5)
    for ax, d in zip(axes, frequencies, strict=True):
        for method in methods_at(config, d):
            curves = [rows for (arm, _), rows in histories.items() if arm == f"{method}-{d}"]
            if not curves:
                continue
            epochs = [row.step * config.batch_size / config.samples for row in curves[0]]
            level, half = _band(np.log10([[row.validation_error for row in rows] for rows in curves]))
            color = colormaps["tab20"](names.index(method) % 20)
            ax.plot(epochs, 10**level, label=method, color=color, linestyle="-" if names.index(method) < 20 else ":")
            if not crowded:
                ax.fill_between(
                    epochs, 10 ** (level - half), 10 ** (level + half), color=color, alpha=0.12, linewidth=0
                )
        ax.set(title=f"d = {d}", xlabel="epochs", ylabel="validation MSE", yscale="log")
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small", ncols=1 + crowded)
    caption = (
        f"Validation MSE by epoch: geometric mean over seeds{'' if crowded else ', with the band of 95 % confidence for it'}. The noise "
        f"of the validation targets alone is {config.noise**2:.2g}."
    )
    return Picture("learning-curves", caption, figure)


def _functions(config: SinusoidConfig, run: RunFolder, d: int) -> Picture:
    end = min(1.0, 4 / d - 1)
    x = torch.linspace(-1, end, 400).unsqueeze(1)
    finished = run.finished()
    methods = [m for m in methods_at(config, d) if (f"{m}-{d}", 0) in finished]
    figure, axes = panels(math.ceil(max(1, len(methods)) / 4), 4, width=3, height=2.2)
    for ax, method in zip(axes, methods, strict=False):
        with torch.no_grad():
            y = run.load_model(f"{method}-{d}", 0)(x)
        ax.plot(x, Sinusoid(d).value(x), color="0.6", linewidth=2)
        ax.plot(x, y, color="C3", linewidth=1)
        ax.set(title=f"{method}-{d}", ylim=(-1.5, 1.5))
    for ax in axes[len(methods) :]:
        ax.set_axis_off()
    caption = f"What was learned of sin({d} pi x) (seed 0, red) and the truth (grey), on [-1, {end:g}]."
    return Picture(f"functions-{d}", caption, figure)


def _band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the first axis, and half the width of its band of 95 % confidence (zero for one row)."""
    count = len(values)
    if count == 1:
        return values[0], np.zeros_like(values[0])
    return values.mean(axis=0), stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / count**0.5
