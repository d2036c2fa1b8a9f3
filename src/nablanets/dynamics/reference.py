"""Reference trajectories: SciPy's DOP853 at tight tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from nablanets.errors import ConvergenceError


def reference_trajectory(
    field: Callable[[float, Tensor], Tensor],
    x0: Tensor,
    times: Sequence[float],
    *,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> Tensor:
    """Trajectories of x' = v(t, x) from x0 (*batch, d) at the times, (t, *batch, d), by DOP853.

    All samples share their steps, which the error of the whole batch chooses.

    Raises:
        ConvergenceError: the integrator gave up, for instance at a collision.

    >>> x = reference_trajectory(lambda t, x: -x, torch.ones(2, dtype=torch.double), [0.0, 1.0])
    >>> bool((x[1] - torch.tensor(-1.0, dtype=torch.double).exp()).abs().max() < 1e-8)
    True
    """

    def flat(t: float, y: np.ndarray) -> np.ndarray:
        return field(t, torch.as_tensor(y).to(x0).reshape(x0.shape)).reshape(-1).double().numpy()

    start = x0.detach().double().reshape(-1).cpu().numpy()
    if len(times) == 1:
        return x0.detach().unsqueeze(0).clone()
    result = solve_ivp(flat, (times[0], times[-1]), start, method="DOP853", t_eval=list(times), rtol=rtol, atol=atol)
    if not result.success:
        raise ConvergenceError(
            f"the reference integrator stopped at t = {result.t[-1] if len(result.t) else times[0]:.4g}: "
            f"{result.message} Do bodies collide? Look at the initial states, or shorten the times."
        )
    return torch.as_tensor(result.y.T.copy()).to(x0).reshape(len(times), *x0.shape)
