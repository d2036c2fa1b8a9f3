"""What follows from the numbers of the super-resolution study."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.findings import listing
from nablanets_studies.machinery.store import Row
from nablanets_studies.pictures.super_resolution_arms import CARRYING, CONTROLS

#: What a gradient residual should gain over the standard skip, in dB, and by how many standard errors.
TARGET = 0.10
CERTAIN = 2.0
_NAMES = {"epochs": "epochs", "time": "training time"}


class Estimate(NamedTuple):
    """A mean over seeds and its standard error (None for one seed)."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def text(self, spec: str = ".3f") -> str:
        return f"{self.mean:{spec}}" + ("" if self.error is None else f" ± {self.error:.3f}")

    @property
    def certain(self) -> bool:
        """Whether it is further from zero than two standard errors."""
        return self.error is not None and abs(self.mean) > CERTAIN * self.error


def psnrs(rows: Iterable[Row], budget: str, metric: str = "psnr") -> dict[str, dict[int, float]]:
    """A metric by method and seed, of the trainings with a budget."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        method, _, of = row.arm.rpartition("-")
        if of == budget and metric in row.metrics:
            found.setdefault(method, {})[row.seed] = row.metrics[metric]
    return found


def difference(values: Mapping[str, Mapping[int, float]], method: str, reference: str) -> Estimate | None:
    """How far a method is above a reference, seed by seed; None without common seeds."""
    seeds = sorted(set(values.get(method, {})) & set(values.get(reference, {})))
    return Estimate.of([values[method][s] - values[reference][s] for s in seeds]) if seeds else None


def best_of(values: Mapping[str, Mapping[int, float]], methods: Sequence[str]) -> str | None:
    """The method of the highest mean."""
    there = [m for m in methods if values.get(m)]
    return max(there, key=lambda m: statistics.fmean(values[m].values()), default=None)


def gates(rows: Iterable[Row]) -> dict[str, list[float]]:
    """s(alpha) by arm and block, means over seeds."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        values = [row.metrics[f"gate_{i}"] for i in range(1, 1000) if f"gate_{i}" in row.metrics]
        if values:
            found.setdefault(row.arm, []).append(values)
    return {arm: [statistics.fmean(column) for column in zip(*each, strict=True)] for arm, each in found.items()}


def budget_sheet(rows: Sequence[Row], budget: str) -> Sheet | None:
    """All methods of a budget, best first: PSNR, what they gain over bicubic and over the standard skip, and cost."""
    values, gains, costs = (psnrs(rows, budget, metric) for metric in ("psnr", "gain", "milliseconds"))
    if "standard" not in values:
        return None
    standard = statistics.fmean(costs["standard"].values())
    lines = []
    for method in sorted(values, key=lambda m: -statistics.fmean(values[m].values())):
        above = difference(values, method, "standard")
        lines.append(
            [
                method,
                Estimate.of(list(values[method].values())).text(),
                Estimate.of(list(gains[method].values())).text(),
                "-" if method == "standard" or above is None else above.text("+.3f"),
                f"{statistics.fmean(costs[method].values()) / standard:.2f}",
            ]
        )
    columns = ("method", "PSNR [dB]", "over bicubic", "over standard", "time per step")
    return Sheet(f"At equal {_NAMES[budget]}, means ± standard errors", columns, lines)


def conclusions_of(rows: Sequence[Row], budgets: Sequence[str]) -> list[str]:
    """Sentences about each budget."""
    texts = []
    for budget in budgets:
        values, gains = psnrs(rows, budget), psnrs(rows, budget, "gain")
        if "standard" not in values:
            texts.append(f"At equal {_NAMES[budget]}: no standard skip to compare with.")
            continue
        texts += [_all_arms(budget, gains), _against_standard(budget, values)]
        best = best_of(values, CARRYING)
        if best is not None:
            texts += _verdict(budget, best, values)
    return texts + _closest(rows, budgets)


def _closest(rows: Sequence[Row], budgets: Sequence[str]) -> list[str]:
    """Which budget brings a gradient residual furthest above the standard skip, if several were run."""
    found: dict[str, tuple[str, Estimate]] = {}
    for budget in budgets:
        values = psnrs(rows, budget)
        best = best_of(values, CARRYING)
        above = None if best is None else difference(values, best, "standard")
        if best is not None and above is not None:
            found[budget] = (best, above)
    if len(found) < 2:
        return []
    budget = max(found, key=lambda b: found[b][1].mean)
    best, above = found[budget]
    return [f"The comparison at equal {_NAMES[budget]} is kindest to gradients: {best} {above.text('+.3f')} dB."]


def _all_arms(budget: str, gains: Mapping[str, Mapping[int, float]]) -> str:
    means = {method: statistics.fmean(each.values()) for method, each in gains.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    below = [m for m, v in means.items() if v <= 0]
    return (
        f"At equal {_NAMES[budget]} the arms are {means[low]:.2f} dB ({low}) to {means[high]:.2f} dB ({high}) above bicubic"
        + (f"; not above it: {listing(below)}." if below else ".")
    )


def _against_standard(budget: str, values: Mapping[str, Mapping[int, float]]) -> str:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for method in values:
        above = difference(values, method, "standard")
        if method == "standard" or above is None:
            continue
        group = "not distinguishable" if not above.certain else "better" if above.mean > 0 else "worse"
        groups[group].append(f"{method} ({above.text('+.3f')})")
    lists = "; ".join(f"{name}: {listing(methods)}" for name, methods in groups.items())
    return f"Against the standard skip at equal {_NAMES[budget]}, beyond {CERTAIN:g} standard errors, in dB: {lists}."


def _verdict(budget: str, best: str, values: Mapping[str, Mapping[int, float]]) -> list[str]:
    above = difference(values, best, "standard")
    if above is None:
        return []
    if above.certain and above.mean >= TARGET:
        verdict = f"the target of {TARGET:.2f} dB is reached"
    else:
        why = "too little" if above.certain or above.mean < TARGET else "not certain"
        verdict = f"the target of {TARGET:.2f} dB beyond {CERTAIN:g} standard errors is not reached ({why})"
    control = best_of(values, [*CONTROLS[1:], "deeper"])
    beside = None if control is None else difference(values, best, control)
    rest = "" if beside is None else f" The best other control, {control}, is {-beside.mean:+.3f} dB from it."
    return [
        f"At equal {_NAMES[budget]} the best gradient residual, {best}, is {above.text('+.3f')} dB from the standard skip: "
        f"{verdict}.{rest}"
    ]
