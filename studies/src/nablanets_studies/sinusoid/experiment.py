"""The sinusoid study of "Gradient Residual Connections", with the controls that tell what helps."""

from __future__ import annotations

import numpy as np

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.comparison import Comparison, compare
from nablanets_studies.machinery.findings import listing
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import METHODS, SinusoidConfig
from nablanets_studies.sinusoid.nets import VARIANTS
from nablanets_studies.sinusoid.study import (
    COMPARISON,
    SHARES,
    SinusoidStudy,
    comparison_row,
    convergence,
    errors_after,
    errors_of,
    lowest_mean,
    protocol,
)

#: Controls of the size of the standard skip that carry no gradient.
CONTROLS = ("standard", "no-skip", "scalar", "damped", "random")
CARRYING = tuple(method for method in METHODS if VARIANTS[method].carries)
_LEVEL, _CLAIM = 0.05, 0.01


class SinusoidExperiment(SinusoidStudy):
    """Learn sin(d pi x) from noisy samples with every kind of skip, at equal epochs."""

    name = "sinusoid"
    summary = "Learn sin(d pi x) from noisy samples: gradient residuals, every control, and nets made for the task."
    presets = {  # noqa: RUF012
        "quick": SinusoidConfig(
            frequencies=(4,),
            other_frequencies=(),
            width=32,
            first_scale=4.0,
            steps=400,
            rates=(3e-4, 3e-3),
            alphas=(0.0,),
            trial_steps=150,
            trial_seeds=2,
            validation_samples=200,
            test_points=500,
            slots=5,
        ),
        "paper": SinusoidConfig(),
    }
    seeds = {"quick": 5, "paper": 30}  # noqa: RUF012

    def conclusions(self, config: SinusoidConfig, run: RunFolder) -> list[str]:
        texts = []
        for d in (*config.frequencies, *config.other_frequencies):
            texts += _conclusions(d, errors_of(run, config, d)) + self._claim(config, run, d)
            texts += convergence(run, config, d)
        return texts

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        every = (*config.frequencies, *config.other_frequencies)
        found = {d: against_standard(errors_of(run, config, d)) for d in every}
        rows = [comparison_row(f"{method}-{d}", c) for d, each in found.items() for method, c in each.items()]
        sheets = [Sheet("Test MSE against the standard skip, seed by seed", ("arm", *COMPARISON), rows)] if rows else []
        for d in config.frequencies:
            later = [against_standard(errors_after(run, config, d, share)) for share in SHARES]
            lines = [[m, *(f"{each[m].ratio:.2f} ({each[m].p_t:.1g})" for each in later)] for m in later[-1]]
            title = f"d = {d}: validation MSE relative to the standard skip as training goes on (p, paired t-test)"
            if lines:
                heads = [f"{epochs_at(config, share):.0f} epochs" for share in SHARES]
                sheets.append(Sheet(title, ("arm", *heads), lines))
        return sheets

    def notes(self, config: SinusoidConfig) -> list[str]:
        return [
            "From the paper: the regression of a high-frequency sinusoid, 30 seeds, the best of a sweep of settings, the "
            "arms no skip, standard skip, trained scalar, gradient magnitude, pure gradient and convex combination. Not "
            "known to us, so our choices: everything else.",
            *protocol(config),
            "alpha is not trained, so that the arms have the same parameters. gradient: g "
            "normalised, under stop-gradient. gradient-full: not normalised, with back-propagation through g; -x4: g times 4. "
            "gradient-probe: g = J'v with v trained. magnitude and pure are normalised and under stop-gradient. "
            "damped: (1 - s) x without any gradient; random: a fixed random unit vector in place of g. wider: "
            "the standard skip at 1.5 times the products, the cost of gradient-full (a step under stop-gradient "
            "costs 1.17). fourier: random Fourier features of standard deviation 10 before blocks with the standard "
            "skip. siren: as many layers of sin(30 x) with SIREN's initial weights and no skips.",
            "Paired comparisons: p values of the t-test and of Wilcoxon's signed rank test, both by Holm's method for all "
            "arms of one d; the effect is the mean difference over its standard deviation. Negative: better than "
            "the standard skip. Errors during training are those of the best weights so far, at a rate that has not decayed yet.",
            "The -torch arms have ReLU and start from PyTorch's initial weights in all layers, as the paper's networks may have done; they "
            "learn slowly, so that they show a small budget.",
            "Seconds are those of the program that trains all seeds together, without the choice of settings.",
        ]  # fmt: skip

    def _claim(self, config: SinusoidConfig, run: RunFolder, d: int) -> list[str]:
        """The paper's comparison, gradient residual against standard skip, at several budgets and both starts."""
        later = {share: errors_after(run, config, d, share) for share in SHARES}
        texts = []
        for kind, start in (("", "the networks of this study"), ("-torch", "ReLU and PyTorch's initial weights")):
            pair = f"standard{kind}", f"gradient{kind}"
            if all(len(e.get(m, [])) >= 3 for e in later.values() for m in pair):
                found = {f"{epochs_at(config, s):.0f}": _compared(e, *pair) for s, e in later.items()}
                texts.append(f"d = {d}, {start}: {claim(found)}{self._others(later[0.5], kind)}")
        return texts

    @staticmethod
    def _others(errors: dict[str, list[float]], kind: str) -> str:
        """What arms without any gradient do halfway, since damping alone may look like a gain."""
        found = [m for m in (f"no-skip{kind}", f"damped{kind}") if len(errors.get(m, [])) >= 3]
        ratios = [f"{m} {_compared(errors, f'standard{kind}', m).ratio:.2f}" for m in found]
        return f" Without any gradient, halfway: {', '.join(ratios)}." if ratios else ""


def _compared(errors: dict[str, list[float]], reference: str, method: str) -> Comparison:
    return compare(errors[reference], {method: errors[method]})[method]


def claim(found: dict[str, Comparison]) -> str:
    """Whether the gradient residual beats the standard skip, by the number of epochs."""
    wins = [epochs for epochs, c in found.items() if c.difference < 0 and c.p_t < _CLAIM]
    losses = [epochs for epochs, c in found.items() if c.difference > 0 and c.p_t < _CLAIM]
    ratios = ", ".join(f"{c.ratio:.2f} after {epochs} (p = {c.p_t:.1g})" for epochs, c in found.items())
    turned = f"; the standard skip is better after {listing(losses)}" if losses else ""
    return (
        f"the paper's claim, gradient residual better than standard skip with p < {_CLAIM}, holds "
        f"{f'after {listing(wins)} epochs' if wins else 'at no budget'}{turned}. Ratios of mean validation errors by "
        f"epochs: {ratios}."
    )


def epochs_at(config: SinusoidConfig, share: float) -> float:
    """Epochs of a share of the run."""
    return share * config.steps * config.batch_size / config.samples


def against_standard(errors: dict[str, list[float]]) -> dict[str, Comparison]:
    """Each method against the standard skip, if there are enough seeds."""
    others = {method: values for method, values in errors.items() if method != "standard"}
    if "standard" not in errors or len(errors["standard"]) < 3 or not others:
        return {}
    return compare(errors["standard"], others)


def _conclusions(d: int, errors: dict[str, list[float]]) -> list[str]:
    found = against_standard(errors)
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
    best, control = (lowest_mean(errors, group) for group in (CARRYING, CONTROLS))
    return [*texts, half(d, errors, best, control)] if best and control else texts


def half(d: int, errors: dict[str, list[float]], best: str, control: str) -> str:
    """Whether a method has at most half the error of a control."""
    c = compare(errors[control], {best: errors[best]})[best]
    verdict = f"{'at most' if c.ratio <= 0.5 else 'more than'} half"
    certain = "significant" if c.p_t < _LEVEL else "not significant"
    return (
        f"d = {d}: the best arm that carries a gradient, {best}, has {c.ratio:.2f} times the mean test MSE "
        f"({c.median_ratio:.2f} times the median) of the best control of its size, {control}: {verdict}; the "
        f"difference is {certain} (paired t-test p = {c.p_t:.1g}, effect {c.effect:+.2f}). Both were picked by these "
        "test errors, so p is too small rather than too large."
    )
