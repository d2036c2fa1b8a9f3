"""Hamiltonian systems with known energies, gradients and reference trajectories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from scipy import special
from torch import Tensor

from nablanets.dynamics.reference import reference_trajectory


class Mechanics(ABC):
    """A Hamiltonian system x' = J grad H(x) of states x = (q, p), in float64.

    Attributes:
        name, formula: for reports.
        features: 2n.
        span: the time over which its trajectories are looked at.
        masses: where H = sum p^2 / (2 m) + V(q), the masses for each coordinate; else None.
        convex: whether H is convex.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    features: int
    span: float
    masses: tuple[float, ...] | None = None
    convex: bool = False

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """H at states (*, 2n)."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """grad H = (dH/dq, dH/dp) at states (*, 2n)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Initial states, (count, 2n)."""

    def field(self, x: Tensor) -> Tensor:
        """x' = (dH/dp, -dH/dq)."""
        gq, gp = self.gradient(x).chunk(2, dim=-1)
        return torch.cat([gp, -gq], dim=-1)

    def trajectory(self, x0: Tensor, times: Sequence[float], *, rtol: float = 1e-12) -> Tensor:
        """The solution from x0 (*batch, 2n) at increasing times that start at 0, (t, *batch, 2n).

        In closed form where there is one, else by DOP853 with the tolerance rtol.
        """
        return reference_trajectory(lambda _, x: self.field(x), x0, times, rtol=rtol, atol=1e-14)

    def invariants(self, x: Tensor) -> dict[str, Tensor]:
        """What is conserved, by name: the energy, and more where there is more."""
        return {"energy": self.energy(x)}


class MassSpring(Mechanics):
    """H = (q^2 + p^2) / 2: rotation of the plane, in closed form.

    >>> x = MassSpring().trajectory(torch.tensor([1.0, 0.0]), [0.0, torch.pi / 2])
    >>> [round(float(v), 6) for v in x[1]]
    [-0.0, -1.0]
    """

    name = "mass-spring"
    formula = "H = (q^2 + p^2) / 2"
    features = 2
    span = 20.0
    masses = (1.0,)
    convex = True

    def energy(self, x: Tensor) -> Tensor:
        return x.square().sum(dim=-1) / 2

    def gradient(self, x: Tensor) -> Tensor:
        return x

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Directions uniform, radii uniform in [0.1, 1]."""
        radius, angle = uniform(count, generator, (0.1, 1.0), (0.0, 2 * torch.pi))
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)

    def trajectory(self, x0: Tensor, times: Sequence[float], *, rtol: float = 1e-12) -> Tensor:
        angle = _like(times, x0)
        q, p = x0.unbind(-1)
        return torch.stack([angle.cos() * q + angle.sin() * p, angle.cos() * p - angle.sin() * q], dim=-1)


class Pendulum(Mechanics):
    """H = p^2 / 2 + 1 - cos q; oscillations in closed form by Jacobi's elliptic functions.

    With k^2 = H / 2 < 1: sin(q / 2) = k sn(t + t0), p = 2 k cn(t + t0).
    """

    name = "pendulum"
    formula = "H = p^2 / 2 + 1 - cos q"
    features = 2
    span = 20.0
    masses = (1.0,)

    def energy(self, x: Tensor) -> Tensor:
        q, p = x.unbind(-1)
        return p.square() / 2 + 2 * (q / 2).sin().square()

    def gradient(self, x: Tensor) -> Tensor:
        q, p = x.unbind(-1)
        return torch.stack([q.sin(), p], dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Oscillations of amplitude 0.3 to 2.8, released at rest or pushed through the lowest point."""
        amplitude, phase = uniform(count, generator, (0.3, 2.8), (0.0, 1.0))
        turned = torch.stack([amplitude, torch.zeros_like(amplitude)], dim=-1)
        fast = torch.stack([torch.zeros_like(amplitude), 2 * (amplitude / 2).sin()], dim=-1)
        return torch.where((phase < 0.5).unsqueeze(-1), turned, fast)

    def trajectory(self, x0: Tensor, times: Sequence[float], *, rtol: float = 1e-12) -> Tensor:
        square = self.energy(x0) / 2  # k^2
        oscillates = (square > 0) & (square < 1)
        if not bool(oscillates.all()):
            return super().trajectory(x0, times, rtol=rtol)
        q, p = x0.unbind(-1)
        k = square.sqrt()
        m = square.numpy()
        # sn(t0) = sin(q / 2) / k has two solutions in a period: one on the way up, one on the way down.
        amplitude = ((q / 2).sin() / k).clamp(-1, 1).arcsin()
        upwards = torch.as_tensor(special.ellipkinc(amplitude.numpy(), m))
        half_period = 2 * torch.as_tensor(special.ellipk(m))
        start = torch.where(p >= 0, upwards, half_period - upwards)
        sn, cn, _, _ = special.ellipj((_like(times, x0) + start).numpy(), m)
        angle = 2 * (k * torch.as_tensor(sn)).arcsin()
        momentum = 2 * k * torch.as_tensor(cn)
        return torch.stack([angle, momentum], dim=-1)


class HenonHeiles(Mechanics):
    """H = (|q|^2 + |p|^2) / 2 + q1^2 q2 - q2^3 / 3, partly chaotic; bounded below the energy 1/6."""

    name = "henon-heiles"
    formula = "H = (|q|^2 + |p|^2) / 2 + q1^2 q2 - q2^3 / 3"
    features = 4
    span = 30.0
    masses = (1.0, 1.0)

    def energy(self, x: Tensor) -> Tensor:
        a = x[..., 0]
        b = x[..., 1]
        return x.square().sum(dim=-1) / 2 + a.square() * b - b**3 / 3

    def gradient(self, x: Tensor) -> Tensor:
        a, b, c, d = x.unbind(-1)
        return torch.stack([a + 2 * a * b, b + a.square() - b.square(), c, d], dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Directions uniform, and energies uniform in [0.02, 0.14]: the length is found by bisection along the ray."""
        direction = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        (goal,) = uniform(count, generator, (0.02, 0.14))
        direction = direction / direction.norm(dim=-1, keepdim=True)
        low = torch.zeros_like(goal)
        high = torch.full_like(goal, 0.55)  # H increases along every ray up to there
        for _ in range(60):  # halvings; float64 has 53 bits
            middle = (low + high) / 2
            above = self.energy(middle.unsqueeze(-1) * direction) > goal
            low = torch.where(above, low, middle)
            high = torch.where(above, middle, high)
        return low.unsqueeze(-1) * direction


class DoublePendulum(Mechanics):
    """Two unit masses on unit rods, g = 1; q are angles. Not separable, and chaotic at high energies.

    H = (p1^2 + 2 p2^2 - 2 p1 p2 cos(q1 - q2)) / (2 + 2 sin(q1 - q2)^2) + 3 - 2 cos q1 - cos q2.
    """

    name = "double-pendulum"
    formula = "H = (p1^2 + 2 p2^2 - 2 p1 p2 cos(q1 - q2)) / (2 + 2 sin(q1 - q2)^2) + 3 - 2 cos q1 - cos q2"
    features = 4
    span = 15.0

    def energy(self, x: Tensor) -> Tensor:
        a, b, p, r = x.unbind(-1)
        kinetic = (p**2 + 2 * r**2 - 2 * p * r * (a - b).cos()) / (2 + 2 * (a - b).sin() ** 2)
        return kinetic + 3 - 2 * a.cos() - b.cos()

    def gradient(self, x: Tensor) -> Tensor:
        a, b, p, r = x.unbind(-1)
        c = (a - b).cos()
        s = (a - b).sin()
        below = 1 + s**2
        # The kinetic energy's derivative by a; by b it is the opposite.
        turn = p * r * s / below - (p**2 + 2 * r**2 - 2 * p * r * c) * s * c / below**2
        by_a = turn + 2 * a.sin()
        by_b = b.sin() - turn
        by_p = (p - r * c) / below
        by_r = (2 * r - p * c) / below
        return torch.stack([by_a, by_b, by_p, by_r], dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Angles uniform in [-1, 1], at rest: mostly regular motion."""
        angles = torch.stack(uniform(count, generator, (-1.0, 1.0), (-1.0, 1.0)), dim=-1)
        return torch.cat([angles, torch.zeros_like(angles)], dim=-1)


def uniform(count: int, generator: torch.Generator, *ranges: tuple[float, float]) -> list[Tensor]:
    """One column of uniform numbers per range."""
    draw = torch.rand(len(ranges), count, generator=generator, dtype=torch.float64)
    return [low + (high - low) * column for (low, high), column in zip(ranges, draw, strict=True)]


def _like(times: Sequence[float], x0: Tensor) -> Tensor:
    """Times as (t, 1, ..) against the batch of x0."""
    return torch.tensor(list(times), dtype=x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
