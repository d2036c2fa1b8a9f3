"""Ablations of the gradient residual on the sinusoid: each setting changed by itself, beside the standard skip."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.comparison import compare, holm
from nablanets_studies.machinery.findings import listing
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import SinusoidConfig
from nablanets_studies.sinusoid.study import COMPARISON, SinusoidStudy, comparison_row, errors_of, protocol

_LEVEL = 0.05


class Change(NamedTuple):
    """A setting of the gradient residual, what it is changed to, and the methods without and with the change."""

    setting: str
    value: str
    before: str
    after: str


#: By setting. For depth and activation the standard skip changes too, so the reference is the standard skip with it.
CHANGES = (
    Change("stop-gradient", "off", "gradient", "gradient-unit-full"),
    Change("stop-gradient", "off, g not normalised", "gradient-raw", "gradient-full"),
    Change("normalisation", "none", "gradient", "gradient-raw"),
    Change("normalisation", "root mean square", "gradient", "gradient-rms"),
    Change("normalisation", "none, back-propagated", "gradient-unit-full", "gradient-full"),
    Change("initial alpha", "-3", "gradient", "alpha-low"),
    Change("initial alpha", "3", "gradient", "alpha-high"),
    Change("initial alpha", "0, learned", "gradient", "alpha-learned"),
    Change("initial alpha", "0, learned per channel", "gradient", "alpha-channels"),
    Change("probe", "random signs", "gradient", "probe-random"),
    Change("probe", "learned", "gradient", "gradient-probe"),
    Change("probe", "four, learned", "gradient", "probe-several"),
    Change("depth", "gradient at 2 blocks", "standard-2-blocks", "gradient-2-blocks"),
    Change("depth", "gradient at 3 blocks", "standard", "gradient"),
    Change("depth", "gradient at 5 blocks", "standard-5-blocks", "gradient-5-blocks"),
    Change("activation", "gradient with ReLU", "standard-relu", "gradient-relu"),
    Change("activation", "gradient with GELU", "standard-gelu", "gradient-gelu"),
    Change("activation", "gradient with sine", "standard-sine", "gradient-sine"),
)
METHODS = tuple(dict.fromkeys(name for change in CHANGES for name in (change.before, change.after)))
_PAPER = SinusoidConfig(methods=METHODS, other_frequencies=(), slots=12, alphas=(0.0,))


class AblationExperiment(SinusoidStudy):
    """Stop-gradient, normalisation, initial alpha, probe, depth and activation, one at a time."""

    name = "sinusoid-ablation"
    summary = "What the settings of a gradient residual do on sin(d pi x), one changed at a time."
    presets = {  # noqa: RUF012
        "quick": replace(
            _PAPER,
            frequencies=(4,),
            width=32,
            first_scale=4.0,
            steps=400,
            rates=(2e-3,),
            validation_samples=200,
            test_points=500,
            slots=4,
        ),
        "paper": _PAPER,
    }
    seeds = {"quick": 4, "paper": 12}  # noqa: RUF012

    def conclusions(self, config: SinusoidConfig, run: RunFolder) -> list[str]:
        return [text for d in config.frequencies for text in _conclusions(d, errors_of(run, config, d))]

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        rows = []
        for d in config.frequencies:
            errors = errors_of(run, config, d)
            for change in _testable(errors):
                c = compare(errors[change.before], {change.after: errors[change.after]})[change.after]
                rows.append(
                    [f"d = {d}: {change.setting}", change.value, change.before, *comparison_row(change.after, c)]
                )
        columns = ("setting", "changed to", "without", "with", *COMPARISON)
        return [Sheet("Test MSE with and without each change, seed by seed", columns, rows)] if rows else []

    def notes(self, config: SinusoidConfig) -> list[str]:
        return [
            "From the paper: ablations of back-propagation through g, of normalisation and of the initial alpha, at "
            "d = 16. Ours: the root mean square, probes, depths, activations, and all else.",
            *protocol(config),
            f"The starting point is gradient: {config.activation}, g normalised to unit norm, under stop-gradient, alpha = 0 and not "
            "trained, the probe of ones, three blocks. At root mean square 1, g is 8 times as long. In a network of one "
            "variable all channels share one position, so norms over positions do not exist. Changes of depth and "
            "activation are compared with the standard skip at the same depth and activation.",
            "p values are those of single comparisons in the table; the conclusions correct them for their number (Holm).",
        ]  # fmt: skip


def _testable(errors: dict[str, list[float]]) -> list[Change]:
    return [c for c in CHANGES if c.before in errors and c.after in errors and len(errors[c.after]) >= 3]


def _conclusions(d: int, errors: dict[str, list[float]]) -> list[str]:
    changes = _testable(errors)
    if not changes:
        return [f"d = {d}: too few seeds to compare."]
    found = {c: compare(errors[c.before], {c.after: errors[c.after]})[c.after] for c in changes}
    p = holm({c: each.p_t for c, each in found.items()})
    groups: dict[str, list[str]] = {"helps": [], "hurts": [], "makes no significant difference": []}
    for change, c in found.items():
        effect = ("helps" if c.difference < 0 else "hurts") if p[change] < _LEVEL else "makes no significant difference"
        groups[effect].append(f"{change.setting} {change.value} ({c.ratio:.2f})")
    lists = "; ".join(f"{effect}: {listing(names)}" for effect, names in groups.items())
    return [
        f"d = {d}: what {lists}. In brackets the ratio of mean test errors with and without the change; paired t-tests "
        f"over {len(errors[changes[0].after])} seeds, Holm's method, p < {_LEVEL}."
    ]
