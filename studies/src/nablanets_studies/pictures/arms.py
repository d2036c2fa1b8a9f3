"""The arms of the studies of networks for pictures: what the skips carry, and for how long an arm is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nablanets.errors import unknown_name
from nablanets_studies.residual import arms as residual_arms


@dataclass(frozen=True)
class Method:
    """What the skips of a network carry.

    Attributes:
        name: of the arm in ``residual.arms.ARMS``.
        alpha: where alpha starts: chosen by validation data, or as chosen for "gradient"; None: there is no alpha.
        carries_gradients: whether it is one of the gradient residuals that the study is about. These have a second arm,
            trained for the time that the standard skip takes.
    """

    name: str
    alpha: Literal["chosen", "of gradient"] | None = None
    carries_gradients: bool = False

    def skip(self, alpha: float) -> residual_arms.Arm:
        """The settings of a residual block."""
        return self.name if self.alpha is None else {"arm": self.name, "alpha": alpha}


_ALL_METHODS = (
    Method("standard"),
    Method("no-skip"),
    Method("scalar"),
    Method("damped", alpha="of gradient"),
    Method("random", alpha="of gradient"),
    Method("magnitude", alpha="chosen"),
    Method("pure"),
    Method("gradient", alpha="chosen", carries_gradients=True),
    Method("gradient-full", alpha="chosen", carries_gradients=True),
    Method("gradient-probe", alpha="chosen"),
)
METHODS = {method.name: method for method in _ALL_METHODS}
STANDARD = METHODS["standard"]
GRADIENT = METHODS["gradient"]


@dataclass(frozen=True)
class PictureArm:
    """A method, trained for the epochs of all or for the time that the standard skip takes."""

    method: Method
    timed: bool = False

    @property
    def name(self) -> str:
        return f"{self.method.name}-timed" if self.timed else self.method.name


_AT_EQUAL_EPOCHS = [PictureArm(method) for method in METHODS.values()]
_AT_EQUAL_TIME = [PictureArm(method, timed=True) for method in METHODS.values() if method.carries_gradients]
#: All that there can be, by name.
ARMS = {arm.name: arm for arm in (*_AT_EQUAL_EPOCHS, *_AT_EQUAL_TIME)}


def arms_of(methods: Sequence[str]) -> dict[str, PictureArm]:
    """The arms of some methods by name; those at equal time come last.

    Raises:
        UnknownNameError: there is no such method.

    >>> list(arms_of(["standard", "gradient"]))
    ['standard', 'gradient', 'gradient-timed']
    """
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    wanted = [METHODS[name] for name in methods]
    at_equal_epochs = [PictureArm(method) for method in wanted]
    at_equal_time = [PictureArm(method, timed=True) for method in wanted if method.carries_gradients]
    return {arm.name: arm for arm in (*at_equal_epochs, *at_equal_time)}
