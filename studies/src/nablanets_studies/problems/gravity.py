"""Bodies that attract each other in the plane: the two-body problem of "Gradient Networks", and three bodies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from nablanets_studies.problems.mechanics import (
    DoublePendulum,
    HenonHeiles,
    MassSpring,
    Mechanics,
    Pendulum,
    uniform,
)

#: Newton steps on Kepler's equation; it converges to rounding in far fewer for near-circular orbits.
_KEPLER_STEPS = 50


class Bodies(Mechanics):
    """H = sum |p_i|^2 / 2 - sum_{i<j} g / |q_i - q_j|, unit masses in the plane; x = (q_1, .., q_n, p_1, .., p_n)."""

    formula = "H = sum |p_i|^2 / 2 - sum_{i<j} g / |q_i - q_j|"
    bodies: int
    coupling: float = 1.0

    @property
    def _pairs(self) -> tuple[list[int], list[int]]:
        """The indices i < j of all pairs of bodies."""
        pairs = list(itertools.combinations(range(self.bodies), 2))
        first = [i for i, _ in pairs]
        second = [j for _, j in pairs]
        return first, second

    def positions(self, x: Tensor) -> Tensor:
        """(*, n, 2)."""
        return x[..., : 2 * self.bodies].unflatten(-1, (self.bodies, 2))

    def momenta(self, x: Tensor) -> Tensor:
        """(*, n, 2)."""
        return x[..., 2 * self.bodies :].unflatten(-1, (self.bodies, 2))

    def energy(self, x: Tensor) -> Tensor:
        q = self.positions(x)
        i, j = self._pairs
        attraction = self.coupling / (q[..., i, :] - q[..., j, :]).norm(dim=-1)
        return self.momenta(x).square().sum(dim=(-2, -1)) / 2 - attraction.sum(dim=-1)

    def gradient(self, x: Tensor) -> Tensor:
        q = self.positions(x)
        i, j = self._pairs
        pairs = range(len(i))
        r = q[..., i, :] - q[..., j, :]  # (*, pairs, 2)
        pull = self.coupling * r / r.norm(dim=-1, keepdim=True) ** 3
        # Each pair pulls its two bodies with opposite forces.
        ends = x.new_zeros(len(i), self.bodies)
        ends[pairs, i] = 1.0
        ends[pairs, j] = -1.0
        by_position = torch.einsum("pn,...pk->...nk", ends, pull).flatten(-2)  # (*, 2 n)
        by_momentum = x[..., 2 * self.bodies :]
        return torch.cat([by_position, by_momentum], dim=-1)

    def invariants(self, x: Tensor) -> dict[str, Tensor]:
        q = self.positions(x)
        p = self.momenta(x)
        turning = (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(dim=-1)
        return {"energy": self.energy(x), "angular momentum": turning}


class TwoBody(Bodies):
    """Two bodies on near-circular orbits around their common centre, after greydanus/hamiltonian-nn.

    Orbit radii are uniform in [0.5, 1.5] and angles uniform; speeds are circular times 1 + ``noise`` standard normal
    numbers, which makes the orbits slightly elliptic. Trajectories are in closed form by Kepler's equation.

    >>> x = TwoBody().sample(3, torch.Generator().manual_seed(0))
    >>> x.shape, bool((TwoBody().energy(x) < 0).all())
    (torch.Size([3, 8]), True)
    """

    name = "two-body"
    features = 8
    span = 20.0
    bodies = 2
    masses = (1.0,) * 4

    def __init__(self, noise: float = 5e-2) -> None:
        self.noise = noise

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        radius, angle = uniform(count, generator, (0.5, 1.5), (0.0, 2 * torch.pi))
        disturbed = 1 + self.noise * torch.randn(count, generator=generator, dtype=torch.float64)
        speed = disturbed * (self.coupling / (4 * radius)).sqrt()
        outward = torch.stack([angle.cos(), angle.sin()], dim=-1)
        along = torch.stack([-angle.sin(), angle.cos()], dim=-1)
        q = radius.unsqueeze(-1) * outward
        p = speed.unsqueeze(-1) * along
        return torch.cat([q, -q, p, -p], dim=-1)

    def period(self, x: Tensor) -> Tensor:
        """Of the orbit through x, by Kepler's third law."""
        r, v = self._relative(x)
        mu = 2 * self.coupling
        axis = 1 / (2 / r.norm(dim=-1) - v.square().sum(dim=-1) / mu)
        return 2 * torch.pi * (axis**3 / mu).sqrt()

    def _relative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.positions(x)
        p = self.momenta(x)
        return q[..., 0, :] - q[..., 1, :], p[..., 0, :] - p[..., 1, :]

    def trajectory(self, x0: Tensor, times: Sequence[float], *, rtol: float = 1e-12) -> Tensor:
        r, v = self._relative(x0)
        bound = v.square().sum(dim=-1) < 4 * self.coupling / r.norm(dim=-1)  # slower than the speed of escape
        if not bool(bound.all()):
            return super().trajectory(x0, times, rtol=rtol)
        t = torch.tensor(list(times), dtype=x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
        r, v = kepler(r, v, t, mu=2 * self.coupling)
        momentum = self.momenta(x0).mean(dim=-2)
        centre = self.positions(x0).mean(dim=-2) + t.unsqueeze(-1) * momentum
        return torch.cat([centre + r / 2, centre - r / 2, momentum + v / 2, momentum - v / 2], dim=-1)


def kepler(r: Tensor, v: Tensor, t: Tensor, *, mu: float) -> tuple[Tensor, Tensor]:
    """Position and velocity at time t on the ellipse r'' = -mu r / |r|^3 that starts at r, v (*, k).

    The orbit stays in the plane of r and v, so r(t) = f r + g v and v(t) = f' r + g' v with four numbers (Gauss). They
    are closed forms of e, by which the eccentric anomaly has grown since the start; e solves Kepler's equation in the
    form that begins anywhere on the orbit,

        n t = e - (1 - r0/a) sin e + (r0 . v0) / sqrt(mu a) (1 - cos e),

    with the semi-major axis a and the mean motion n = sqrt(mu / a^3). Newton's method solves it, from e = n t.

    Reference:
        Bate, Mueller, White, "Fundamentals of Astrodynamics" (1971), section 4.4.
    """
    distance = r.norm(dim=-1)
    along = (r * v).sum(dim=-1)
    a = 1 / (2 / distance - v.square().sum(dim=-1) / mu)  # from the energy (vis-viva)
    mean = (mu / a**3).sqrt() * t
    cosine = 1 - distance / a  # eccentricity times the cosine of the first anomaly
    sine = along / (mu * a).sqrt()  # eccentricity times its sine
    e = mean.clone()
    for _ in range(_KEPLER_STEPS):
        residual = e - cosine * e.sin() + sine * (1 - e.cos()) - mean
        slope = 1 - cosine * e.cos() + sine * e.sin()
        e = e - residual / slope
    now = a * (1 - cosine * e.cos() + sine * e.sin())  # distance at time t
    f = 1 - a / distance * (1 - e.cos())
    g = t - (a**3 / mu).sqrt() * (e - e.sin())
    f_dot = -(mu * a).sqrt() / (now * distance) * e.sin()
    g_dot = 1 - a / now * (1 - e.cos())
    position = f.unsqueeze(-1) * r + g.unsqueeze(-1) * v
    return position, f_dot.unsqueeze(-1) * r + g_dot.unsqueeze(-1) * v


class ThreeBody(Bodies):
    """Three bodies near the rotating equilateral triangle, radii in [0.9, 1.2], speeds with 5 % noise; unstable."""

    name = "three-body"
    features = 12
    span = 5.0
    bodies = 3
    masses = (1.0,) * 6

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        radius, angle = uniform(count, generator, (0.9, 1.2), (0.0, 2 * torch.pi))
        angles = angle.unsqueeze(-1) + torch.arange(3) * (2 * torch.pi / 3)
        speed = (self.coupling / (3**0.5 * radius)).sqrt().unsqueeze(-1)
        speed = speed * (1 + 0.05 * torch.randn(count, 3, generator=generator, dtype=torch.float64))
        q = radius[:, None, None] * torch.stack([angles.cos(), angles.sin()], dim=-1)
        p = speed.unsqueeze(-1) * torch.stack([-angles.sin(), angles.cos()], dim=-1)
        return torch.cat([q.flatten(1), (p - p.mean(dim=1, keepdim=True)).flatten(1)], dim=-1)


#: All Hamiltonian problems, by name.
MECHANICS: dict[str, Mechanics] = {
    problem.name: problem
    for problem in (MassSpring(), Pendulum(), HenonHeiles(), DoublePendulum(), TwoBody(), ThreeBody())
}
