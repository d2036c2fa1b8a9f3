"""Explicit symplectic integrators for separable H = T(p) + V(q): compositions of drifts and kicks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Separable(Protocol):
    """A system with q' = velocity(p) and p' = force(q)."""

    def velocity(self, p: Tensor) -> Tensor: ...
    def force(self, q: Tensor) -> Tensor: ...


class Splitting(NamedTuple):
    """One step of size h: for each (c, d) a drift q += c h q'(p), then a kick p += d h p'(q)."""

    order: int
    stages: tuple[tuple[float, float], ...]

    def step(self, system: Separable, x: Tensor, h: float | Tensor) -> Tensor:
        q, p = x.chunk(2, dim=-1)
        for drift, kick in self.stages:
            if drift:
                q = q + drift * h * system.velocity(p)
            if kick:
                p = p + kick * h * system.force(q)
        return torch.cat([q, p], dim=-1)


_LEAPFROG = ((0.5, 1.0), (0.5, 0.0))
_CUBE_ROOT = 1 / (2 - 2 ** (1 / 3))
# Yoshida (1990), solution A, of order 6: the outer three of seven symmetric factors, in the order of the steps.
_SIXTH = (0.784513610477557263819, 0.235573213359358133684, -1.17767998417887100695)


def _composed(outer: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Leapfrog steps of sizes outer, 1 - 2 sum(outer), outer reversed; neighbouring drifts are merged."""
    sizes = [*outer, 1 - 2 * sum(outer), *reversed(outer)]
    drifts = [sizes[0] / 2, *((a + b) / 2 for a, b in itertools.pairwise(sizes)), sizes[-1] / 2]
    return tuple(zip(drifts, [*sizes, 0.0], strict=True))


#: By name. All but "symplectic-euler" are symmetric: a step of -h undoes a step of h.
SPLITTINGS = {
    "symplectic-euler": Splitting(1, ((0.0, 1.0), (1.0, 0.0))),
    "leapfrog": Splitting(2, _LEAPFROG),
    "verlet": Splitting(2, ((0.0, 0.5), (1.0, 0.5))),
    "yoshida4": Splitting(4, _composed((_CUBE_ROOT,))),
    "yoshida6": Splitting(6, _composed(_SIXTH)),
}
