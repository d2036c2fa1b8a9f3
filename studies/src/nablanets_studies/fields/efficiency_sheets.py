"""The tables of the efficiency study's page."""

from __future__ import annotations

from nablanets_studies.fields.efficiency_arms import AXES, MODES, STEP, Axis, Mode
from nablanets_studies.fields.efficiency_results import EfficiencyResults
from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.findings import Summary

#: Of the time of the fastest arm, where errors at equal time are shown.
_FRACTIONS = (0.25, 0.5, 1.0)


def sheets_of(results: EfficiencyResults) -> list[Sheet]:
    """The equal task, accuracy by parameters, and growth with d and with the batch."""
    growth = [_growth(results, axis) for axis in AXES]
    return [_task(results), _parameters(results), *growth]


def _task(results: EfficiencyResults) -> Sheet:
    task = results.config.task
    columns = ["arm", "forward [µs]", "step [µs]", "step memory [KiB]", "equal steps, test [dB]"]
    columns += [f"{fraction:.0%} of equal time, validation [dB]" for fraction in _FRACTIONS]
    reached = [results.equal_time(fraction) for fraction in _FRACTIONS]
    test_error = results.test_error()
    lines = []
    for arm in results.arms:
        times = [f"{1e6 * results.seconds(arm, mode, task):.0f}" for mode in MODES]
        memory = f"{results.memory(arm, STEP, task) / 1024:.0f}"
        errors = [_cell(errors.get(arm), ".1f") for errors in reached]
        lines.append([arm, *times, memory, test_error[arm].text(), *errors])
    return Sheet(f"An equal task, {results.config.budgets[-1]} parameters", columns, lines)


def _parameters(results: EfficiencyResults) -> Sheet:
    budgets = results.config.budgets
    columns = ["arm", *(f"{budget} parameters [dB]" for budget in budgets), "dB per doubling"]
    errors = [results.test_error(budget) for budget in budgets]
    lines = []
    for arm in results.arms:
        cells = [error[arm].text() for error in errors]
        lines.append([arm, *cells, f"{results.per_doubling(arm):.1f}"])
    return Sheet("Accuracy by parameters, equal steps", columns, lines)


def _growth(results: EfficiencyResults, axis: Axis) -> Sheet:
    """Exponents, and ratios at the least, the middle and the largest size."""
    sizes = results.config.growth(axis)
    shown = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    columns = ["arm"]
    for mode in MODES:
        columns.append(f"{mode.title} ~ {axis.title}^")
        columns += [f"at {size.value} / GradNet-C" for size in shown]
    columns.append(f"step memory ~ {axis.title}^")
    lines = []
    for arm in results.arms:
        cells = [arm]
        for mode in MODES:
            cells.append(_cell(time_exponent(results, arm, mode, axis), ".2f"))
            cells += [results.ratio(arm, mode, size).text(".2f") for size in shown]
        memory = results.summary(arm, lambda m: m.memory_exponent(results.config, STEP, axis))
        cells.append(_cell(memory, ".2f"))
        lines.append(cells)
    first, last = large_range(results, axis)
    return Sheet(f"Growth with {axis.title}; exponents over {first} to {last}", columns, lines)


def time_exponent(results: EfficiencyResults, arm: str, mode: Mode, axis: Axis) -> Summary | None:
    """How the time of an arm grows along an axis; None for fewer than two large sizes."""
    return results.summary(arm, lambda m: m.time_exponent(results.config, mode, axis))


def large_range(results: EfficiencyResults, axis: Axis) -> tuple[int, int]:
    """The first and last size that exponents are fitted over."""
    sizes = results.config.large(axis)
    least = results.config.least(axis)
    return (sizes[0].value, sizes[-1].value) if sizes else (least, least)


def _cell(value: Summary | None, spec: str) -> str:
    return "-" if value is None else value.text(spec)
