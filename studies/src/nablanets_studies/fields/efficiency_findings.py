"""What follows from a run of the efficiency study: tables, pictures, sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from nablanets.fitting import decibels
from nablanets_studies.machinery.base import Picture, Sheet
from nablanets_studies.machinery.findings import Summary, lead, listing, lowest, summaries
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder

if TYPE_CHECKING:
    from nablanets_studies.fields.efficiency import EfficiencyConfig

#: The network that every other one takes turns with when it is timed.
REFERENCE = "gradnet-c"
_MODES = {"forward": "forward pass", "step": "training step"}
_AXES = {"d": "d", "b": "batch"}


class Findings:
    """The numbers of a run, and what is said about them."""

    def __init__(self, config: EfficiencyConfig, run: RunFolder) -> None:
        self.config, self.run, self.rows = config, run, run.rows()
        self.arms = list(dict.fromkeys(row.arm for row in self.rows))
        self.ours = [arm for arm in self.arms if arm.startswith("gradnet")]
        self.peers = [arm for arm in self.arms if arm not in self.ours]

    def metric(self, name: str) -> dict[str, Summary]:
        """A metric by arm."""
        return summaries(self.rows, name)

    def seconds(self, arm: str, key: str) -> float:
        """The time of an arm: its ratio to the reference, times the median time of the reference over all parts."""
        reference = statistics.median(row.metrics[f"{key}_reference"] for row in self.rows)
        return self.metric(f"{key}_ratio")[arm].mean * reference

    def sizes(self, axis: str) -> Sequence[int]:
        return self.config.features if axis == "d" else self.config.batches

    def noise(self, mode: str) -> float:
        """The largest |log ratio| of the reference to another network of its kind, over all sizes."""
        keys = [f"{mode}_{axis}{size}_ratio" for axis in _AXES for size in self.sizes(axis)]
        own = [self.metric(key).get(REFERENCE) for key in keys]
        return max((abs(math.log(value.mean)) for value in own if value), default=math.nan)

    def equal_time(self, fraction: float = 1.0) -> dict[str, Summary]:
        """Validation error in dB by arm after a fraction of the time in which the fastest arm makes all its steps."""
        per_step = {arm: self.seconds(arm, "step_task") for arm in self.arms}
        limit = fraction * self.config.steps * min(per_step.values())
        reached: dict[str, list[float]] = {}
        for row in self.rows:
            curve = [r for r in self.run.history(row.arm, row.seed) if r.step * per_step[row.arm] <= limit]
            if curve:
                best = decibels(min(r.validation_error for r in curve))
                reached.setdefault(row.arm, []).append(best)
        return {arm: Summary.of(values) for arm, values in reached.items()}

    def per_doubling(self, arm: str) -> float:
        """dB gained with each doubling of the parameters, by regression over the budgets."""
        sizes = [self.metric(f"parameters_{budget}")[arm].mean for budget in self.config.budgets]
        errors = [self.metric(f"db_{budget}")[arm].mean for budget in self.config.budgets]
        return float(np.polyfit(np.log2(sizes), errors, 1)[0]) if len(sizes) > 1 else math.nan

    def sheets(self) -> list[Sheet]:
        """The equal task, accuracy by parameters, and growth with d and with the batch."""
        return [self._task(), self._parameters(), *(self._growth(axis) for axis in _AXES)]

    def _task(self) -> Sheet:
        columns = ["arm", "forward [µs]", "step [µs]", "step memory [KiB]", "equal steps, test [dB]"]
        fractions = (0.25, 0.5, 1.0)
        columns += [f"{fraction:.0%} of equal time, validation [dB]" for fraction in fractions]
        reached = [self.equal_time(fraction) for fraction in fractions]
        lines = []
        for arm in self.arms:
            times = [f"{1e6 * self.seconds(arm, f'{mode}_task'):.0f}" for mode in _MODES]
            memory = f"{self.metric('memory_step_task')[arm].mean / 1024:.0f}"
            errors = [column[arm].text() if arm in column else "-" for column in reached]
            lines.append([arm, *times, memory, self.metric("db")[arm].text(), *errors])
        return Sheet(f"An equal task, {self.config.budgets[-1]} parameters", columns, lines)

    def _parameters(self) -> Sheet:
        columns = ["arm", *(f"{budget} parameters [dB]" for budget in self.config.budgets), "dB per doubling"]
        errors = [self.metric(f"db_{budget}") for budget in self.config.budgets]
        lines = [[arm, *(e[arm].text() for e in errors), f"{self.per_doubling(arm):.1f}"] for arm in self.arms]
        return Sheet("Accuracy by parameters, equal steps", columns, lines)

    def _growth(self, axis: str) -> Sheet:
        sizes, (first, last) = self.sizes(axis), self._range(axis)
        shown = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
        columns, cells = ["arm"], []
        for mode, title in _MODES.items():
            columns += [f"{title} ~ {_AXES[axis]}^", *(f"at {size} / GradNet-C" for size in shown)]
            cells += [(self.metric(f"{mode}_{axis}_exponent"), ".2f")]
            cells += [(self.metric(f"{mode}_{axis}{size}_ratio"), ".2f") for size in shown]
        columns += [f"step memory ~ {_AXES[axis]}^"]
        cells += [(self.metric(f"memory_step_{axis}_exponent"), ".2f")]
        lines = [[arm, *(c[arm].text(spec) if arm in c else "-" for c, spec in cells)] for arm in self.arms]
        return Sheet(f"Growth with {_AXES[axis]}; exponents over {first} to {last}", columns, lines)

    def _range(self, axis: str) -> tuple[int, int]:
        start = self.config.large_features if axis == "d" else self.config.large_batch
        sizes = [size for size in self.sizes(axis) if size >= start]
        return (sizes[0], sizes[-1]) if sizes else (start, start)

    def conclusions(self) -> list[str]:
        """Accuracy per step, second and parameter, costs beside the peers, and growth, in words."""
        found = [
            "Timing: a GradNet-C beside another one differs by up to "
            + " and ".join(f"{math.expm1(self.noise(mode)):.0%} in the {title}" for mode, title in _MODES.items())
            + " (mean over seeds, the worst of all sizes); smaller differences count as none below."
        ]
        if self.ours and self.peers:
            found += [self._ranking(self.metric("db"), "At equal parameters and steps")]
            found += [self._ranking(self.equal_time(), "At equal parameters and equal training time (validation)")]
            found += [self._by_parameters()]
            found += [self._costs(arm, mode) for arm in self.ours for mode in _MODES]
            found += [self._memory(arm) for arm in self.ours]
        return [*found, *(self._exponents(axis) for axis in _AXES)]

    def _ranking(self, errors: Mapping[str, Summary], where: str) -> str:
        ours = {arm: errors[arm] for arm in self.ours if arm in errors}
        theirs = {arm: errors[arm] for arm in self.peers if arm in errors}
        if not ours or not theirs:
            return f"{where}: no arm had time for a validation."
        best, peer = lowest(ours), lowest(theirs)
        order = ", ".join(f"{arm} {errors[arm].text()}" for arm in sorted(errors, key=lambda a: errors[a].mean))
        return f"{where} the order is {order} dB; {best} is {lead(ours[best], theirs[peer], 'dB')}, of {peer}."

    def _by_parameters(self) -> str:
        winners = [lowest(self.metric(f"db_{budget}")) for budget in self.config.budgets]
        best = ", ".join(f"{w} at {budget}" for w, budget in zip(winners, self.config.budgets, strict=True))
        gains = {arm: self.per_doubling(arm) for arm in self.arms}
        order = sorted(gains, key=lambda arm: gains[arm])
        slopes = ", ".join(f"{arm} {gains[arm]:+.1f}" for arm in order)
        return f"Per parameter: the lowest error is that of {best} parameters. A doubling of parameters changes it by {slopes} dB."

    def _relative(self, ours: str, peer: str, key: str) -> float:
        """The cost of one of ours over that of a peer."""
        ratios = self.metric(f"{key}_ratio")
        return ratios[ours].mean / ratios[peer].mean

    def _costs(self, arm: str, mode: str) -> str:
        """Where an arm is faster and slower than each peer, over all d, beyond what timing can tell."""
        parts = []
        for peer in self.peers:
            ratio = {d: self._relative(arm, peer, f"{mode}_d{d}") for d in self.config.features}
            slower = [str(d) for d, r in ratio.items() if math.log(r) > self.noise(mode)]
            faster = [str(d) for d, r in ratio.items() if -math.log(r) > self.noise(mode)]
            ends = f"{ratio[self.config.features[0]]:.2f} to {ratio[self.config.features[-1]]:.2f}"
            parts.append(f"{ends} times {peer}'s (slower at d = {listing(slower)}; faster at d = {listing(faster)})")
        first, last = self.config.features[0], self.config.features[-1]
        return f"The {_MODES[mode]} of {arm} takes, from d = {first} to {last}: " + "; ".join(parts) + "."

    def _memory(self, arm: str) -> str:
        first, last = self.config.features[0], self.config.features[-1]
        parts = []
        for peer in self.peers:
            low, high = (
                self.metric(f"memory_step_d{d}")[arm].mean / self.metric(f"memory_step_d{d}")[peer].mean
                for d in (first, last)
            )
            parts.append(f"{low:.2f} to {high:.2f} times {peer}'s")
        return f"The peak memory of a training step of {arm} is, at d = {first} to {last}: " + "; ".join(parts) + "."

    def _exponents(self, axis: str) -> str:
        first, last = self._range(axis)
        parts = []
        for mode, title in _MODES.items():
            values = self.metric(f"{mode}_{axis}_exponent")
            if not values:
                return f"No exponents with {_AXES[axis]}: fewer than two sizes in the range."
            low, high = lowest(values), max(values, key=lambda arm: values[arm].mean)
            own = ", ".join(f"{arm} {values[arm].text('.2f')}" for arm in self.ours)
            parts.append(
                f"of the {title} {values[low].text('.2f')} ({low}) to {values[high].text('.2f')} ({high})"
                + (f", with {own}" if own else "")
            )
        return f"Exponents with {_AXES[axis]} over {first} to {last}: " + "; ".join(parts) + "."

    def pictures(self) -> Iterator[Picture]:
        """Times by size, and error by time."""
        for axis, name in _AXES.items():
            figure, axes = panels(1, 2, width=4.5)
            for ax, (mode, title) in zip(axes, _MODES.items(), strict=True):
                for arm in self.arms:
                    times = [self.seconds(arm, f"{mode}_{axis}{size}") for size in self.sizes(axis)]
                    ax.loglog(self.sizes(axis), times, marker=".", label=arm)
                ax.set(xlabel=name, ylabel="seconds", title=title)
                ax.grid(alpha=0.3)
            axes[0].legend(fontsize="x-small")
            yield Picture(f"growth-{name}", f"Time against {name}, at equal parameters for each d.", figure)
        yield self._error_by_time()

    def _error_by_time(self) -> Picture:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for arm in self.arms:
            curves = [self.run.history(row.arm, row.seed) for row in self.rows if row.arm == arm]
            best = np.minimum.accumulate([[r.validation_error for r in curve] for curve in curves], axis=1)
            seconds = self.seconds(arm, "step_task") * np.array([r.step for r in curves[0]])
            axes.semilogx(seconds, (10 * np.log10(best)).mean(axis=0), label=arm)
        axes.set(xlabel="training time [s]", ylabel="validation error, best so far [dB]")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        return Picture("error-by-time", "Error against time at equal parameters, mean over seeds.", figure)
