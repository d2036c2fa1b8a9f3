"""What a fit does in one step: the seam between the loop and the optimisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from nablanets.fitting.settings import StartRecord


class Stepper(ABC):
    """An optimiser with its samples. The loop around it validates, records, stops and resumes."""

    @abstractmethod
    def advance(self, learning_rate: float) -> Tensor:
        """One step at the given learning rate, which optimisers without one ignore.

        Returns:
            the training error that the step saw, a scalar, in multiples of ``error_unit``.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that a resumed fit needs: a nest of tensors, numbers, strings and None, as it is now."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state whose tensors may be on another device."""

    @property
    def error_unit(self) -> float:
        """What the errors that steps return are multiples of."""
        return 1.0

    @property
    def learning_rate(self) -> float | None:
        """Of the last step; None before it, and for optimisers that have none."""
        return None

    @property
    def damping(self) -> float | None:
        """Of the next step; None for optimisers that have none."""
        return None

    @property
    def stop_reason(self) -> str:
        """Why there is nothing more to gain, or the empty string."""
        return ""

    def publish(self) -> int:
        """Put the weights to validate into the network, if they are not there anyway.

        Returns:
            which of its starts they are of.
        """
        return 0

    def starts(self) -> tuple[StartRecord, ...]:
        """What became of each start, for optimisers that advance several."""
        return ()

    def signature(self) -> dict[str, Any]:
        """JSON values that tell this optimiser from others of the same settings, for checkpoints."""
        return {}
