"""What follows from a run of the activation study: tables, pictures, sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from nablanets.activations import ACTIVATIONS, ElementwiseActivation, GroupActivation
from nablanets.verify import TOLERANCE
from nablanets_studies.machinery.base import Picture, Sheet
from nablanets_studies.machinery.findings import Summary, lead, listing, lowest, summaries
from nablanets_studies.machinery.store import Row
from nablanets_studies.problems.fields import Field

KINDS = ("linear", "smooth", "piecewise linear", "polynomial", "spline", "group")
#: The arm that is no trained network: affine pieces identified from samples.
IDENTIFIED = "identified"
_CUTS = ("m-tanh", "c-tanh", "c-relu", "m-softmax", "mlp-relu", IDENTIFIED)


def is_gradient_network(arm: str) -> bool:
    """Whether an arm is a GradNet-C or GradNet-M."""
    return arm.startswith(("c-", "m-"))


def kind(arm: str) -> str:
    """What sort of activation the arm of a gradient network has.

    >>> [kind(arm) for arm in ("c-tanh", "m-abs", "m-softmax", "c-spline", "c-identity")]
    ['smooth', 'piecewise linear', 'group', 'spline', 'linear']
    """
    name = arm.partition("-")[2]
    cls = ACTIVATIONS[name]
    if name in ("identity", "polynomial", "spline"):
        return "linear" if name == "identity" else name
    if issubclass(cls, GroupActivation):
        return "group"
    return "piecewise linear" if issubclass(cls, ElementwiseActivation) and cls.kinks else "smooth"


def sheets(targets: Sequence[str], rows: Sequence[Row]) -> list[Sheet]:
    """By kind of activation; errors of subgradients and potentials; stability."""
    return [_kinds(targets, rows), *_nonsmooth(targets, rows), _stability(targets, rows)]


def _kinds(targets: Sequence[str], rows: Sequence[Row]) -> Sheet:
    cells = {target: kind_medians(rows, target) for target in targets}
    present = [k for k in KINDS if any(k in medians for medians in cells.values())]
    lines = [[k, *(f"{cells[t][k]:.1f}" if k in cells[t] else "-" for t in targets)] for k in present]
    return Sheet("By kind of activation: median test error over networks [dB]", ["kind", *targets], lines)


def kind_medians(rows: Sequence[Row], target: str) -> dict[str, float]:
    """The median over the gradient networks of each kind of their mean error."""
    errors = _gradient(summaries(rows, f"{target}_db"))
    groups = {k: [value.mean for arm, value in errors.items() if kind(arm) == k] for k in KINDS}
    return {k: statistics.median(group) for k, group in groups.items() if group}


def _nonsmooth(targets: Sequence[str], rows: Sequence[Row]) -> list[Sheet]:
    kinked = [t for t in targets if summaries(rows, f"{t}_away_db")]
    columns = ["arm"]
    metrics = []
    for target in kinked:
        columns += [f"{target}, all [dB]", "away from kinks [dB]", "potential", "overshoot"]
        names = (("db", ".1f"), ("away_db", ".1f"), ("potential", ".1%"), ("overshoot", ".2f"))
        metrics += [(summaries(rows, f"{target}_{name}"), spec) for name, spec in names]
    arms = dict.fromkeys(row.arm for row in rows)
    lines = [[arm, *(column[arm].text(spec) if arm in column else "-" for column, spec in metrics)] for arm in arms]
    return [Sheet("Non-differentiable targets", columns, lines)] if kinked else []


def _stability(targets: Sequence[str], rows: Sequence[Row]) -> Sheet:
    failures = {target: summaries(rows, f"{target}_failures") for target in targets}
    errors = {target: summaries(rows, f"{target}_db") for target in targets}
    worst = {target: _worst(rows, f"{target}_db") for target in targets}
    columns = ["arm"]
    for target in targets:
        columns += [f"{target}: deviation [dB]", "worst seed [dB]", "failed fits"]
    lines = []
    for arm in (a for a in dict.fromkeys(row.arm for row in rows) if a in failures[targets[0]]):
        cells = [arm]
        for t in targets:
            cells += [f"{errors[t][arm].deviation:.1f}", f"{worst[t][arm]:.1f}", f"{failures[t][arm].mean:.0%}"]
        lines.append(cells)
    return Sheet("Stability over seeds, and over the rates tried", columns, lines)


def _worst(rows: Sequence[Row], metric: str) -> dict[str, float]:
    worst: dict[str, float] = {}
    for row in rows:
        if metric in row.metrics:
            worst[row.arm] = max(row.metrics[metric], worst.get(row.arm, -math.inf))
    return worst


def conclusions(targets: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Accuracy by target, kinds of activation, subgradients, symmetry and stability, in words."""
    found = [_accuracy(target, rows) for target in targets]
    found += [_by_kind(target, rows) for target in targets]
    found += [_at_kinks(target, rows) for target in targets if summaries(rows, f"{target}_away_db")]
    return [sentence for sentence in (*found, _symmetry(rows), _failures(rows)) if sentence]


def _gradient(values: Mapping[str, Summary]) -> dict[str, Summary]:
    return {arm: value for arm, value in values.items() if is_gradient_network(arm)}


def _accuracy(target: str, rows: Sequence[Row]) -> str:
    errors = summaries(rows, f"{target}_db")
    ours = _gradient(errors)
    theirs = {arm: value for arm, value in errors.items() if arm not in ours and arm != IDENTIFIED}
    if not ours or not theirs:
        return ""
    best, peer = lowest(ours), lowest(theirs)
    text = (
        f"{target}: the best gradient network is {best} ({ours[best].text()} dB), the best baseline {peer} "
        f"({theirs[peer].text()} dB); the gradient network is {lead(ours[best], theirs[peer], 'dB')}. "
        f"{sum(v.mean < theirs[peer].mean for v in ours.values())} of {len(ours)} gradient networks are below that baseline, "
        f"and the median of them is at {statistics.median(v.mean for v in ours.values()):.1f} dB"
    )
    if "affine" in theirs:
        lost = [arm for arm, value in ours.items() if value.mean >= theirs["affine"].mean]
        text += f"; not better than the affine map ({theirs['affine'].text()} dB): {listing(lost)}"
    return text + "."


def _by_kind(target: str, rows: Sequence[Row]) -> str:
    medians = kind_medians(rows, target)
    if len(medians) < 2:
        return ""
    order = sorted(medians, key=lambda k: medians[k])
    ranked = ", ".join(f"{k} {medians[k]:.1f}" for k in order)
    return f"{target}: median error by kind of activation, best first, in dB: {ranked}."


def _at_kinks(target: str, rows: Sequence[Row]) -> str:
    """Where the best gradient network's error is, its potential, and whether any network overshoots."""
    overall = _gradient(summaries(rows, f"{target}_db"))
    if not overall:
        return ""
    best = lowest(overall)
    away, near = summaries(rows, f"{target}_away_db")[best], summaries(rows, f"{target}_near_fraction")[best].mean
    share = near_share(overall[best].mean, away.mean, near)
    potential = summaries(rows, f"{target}_potential")[best]
    overshoot = _gradient(summaries(rows, f"{target}_overshoot"))
    most = max(overshoot, key=lambda arm: overshoot[arm].mean)
    legal = {arm: v for arm, v in overall.items() if ACTIVATIONS[arm[2:]]((1,), monotone=True).increasing}
    monotone = f"; the best monotone map is {lowest(legal)} ({legal[lowest(legal)].text()} dB)" if legal else ""
    found = summaries(rows, f"{target}_db").get(IDENTIFIED)
    pieces = f"; affine pieces identified from samples reach {found.text()} dB" if found else ""
    return (
        f"{target}: the subgradients are learned to {overall[best].text()} dB by {best}{monotone}{pieces}. Of {best}'s squared "
        f"error, {share:.0%} is at the {near:.0%} of points near kinks; away from them it is {away.text()} dB. Its "
        f"potential is off by {potential.text('.1%')} of the potential's standard deviation. The largest overshoot of a "
        f"gradient network is {overshoot[most].mean:.2f} times the largest subgradient ({most})."
    )


def near_share(overall_db: float, away_db: float, near_fraction: float) -> float:
    """The share of the squared error that is near the kinks.

    >>> near_share(-10.0, -20.0, 0.5)
    0.95
    """
    return 1 - (1 - near_fraction) * 10 ** ((away_db - overall_db) / 10)


def _symmetry(rows: Sequence[Row]) -> str:
    parts = []
    for metric, dtype in (("asymmetry32", torch.float32), ("asymmetry64", torch.float64)):
        values = {row.arm: 0.0 for row in rows}
        for row in rows:
            values[row.arm] = max(values[row.arm], row.metrics[metric])
        ours = {arm: value for arm, value in values.items() if is_gradient_network(arm)}
        free = [value for arm, value in values.items() if arm.startswith("mlp") and arm != "mlp-potential"]
        if not ours:
            return ""
        worst = max(ours, key=lambda arm: ours[arm])
        above = [arm for arm, value in ours.items() if value > TOLERANCE[dtype]]
        text = (
            f"in {str(dtype)[6:]} the largest asymmetry of a gradient network is {ours[worst]:.0e} ({worst}), and those "
            f"above the tolerance of rounding, {TOLERANCE[dtype]:.0e}, are: {listing(above)}"
        )
        parts.append(text + (f" (MLPs: {min(free):.0e} or more)" if free else ""))
    return "Symmetry of the Jacobian: " + "; ".join(parts) + "."


def _failures(rows: Sequence[Row]) -> str:
    shares = {arm: value.mean for arm, value in summaries(rows, "failures").items() if value.mean > 0}
    ranked = [f"{arm} {shares[arm]:.0%}" for arm in sorted(shares, key=lambda arm: -shares[arm])]
    return f"Fits that diverged or ended worse than the affine map, as shares of all targets, seeds and rates: {listing(ranked)}."


def heat_map(targets: Sequence[str], rows: Sequence[Row]) -> Picture:
    """Mean test errors as colours."""
    errors = [summaries(rows, f"{target}_db") for target in targets]
    arms = list(errors[0])
    values = np.array([[column[arm].mean for column in errors] for arm in arms])
    figure = Figure(figsize=(2 + 1.3 * len(targets), 1 + 0.26 * len(arms)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis_r", vmin=-50, vmax=0)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    figure.colorbar(image, ax=axes, label="test error [dB]")
    return Picture("errors", "Mean test error by network and target (colours end at -50 and 0 dB).", figure)


def cuts(field: Field, models: Mapping[str, nn.Module]) -> Picture:
    """The first component of the last target and of some networks on a line through the square."""
    t = torch.linspace(0, 1, 400)
    x = torch.stack([t, 0.3 + 0.4 * t], dim=-1)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(t, field.gradient(x)[:, 0], color="black", label="truth")
    for arm in (arm for arm in _CUTS if arm in models):
        with torch.no_grad():
            axes.plot(t, models[arm](x)[:, 0], label=arm, linewidth=1)
    axes.set(xlabel="$x_1$", ylabel="$f_1$")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return Picture("cut", f"{field.name}: the first component along a line (seed 0).", figure)
