"""What follows from the numbers of a study of networks for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nablanets_studies.machinery.base import Picture, Sheet
from nablanets_studies.machinery.comparison import Comparison, compare
from nablanets_studies.machinery.findings import Summary
from nablanets_studies.machinery.metrics import Measured, Metrics, group, nested, summaries_of
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.pictures.arms import ARMS, STANDARD, PictureArm

#: Comparisons need so many seeds.
_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Score(Metrics):
    """How well a network does on test data.

    Attributes:
        test_error: what arms are compared by.
        accuracy: of classification, in per cent.
        iou: mean intersection over union of segmentation, in per cent.
    """

    accuracy: float | None = None
    iou: float | None = None
    test_error: float


@dataclass(frozen=True, kw_only=True)
class PictureMetrics(Metrics):
    """What is measured of an arm.

    Attributes:
        score: on test data.
        rate: the learning rate that validation data chose.
        epochs: of its training.
        cost: time of a training step relative to the standard skip's.
        alpha: where training starts; None for skips without one.
        alphas: of each block after training.
    """

    score: Score = field(metadata=nested(Score))
    rate: float
    epochs: float
    cost: float
    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict, metadata=group("alpha "))


PictureResults = Sequence[Measured[PictureMetrics]]


class Verdict(NamedTuple):
    """A gradient residual beside the standard skip; ``compared`` is None where there are too few seeds."""

    arm: PictureArm
    cost: float
    error: Summary
    standard: Summary
    compared: Comparison | None

    @property
    def gap(self) -> float:
        return self.error.mean - self.standard.mean

    @property
    def beyond_noise(self) -> bool:
        """Whether the confidence interval of the difference leaves out zero."""
        if self.compared is None:
            return False
        low, high = self.compared.interval
        return low > 0 or high < 0


class PictureFindings(NamedTuple):
    """What follows from the numbers of a run: for each gradient residual; None without a standard skip."""

    verdicts: list[Verdict] | None


def against_standard(results: PictureResults) -> dict[str, Comparison]:
    """The errors of each arm that has all seeds, compared with those of the standard skip, seed by seed.

    Empty with fewer than three seeds.
    """
    errors: dict[str, list[float]] = {}
    for result in sorted(results, key=lambda each: each.seed):
        errors.setdefault(result.arm, []).append(result.metrics.score.test_error)
    reference = errors.pop(STANDARD.name, [])
    others = {arm: values for arm, values in errors.items() if len(values) == len(reference)}
    if len(reference) < _SEEDS or not others:
        return {}
    return compare(reference, others)


def find(results: PictureResults) -> PictureFindings:
    """Whether each gradient residual is within the noise of the seeds of the standard skip, and what it costs."""
    errors = summaries_of(results, lambda metrics: metrics.score.test_error)
    costs = summaries_of(results, lambda metrics: metrics.cost)
    if STANDARD.name not in errors:
        return PictureFindings(None)
    compared = against_standard(results)
    verdicts = []
    for name, error in errors.items():
        arm = ARMS[name]
        if arm.method.carries_gradients:
            standard = errors[STANDARD.name]
            verdicts.append(Verdict(arm, costs[name].mean, error, standard, compared.get(name)))
    return PictureFindings(verdicts)


def comparison_sheet(results: PictureResults, title: str) -> Sheet:
    """Each arm against the standard skip, one line each; no lines with fewer than three seeds."""
    columns = ("arm", "ratio of means", "difference [95 %]", "p (t)", "p (Wilcoxon)")
    lines = []
    for arm, found in against_standard(results).items():
        low, high = found.interval
        difference = f"{found.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append([arm, f"{found.ratio:.3f}", difference, f"{found.p_t:.1g}", f"{found.p_wilcoxon:.1g}"])
    return Sheet(f"{title} against the standard skip, seed by seed", columns, lines)


def alpha_sheet(results: PictureResults) -> Sheet:
    """s = sigmoid(alpha) of each block after training, mean over seeds."""
    trained = [result for result in results if result.metrics.alphas]
    arms = list(dict.fromkeys(result.arm for result in trained))
    blocks = list(dict.fromkeys(block for result in trained for block in result.metrics.alphas))
    lines = []
    for block in blocks:
        line = [block]
        for arm in arms:
            of_arm = [result.metrics.alphas for result in trained if result.arm == arm]
            values = np.array([alphas[block] for alphas in of_arm if block in alphas])
            gate = 1 / (1 + np.exp(-values))
            line.append(f"{gate.mean():.3f}" if len(values) else "-")
        lines.append(line)
    return Sheet("s = sigmoid(alpha) of each block after training", ("block", *arms), lines)


def curves(run: RunFolder, results: PictureResults, arms: Sequence[str], title: str) -> Picture:
    """Validation error against epochs and against training time, mean over seeds with the range shaded."""
    figure, axes = panels(1, 2, width=5.2, height=4.2)
    by_epochs, by_time = axes
    histories = run.histories()
    epochs = {result.arm: result.metrics.epochs for result in results}
    for arm in arms:
        found = [rows for (name, _), rows in histories.items() if name == arm]
        if not found or arm not in epochs:
            continue
        length = min(len(rows) for rows in found)
        errors = np.asarray([[row.validation_error for row in rows[:length]] for rows in found])  # (seeds, length)
        steps = np.asarray([row.step for row in found[0][:length]])
        seconds = np.mean([[row.seconds for row in rows[:length]] for rows in found], axis=0)
        style = "--" if ARMS[arm].timed else "-"
        for ax, x in ((by_epochs, steps / steps[-1] * epochs[arm]), (by_time, seconds)):
            (line,) = ax.plot(x, errors.mean(axis=0), style, label=arm)
            ax.fill_between(x, errors.min(axis=0), errors.max(axis=0), color=line.get_color(), alpha=0.12, linewidth=0)
    for ax, label in ((by_epochs, "epochs"), (by_time, "training time [s of processor time]")):
        ax.set(xlabel=label, ylabel=title.replace("test", "validation"), yscale="log")
        ax.grid(alpha=0.3)
    by_epochs.legend(fontsize="small")
    caption = "Validation error while training: mean over seeds, the range shaded; dashed at equal training time."
    return Picture("learning-curves", caption, figure)
