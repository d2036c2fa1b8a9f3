"""What a fit is told, and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.fitting.schedule import Decay, Schedule
from nablanets.keywords import check_keywords, explain_keywords
from nablanets.printing import html_table

Optimizer: TypeAlias = Literal["auto", "adam", "adamw", "muon", "lbfgs", "levenberg"]

#: They choose their step themselves: the learning rate, its schedule and the warm-up mean nothing to them.
WITHOUT_LEARNING_RATE = ("lbfgs", "levenberg")


@explain_keywords
@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    Attributes:
        steps: optimisation steps at most.
        batch_size: samples per step, drawn without replacement within an epoch. With "lbfgs" and "levenberg" these are
            drawn once; "levenberg" doubles them when it stands still, until all are in use.
        learning_rate: peak learning rate; "lbfgs" and "levenberg" need none.
        optimizer: "adam", "adamw", "muon" (for matrices; AdamW for the rest), "lbfgs", "levenberg"
            (:class:`~nablanets.fitting.levenberg.Levenberg`, far ahead for up to some hundred parameters and few
            features; ``steps`` are its iterations), or "auto": "levenberg" for at most 500 parameters and 16 features,
            fixed samples and no decay or clipping, else "adam".
        weight_decay: an L2 penalty with "adam", decoupled decay with "adamw" and "muon".
        schedule: "cosine" decays the learning rate to zero from the end of the warm-up on, "constant" keeps it; see
            :class:`~nablanets.fitting.schedule.Schedule`.
        warmup: fraction of the run over which the learning rate rises linearly from zero to ``learning_rate``.
        clip_norm: clip the norm of the parameter gradient, if given.
        validate_every: steps between validations; None means a hundred over the run.
        patience: stop after this many validations without a new best; None never does.
        max_seconds: stop after this much training time; the schedule then follows time as well as steps, and the
            result depends on the machine's speed.
        seed: of the validation split and the order of samples.
    """

    steps: int = 5000
    batch_size: int = 1000
    learning_rate: float = 5e-3
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0
    schedule: Decay = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    validate_every: int | None = None
    patience: int | None = None
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"fit: expected {name} >= 1, got {getattr(self, name)}.")
        for name in ("validate_every", "patience", "clip_norm", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"fit: expected {name} to be positive or None, got {value}.")
        if not -(2**63) <= self.seed < 2**64:
            raise InvalidInputError(f"fit: expected a seed of at most 64 bits, got {self.seed}.")
        if self.optimizer not in get_args(Optimizer):
            raise unknown_name("optimizer", str(self.optimizer), get_args(Optimizer))
        self.make_schedule()  # refuses what it cannot follow
        if self.optimizer in WITHOUT_LEARNING_RATE and (self.weight_decay or self.clip_norm is not None):
            raise InvalidInputError(
                f"fit: optimizer {self.optimizer!r} has no weight decay and no clipping of the gradient, got "
                f"weight_decay={self.weight_decay} and clip_norm={self.clip_norm}. Leave them out, or use adamw."
            )

    def update(self, **changes: Any) -> FitSettings:
        """A copy with some settings changed; an unknown name is an error that offers the nearest ones."""
        check_keywords("fit", changes, setting_names())
        return replace(self, **changes)

    def make_schedule(self) -> Schedule:
        """The learning rate over the run."""
        return Schedule(self.learning_rate, self.warmup, self.schedule)

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or max(1, self.steps // 100)


def setting_names() -> tuple[str, ...]:
    """The names of the fields of :class:`FitSettings`."""
    return tuple(each.name for each in fields(FitSettings))


class HistoryRow(NamedTuple):
    """State of a training at one validation; every training loop writes these rows.

    Attributes:
        step: steps taken so far.
        seconds: training time so far.
        training_error: mean over the steps since the last row of the objective, mean ||f(x) - g||^2 if nothing else was
            asked for; NaN before the first step.
        validation_error: the same on the validation samples, or whatever number a caller validates by.
        learning_rate: of the last step; None before the first, and for optimisers that have none.
        damping: of "levenberg"; None for the others.
    """

    step: int
    seconds: float
    training_error: float
    validation_error: float
    learning_rate: float | None = None
    damping: float | None = None


class StartRecord(NamedTuple):
    """What became of one of several starts.

    Attributes:
        steps: that it took before it was dropped, or in all if it never was.
        validation_error: the last one that it was compared by; infinite if it never was.
    """

    steps: int
    validation_error: float


@dataclass(frozen=True)
class FitResult:
    """What a fit did; the network itself holds the best weights.

    Attributes:
        history: one row per validation.
        best_validation_error: mean ||f(x) - g||^2 on the validation samples, at the best validation.
        best_step: when that was.
        stop_reason: "steps", "patience", "max_seconds", "diverged" or "converged".
        steps: steps taken; starts that are trained one after the other count together.
        seconds: training time, validation included, of all starts.
        starts: what became of each start, in their order, from :func:`~nablanets.fitting.fit_best_start`; empty for a
            fit of one network.
        best_start: the start that the best weights come from.
    """

    history: list[HistoryRow] = field(repr=False)
    best_validation_error: float
    best_step: int
    stop_reason: str
    steps: int
    seconds: float
    starts: tuple[StartRecord, ...] = ()
    best_start: int = 0

    def _repr_html_(self) -> str:
        """What a notebook shows: the outcome, and the history."""
        outcome = f"{self.best_validation_db:.2f} dB at step {self.best_step}, stopped by {self.stop_reason!r}"
        rows = []
        for row in self.history:
            numbers = (row.step, f"{row.seconds:.1f}", f"{row.training_error:.3e}", f"{row.validation_error:.3e}")
            rows.append([str(number) for number in numbers])
        columns = ("step", "seconds", "training error", "validation error")
        return html_table(columns, rows, title=f"Fit: {outcome}", numbers=set(columns))

    @property
    def best_validation_db(self) -> float:
        """The best validation error in decibels."""
        return decibels(self.best_validation_error)


def decibels(error: float) -> float:
    """10 log10 of a mean squared error.

    >>> decibels(0.01)
    -20.0
    """
    return 10 * math.log10(error) if error > 0 else -math.inf
