"""Adaptive methods of other libraries, as references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nablanets.dynamics.reference import reference_trajectory
from nablanets.dynamics.runge_kutta import Time
from nablanets.extras import needed
from nablanets.tensors import tensor_of


class Flow(Protocol):
    """A field v(t, x)."""

    def __call__(self, t: Time, x: Tensor) -> Tensor: ...


@torch.no_grad()
def _dop853(flow: Flow, x0: Tensor, times: Sequence[Time], *, rtol: float = 1e-9, atol: float = 1e-12) -> Tensor:
    return reference_trajectory(flow, x0, [float(t) for t in times], rtol=rtol, atol=atol)


def _torchdiffeq(flow: Flow, x0: Tensor, times: Sequence[Time], **options: Any) -> Tensor:
    """Dormand-Prince 5 of torchdiffeq, whose values between steps are as exact; differentiable through the steps."""
    purpose = "trajectories by method='torchdiffeq' (dop853 does not)"
    odeint = needed("torchdiffeq", extra="torchdiffeq", purpose=purpose).odeint
    follows_times = any(isinstance(t, Tensor) for t in times)
    moments = tensor_of(times, x0.dtype).to(x0.device)
    settings = {"rtol": 1e-9, "atol": 1e-12, "method": "dopri5", **options}
    trajectory: Tensor = odeint(lambda t, x: flow(t if follows_times else float(t), x), x0, moments, **settings)
    return trajectory


#: By name.
ADAPTIVE: dict[str, Callable[..., Tensor]] = {"dop853": _dop853, "torchdiffeq": _torchdiffeq}
