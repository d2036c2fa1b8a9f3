"""The learning rate over a run: a linear warm-up, then a cosine or a constant. All training loops use this one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from nablanets.errors import InvalidInputError, unknown_name

#: What the learning rate does after the warm-up.
Decay: TypeAlias = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Schedule:
    r"""The learning rate as a function of the fraction t of the run that is over.

    .. math:: \eta(t) = \begin{cases}
        \eta\, t / w & t < w \\
        \eta\, \tfrac12 \bigl(1 + \cos(\pi\, \tfrac{t - w}{1 - w})\bigr) & t \ge w \text{ (cosine)} \\
        \eta & t \ge w \text{ (constant)}
        \end{cases}

    It rises from zero, is exactly :math:`\eta` when the warm-up ends at t = w, never rises after that, and at t = 1 is
    exactly 0 (cosine) or :math:`\eta` (constant). A step that begins at t takes the learning rate of t, so that the
    first step of a run with warm-up changes nothing. With w = 1 the run ends as the peak is reached.

    Attributes:
        learning_rate: the peak :math:`\eta`, positive.
        warmup: the fraction w of the run over which the learning rate rises, in [0, 1].
        decay: "cosine" or "constant".

    Raises:
        InvalidInputError: a learning rate that is not positive, or a warm-up that is no fraction.
        UnknownNameError: another decay.

    Reference:
        Cosine: Loshchilov and Hutter, SGDR, ICLR 2017, eq. 5, without restarts. Warm-up: Goyal et al.,
        arXiv:1706.02677, section 2.2, which also puts the warm-up before the decay and not on top of it.

    >>> schedule = Schedule(learning_rate=2.0, warmup=0.5)
    >>> [schedule.at(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 1.0, 2.0, 1.0, 0.0]
    """

    learning_rate: float
    warmup: float = 0.0
    decay: Decay = "cosine"

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InvalidInputError(f"expected a positive learning_rate, got {self.learning_rate}.")
        if not 0 <= self.warmup <= 1:
            raise InvalidInputError(
                f"expected warmup to be a fraction of the run between 0 and 1, got {self.warmup}. Divide a number of "
                "steps by that of the whole run."
            )
        if self.decay not in get_args(Decay):
            raise unknown_name("schedule", str(self.decay), get_args(Decay))

    def at(self, progress: float) -> float:
        """The learning rate when a fraction ``progress`` of the run, in [0, 1], is over."""
        if progress < self.warmup:
            return self.learning_rate * (progress / self.warmup)
        if self.decay == "constant" or progress == self.warmup:
            return self.learning_rate
        since_warmup = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        return self.learning_rate * (1 + math.cos(math.pi * since_warmup)) / 2
