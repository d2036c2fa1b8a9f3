"""The tables of the activation study's page."""

from __future__ import annotations

from nablanets_studies.fields.activation_arms import KINDS
from nablanets_studies.fields.activation_results import ActivationResults
from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.findings import Summary


def sheets_of(results: ActivationResults) -> list[Sheet]:
    """By kind of activation; errors of subgradients and potentials, if a target has kinks; stability."""
    sheets = [_kinds(results)]
    kinked = [target for target in results.targets if results.away_errors(target)]
    if kinked:
        sheets.append(_nonsmooth(results, kinked))
    sheets.append(_stability(results))
    return sheets


def _kinds(results: ActivationResults) -> Sheet:
    medians = [results.kind_medians(target) for target in results.targets]
    lines = []
    for kind in KINDS:
        cells = [f"{each[kind]:.1f}" if kind in each else "-" for each in medians]
        if any(kind in each for each in medians):
            lines.append([kind, *cells])
    title = "By kind of activation: median test error over networks [dB]"
    return Sheet(title, ["kind", *results.targets], lines)


def _nonsmooth(results: ActivationResults, kinked: list[str]) -> Sheet:
    columns = ["arm"]
    values: list[tuple[dict[str, Summary], str]] = []
    for target in kinked:
        columns += [f"{target}, all [dB]", "away from kinks [dB]", "potential", "overshoot"]
        values.append((results.errors(target), ".1f"))
        values.append((results.away_errors(target), ".1f"))
        values.append((results.summaries(target, lambda m: m.potential), ".1%"))
        values.append((results.summaries(target, lambda m: m.overshoot), ".2f"))
    lines = []
    for arm in results.arms:
        cells = [column[arm].text(spec) if arm in column else "-" for column, spec in values]
        lines.append([arm, *cells])
    return Sheet("Non-differentiable targets", columns, lines)


def _stability(results: ActivationResults) -> Sheet:
    columns = ["arm"]
    cells: dict[str, list[str]] = {arm: [arm] for arm in results.failures()}
    for target in results.targets:
        columns += [f"{target}: deviation [dB]", "worst seed [dB]", "failed fits"]
        errors = results.errors(target)
        worst = results.worst_errors(target)
        failures = results.summaries(target, lambda m: m.failures)
        for arm, line in cells.items():
            line += [f"{errors[arm].deviation:.1f}", f"{worst[arm]:.1f}", f"{failures[arm].mean:.0%}"]
    return Sheet("Stability over seeds, and over the rates tried", columns, list(cells.values()))
