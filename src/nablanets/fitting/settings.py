"""What a fit is told, and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from nablanets.errors import InvalidInputError, unknown_name

_OPTIMIZERS = ("auto", "adam", "adamw", "muon", "lbfgs", "levenberg")


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
        schedule: "cosine" decays the learning rate to zero over the run, "constant" keeps it.
        warmup: fraction of the run over which the rate rises linearly from zero.
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
    optimizer: Literal["auto", "adam", "adamw", "muon", "lbfgs", "levenberg"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
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
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InvalidInputError(f"fit: expected a positive learning_rate, got {self.learning_rate}.")
        for name, options in (("optimizer", _OPTIMIZERS), ("schedule", ("cosine", "constant"))):
            if getattr(self, name) not in options:
                raise unknown_name(name, str(getattr(self, name)), options)
        if self.optimizer in ("lbfgs", "levenberg") and (self.weight_decay or self.clip_norm is not None):
            raise InvalidInputError(
                f"fit: optimizer {self.optimizer!r} has no weight decay and no clipping of the gradient, got "
                f"weight_decay={self.weight_decay} and clip_norm={self.clip_norm}. Leave them out, or use adamw."
            )

    def update(self, **changes: Any) -> FitSettings:
        """A copy with some settings changed; an unknown name is an error that offers the nearest ones."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise unknown_name("fit setting", name, known)
        return replace(self, **changes)

    def rate(self, progress: float) -> float:
        """The learning rate when a fraction ``progress`` of the run is over."""
        warm = min(1.0, progress / self.warmup) if self.warmup > 0 else 1.0
        decay = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1.0
        return self.learning_rate * warm * decay

    @property
    def validation_interval(self) -> int:
        return self.validate_every or max(1, self.steps // 100)


class HistoryRow(NamedTuple):
    """State of a fit at one validation. Errors are mean ||f(x) - g||^2; the rate of "levenberg" is its damping."""

    step: int
    seconds: float
    training_error: float
    validation_error: float
    learning_rate: float


@dataclass(frozen=True)
class FitResult:
    """What a fit did; the network itself holds the best weights.

    Attributes:
        history: one row per validation.
        best_validation_error: mean ||f(x) - g||^2 on the validation samples, at the best validation.
        best_step: when that was.
        stop_reason: "steps", "patience", "max_seconds", "diverged" or "converged".
        steps: steps taken.
        seconds: training time, validation included.
    """

    history: list[HistoryRow] = field(repr=False)
    best_validation_error: float
    best_step: int
    stop_reason: str
    steps: int
    seconds: float

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
