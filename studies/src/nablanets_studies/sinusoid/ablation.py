"""Ablations of the gradient residual on the sinusoid: each setting changed by itself, beside the standard skip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.comparison import holm
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import SinusoidConfig
from nablanets_studies.sinusoid.results import (
    COMPARISON,
    LEAST_SEEDS,
    Errors,
    Ratio,
    SinusoidResults,
    compared,
    comparison_cells,
)
from nablanets_studies.sinusoid.study import SinusoidStudy

#: Differences are called significant below this p.
LEVEL = 0.05


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


class Effects(NamedTuple):
    """What changes do at one d: the ratio of the errors with and without each; no seeds if they are too few to tell."""

    d: int
    seeds: int
    helps: list[Ratio]
    hurts: list[Ratio]
    no_difference: list[Ratio]


@dataclass(frozen=True)
class AblationFindings:
    """What the changes do at each d."""

    effects: list[Effects]
    level: float = LEVEL


class AblationExperiment(SinusoidStudy):
    """Stop-gradient, normalisation, initial alpha, probe, depth and activation, one at a time."""

    name = "sinusoid-ablation"
    summary = "What the settings of a gradient residual do on sin(d pi x), one changed at a time."
    template = "ablation.md.j2"
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

    def findings(self, config: SinusoidConfig, run: RunFolder) -> AblationFindings:
        results = SinusoidResults(config, run)
        return AblationFindings([effects(d, results.test_errors(d)) for d in config.frequencies])

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        results = SinusoidResults(config, run)
        rows = []
        for d in config.frequencies:
            errors = results.test_errors(d)
            for change in _testable(errors):
                cells = comparison_cells(compared(errors, change.before, change.after))
                rows.append([f"d = {d}: {change.setting}", change.value, change.before, change.after, *cells])
        columns = ("setting", "changed to", "without", "with", *COMPARISON)
        return [Sheet("Test MSE with and without each change, seed by seed", columns, rows)] if rows else []


def _testable(errors: Errors) -> list[Change]:
    there = [change for change in CHANGES if change.before in errors and change.after in errors]
    return [change for change in there if len(errors[change.after]) >= LEAST_SEEDS]


def effects(d: int, errors: Errors) -> Effects:
    """What each change does by paired t-tests, corrected for their number."""
    comparisons = {change: compared(errors, change.before, change.after) for change in _testable(errors)}
    p = holm({change: comparison.p_t for change, comparison in comparisons.items()})
    helps: list[Ratio] = []
    hurts: list[Ratio] = []
    no_difference: list[Ratio] = []
    for change, comparison in comparisons.items():
        ratio = Ratio(f"{change.setting} {change.value}", comparison.ratio)
        if p[change] >= LEVEL:
            no_difference.append(ratio)
        elif comparison.difference < 0:
            helps.append(ratio)
        else:
            hurts.append(ratio)
    seeds = max((len(errors[change.after]) for change in comparisons), default=0)
    return Effects(d, seeds, helps, hurts, no_difference)
