"""What follows from the numbers of a study of networks for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nablanets_studies.machinery.base import Picture, Sheet
from nablanets_studies.machinery.comparison import Comparison, compare
from nablanets_studies.machinery.findings import summaries
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import Row, RunFolder

#: Arms that carry gradients, and what is added to their names where they have the standard skip's training time.
CARRYING = ("gradient", "gradient-full")
TIMED = "-timed"
_LEVEL = 0.05


class Compared(NamedTuple):
    """Each arm against the standard skip, seed by seed; empty with fewer than three seeds."""

    arms: dict[str, Comparison]

    def sheet(self, title: str) -> Sheet:
        columns = ("arm", "ratio of means", "difference [95 %]", "p (t)", "p (Wilcoxon)")
        return Sheet(f"{title} against the standard skip, seed by seed", columns, [_row(*i) for i in self.arms.items()])


def against_standard(rows: Sequence[Row], metric: str) -> Compared:
    """The errors of each arm that has all seeds, compared with those of the standard skip."""
    ordered = sorted(rows, key=lambda row: row.seed)
    errors: dict[str, list[float]] = {}
    for row in ordered:
        errors.setdefault(row.arm, []).append(row.metrics[metric])
    reference = errors.pop("standard", [])
    others = {arm: values for arm, values in errors.items() if len(values) == len(reference)}
    return Compared(compare(reference, others) if len(reference) >= 3 and others else {})


def verdicts(rows: Sequence[Row], metric: str, title: str) -> list[str]:
    """For each arm that carries gradients: whether it is within the noise of the seeds of the standard skip, and its cost."""
    means, costs = summaries(rows, metric), summaries(rows, "cost")
    if "standard" not in means:
        return ["There is no standard skip to compare with."]
    found = against_standard(rows, metric).arms
    texts = []
    for arm in (a for a in means if a.removesuffix(TIMED) in CARRYING):
        gap = means[arm].mean - means["standard"].mean
        time = (
            "at equal training time"
            if arm.endswith(TIMED)
            else f"at equal epochs, {costs[arm].mean:.2f} times the time"
        )
        texts.append(
            f"{arm}, {time}: {title} {means[arm].text('.4f')}, standard {means['standard'].text('.4f')}: "
            f"{'lower' if gap < 0 else 'higher'} by {abs(gap):.4f}, {_certainty(found.get(arm))}."
        )
    return texts


def _certainty(found: Comparison | None) -> str:
    if found is None:
        return "from too few seeds to tell"
    low, high = found.interval
    kind = "beyond the noise of the seeds" if low > 0 or high < 0 else "within the noise of the seeds"
    return f"{kind} (95 % interval {low:+.4f} to {high:+.4f}; p = {found.p_t:.1g} by Holm's method)"


def alpha_sheet(rows: Sequence[Row]) -> Sheet:
    """s = sigmoid(alpha) of each block after training, mean over seeds."""
    arms = list(dict.fromkeys(r.arm for r in rows if any(key.startswith("alpha ") for key in r.metrics)))
    blocks = list(dict.fromkeys(key for row in rows for key in row.metrics if key.startswith("alpha ")))
    lines = []
    for block in blocks:
        values = [[row.metrics[block] for row in rows if row.arm == arm and block in row.metrics] for arm in arms]
        gates = [f"{np.mean(1 / (1 + np.exp(-np.asarray(group)))):.3f}" if group else "-" for group in values]
        lines.append([block.removeprefix("alpha "), *gates])
    return Sheet("s = sigmoid(alpha) of each block after training", ("block", *arms), lines)


def curves(run: RunFolder, arms: Sequence[str], title: str) -> Picture:
    """Validation error against epochs and against training time, mean over seeds with the range shaded."""
    figure, axes = panels(1, 2, width=5.2, height=4.2)
    histories = run.histories()
    epochs = {row.arm: row.metrics["epochs"] for row in run.rows()}
    for arm in arms:
        found = [rows for (name, _), rows in histories.items() if name == arm]
        if not found or arm not in epochs:
            continue
        length = min(map(len, found))
        errors = np.asarray([[row.validation_error for row in rows[:length]] for rows in found])
        steps = np.asarray([row.step for row in found[0][:length]])
        seconds = np.mean([[row.seconds for row in rows[:length]] for rows in found], axis=0)
        for ax, x in zip(axes, (steps / steps[-1] * epochs[arm], seconds), strict=True):
            (line,) = ax.plot(x, errors.mean(axis=0), "--" if arm.endswith(TIMED) else "-", label=arm)
            ax.fill_between(x, errors.min(axis=0), errors.max(axis=0), color=line.get_color(), alpha=0.12, linewidth=0)
    for ax, label in zip(axes, ("epochs", "training time [s of processor time]"), strict=True):
        ax.set(xlabel=label, ylabel=title.replace("test", "validation"), yscale="log")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    caption = "Validation error while training: mean over seeds, the range shaded; dashed at equal training time."
    return Picture("learning-curves", caption, figure)


def _row(arm: str, c: Comparison) -> list[str]:
    low, high = c.interval
    difference = f"{c.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    return [arm, f"{c.ratio:.3f}", difference, f"{c.p_t:.1g}", f"{c.p_wilcoxon:.1g}"]
