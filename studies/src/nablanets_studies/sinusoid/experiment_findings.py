"""What follows from a run of the sinusoid study; the template experiment.md.j2 says it in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nablanets_studies.machinery.comparison import Comparison
from nablanets_studies.sinusoid.arms import METHODS
from nablanets_studies.sinusoid.nets import VARIANTS
from nablanets_studies.sinusoid.results import (
    LEAST_SEEDS,
    SHARES,
    Convergence,
    Errors,
    Ratio,
    SinusoidResults,
    against,
    compared,
    convergence,
    lowest_mean,
    mean_error,
)

#: Controls of the size of the standard skip that carry no gradient.
CONTROLS = ("standard", "no-skip", "scalar", "damped", "random")
#: The methods that carry one.
CARRYING = tuple(method for method in METHODS if VARIANTS[method].carries)
#: Differences are called significant below this p; the paper's claim asks for less.
LEVEL = 0.05
CLAIM_LEVEL = 0.01
#: The claim's controls without any gradient are looked at when this share of the run is over.
_HALFWAY = 0.5


class Start(NamedTuple):
    """Networks of one kind of initial weights: the two that the paper compares, and others without any gradient."""

    title: str
    standard: str
    gradient: str
    without: tuple[str, ...]


STARTS = (
    Start("the networks of this study", "standard", "gradient", ("no-skip", "damped")),
    Start(
        "ReLU and PyTorch's initial weights",
        "standard-torch",
        "gradient-torch",
        ("no-skip-torch", "damped-torch"),
    ),
)


class BestAgainstControl(NamedTuple):
    """The best method that carries a gradient, and the best control of its size, both by test errors."""

    best: str
    control: str
    comparison: Comparison

    @property
    def at_most_half(self) -> bool:
        return self.comparison.ratio <= 0.5

    @property
    def significant(self) -> bool:
        return self.comparison.p_t < LEVEL


class AgainstStandard(NamedTuple):
    """All methods against the standard skip, in groups of ratios; ``half`` is None without a method to ask about."""

    standard_error: float
    seeds: int
    better: list[Ratio]
    worse: list[Ratio]
    not_distinguishable: list[Ratio]
    half: BestAgainstControl | None


class AtBudget(NamedTuple):
    """The gradient residual against the standard skip after some epochs."""

    epochs: float
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Whether the gradient residual is better beyond doubt."""
        return self.comparison.difference < 0 and self.comparison.p_t < CLAIM_LEVEL

    @property
    def turned(self) -> bool:
        """Whether the standard skip is."""
        return self.comparison.difference > 0 and self.comparison.p_t < CLAIM_LEVEL


class Claim(NamedTuple):
    """The paper's comparison at several budgets.

    ``without`` has ratios of methods without any gradient halfway, since damping alone may look like a gain.
    """

    start: str
    budgets: list[AtBudget]
    without: list[Ratio]

    @property
    def holds_after(self) -> list[str]:
        return [f"{each.epochs:.0f}" for each in self.budgets if each.holds]

    @property
    def turned_after(self) -> list[str]:
        return [f"{each.epochs:.0f}" for each in self.budgets if each.turned]


class AtFrequency(NamedTuple):
    """What follows at one d; ``against_standard`` is None for too few seeds."""

    d: int
    against_standard: AgainstStandard | None
    claims: list[Claim]
    convergence: Convergence | None


@dataclass(frozen=True)
class SinusoidFindings:
    """What follows at each d."""

    frequencies: list[AtFrequency]
    level: float = LEVEL
    claim_level: float = CLAIM_LEVEL

    @classmethod
    def of(cls, results: SinusoidResults) -> SinusoidFindings:
        found = []
        for d in results.config.every_frequency:
            errors = results.test_errors(d)
            found.append(AtFrequency(d, against_standard(errors), _claims(results, d), convergence(results, d)))
        return cls(found)


def against_standard(errors: Errors) -> AgainstStandard | None:
    """All methods against the standard skip; None without it, or for too few seeds."""
    comparisons = against(errors, "standard")
    if not comparisons:
        return None
    better: list[Ratio] = []
    worse: list[Ratio] = []
    same: list[Ratio] = []
    for method, comparison in comparisons.items():
        ratio = Ratio(method, comparison.ratio)
        if comparison.p_t >= LEVEL:
            same.append(ratio)
        elif comparison.difference < 0:
            better.append(ratio)
        else:
            worse.append(ratio)
    best = lowest_mean(errors, CARRYING)
    control = lowest_mean(errors, CONTROLS)
    half = BestAgainstControl(best, control, compared(errors, control, best)) if best and control else None
    seeds = len(errors["standard"])
    return AgainstStandard(mean_error(errors, "standard"), seeds, better, worse, same, half)


def _claims(results: SinusoidResults, d: int) -> list[Claim]:
    later = {share: results.errors_after(d, share) for share in SHARES}
    claims = []
    for start in STARTS:
        pair = (start.standard, start.gradient)
        if all(_enough(errors, method) for errors in later.values() for method in pair):
            by_epochs = {share * results.config.epochs: compared(errors, *pair) for share, errors in later.items()}
            halfway = later[_HALFWAY]
            there = [method for method in start.without if _enough(halfway, method)]
            without = [Ratio(method, compared(halfway, start.standard, method).ratio) for method in there]
            claims.append(claim(start.title, by_epochs, without))
    return claims


def _enough(errors: Errors, method: str) -> bool:
    return len(errors.get(method, [])) >= LEAST_SEEDS


def claim(start: str, by_epochs: Mapping[float, Comparison], without: list[Ratio]) -> Claim:
    """Whether the gradient residual beats the standard skip, from the comparisons by the number of epochs."""
    return Claim(start, [AtBudget(epochs, comparison) for epochs, comparison in by_epochs.items()], without)
