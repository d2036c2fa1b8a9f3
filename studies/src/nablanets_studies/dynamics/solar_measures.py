"""What is measured of the fields of the solar-system study: GM, masses, and where they say that planets go."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from nablanets.dynamics import SecondOrder, integrate
from nablanets.errors import ConvergenceError
from nablanets.maps import CoordinatePullback, PairAcceleration, distances_from
from nablanets_studies.dynamics.solar_arms import Data, all_bodies, one_body
from nablanets_studies.problems.ephemeris import BODIES, INNER, INVERSE_MASSES, KILOMETRES, SUN_GM, Ephemeris

#: A planet this far from where it should be has left: 100 AU, in 1000 km.
_LOST = KILOMETRES / 10


def sun_field(net: nn.Module, x: Tensor) -> Tensor:
    """The Sun's attraction of a body without mass at x (n, 3), in AU / day^2."""
    if not isinstance(net, PairAcceleration):
        return cast(Tensor, net(x))
    phi = distances_from(torch.zeros(1, 3, dtype=torch.float64), kind=net.kind)
    return CoordinatePullback(net.pairs.law, phi)(x)


@torch.no_grad()
def measure(net: nn.Module, data: Data) -> dict[str, float]:
    """What is reported of a field; see the notes of the experiment."""
    x, _ = data.future.heliocentric()
    x = x.flatten(0, 1)
    r, size = x.norm(dim=-1), sun_field(net, x).norm(dim=-1)
    gm = r.square() * size / SUN_GM - 1
    slope = np.polyfit(r.log().numpy(), size.log().numpy(), 1)[0]
    metrics = {
        "gm_error": float(gm.mean().abs()),
        "gm_spread": float(gm.std()),
        "exponent": float(slope),
    }
    if isinstance(net, PairAcceleration):
        samples = all_bodies(data.future)
        masses = net.pairs.masses()
        metrics |= {f"mass_{name}": float(m) * k - 1 for name, m, k in zip(BODIES, masses, INVERSE_MASSES, strict=True)}
    else:
        samples = one_body(data.future)
    predicted, truth = (value.unflatten(-1, (-1, 3)) for value in (net(samples[0]), samples[1]))
    relative = (predicted - truth).norm(dim=-1) / truth.norm(dim=-1)
    metrics["acceleration"] = float(relative[:, 1:5].mean() if relative.shape[1] > 1 else relative.mean())
    return metrics | position_errors(net, data.future)


def position_errors(net: nn.Module, future: Ephemeris) -> dict[str, float]:
    """Root mean square distances from the ephemeris in 1000 km: by planet, and by decade over the inner planets.

    A field whose planets leave or fall into the Sun has none.
    """
    try:
        error = (predict(net, future) - future.heliocentric()[0]).norm(dim=-1) * KILOMETRES / 1000
    except ConvergenceError:
        return {"lost": 1.0}
    if not bool((error < _LOST).all()):
        return {"lost": 1.0}
    metrics = {"lost": 0.0, "position": float(error.square().mean().sqrt())}
    metrics |= {name: float(error[:, k].square().mean().sqrt()) for k, name in enumerate(INNER)}
    years = (future.times - future.times[0]) / 365.25
    for decade in range(int(np.ceil(years[-1] / 10 - 1e-6))):
        rows = torch.from_numpy((years >= 10 * decade) & (years < 10 * decade + 10))
        metrics[f"decade{decade + 1}"] = float(error[rows].square().mean().sqrt())
    return metrics


@torch.no_grad()
def predict(net: nn.Module, future: Ephemeris) -> Tensor:
    """Positions of the inner planets relative to the Sun, (times, planets, 3), from their state at the first time."""
    x, v = (torch.from_numpy(values[0]) for values in (future.positions, future.velocities))
    if isinstance(net, PairAcceleration):
        state, system = torch.cat([x.flatten(), v.flatten()]), SecondOrder(net, x.numel())
    else:
        inner = [BODIES.index(name) for name in INNER]
        state, system = torch.cat([x[inner] - x[0], v[inner] - v[0]], dim=-1), SecondOrder(net, 3)
    states = integrate(system.double(), state, future.times.tolist(), method="dop853", rtol=1e-10, atol=1e-12)
    if not isinstance(net, PairAcceleration):
        return states[..., :3]
    positions = states[..., : x.numel()].unflatten(-1, (len(BODIES), 3))
    return positions[:, 1 : 1 + len(INNER)] - positions[:, :1]
