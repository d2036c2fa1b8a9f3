"""What is measured in the super-resolution study, and what follows from the numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.metrics import Measured, Metrics, group, series
from nablanets_studies.pictures.super_resolution_arms import ARMS, METHODS, STANDARD, Budget

#: What a gradient residual should gain over the standard skip, in dB.
TARGET = 0.10
#: By how many standard errors a difference is certain.
CERTAIN = 2.0


@dataclass(frozen=True, kw_only=True)
class SuperResolutionMetrics(Metrics):
    """What is measured of an arm; bicubic interpolation, which is not trained, has the first four only.

    Attributes:
        psnr, ssim: mean over all test pictures.
        psnr_by_set: of each set of test pictures, if there are several.
        gain: PSNR over bicubic's.
        validation_psnr: at the last evaluation.
        milliseconds: of training per step.
        steps: of training.
        rate, alpha: what validation pictures chose; alpha is where its training starts.
        gates: s(alpha) of each block after training.
    """

    psnr: float
    ssim: float
    psnr_by_set: Mapping[str, float] = field(default_factory=dict, metadata=group("psnr_"))
    gain: float
    validation_psnr: float | None = None
    milliseconds: float | None = None
    steps: float | None = None
    rate: float | None = None
    alpha: float | None = None
    gates: tuple[float, ...] = field(default=(), metadata=series("gate_", first=1))


SuperResolutionResults = Sequence[Measured[SuperResolutionMetrics]]
#: A number by the name of a method and by seed.
Values = Mapping[str, Mapping[int, float]]


class Estimate(NamedTuple):
    """A mean over seeds and its standard error (None for one seed)."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        numbers = list(values)
        error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else None
        return cls(statistics.fmean(numbers), error)

    def text(self, spec: str = ".3f") -> str:
        return f"{self.mean:{spec}}" + ("" if self.error is None else f" ± {self.error:.3f}")

    @property
    def certain(self) -> bool:
        """Whether it is further from zero than two standard errors."""
        return self.error is not None and abs(self.mean) > CERTAIN * self.error


class Lead(NamedTuple):
    """How far a method is above another, in dB."""

    method: str
    above: Estimate


class Gain(NamedTuple):
    """How far a method is above bicubic, in dB, mean over seeds."""

    method: str
    gain: float


class Gains(NamedTuple):
    """The smallest and the largest gain over bicubic, and the methods that have none."""

    lowest: Gain
    highest: Gain
    below: list[str]


class Verdict(NamedTuple):
    """The best gradient residual against the standard skip, and against the best of the other controls."""

    best: Lead
    control: Lead | None

    @property
    def large(self) -> bool:
        """Whether it gains what it should; that may be by chance."""
        return self.best.above.mean >= TARGET and not self.best.above.certain

    @property
    def reached(self) -> bool:
        return self.best.above.mean >= TARGET and self.best.above.certain


class BudgetFindings(NamedTuple):
    """What follows for one budget; without a standard skip there are no gains, and nothing else."""

    budget: Budget
    gains: Gains | None
    better: Sequence[Lead] = ()
    worse: Sequence[Lead] = ()
    alike: Sequence[Lead] = ()
    verdict: Verdict | None = None


class Kindest(NamedTuple):
    """The budget that brings a gradient residual furthest above the standard skip."""

    budget: Budget
    best: Lead


class SuperResolutionFindings(NamedTuple):
    """What follows from the numbers of a run."""

    budgets: list[BudgetFindings]
    kindest: Kindest | None
    target: float = TARGET
    certain: float = CERTAIN


def values_of(
    results: SuperResolutionResults, budget: Budget, value: Callable[[SuperResolutionMetrics], float | None]
) -> dict[str, dict[int, float]]:
    """A number by method and seed, of the trainings with a budget."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        arm = ARMS.get(result.arm)
        number = value(result.metrics)
        if arm is not None and arm.budget == budget and number is not None:
            found.setdefault(arm.method.name, {})[result.seed] = number
    return found


def psnrs(results: SuperResolutionResults, budget: Budget) -> dict[str, dict[int, float]]:
    """PSNR by method and seed, of the trainings with a budget."""
    return values_of(results, budget, lambda metrics: metrics.psnr)


def difference(values: Values, method: str, reference: str) -> Estimate | None:
    """How far a method is above a reference, seed by seed; None without common seeds."""
    seeds = sorted(set(values.get(method, {})) & set(values.get(reference, {})))
    if not seeds:
        return None
    return Estimate.of(values[method][seed] - values[reference][seed] for seed in seeds)


def best_of(values: Values, methods: Iterable[str]) -> str | None:
    """The method of the highest mean."""
    there = [method for method in methods if values.get(method)]
    return max(there, key=lambda method: statistics.fmean(values[method].values()), default=None)


def best_carrying(values: Values) -> str | None:
    """The gradient residual of the highest mean."""
    return best_of(values, [method.name for method in METHODS.values() if method.carries_gradients])


def gates(results: SuperResolutionResults) -> dict[str, list[float]]:
    """s(alpha) by arm and block, means over seeds."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for result in results:
        if result.metrics.gates:
            found.setdefault(result.arm, []).append(result.metrics.gates)
    means = {}
    for arm, of_seeds in found.items():
        by_block = zip(*of_seeds, strict=True)
        means[arm] = [statistics.fmean(block) for block in by_block]
    return means


def budget_sheet(results: SuperResolutionResults, budget: Budget) -> Sheet | None:
    """All methods of a budget, best first: PSNR, what they gain over bicubic and over the standard skip, and cost."""
    values = psnrs(results, budget)
    gains = values_of(results, budget, lambda metrics: metrics.gain)
    costs = values_of(results, budget, lambda metrics: metrics.milliseconds)
    if STANDARD.name not in values:
        return None
    standard_cost = statistics.fmean(costs[STANDARD.name].values())
    lines = []
    for method in sorted(values, key=lambda name: -statistics.fmean(values[name].values())):
        above = difference(values, method, STANDARD.name)
        cost = statistics.fmean(costs[method].values()) / standard_cost
        lines.append(
            [
                method,
                Estimate.of(values[method].values()).text(),
                Estimate.of(gains[method].values()).text(),
                "-" if method == STANDARD.name or above is None else above.text("+.3f"),
                f"{cost:.2f}",
            ]
        )
    columns = ("method", "PSNR [dB]", "over bicubic", "over standard", "time per step")
    return Sheet(f"At equal {budget.title}, means ± standard errors", columns, lines)


def find(results: SuperResolutionResults, budgets: Sequence[Budget]) -> SuperResolutionFindings:
    """What follows for each budget, and which of several is kindest to gradients."""
    found = [_of_budget(results, budget) for budget in budgets]
    leads = [Kindest(each.budget, each.verdict.best) for each in found if each.verdict is not None]
    kindest = max(leads, key=lambda each: each.best.above.mean) if len(leads) > 1 else None
    return SuperResolutionFindings(found, kindest)


def _of_budget(results: SuperResolutionResults, budget: Budget) -> BudgetFindings:
    values = psnrs(results, budget)
    if STANDARD.name not in values:
        return BudgetFindings(budget, None)
    better = []
    worse = []
    alike = []
    for method in values:
        above = difference(values, method, STANDARD.name)
        if method == STANDARD.name or above is None:
            continue
        if not above.certain:
            alike.append(Lead(method, above))
        elif above.mean > 0:
            better.append(Lead(method, above))
        else:
            worse.append(Lead(method, above))
    gains = _gains(values_of(results, budget, lambda metrics: metrics.gain))
    return BudgetFindings(budget, gains, better, worse, alike, _verdict(values))


def _gains(values: Values) -> Gains:
    gains = [Gain(method, statistics.fmean(each.values())) for method, each in values.items()]
    return Gains(
        lowest=min(gains, key=lambda each: each.gain),
        highest=max(gains, key=lambda each: each.gain),
        below=[each.method for each in gains if each.gain <= 0],
    )


def _verdict(values: Values) -> Verdict | None:
    best = best_carrying(values)
    above = None if best is None else difference(values, best, STANDARD.name)
    if best is None or above is None:
        return None
    control = best_of(values, [method.name for method in METHODS.values() if method.control])
    beside = None if control is None else difference(values, best, control)
    return Verdict(Lead(best, above), None if control is None or beside is None else Lead(control, beside))
