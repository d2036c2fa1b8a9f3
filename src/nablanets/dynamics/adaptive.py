"""Adaptive methods of other libraries, as references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nablanets.dynamics.reference import reference_trajectory
from nablanets.extras import needed


class Flow(Protocol):
    """A field v(t, x)."""

    def __call__(self, t: float, x: Tensor) -> Tensor: ...


@torch.no_grad()
def _dop853(flow: Flow, x0: Tensor, times: Sequence[float], *, rtol: float = 1e-9, atol: float = 1e-12) -> Tensor:
    return reference_trajectory(flow, x0, times, rtol=rtol, atol=atol)


def _torchdiffeq(flow: Flow, x0: Tensor, times: Sequence[float], **options: Any) -> Tensor:
    """Dormand-Prince 5 of torchdiffeq, whose values between steps are as exact; differentiable through the steps."""
    purpose = "trajectories by method='torchdiffeq' (dop853 does not)"
    odeint = needed("torchdiffeq", extra="torchdiffeq", purpose=purpose).odeint
    moments = torch.tensor(times, dtype=x0.dtype, device=x0.device)
    settings = {"rtol": 1e-9, "atol": 1e-12, "method": "dopri5", **options}
    trajectory: Tensor = odeint(lambda t, x: flow(float(t), x), x0, moments, **settings)
    return trajectory


#: By name.
ADAPTIVE: dict[str, Callable[..., Tensor]] = {"dop853": _dop853, "torchdiffeq": _torchdiffeq}
