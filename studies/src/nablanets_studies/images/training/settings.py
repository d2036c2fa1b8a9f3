"""What training on pictures is told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.fitting.schedule import Schedule

Optimizer = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs: passes over the data at most; None for no limit but ``seconds``.
        seconds: training time at most, without validation: processor time of the process on a CPU, else wall time.
            With both limits the first one ends the run, and the learning rate follows the one that is further.
        batch_size: samples per step, over all processes and accumulated parts.
        learning_rate: the peak.
        optimizer: "sgd" (with Nesterov momentum 0.9), "adam" or "adamw".
        weight_decay: of matrices and convolutions; biases, norms and alphas have none.
        warmup: fraction of the run over which the learning rate rises linearly; it falls as a cosine to zero after,
            see :class:`~nablanets.fitting.schedule.Schedule`.
        clip_norm: of the gradient of all parameters.
        accumulate: parts that a batch is computed in, one after the other.
        ema: decay of an exponential moving average of the weights, which is what is validated and returned; it rises as
            (1 + t) / (10 + t) to that value.
        label: whatever else decides the result (data, model), so that a checkpoint is not continued with another.
        precision: of Lightning Fabric: "32-true", "bf16-mixed", "64-true", ...
        channels_last: memory layout of pictures and convolutions.
        accelerator, devices, nodes: of Lightning Fabric; under torchrun its numbers of processes and machines count.
        validate_every: steps between validations; None for ten over the epochs, or a hundred steps.
        checkpoint_every: steps between checkpoints, if a file is given.
        seed: of the order of samples, their augmentation and dropout.
    """

    epochs: float | None = 10.0
    seconds: float | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    warmup: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    label: str = ""
    precision: str = "32-true"
    channels_last: bool = False
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    validate_every: int | None = None
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "devices", "nodes", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"train: expected {name} >= 1, got {getattr(self, name)}.")
        for name in ("epochs", "seconds"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise InvalidInputError(f"train: expected {name} to be positive or None, got {limit}.")
        if self.epochs is None and self.seconds is None:
            raise InvalidInputError("train: expected a limit, epochs or seconds, got neither.")
        self.make_schedule()  # refuses what it cannot follow
        if self.ema is not None and not 0 < self.ema < 1:
            raise InvalidInputError(f"train: expected ema between 0 and 1, got {self.ema}.")
        if self.optimizer not in get_args(Optimizer):
            raise unknown_name("optimizer", self.optimizer, get_args(Optimizer))

    def make_schedule(self) -> Schedule:
        """The learning rate over the run."""
        return Schedule(self.learning_rate, self.warmup)

    def steps(self, samples: int) -> int | None:
        """Steps of the epochs; None without a limit on them."""
        return None if self.epochs is None else max(1, math.ceil(self.epochs * samples / self.batch_size))

    def interval(self, samples: int) -> int:
        """Steps between validations."""
        steps = self.steps(samples)
        return self.validate_every or (100 if steps is None else max(1, steps // 10))

    def fingerprint(self, samples: int) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued; where it runs and how often it reports may change."""
        free = ("accelerator", "devices", "nodes", "accumulate", "validate_every", "checkpoint_every")
        return {k: v for k, v in asdict(self).items() if k not in free} | {"samples": samples}
