"""The search for a gradient residual that helps on the sinusoid, at equal parameters and equal compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nablanets.experiments.base import Sheet
from nablanets.experiments.comparison import compare
from nablanets.experiments.findings import Summary
from nablanets.experiments.sinusoid.arms import SinusoidConfig
from nablanets.experiments.sinusoid.nets import OTHER_ACTIVATIONS, VARIANTS
from nablanets.experiments.sinusoid.study import (
    COMPARISON,
    SinusoidStudy,
    comparison_row,
    convergence,
    errors_of,
    lowest_mean,
    protocol,
)
from nablanets.experiments.store import RunFolder

CONTROLS = ("standard", "no-skip", "scalar", "damped", "random")
_OTHERS = tuple(f"{kind}-{act}" for act in OTHER_ACTIVATIONS for kind in ("standard", "no-skip", "damped"))
VARIED = (
    *("gradient", "gradient-full", "gradient-full-x2", "gradient-full-x4", "gradient-full-x8", "gradient-rms"),
    *("gradient-rms-full", "gradient-raw-x4", "full-x4-channels", "full-x4-random", "full-x4-learned", "full-x4-first"),
    "probe-several",
    *(f"{kind}-{act}" for act in OTHER_ACTIVATIONS for kind in ("gradient", "full-x4")),
)
_PAPER = SinusoidConfig(
    frequencies=(12, 16),
    methods=(*CONTROLS, *_OTHERS, *VARIED),
    other_frequencies=(),
    steps=6000,
    equal_compute=True,
    alphas=(0.0,),
    trial_steps=2000,
    slots=12,
)


class SearchExperiment(SinusoidStudy):
    """Variants of the gradient residual against controls that train for the same number of products."""

    name = "sinusoid-search"
    summary = "The search for a gradient residual that halves the error on sin(d pi x), at equal compute."
    presets = {  # noqa: RUF012
        "quick": replace(
            _PAPER,
            frequencies=(3, 4),
            methods=("standard", "damped", "gradient", "gradient-full", "gradient-full-x4"),
            width=32,
            first_scale=4.0,
            steps=400,
            trial_steps=150,
            trial_seeds=2,
            validation_samples=200,
            test_points=500,
            slots=4,
        ),
        "paper": _PAPER,
    }
    seeds = {"quick": 4, "paper": 12}  # noqa: RUF012

    def conclusions(self, config: SinusoidConfig, run: RunFolder) -> list[str]:
        choosing, judging = (errors_of(run, config, d, metric) for d, metric in _stages(config))
        texts = verdict(config.frequencies, choosing, judging)
        return texts + convergence(run, config, config.frequencies[-1])

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        d = config.frequencies[-1]
        errors = errors_of(run, config, d)
        control = lowest_mean(errors, _controls(errors))
        if control is None or len(errors[control]) < 3 or len(errors) < 2:
            return []
        found = compare(errors[control], {m: values for m, values in errors.items() if m != control})
        rows = [comparison_row(method, c) for method, c in found.items()]
        return [
            Sheet(f"d = {d}: test MSE against the best control, {control}, seed by seed", ("arm", *COMPARISON), rows)
        ]

    def notes(self, config: SinusoidConfig) -> list[str]:
        return [
            "The question is whether any gradient residual has at most half the test MSE of the best control without a "
            "gradient: standard skip, no skip, trained scalar, damped identity, random vector, and three of them with "
            "other activations. Nothing here is the paper's but the layer.",
            *protocol(config),
            "Equal compute: the steps are those of arms that back-propagate through g, whose step costs 1.5 times the "
            "products of a plain one; all other arms make more steps, plain ones 1.5 times as many. A width of its own "
            "would change the parameters, so it is time that is equal.",
            f"The variant and the control are chosen by validation error at d = {config.frequencies[0]}, on other samples "
            f"than those of d = {config.frequencies[-1]}, where they are judged by test error.",
            "x4: g times 4; full: with back-propagation through g, not normalised; rms: g at root mean square 1; raw: "
            "neither normalised nor back-propagated; channels: alpha trained, one per channel; random, learned: the "
            "probe; several: four trained probes, each normalised, mixed per channel; first: in the first block only.",
        ]  # fmt: skip


def verdict(
    frequencies: tuple[int, ...], choosing: dict[str, list[float]], judging: dict[str, list[float]]
) -> list[str]:
    """Whether the chosen variant, or any, has at most half the error of the control."""
    both = {m: values for m, values in choosing.items() if m in judging and len(judging[m]) >= 3}
    variant, control = lowest_mean(both, _variants(both)), lowest_mean(both, _controls(both))
    if variant is None or control is None:
        return ["Too few seeds, or no variant and control to compare."]
    d = frequencies[-1]
    best = lowest_mean(judging, _variants(judging)) or variant
    least = lowest_mean(judging, _controls(judging)) or control
    texts = [
        f"By validation error at d = {frequencies[0]} the variant of choice is {variant} and the control {control}. "
        f"At d = {d} {_ratio(judging, variant, control)}",
        f"Against the control of the least test error at d = {d}: {_ratio(judging, variant, least)}",
    ]
    reached = [m for m in _variants(judging) if np.mean(judging[m]) <= 0.5 * np.mean(judging[least])]
    if reached:
        texts.append(f"At most half of the best control at d = {d}: {', '.join(reached)}.")
    else:
        texts.append(
            f"None of the {len(_variants(judging))} variants tried has at most half the test MSE of the best control at "
            f"d = {d}. The best of them by test error: {_ratio(judging, best, least)}"
        )
    return texts


def _ratio(errors: dict[str, list[float]], variant: str, control: str) -> str:
    c = compare(errors[control], {variant: errors[variant]})[variant]
    low, high = c.interval
    return (
        f"{variant} has a test MSE of {Summary.of(errors[variant]).text('.4f')}, {control} of "
        f"{Summary.of(errors[control]).text('.4f')}: {c.ratio:.2f} times, {'at most' if c.ratio <= 0.5 else 'more than'} "
        f"half; difference {c.difference:+.4f} [{low:+.4f}, {high:+.4f}], paired t-test p = {c.p_t:.1g}."
    )


def _stages(config: SinusoidConfig) -> tuple[tuple[int, str], tuple[int, str]]:
    return (config.frequencies[0], "validation_mse"), (config.frequencies[-1], "test_mse")


def _variants(errors: dict[str, list[float]]) -> list[str]:
    return [m for m in errors if VARIANTS[m].carries]


def _controls(errors: dict[str, list[float]]) -> list[str]:
    return [m for m in errors if not VARIANTS[m].carries]
