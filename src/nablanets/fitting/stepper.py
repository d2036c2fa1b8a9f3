"""What a fit does in one step: the seam between the loop and the optimisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Stepper(ABC):
    """An optimiser with its samples. The loop around it validates, records, stops and resumes."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """What the history shows as the learning rate."""

    @abstractmethod
    def advance(self, rate: float) -> Tensor:
        """One step at the given learning rate; returns the training error that it saw."""

    @property
    def stop_reason(self) -> str:
        """Why there is nothing more to gain, or the empty string."""
        return ""

    def publish(self) -> None:  # noqa: B027
        """Put the weights to validate into the network, if they are not there anyway."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that a resumed fit needs."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None: ...
