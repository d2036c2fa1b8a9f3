"""The search for a gradient residual that helps on the sinusoid, at equal parameters and equal compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.comparison import Comparison
from nablanets_studies.machinery.findings import Summary
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import SinusoidConfig
from nablanets_studies.sinusoid.nets import OTHER_ACTIVATIONS, VARIANTS
from nablanets_studies.sinusoid.results import (
    COMPARISON,
    LEAST_SEEDS,
    SHARES,
    Convergence,
    Errors,
    SinusoidResults,
    against,
    compared,
    comparison_cells,
    convergence,
    lowest_mean,
    mean_error,
)
from nablanets_studies.sinusoid.study import SinusoidStudy

CONTROLS = ("standard", "no-skip", "scalar", "damped", "random")
_OTHERS = tuple(f"{kind}-{act}" for act in OTHER_ACTIVATIONS for kind in ("standard", "no-skip", "damped"))
VARIED = (
    *("gradient", "gradient-full", "gradient-full-x2", "gradient-full-x4", "gradient-full-x8", "gradient-rms"),
    *("gradient-rms-full", "gradient-raw-x4", "full-x4-channels", "full-x4-random", "full-x4-learned", "full-x4-first"),
    "probe-several",
    *(f"{kind}-{act}" for act in OTHER_ACTIVATIONS for kind in ("gradient", "full-x4")),
)
_PAPER = SinusoidConfig(
    methods=(*CONTROLS, *_OTHERS, *VARIED),
    other_frequencies=(),
    steps=20_000,
    equal_compute=True,
    rates=(5e-4, 1e-3, 2e-3),
    alphas=(0.0,),
    trial_steps=3000,
    slots=8,
)
#: What the search looks for: a variant with at most this part of a control's error.
_WANTED = 0.5


class Pair(NamedTuple):
    """A variant with a gradient and a control without, by test errors."""

    variant: str
    control: str
    variant_error: Summary
    control_error: Summary
    comparison: Comparison

    @property
    def at_most_half(self) -> bool:
        return self.comparison.ratio <= _WANTED


class Verdict(NamedTuple):
    """Whether the chosen variant, or any, has at most half the error of the control.

    Attributes:
        chosen: the variant and the control of the least validation error.
        chosen_against_best: that variant and the control of the least test error.
        best_against_best: both of the least test error.
        reached: the variants with at most half the test error of the best control.
        variants: how many were tried.
    """

    chosen: Pair
    chosen_against_best: Pair
    best_against_best: Pair
    reached: list[str]
    variants: int


class AtFrequency(NamedTuple):
    """What follows at one d; no verdict without a variant and a control of enough seeds."""

    d: int
    verdict: Verdict | None
    convergence: Convergence | None


@dataclass(frozen=True)
class SearchFindings:
    """What follows at each d."""

    frequencies: list[AtFrequency]


class SearchExperiment(SinusoidStudy):
    """Variants of the gradient residual against controls that train for the same number of products."""

    name = "sinusoid-search"
    summary = "The search for a gradient residual that halves the error on sin(d pi x), at equal compute."
    template = "search.md.j2"
    presets = {  # noqa: RUF012
        "quick": replace(
            _PAPER,
            frequencies=(4,),
            methods=("standard", "damped", "gradient", "gradient-full", "gradient-full-x4"),
            width=32,
            first_scale=4.0,
            steps=400,
            rates=(5e-4, 4e-3),
            trial_steps=150,
            validation_samples=200,
            test_points=500,
            slots=4,
        ),
        "paper": _PAPER,
    }
    seeds = {"quick": 4, "paper": 8}  # noqa: RUF012

    def findings(self, config: SinusoidConfig, run: RunFolder) -> SearchFindings:
        results = SinusoidResults(config, run)
        found = []
        for d in config.frequencies:
            judged = verdict(results.validation_errors(d), results.test_errors(d))
            found.append(AtFrequency(d, judged, convergence(results, d)))
        return SearchFindings(found)

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        results = SinusoidResults(config, run)
        sheets = []
        for d in config.frequencies:
            sheets += [_against_control(results, d), _over_training(results, d)]
        return [sheet for sheet in sheets if sheet.rows]


def verdict(choosing: Errors, judging: Errors) -> Verdict | None:
    """What the methods chosen by some errors do by others; None without a variant and a control of enough seeds."""
    both = {m: values for m, values in choosing.items() if len(judging.get(m, [])) >= LEAST_SEEDS}
    variant = lowest_mean(both, _variants(both))
    control = lowest_mean(both, _controls(both))
    if variant is None or control is None:
        return None
    best = lowest_mean(judging, _variants(judging)) or variant
    least = lowest_mean(judging, _controls(judging)) or control
    goal = _WANTED * mean_error(judging, least)
    return Verdict(
        chosen=_pair(judging, variant, control),
        chosen_against_best=_pair(judging, variant, least),
        best_against_best=_pair(judging, best, least),
        reached=[m for m in _variants(judging) if mean_error(judging, m) <= goal],
        variants=len(_variants(judging)),
    )


def _pair(errors: Errors, variant: str, control: str) -> Pair:
    comparison = compared(errors, control, variant)
    return Pair(variant, control, Summary.of(errors[variant]), Summary.of(errors[control]), comparison)


def _against_control(results: SinusoidResults, d: int) -> Sheet:
    errors = results.test_errors(d)
    control = lowest_mean(errors, _controls(errors))
    title = f"d = {d}: test MSE against the best control, {control}, seed by seed"
    found = {} if control is None else against(errors, control)
    rows = [[method, *comparison_cells(comparison)] for method, comparison in found.items()]
    return Sheet(title, ("arm", *COMPARISON), rows)


def _over_training(results: SinusoidResults, d: int) -> Sheet:
    later = [results.errors_after(d, share) for share in SHARES]
    noise = results.config.noise**2
    rows = []
    for method in later[-1]:
        rows.append([method, *(f"{mean_error(errors, method) - noise:.4f}" for errors in later)])
    title = f"d = {d}: validation MSE over that of the noise as training goes on, by the share of its products"
    return Sheet(title, ("arm", *(f"{share:.0%}" for share in SHARES)), rows)


def _variants(errors: Errors) -> list[str]:
    return [method for method in errors if VARIANTS[method].carries]


def _controls(errors: Errors) -> list[str]:
    return [method for method in errors if not VARIANTS[method].carries]
