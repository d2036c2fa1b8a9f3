"""The Sun's field from ninety years of the planets' motion, and sixty years of prediction from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.solar_arms import ARMS, RADIAL_COORDINATES, SolarConfig, load, train
from nablanets_studies.dynamics.solar_measures import SolarMetrics, first_year, measure, predict, sun_field
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.findings import Summary
from nablanets_studies.machinery.metrics import Best, Measured, ValueColumn, measured, sheet_of, summaries_of
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.ephemeris import BODIES, INNER, INVERSE_MASSES, SUN_GM

SolarResults = list[Measured[SolarMetrics]]

#: GM is to be found within this, relative.
_GOAL = 1e-4


@dataclass(frozen=True)
class SolarFindings:
    """What follows from the numbers of a run.

    Attributes:
        goal: GM is to be found within this, relative.
        met, missed: arms that are not given the law and did so for every seed, or did not.
        best_gm: the one of the least error of GM.
        best_position, other_positions: the one of the least error of positions, and the others.
        with_the_law: errors of positions of the arms that are given the law.
    """

    goal: float
    met: list[str]
    missed: list[str]
    best_gm: Best | None
    best_position: Best | None
    other_positions: list[Best]
    with_the_law: list[Best]


def _is_coordinate(name: str) -> Callable[[SolarMetrics], float | None]:
    return lambda metrics: 1.0 if metrics.coordinate == name else None


_FITS: list[ValueColumn[SolarMetrics]] = [
    ValueColumn("exponent", lambda metrics: metrics.exponent, ".6f"),
    ValueColumn("acceleration error", lambda metrics: metrics.acceleration, ".1e"),
    ValueColumn("lost", lambda metrics: metrics.positions.lost, ".1f"),
    *(ValueColumn(f"function of {name}", _is_coordinate(name), ".1f") for name in RADIAL_COORDINATES),
]


class SolarSystemExperiment(Experiment[SolarConfig]):
    """Learn the law of attraction from JPL's ephemeris, recover GM of the Sun, and predict where the planets go."""

    name = "solar-system"
    summary = "Learn the Sun's field from the planets' motion 1900-1990 (JPL DE421), predict 1990-2050, recover GM."
    template = "solar_system.md.j2"
    columns = (
        Column("gm_error", "GM error", ".1e"),
        Column("gm_spread", "GM spread", ".1e"),
        Column("mercury", "Mercury [1000 km]", ".3g"),
        Column("venus", "Venus", ".3g"),
        Column("earth", "Earth", ".3g"),
        Column("mars", "Mars", ".3g"),
    )
    presets = {  # noqa: RUF012
        "quick": SolarConfig(
            methods=("radial", "mlp-3d", "kepler", "newton"),
            source="sample",
            steps=60,
            years=4,
            hidden_features=6,
        ),
        "paper": SolarConfig(),
    }
    seeds = {"quick": 1, "paper": 5}  # noqa: RUF012

    def arms(self, config: SolarConfig) -> list[str]:
        for method in config.methods:
            if method not in ARMS:
                raise unknown_name("method", method, ARMS)
        return list(config.methods)

    def run_part(self, config: SolarConfig, arm: str, seed: int, report: Report) -> PartResult:
        data = load(config)
        fitted = train(config, ARMS[arm], data, seed)
        for row in fitted.history:
            report(row)
        metrics = measure(fitted, data)
        return PartResult(fitted.net, count_parameters(fitted.net), fitted.seconds, metrics.to_metrics())

    def sheets(self, config: SolarConfig, run: RunFolder) -> list[Sheet]:
        results = measured(run.rows(), SolarMetrics)
        return [sheet_of("The fitted fields", _FITS, results), *_decades(results), *_masses(results)]

    def findings(self, config: SolarConfig, run: RunFolder) -> SolarFindings:
        results = measured(run.rows(), SolarMetrics)
        gm = summaries_of(results, lambda metrics: metrics.gm_error)
        positions = summaries_of(results, lambda metrics: metrics.positions.position)
        learned_gm = _without_law(gm)
        learned_positions = _without_law(positions)
        best_position = Best.of(learned_positions) if learned_positions else None
        worst = {arm: max(r.metrics.gm_error for r in results if r.arm == arm) for arm in learned_gm}
        return SolarFindings(
            goal=_GOAL,
            met=[arm for arm in learned_gm if worst[arm] <= _GOAL],
            missed=[arm for arm in learned_gm if worst[arm] > _GOAL],
            best_gm=Best.of(learned_gm) if learned_gm else None,
            best_position=best_position,
            other_positions=[each for each in _each(learned_positions) if each != best_position],
            with_the_law=[each for each in _each(positions) if ARMS[each.arm].knows_law],
        )

    def pictures(self, config: SolarConfig, run: RunFolder) -> Iterator[Picture]:
        models = {arm: run.load_model(arm, 0).double() for arm in config.methods if (arm, 0) in run.finished()}
        yield _growth(measured(run.rows(), SolarMetrics))
        yield _profile(config, models)
        yield _orbits(config, models)


def _without_law(values: Mapping[str, Summary]) -> dict[str, Summary]:
    """Those of the arms that are not given the law of gravitation."""
    return {arm: value for arm, value in values.items() if not ARMS[arm].knows_law}


def _each(values: Mapping[str, Summary]) -> list[Best]:
    return [Best(arm, value) for arm, value in values.items()]


def _decades(results: SolarResults) -> list[Sheet]:
    """Errors of positions by decade, for the arms whose planets stayed."""
    count = max((len(result.metrics.positions.decades) for result in results), default=0)
    columns = [ValueColumn(f"{first_year(k)}-", _decade(k), ".4g") for k in range(count)]
    stayed = summaries_of(results, _decade(0))
    kept = [result for result in results if result.arm in stayed]
    return [sheet_of("Position error of the inner planets by decade, 1000 km", columns, kept)] if kept else []


def _decade(number: int) -> Callable[[SolarMetrics], float | None]:
    def value(metrics: SolarMetrics) -> float | None:
        decades = metrics.positions.decades
        return decades[number] if number < len(decades) else None

    return value


def _masses(results: SolarResults) -> list[Sheet]:
    """Relative errors of the planets' masses, for the arms that learn them: one line for each planet."""
    arms = list(dict.fromkeys(result.arm for result in results if result.metrics.masses))
    lines = []
    for name, inverse in zip(BODIES[1:], INVERSE_MASSES[1:], strict=True):
        found = summaries_of(results, _mass(name))
        lines.append([name, f"{inverse:.9g}", *(found[arm].text("+.1e") for arm in arms)])
    titles = ("planet", "Sun / planet (IAU 2009)", *(f"{arm}: relative error" for arm in arms))
    return [Sheet("Masses of the planets with their moons", titles, lines)] if arms else []


def _mass(name: str) -> Callable[[SolarMetrics], float | None]:
    return lambda metrics: metrics.masses.get(name)


def _growth(results: SolarResults) -> Picture:
    figure, axes = panels(1, 1, width=6, height=4)
    count = max((len(result.metrics.positions.decades) for result in results), default=0)
    by_decade = [summaries_of(results, _decade(k)) for k in range(count)]
    for arm in dict.fromkeys(result.arm for result in results):
        means = [found[arm].mean for found in by_decade if arm in found]
        middles = [first_year(k) + 5 for k in range(len(means))]
        if means:
            axes[0].plot(middles, means, marker="o", label=arm)
    axes[0].set(yscale="log", xlabel="decade around", ylabel="error [1000 km]")
    axes[0].grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return Picture("decades", "Error of the inner planets' predicted positions by decade (mean over seeds).", figure)


@torch.no_grad()
def _profile(config: SolarConfig, models: dict[str, nn.Module]) -> Picture:
    x = load(config).future.heliocentric()[0].flatten(0, 1)
    radius = x.norm(dim=-1)
    figure, axes = panels(1, 1, width=6, height=4)
    for arm, net in models.items():
        gm = radius.square() * sun_field(net, x).norm(dim=-1) / SUN_GM - 1
        axes[0].plot(radius, gm, ".", markersize=2, label=arm)
    axes[0].set(xlabel="distance from the Sun [AU]", ylabel="$r^2|f|$ / GM - 1")
    axes[0].set_yscale("symlog", linthresh=1e-6)
    axes[0].grid(alpha=0.3)
    axes[0].legend(fontsize="small", markerscale=5)
    return Picture("profile", "The learned field times r^2, where the inner planets are from 1990 on (seed 0).", figure)


def _orbits(config: SolarConfig, models: dict[str, nn.Module]) -> Picture:
    future = load(config).future
    first = future.select(future.times < future.times[0] + 2 * 365.25)
    truth = first.heliocentric()[0]
    figure, axes = panels(1, max(1, len(models)), width=2.6, height=2.8)
    for ax, (arm, net) in zip(axes, models.items(), strict=False):
        predicted = predict(net, first)
        for k in range(len(INNER)):
            ax.plot(truth[:, k, 0], truth[:, k, 1], "o", color="0.7", markersize=4)
            ax.plot(predicted[:, k, 0], predicted[:, k, 1], ".", markersize=3)
        ax.set(title=arm, aspect="equal", xlim=(-1.8, 1.8), ylim=(-1.8, 1.8))
    caption = "The first two years: ephemeris (grey) and predictions (seed 0), equatorial x and y in AU."
    return Picture("orbits", caption, figure)
