"""What follows from a run of the activation study; the template activations.md.j2 says it in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nablanets.verify import TOLERANCE
from nablanets_studies.fields.activation_arms import AFFINE, ARMS, GRADIENT_ARMS, IDENTIFIED, TrainedArm
from nablanets_studies.fields.activation_metrics import ActivationMetrics
from nablanets_studies.fields.activation_results import ActivationResults, baselines, ours
from nablanets_studies.machinery.findings import Lead, Summary, lowest


class Named(NamedTuple):
    """An arm and its value."""

    arm: str
    value: Summary


class Accuracy(NamedTuple):
    """The gradient networks on a target beside the baselines.

    Attributes:
        target: its name.
        best, peer: the best gradient network and the best baseline.
        lead: of the one over the other.
        below: how many of the gradient networks are better than that baseline.
        number, median: of all gradient networks: how many, and their median error.
        affine: the error of the affine map; None if it has not run.
        not_better: the gradient networks that are no better than that.
    """

    target: str
    best: Named
    peer: Named
    lead: Lead
    below: int
    number: int
    median: float
    affine: Summary | None
    not_better: list[str]


class Kinds(NamedTuple):
    """Median errors on a target by kind of activation, the best first."""

    target: str
    medians: list[tuple[str, float]]


class AtKinks(NamedTuple):
    """Where the best gradient network's error is, its potential, and whether any network overshoots.

    Attributes:
        target: its name.
        best: the best gradient network.
        monotone: the best of those whose activation allows a monotone map; None if there is none.
        identified: the error of the affine pieces; None if they have not run.
        near_share, near_fraction: the part of the squared error near the kinks, and that of the points.
        away: the error away from the kinks.
        potential: the error of the potential over its standard deviation.
        overshoot: the gradient network that overshoots most.
    """

    target: str
    best: Named
    monotone: Named | None
    identified: Summary | None
    near_share: float
    near_fraction: float
    away: Summary
    potential: Summary
    overshoot: Named


class Symmetry(NamedTuple):
    """How symmetric Jacobians are in a precision.

    Attributes:
        precision: its name.
        worst, asymmetry: the least symmetric gradient network.
        tolerance: of rounding.
        above: the gradient networks above it.
        free: the least asymmetry of a network that need not be a gradient; None if none has run.
    """

    precision: str
    worst: str
    asymmetry: float
    tolerance: float
    above: list[str]
    free: float | None


@dataclass(frozen=True)
class ActivationFindings:
    """Accuracy by target, kinds of activation, subgradients, symmetry and stability.

    ``failed`` has the arms some of whose fits failed, with the share of those, the largest first.
    """

    accuracy: list[Accuracy]
    kinds: list[Kinds]
    at_kinks: list[AtKinks]
    symmetry: list[Symmetry]
    failed: list[tuple[str, float]]

    @classmethod
    def of(cls, results: ActivationResults) -> ActivationFindings:
        accuracy = [_accuracy(results, target) for target in results.targets]
        kinds = [_kinds(results, target) for target in results.targets]
        at_kinks = [_at_kinks(results, target) for target in results.targets]
        symmetry = [
            _symmetry(results, torch.float32, lambda m: m.asymmetry32),
            _symmetry(results, torch.float64, lambda m: m.asymmetry64),
        ]
        failed = [(arm, share.mean) for arm, share in results.failures().items() if share.mean > 0]
        return cls(
            accuracy=[each for each in accuracy if each is not None],
            kinds=[each for each in kinds if len(each.medians) > 1],
            at_kinks=[each for each in at_kinks if each is not None],
            symmetry=[each for each in symmetry if each is not None],
            failed=sorted(failed, key=lambda pair: -pair[1]),
        )


def _best(values: dict[str, Summary]) -> Named:
    arm = lowest(values)
    return Named(arm, values[arm])


def _accuracy(results: ActivationResults, target: str) -> Accuracy | None:
    errors = results.errors(target)
    networks = ours(errors)
    theirs = baselines(errors)
    if not networks or not theirs:
        return None
    best = _best(networks)
    peer = _best(theirs)
    means = [value.mean for value in networks.values()]
    affine = theirs.get(AFFINE.name)
    not_better = [] if affine is None else [arm for arm, value in networks.items() if value.mean >= affine.mean]
    return Accuracy(
        target=target,
        best=best,
        peer=peer,
        lead=Lead.of(best.value, peer.value),
        below=sum(mean < peer.value.mean for mean in means),
        number=len(means),
        median=statistics.median(means),
        affine=affine,
        not_better=not_better,
    )


def _kinds(results: ActivationResults, target: str) -> Kinds:
    medians = results.kind_medians(target)
    return Kinds(target, sorted(medians.items(), key=lambda pair: pair[1]))


def _at_kinks(results: ActivationResults, target: str) -> AtKinks | None:
    networks = ours(results.errors(target))
    away = results.away_errors(target)
    if not networks or not away:
        return None
    best = _best(networks)
    near_fraction = results.summaries(target, lambda m: m.near_fraction)[best.arm].mean
    overshoot = ours(results.summaries(target, lambda m: m.overshoot))
    most = max(overshoot, key=lambda arm: overshoot[arm].mean)
    monotone = {arm: value for arm, value in networks.items() if GRADIENT_ARMS[arm].can_be_monotone}
    return AtKinks(
        target=target,
        best=best,
        monotone=_best(monotone) if monotone else None,
        identified=results.errors(target).get(IDENTIFIED.name),
        near_share=near_share(best.value.mean, away[best.arm].mean, near_fraction),
        near_fraction=near_fraction,
        away=away[best.arm],
        potential=results.summaries(target, lambda m: m.potential)[best.arm],
        overshoot=Named(most, overshoot[most]),
    )


def near_share(overall_db: float, away_db: float, near_fraction: float) -> float:
    """The share of the squared error that is near the kinks.

    >>> near_share(-10.0, -20.0, 0.5)
    0.95
    """
    away_share = (1 - near_fraction) * 10 ** ((away_db - overall_db) / 10)
    return 1 - away_share


def _symmetry(
    results: ActivationResults, dtype: torch.dtype, value: Callable[[ActivationMetrics], float]
) -> Symmetry | None:
    asymmetries = results.largest(value)
    networks = {arm: each for arm, each in asymmetries.items() if arm in GRADIENT_ARMS}
    if not networks:
        return None
    free = [each for arm, each in asymmetries.items() if isinstance(ARMS[arm], TrainedArm) and not ARMS[arm].curl_free]
    worst = max(networks, key=lambda arm: networks[arm])
    return Symmetry(
        precision=str(dtype).removeprefix("torch."),
        worst=worst,
        asymmetry=networks[worst],
        tolerance=TOLERANCE[dtype],
        above=[arm for arm, each in networks.items() if each > TOLERANCE[dtype]],
        free=min(free) if free else None,
    )
