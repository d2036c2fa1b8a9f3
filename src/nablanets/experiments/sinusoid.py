"""The sinusoid study of "Gradient Residual Connections", with the controls that tell what helps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from scipy import stats

from nablanets.baselines import count_parameters
from nablanets.errors import unknown_name
from nablanets.experiments.base import Column, Experiment, PartResult, Picture, SeedReport, Sheet
from nablanets.experiments.comparison import Comparison, compare
from nablanets.experiments.findings import listing
from nablanets.experiments.plots import panels
from nablanets.experiments.sinusoid_arms import CARRYING, CONTROLS, METHODS, SinusoidConfig, choose, train
from nablanets.experiments.store import RunFolder
from nablanets.problems.sinusoid import Sinusoid
from nablanets.training import error
from nablanets.training.loop import Report

_LEVEL = 0.05


class SinusoidExperiment(Experiment[SinusoidConfig]):
    """Learn sin(d pi x) from noisy samples with every kind of skip; the seeds of an arm train as one program."""

    name = "sinusoid"
    summary = "Learn sin(d pi x) from noisy samples: gradient residuals, every control, and nets made for the task."
    columns = (
        Column("test_mse", "test MSE", ".4f"),
        Column("validation_mse", "validation MSE", ".4f"),
        Column("rate", "rate", ".0e"),
        Column("alpha", "alpha", ".0f"),
    )
    presets = {  # noqa: RUF012
        "quick": SinusoidConfig(
            frequencies=(4,),
            width=32,
            steps=300,
            batch_size=50,
            rates=(3e-4, 3e-3),
            alphas=(3.0,),
            trial_steps=100,
            validation_samples=200,
            test_points=500,
        ),
        "paper": SinusoidConfig(),
    }
    seeds = {"quick": 5, "paper": 30}  # noqa: RUF012

    def arms(self, config: SinusoidConfig) -> list[str]:
        return list(self._arms(config))

    def _arms(self, config: SinusoidConfig) -> dict[str, tuple[str, int]]:
        for method in config.methods:
            if method not in METHODS:
                raise unknown_name("method", method, METHODS)
        return {f"{method}-{d}": (method, d) for d in config.frequencies for method in config.methods}

    def run_part(self, config: SinusoidConfig, arm: str, seed: int, report: Report) -> PartResult:
        ((_, result),) = self.run_arm(config, arm, [seed], lambda _, row: report(row))
        return result

    def run_arm(
        self, config: SinusoidConfig, arm: str, seeds: Sequence[int], report: SeedReport
    ) -> Iterator[tuple[int, PartResult]]:
        """All seeds as one program; the network of seed 0 is kept."""
        method, frequency = self._arms(config)[arm]
        alpha, rate = choose(config, method, frequency)
        x, y = Sinusoid(frequency).grid(config.test_points)
        for seed, _, net, result in train(config, (method, frequency), alpha, [rate], seeds=seeds, steps=config.steps):
            for row in result.history:
                report(seed, row)
            errors = {"test_mse": error(net, x, y), "validation_mse": result.best_validation_error}
            gate = {"alpha": alpha} if any(name.endswith("alpha") for name in net.state_dict()) else {}
            metrics = {**errors, "rate": rate, **gate}
            yield seed, PartResult(net if seed == 0 else None, count_parameters(net), result.seconds, metrics)

    def conclusions(self, config: SinusoidConfig, run: RunFolder) -> list[str]:
        return [text for d in config.frequencies for text in _conclusions(d, _errors(config, run, d))]

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        found = {d: _against_standard(_errors(config, run, d)) for d in config.frequencies}
        rows = [_row(f"{method}-{d}", c) for d, each in found.items() for method, c in each.items()]
        columns = ("arm", "ratio of means", "of medians", "difference [95 %]", "effect d_z", "p (t)", "p (Wilcoxon)")
        return [Sheet("Test MSE against the standard skip, seed by seed", columns, rows)] if rows else []

    def notes(self, config: SinusoidConfig) -> list[str]:
        epochs = config.steps * config.batch_size / config.samples
        chosen = (
            f"Each arm takes the rate of {config.rates} and, where it has one, the alpha of {config.alphas} with the "
            f"least mean validation error after {config.trial_steps} steps on {config.trial_seeds} seeds of their own."
            if len(config.rates) * len(config.alphas) > 1
            else f"All arms have the rate {config.rates[0]} and alpha = {config.alphas[0]}; nothing was chosen."
        )
        return [
            "From the paper: the regression of a high-frequency sinusoid, 30 seeds, the best of a sweep of settings, the "
            "arms no skip, standard skip, trained scalar, gradient magnitude, pure gradient and convex combination. Not "
            "known to us, so our choices: everything else.",
            f"y = sin(d pi x) on [-1, 1] with d periods; {config.samples} uniform points with noise of standard "
            f"deviation {config.noise} on y; {config.validation_samples} noisy validation points; test MSE over "
            f"{config.test_points} regular points without noise. Zero has a test MSE of 0.5. All arms and seeds of one "
            "d share these samples, so that the spread is that of initial weights and the order of samples; nothing "
            "here speaks for other draws of the noise.",
            f"{config.blocks} blocks Linear-{config.activation}-Linear of width {config.width} between two linear "
            f"layers; Adam with cosine decay, {config.steps:,} steps of {config.batch_size} ({epochs:.0f} epochs), the "
            f"weights of the best validation. {chosen} alpha is not trained, so that the arms have the same "
            "parameters; damped and random take the alpha of gradient.",
            "gradient: g normalised, under stop-gradient. gradient-full: not normalised, with back-propagation through "
            "g. gradient-probe: g = J'v with v trained. magnitude and pure are normalised and under stop-gradient. "
            "damped: (1 - s) x without any gradient; random: a fixed random unit vector in place of g. wider: "
            "the standard skip at 1.5 times the products, the cost of gradient-full (a step under stop-gradient "
            "costs 1.17). fourier: random Fourier features of standard deviation 10 before blocks with the standard "
            "skip. siren: as many layers of sin(30 x) with SIREN's initial weights and no skips.",
            "Paired comparisons: p values of the t-test and of Wilcoxon's signed rank test, both by Holm's method for all "
            "arms of one d; the effect is the mean difference over its standard deviation. Negative: better than "
            "the standard skip.",
            "Seconds are those of the program that trains all seeds together, without the choice of settings.",
        ]  # fmt: skip

    def pictures(self, config: SinusoidConfig, run: RunFolder) -> Iterator[Picture]:
        yield self._curves(config, run)
        for d in config.frequencies:
            yield self._functions(config, run, d)

    def _curves(self, config: SinusoidConfig, run: RunFolder) -> Picture:
        figure, axes = panels(1, len(config.frequencies), width=5, height=4.5)
        histories = run.histories()
        for ax, d in zip(axes, config.frequencies, strict=True):
            for k, method in enumerate(config.methods):
                curves = [rows for (arm, _), rows in histories.items() if arm == f"{method}-{d}"]
                if not curves:
                    continue
                epochs = [row.step * config.batch_size / config.samples for row in curves[0]]
                level, half = _band(np.log10([[row.validation_error for row in rows] for rows in curves]))
                color = colormaps["tab20"](k)
                ax.plot(epochs, 10**level, label=method, color=color)
                ax.fill_between(
                    epochs, 10 ** (level - half), 10 ** (level + half), color=color, alpha=0.12, linewidth=0
                )
            ax.set(title=f"d = {d}", xlabel="epochs", ylabel="validation MSE", yscale="log")
            ax.grid(alpha=0.3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
        caption = (
            "Validation MSE by epoch: geometric mean over seeds, with the band of 95 % confidence for it. The noise "
            f"of the validation targets alone is {config.noise**2:.2g}."
        )
        return Picture("learning-curves", caption, figure)

    def _functions(self, config: SinusoidConfig, run: RunFolder, d: int) -> Picture:
        end = min(1.0, 4 / d - 1)
        x = torch.linspace(-1, end, 400).unsqueeze(1)
        methods = [m for m in config.methods if (f"{m}-{d}", 0) in run.finished()]
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


def _errors(config: SinusoidConfig, run: RunFolder, d: int) -> dict[str, list[float]]:
    """Test errors in the order of seeds, by method; without methods of which seeds are missing."""
    rows = sorted(run.rows(), key=lambda row: row.seed)
    errors = {m: [row.metrics["test_mse"] for row in rows if row.arm == f"{m}-{d}"] for m in config.methods}
    most = max(map(len, errors.values()))
    return {method: values for method, values in errors.items() if values and len(values) == most}


def _against_standard(errors: dict[str, list[float]]) -> dict[str, Comparison]:
    others = {method: values for method, values in errors.items() if method != "standard"}
    if "standard" not in errors or len(errors["standard"]) < 3 or not others:
        return {}
    return compare(errors["standard"], others)


def _conclusions(d: int, errors: dict[str, list[float]]) -> list[str]:
    found = _against_standard(errors)
    if not found:
        return [f"d = {d}: too few seeds, or no standard skip to compare with."]
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not distinguishable from": []}
    for method, c in found.items():
        sign = "better than" if c.difference < 0 else "worse than"
        groups[sign if c.p_t < _LEVEL else "not distinguishable from"].append(f"{method} ({c.ratio:.2f})")
    lists = "; ".join(f"{relation} it: {listing(names)}" for relation, names in groups.items())
    seeds = len(errors["standard"])
    texts = [
        f"d = {d}: the standard skip has a test MSE of {np.mean(errors['standard']):.4f} (zero: 0.5). By paired t-tests "
        f"over {seeds} seeds (Holm, p < {_LEVEL}; in brackets the ratio of means), {lists}."
    ]
    best, control = (_best(errors, group) for group in (CARRYING, CONTROLS))
    if best and control:
        c = compare(errors[control], {best: errors[best]})[best]
        verdict = f"{'at most' if c.ratio <= 0.5 else 'more than'} half"
        certain = "significant" if c.p_t < _LEVEL else "not significant"
        texts.append(
            f"d = {d}: the best arm that carries a gradient, {best}, has {c.ratio:.2f} times the mean test MSE "
            f"({c.median_ratio:.2f} times the median) of the best control of its size, {control}: {verdict}; the "
            f"difference is {certain} (paired t-test p = {c.p_t:.1g}, effect {c.effect:+.2f}). Both were picked by these "
            "test errors, so p is too small rather than too large."
        )
    return texts


def _best(errors: dict[str, list[float]], methods: Sequence[str]) -> str | None:
    return min((m for m in methods if m in errors), key=lambda m: float(np.mean(errors[m])), default=None)


def _row(arm: str, c: Comparison) -> list[str]:
    low, high = c.interval
    difference = f"{c.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    return [
        arm,
        f"{c.ratio:.3f}",
        f"{c.median_ratio:.3f}",
        difference,
        f"{c.effect:+.2f}",
        f"{c.p_t:.1g}",
        f"{c.p_wilcoxon:.1g}",
    ]


def _band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the first axis, and half the width of its band of 95 % confidence (zero for one row)."""
    count = len(values)
    if count == 1:
        return values[0], np.zeros_like(values[0])
    return values.mean(axis=0), stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / count**0.5
