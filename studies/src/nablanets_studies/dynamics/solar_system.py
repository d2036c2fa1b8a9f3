"""The Sun's field from ninety years of the planets' motion, and sixty years of prediction from it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.solar_arms import KINDS, METHODS, SolarConfig, load, train
from nablanets_studies.dynamics.solar_measures import measure, predict, sun_field
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.findings import Summary, listing, lowest, sheet, summaries
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.ephemeris import BODIES, INNER, INVERSE_MASSES, SUN_GM

#: GM is to be found within this, relative.
_GOAL = 1e-4
#: Arms that are not given the law of gravitation.
_LEARNED = METHODS[:5]


class SolarSystemExperiment(Experiment[SolarConfig]):
    """Learn the law of attraction from JPL's ephemeris, recover GM of the Sun, and predict where the planets go."""

    name = "solar-system"
    summary = "Learn the Sun's field from the planets' motion 1900-1990 (JPL DE421), predict 1990-2050, recover GM."
    columns = (
        Column("gm_error", "GM error", ".1e"),
        Column("gm_spread", "GM spread", ".1e"),
        Column("mercury", "Mercury [1000 km]", ".3g"),
        Column("venus", "Venus", ".3g"),
        Column("earth", "Earth", ".3g"),
        Column("mars", "Mars", ".3g"),
    )
    _fits = (
        Column("exponent", "exponent", ".6f"),
        Column("acceleration", "acceleration error", ".1e"),
        Column("lost", "lost", ".1f"),
        *(Column(f"function of {kind}", f"function of {kind}", ".1f") for kind in KINDS),
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
            if method not in METHODS:
                raise unknown_name("method", method, METHODS)
        return list(config.methods)

    def run_part(self, config: SolarConfig, arm: str, seed: int, report: Report) -> PartResult:
        data = load(config)
        fitted = train(config, arm, data, seed)
        for row in fitted.history:
            report(row)
        kind = {f"function of {fitted.kind}": 1.0}
        metrics = measure(fitted.net, data) | kind
        return PartResult(fitted.net, count_parameters(fitted.net), fitted.seconds, metrics)

    def notes(self, config: SolarConfig) -> list[str]:
        return [
            "JPL's ephemeris DE421: positions, velocities and accelerations of the Sun and eight planets (with their moons) as "
            "the ephemeris' own Chebyshev polynomials give them; Newton's attraction between these nine with known masses "
            "explains the accelerations of planets to between 2e-9 and 2e-7, the rest presumably being relativity, the Moon and asteroids. Fitted "
            "are accelerations at "
            + ("104 epochs" if config.source == "sample" else f"{config.times} epochs")
            + " from 1900 to 1990 and nothing later; a quarter as many others of these years are for "
            "validation. Predictions start from the ephemeris' positions and velocities at 1990.0. This experiment is ours.",
            "What is given and what is learned. n-body: all nine bodies attract each other along their distance, by one law for "
            "all pairs times both masses, with opposite forces; learned are the law (a gradient map of one variable, free "
            "in form) and eight masses relative to the Sun, from 1e-5 each. radial: the four inner planets' accelerations "
            "relative to the Sun point along the radius and depend on it only; the law is learned, perturbations are "
            "ignored. For both the law may be a function of r, log r or 1/r; validation decides between whole fits (in the last of these "
            "Newton's law is a constant, so that choice matters). gradnet-3d and mlp-potential-3d: gradients of unknown "
            "potentials of three coordinates; mlp-3d: any field of them; all three learn the four inner planets' relative "
            "accelerations. kepler: -GM x / r^3 with GM by least squares; newton: the law of attraction between nine "
            "bodies is known and nine constants are fitted. These two know what the others are to find.",
            "All networks are fitted by Levenberg-Marquardt in float64 from one start, "
            f"{config.steps} iterations at most; the networks on positions have at most the parameters of an MLP of width "
            f"{config.field_features}.",
            "GM error: the mean of r^2 |f| over where the inner planets are from 1990 on, against the "
            "132712440041 km^3/s^2 of DE421; its spread is the standard deviation there; the exponent is that of a power law fitted to |f| "
            "there. For n-body f is the attraction of a body without mass. Acceleration error: mean of |f - a| / |a| there, "
            "for the inner planets. A planet's own mass and the others' perturbations change a relative acceleration by up "
            "to 4e-5 (Mars), which bounds what radial and kepler can do.",
            "Positions: root mean square distance from the ephemeris, relative to the Sun, over all years predicted, by DOP853 "
            "at a relative tolerance of 1e-10. Lost: planets left, fell, or could not be integrated.",
        ]

    def sheets(self, config: SolarConfig, run: RunFolder) -> list[Sheet]:
        return [sheet("The fitted fields", self._fits, run.rows()), *_decades(run), *_masses(run)]

    def conclusions(self, config: SolarConfig, run: RunFolder) -> list[str]:
        rows = run.rows()
        gm, position = summaries(rows, "gm_error"), summaries(rows, "position")
        learned = {arm: s for arm, s in gm.items() if arm in _LEARNED}
        met = [arm for arm in learned if max(r.metrics["gm_error"] for r in rows if r.arm == arm) <= _GOAL]
        texts = [
            f"GM of the Sun within {_GOAL:.0e} for every seed, without being given the law: {listing(met)}; "
            f"not: {listing([arm for arm in learned if arm not in met])}."
        ]
        if learned:
            best = lowest(learned)
            texts.append(f"The best GM without the law is that of {best}: relative error {learned[best].text('.1e')}.")
        ranked = {arm: s for arm, s in position.items() if arm in _LEARNED}
        if ranked:
            best = lowest(ranked)
            years = config.years
            texts.append(
                f"Positions of the inner planets over {years} years: {best} errs by {ranked[best].text('.4g')} thousand km "
                f"(root mean square){_beside(ranked, best)}."
            )
        for known in ("kepler", "newton"):
            if known in position:
                texts.append(f"With the law given, {known} errs by {position[known].text('.4g')} thousand km.")
        return texts

    def pictures(self, config: SolarConfig, run: RunFolder) -> Iterator[Picture]:
        models = {arm: run.load_model(arm, 0).double() for arm in config.methods if (arm, 0) in run.finished()}
        yield _growth(run)
        yield _profile(config, models)
        yield _orbits(config, models)


def _beside(positions: dict[str, Summary], best: str) -> str:
    others = [f"{arm} {s.mean:.3g}" for arm, s in positions.items() if arm != best]
    return f"; {listing(others)}" if others else ""


def _decades(run: RunFolder) -> list[Sheet]:
    rows = run.rows()
    count = sum(f"decade{k}" in {m for row in rows for m in row.metrics} for k in range(1, 20))
    found = [summaries(rows, f"decade{k}") for k in range(1, count + 1)]
    arms = [arm for arm in dict.fromkeys(row.arm for row in rows) if any(arm in decade for decade in found)]
    lines = [[arm, *(decade[arm].text(".4g") if arm in decade else "-" for decade in found)] for arm in arms]
    titles = ("arm", *(f"{1990 + 10 * k}-" for k in range(count)))
    return [Sheet("Position error of the inner planets by decade, 1000 km", titles, lines)] if lines else []


def _masses(run: RunFolder) -> list[Sheet]:
    rows = run.rows()
    arms = [
        arm for arm in dict.fromkeys(r.arm for r in rows) if any(r.arm == arm and "mass_sun" in r.metrics for r in rows)
    ]
    found = {name: summaries(rows, f"mass_{name}") for name in BODIES[1:]}
    lines = [
        [name, f"{inverse:.9g}", *(found[name][arm].text("+.1e") for arm in arms)]
        for name, inverse in zip(BODIES[1:], INVERSE_MASSES[1:], strict=True)
    ]
    titles = ("planet", "Sun / planet (IAU 2009)", *(f"{arm}: relative error" for arm in arms))
    return [Sheet("Masses of the planets with their moons", titles, lines)] if arms else []


def _growth(run: RunFolder) -> Picture:
    figure, axes = panels(1, 1, width=6, height=4)
    rows = run.rows()
    for arm in dict.fromkeys(row.arm for row in rows):
        found = [s for k in range(1, 20) if (s := summaries(rows, f"decade{k}").get(arm)) is not None]
        if found:
            axes[0].plot([1995 + 10 * k for k in range(len(found))], [s.mean for s in found], marker="o", label=arm)
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
