"""The search for a gradient residual that helps on the sinusoid, at equal parameters and equal compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.comparison import compare
from nablanets_studies.machinery.findings import Summary
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import SinusoidConfig
from nablanets_studies.sinusoid.nets import OTHER_ACTIVATIONS, VARIANTS
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


class SearchExperiment(SinusoidStudy):
    """Variants of the gradient residual against controls that train for the same number of products."""

    name = "sinusoid-search"
    summary = "The search for a gradient residual that halves the error on sin(d pi x), at equal compute."
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

    def conclusions(self, config: SinusoidConfig, run: RunFolder) -> list[str]:
        texts = []
        for d in config.frequencies:
            choosing, judging = (errors_of(run, config, d, metric) for metric in ("validation_mse", "test_mse"))
            texts += verdict(d, choosing, judging) + convergence(run, config, d)
        return texts

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        found = ((_against_control(run, config, d), _over_training(run, config, d)) for d in config.frequencies)
        return [sheet for sheets in found for sheet in sheets if sheet.rows]

    def notes(self, config: SinusoidConfig) -> list[str]:
        return [
            "The question is whether any gradient residual has at most half the test MSE of the best control without a "
            "gradient: standard skip, no skip, trained scalar, damped identity, random vector, and three of them with "
            "other activations. Nothing here is the paper's but the layer.",
            *protocol(config),
            "Equal compute: the steps are those of arms that back-propagate through g, whose step costs 1.5 times the "
            "products of a plain one; all other arms make more steps, plain ones 1.5 times as many. A width of its own "
            "would change the parameters, so it is time that is equal.",
            "The variant and the control are chosen by validation error and judged by test error.",
            "x4: g times 4; full: with back-propagation through g, not normalised; rms: g at root mean square 1; raw: "
            "neither normalised nor back-propagated; channels: alpha trained, one per channel; random, learned: the "
            "probe; several: four trained probes, each normalised, mixed per channel; first: in the first block only.",
        ]  # fmt: skip


def verdict(d: int, choosing: dict[str, list[float]], judging: dict[str, list[float]]) -> list[str]:
    """Whether the chosen variant, or any, has at most half the error of the control."""
    both = {m: values for m, values in choosing.items() if m in judging and len(judging[m]) >= 3}
    variant, control = lowest_mean(both, _variants(both)), lowest_mean(both, _controls(both))
    if variant is None or control is None:
        return [f"d = {d}: too few seeds, or no variant and control to compare."]
    best = lowest_mean(judging, _variants(judging)) or variant
    least = lowest_mean(judging, _controls(judging)) or control
    texts = [
        f"d = {d}: by validation error the variant of choice is {variant} and the control {control}. "
        f"{_ratio(judging, variant, control)}",
        f"d = {d}, against the control of the least test error: {_ratio(judging, variant, least)}",
    ]
    reached = [m for m in _variants(judging) if np.mean(judging[m]) <= 0.5 * np.mean(judging[least])]
    if reached:
        texts.append(f"d = {d}: at most half of the best control: {', '.join(reached)}.")
    else:
        texts.append(
            f"d = {d}: none of the {len(_variants(judging))} variants tried has at most half the test MSE of the best "
            f"control. The best of them by test error: {_ratio(judging, best, least)}"
        )
    return texts


def _against_control(run: RunFolder, config: SinusoidConfig, d: int) -> Sheet:
    errors = errors_of(run, config, d)
    control = lowest_mean(errors, _controls(errors))
    title = f"d = {d}: test MSE against the best control, {control}, seed by seed"
    if control is None or len(errors[control]) < 3 or len(errors) < 2:
        return Sheet(title, (), [])
    found = compare(errors[control], {m: values for m, values in errors.items() if m != control})
    return Sheet(title, ("arm", *COMPARISON), [comparison_row(method, c) for method, c in found.items()])


def _over_training(run: RunFolder, config: SinusoidConfig, d: int) -> Sheet:
    later = [errors_after(run, config, d, share) for share in SHARES]
    rows = [[m, *(f"{np.mean(errors[m]) - config.noise**2:.4f}" for errors in later)] for m in later[-1]]
    title = f"d = {d}: validation MSE over that of the noise as training goes on, by the share of its products"
    return Sheet(title, ("arm", *(f"{share:.0%}" for share in SHARES)), rows)


def _ratio(errors: dict[str, list[float]], variant: str, control: str) -> str:
    c = compare(errors[control], {variant: errors[variant]})[variant]
    low, high = c.interval
    return (
        f"{variant} has a test MSE of {Summary.of(errors[variant]).text('.4f')}, {control} of "
        f"{Summary.of(errors[control]).text('.4f')}: {c.ratio:.2f} times, {'at most' if c.ratio <= 0.5 else 'more than'} "
        f"half; difference {c.difference:+.4f} [{low:+.4f}, {high:+.4f}], paired t-test p = {c.p_t:.1g}."
    )


def _variants(errors: dict[str, list[float]]) -> list[str]:
    return [m for m in errors if VARIANTS[m].carries]


def _controls(errors: dict[str, list[float]]) -> list[str]:
    return [m for m in errors if not VARIANTS[m].carries]
