"""Ten fitting problems as users have them, with held-out samples that no method sees before the end.

`cases(seed, motor)` gives them one by one. Each has training samples as a user would have them, in the user's units,
and test samples from the same source; those of gridded data lie between the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nablanets_studies.problems.piecewise import PiecewiseQuadratic
from nablanets_studies.problems.terrain import load_terrain

#: Where the measured flux map lies, seen from the repository.
MOTOR = Path("../shared/data/motor/baldor_400rpm_map.npz")
#: Noise of the force grid and of the demand table, relative.
NOISE = 0.03


@dataclass(frozen=True)
class Case:
    """One fitting problem, float64.

    Attributes:
        name: in tables.
        x, g: what a method may use, (n, d).
        x_test, g_test: what it is judged by, with the noise of the measurements, (m, d).
        truth_test: gradients at the test points without noise; g_test where they are not known.
        monotone: what a user may know: "increasing", "decreasing" or None. Methods are not told.
        unit: of the gradients.
    """

    name: str
    x: Tensor
    g: Tensor
    x_test: Tensor
    g_test: Tensor
    truth_test: Tensor
    monotone: str | None = None
    unit: str = ""


def motor_samples(path: Path) -> tuple[Tensor, Tensor]:
    """Currents and flux linkages of the measured map in per unit, (567, 2) each."""
    current_base = math.sqrt(2) * 8.8  # A, peak
    flux_base = math.sqrt(2 / 3) * 460 / (2 * math.pi * 60)  # Vs, peak
    with np.load(path) as data:
        current = data["i_s_dq"].ravel() / current_base
        flux = data["psi_s_dq"].ravel() / flux_base
    currents = torch.from_numpy(np.stack([current.real, current.imag], axis=1))
    fluxes = torch.from_numpy(np.stack([flux.real, flux.imag], axis=1))
    return currents, fluxes


def _motor(name: str, path: Path, *, inverse: bool) -> Case | None:
    """Every tenth of the points to learn from, the others to be judged by."""
    if not path.exists():
        return None
    x, g = motor_samples(path)
    if inverse:
        x, g = g, x
    is_training = torch.zeros(len(x), dtype=torch.bool)
    is_training[::10] = True
    test = g[~is_training]
    return Case(name, x[is_training], g[is_training], x[~is_training], test, test, "increasing", "p.u.")


def motor_flux(seed: int, motor: Path) -> Case | None:
    """Currents to flux linkages."""
    return _motor("motor-flux", motor, inverse=False)


def motor_current(seed: int, motor: Path) -> Case | None:
    """Flux linkages to currents."""
    return _motor("motor-current", motor, inverse=True)


def _trap_force(x: Tensor) -> Tensor:
    """The force of a soft harmonic trap with four Gaussian wells; x in mm, force in mN."""
    centres = torch.tensor([[-5.0, -4.0, 2.0], [4.0, 5.0, -3.0], [3.0, -5.0, -5.0], [-2.0, 3.0, 6.0]]).to(x)
    widths = torch.tensor([[4.0, 3.0, 5.0], [3.5, 4.5, 4.0], [5.0, 4.0, 3.0], [4.0, 4.0, 6.0]]).to(x)
    depths = torch.tensor([6.0, 9.0, 5.0, 7.0]).to(x)
    stiffness = torch.tensor([0.10, 0.06, 0.15]).to(x)
    away = (x.unsqueeze(1) - centres) / widths  # (n, wells, 3)
    energy = depths * torch.exp(-away.square().sum(dim=-1) / 2)  # (n, wells)
    pull = (energy.unsqueeze(-1) * away / widths).sum(dim=1)
    return -stiffness * x - pull


def force_grid(seed: int, motor: Path) -> Case:
    """Forces at the nodes of a 12 x 12 x 12 grid with noise; judged between the nodes."""
    generator = torch.Generator().manual_seed(1000 + seed)
    axis = torch.linspace(-10, 10, 12, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis, axis)
    x_test = 20 * torch.rand(4000, 3, generator=generator, dtype=torch.float64) - 10
    truth, truth_test = _trap_force(x), _trap_force(x_test)
    size = NOISE * float(truth.square().mean().sqrt())
    g = truth + size * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    g_test = truth_test + size * torch.randn(truth_test.shape, generator=generator, dtype=torch.float64)
    return Case("force-grid", x, g, x_test, g_test, truth_test, None, "mN")


def _hicksian_demand(prices: Tensor) -> Tensor:
    """Quantities of four goods that reach a given utility at least cost, under nested CES preferences.

    They are the gradient of the expenditure function, which is concave. Two nests of two goods each have elasticities
    of substitution of their own, and there is a third one between the nests.
    """
    shares = torch.tensor([[0.6, 0.4], [0.3, 0.7]]).to(prices)
    inside = torch.tensor([[2.5], [0.6]]).to(prices)
    between = 0.8
    nest_shares = torch.tensor([0.45, 0.55]).to(prices)
    p = prices.reshape(-1, 2, 2)  # (n, nests, goods)
    index = (shares * p ** (1 - inside)).sum(dim=-1) ** (1 / (1 - inside.squeeze(-1)))  # (n, nests)
    expenditure = (nest_shares * index ** (1 - between)).sum(dim=-1, keepdim=True) ** (1 / (1 - between))
    nest_demand = nest_shares * (index / expenditure) ** (-between)
    demand = nest_demand.unsqueeze(-1) * shares * (p / index.unsqueeze(-1)) ** (-inside)
    return 100 * demand.reshape(-1, 4)


def demand_table(seed: int, motor: Path) -> Case:
    """Prices to quantities, 200 noisy rows; quantities fall with prices."""
    generator = torch.Generator().manual_seed(2000 + seed)
    usual = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    prices = usual * torch.exp(0.35 * torch.randn(2200, 4, generator=generator, dtype=torch.float64))
    truth = _hicksian_demand(prices)
    noisy = truth * (1 + NOISE * torch.randn(truth.shape, generator=generator, dtype=torch.float64))
    return Case("demand", prices[:200], noisy[:200], prices[200:], noisy[200:], truth[200:], "decreasing", "pieces")


def terrain(seed: int, motor: Path) -> Case:
    """Slopes of real terrain at a fifth of the cells; judged at 10,000 of the others."""
    land = load_terrain()
    x, g, is_measured = land.sample(0.2, 0.0, seed)
    others = torch.from_numpy(land.points[~is_measured])
    slopes = torch.from_numpy(land.slopes[~is_measured])
    rows = torch.randperm(len(others), generator=torch.Generator().manual_seed(3000 + seed))[:10_000]
    return Case("terrain", x.double(), g.double(), others[rows], slopes[rows], slopes[rows], None, "m/m")


def piecewise_quadratic(seed: int, motor: Path) -> Case:
    """Equation 22 of the paper in 32 dimensions, 4000 samples."""
    field = PiecewiseQuadratic(32, torch.float64)
    generator = torch.Generator().manual_seed(4000 + seed)
    x, g = field.sample(4000, generator)
    x_test, g_test = field.sample(10_000, generator)
    return Case("eq22-32", x, g, x_test, g_test, g_test, "increasing")


@dataclass(frozen=True)
class Bumps:
    """The potential sum_k a_k exp(-|A_k (x - c_k)|^2 / 2), with random widths in random directions.

    Attributes:
        heights: a, (bumps,).
        centres: c, (bumps, d).
        frames: A, (bumps, d, d).
    """

    heights: Tensor
    centres: Tensor
    frames: Tensor

    @classmethod
    def random(cls, features: int, bumps: int, narrowest: float, generator: torch.Generator) -> Bumps:
        """Widths are log-uniform over a factor of four, and grow as the distances in the cube do, like sqrt(d)."""
        draw = torch.rand(bumps, features, generator=generator, dtype=torch.float64)
        widths = narrowest * math.sqrt(features) * 4**draw
        square = torch.randn(bumps, features, features, generator=generator, dtype=torch.float64)
        rotations = torch.linalg.qr(square).Q
        centres = 2 * torch.rand(bumps, features, generator=generator, dtype=torch.float64) - 1
        heights = torch.randn(bumps, generator=generator, dtype=torch.float64)
        return cls(heights, centres, rotations / widths.unsqueeze(-1))

    def gradient(self, x: Tensor) -> Tensor:
        """At points (n, d)."""
        away = torch.einsum("kij,nkj->nki", self.frames, x.unsqueeze(1) - self.centres)
        values = self.heights * torch.exp(-away.square().sum(dim=-1) / 2)  # (n, bumps)
        return -torch.einsum("nk,kij,nki->nj", values, self.frames, away)


def _smooth(features: int, bumps: int, narrowest: float, count: int) -> Callable[[int, Path], Case]:
    """Samples of a random smooth field without noise, uniform on the cube [-1, 1]^d.

    Widths are such that the samples do not resolve the field to rounding: wider bumps are the home ground of Gaussian
    radial basis functions, which then reach -100 dB and less.
    """

    def case(seed: int, motor: Path) -> Case:
        generator = torch.Generator().manual_seed(5000 + 100 * features + seed)
        field = Bumps.random(features, bumps, narrowest, generator)
        x = 2 * torch.rand(count + 4000, features, generator=generator, dtype=torch.float64) - 1
        g = field.gradient(x)
        return Case(f"smooth-{features}", x[:count], g[:count], x[count:], g[count:], g[count:])

    return case


#: The ten cases; each is a function of the seed and of the path to the motor's data, None where those are absent.
CASES: dict[str, Callable[[int, Path], Case | None]] = {
    "motor-flux": motor_flux,
    "motor-current": motor_current,
    "force-grid": force_grid,
    "demand": demand_table,
    "terrain": terrain,
    "eq22-32": piecewise_quadratic,
    "smooth-1": _smooth(1, 12, 0.1, 60),
    "smooth-2": _smooth(2, 20, 0.1, 300),
    "smooth-4": _smooth(4, 20, 0.2, 1000),
    "smooth-8": _smooth(8, 20, 0.3, 2000),
}
