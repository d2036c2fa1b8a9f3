"""The arms of a comparison by name: what the skip of a residual block carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nablanets.errors import unknown_name
from nablanets.residual import GradientResidual
from nablanets_studies.residual.controls import register_controls

register_controls()

#: Settings of :class:`GradientResidual` by the name of an arm.
ARMS: dict[str, dict[str, Any]] = {
    "standard": {"skip": "identity"},
    "no-skip": {"skip": "none"},
    "scalar": {"skip": "scalar"},
    "damped": {"skip": "damped"},
    "random": {"skip": "random"},
    "magnitude": {"skip": "magnitude"},
    "pure": {"skip": "pure"},
    "gradient": {"skip": "gradient"},
    "gradient-full": {"skip": "gradient", "normalize": "none", "stop_gradient": False},
    "gradient-probe": {"skip": "gradient", "probe": "learned"},
}

#: An arm's name, or settings of :class:`GradientResidual`.
Arm = str | Mapping[str, Any]


def arm_settings(arm: Arm, **defaults: Any) -> dict[str, Any]:
    """The settings of an arm, by name or as they are; a mapping may name an arm under ``"arm"`` and change it.

    >>> arm_settings({"arm": "gradient", "alpha": -3.0})
    {'skip': 'gradient', 'alpha': -3.0}
    """
    settings = {"arm": arm} if isinstance(arm, str) else dict(arm)
    name = settings.pop("arm", None)
    if name is not None and name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return {**defaults, **(ARMS[name] if name is not None else {}), **settings}


def residual(block: nn.Module, arm: Arm = "standard", **defaults: Any) -> GradientResidual:
    """A block with the skip of an arm.

    >>> residual(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), "damped").skip
    'damped'
    """
    return GradientResidual(block, **arm_settings(arm, **defaults))
