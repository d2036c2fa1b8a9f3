"""Networks and fields that tests compare with, small and without the studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablanets import FromPotential, savable
from nablanets.dynamics.reference import reference_trajectory


@savable
class PeerMLP(nn.Module):
    """A plain network with two hidden layers, from d features to ``outputs`` (d if None)."""

    def __init__(self, features: int, hidden_features: int, outputs: int | None = None) -> None:
        super().__init__()
        self._config = {"features": features, "hidden_features": hidden_features, "outputs": outputs}
        self.first = nn.Linear(features, hidden_features)
        self.second = nn.Linear(hidden_features, hidden_features)
        self.last = nn.Linear(hidden_features, features if outputs is None else outputs)

    def config(self) -> dict[str, Any]:
        return self._config

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


@savable
class ScalarNet(nn.Module):
    """F(x) = sum_k a_k psi(w_k x + b_k) with its gradient; psi is tanh, or softplus with a_k > 0, which is convex."""

    def __init__(self, features: int, hidden_features: int, convex: bool = False) -> None:
        super().__init__()
        self._config = {"features": features, "hidden_features": hidden_features, "convex": convex}
        self.convex = convex
        self.units = nn.Linear(features, hidden_features)
        self.outer = nn.Parameter(torch.randn(hidden_features))

    def config(self) -> dict[str, Any]:
        return self._config

    def _coefficients(self) -> Tensor:
        return F.softplus(self.outer) if self.convex else self.outer

    def forward(self, x: Tensor) -> Tensor:
        u = self.units(x)  # (*, units)
        values = F.softplus(u, threshold=60) if self.convex else torch.tanh(u)
        return (values * self._coefficients()).sum(dim=-1, keepdim=True)

    def gradient(self, x: Tensor) -> Tensor:
        u = self.units(x)
        slopes = torch.sigmoid(u) if self.convex else 1 - torch.tanh(u).square()
        return (slopes * self._coefficients()) @ self.units.weight


def mlp_potential(features: int, hidden_features: int) -> FromPotential:
    """The gradient of a scalar network."""
    return FromPotential(ScalarNet(features, hidden_features), features)


def icnn_gradient(features: int, hidden_features: int) -> FromPotential:
    """The gradient of a convex scalar network."""
    return FromPotential(ScalarNet(features, hidden_features, convex=True), features, monotone=True)


class AffineField(nn.Module):
    """x -> M x + b by least squares, with any matrix M."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(features, features))
        self.register_buffer("offset", torch.zeros(features))

    def fit(self, x: Tensor, g: Tensor) -> None:
        design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).double()
        solution = torch.linalg.lstsq(design, g.double()).solution
        self.matrix.copy_(solution[:-1].mT)
        self.offset.copy_(solution[-1])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT + self.offset


class PlaneField:
    """A gradient field on the unit square."""

    features = 2

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, 2, generator=generator)
        return x, self.gradient(x)


class ConvexField(PlaneField):
    """grad F for F = x1^4 + x1^2/2 + x1 x2/2 + 3 x2^2/2 - x2^3/3, convex on the unit square."""

    convex = True

    def potential(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return a**4 + a**2 / 2 + a * b / 2 + 1.5 * b**2 - b**3 / 3

    def gradient(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return torch.stack([4 * a**3 + a + b / 2, 3 * b - b**2 + a / 2], dim=-1)


class NonconvexField(PlaneField):
    """grad F for F = sin(2 pi x1) cos(pi x2)/4 + x1 x2/2 - x2^2/2."""

    convex = False

    def gradient(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        first = torch.pi / 2 * torch.cos(2 * torch.pi * a) * torch.cos(torch.pi * b) + b / 2
        second = -torch.pi / 4 * torch.sin(2 * torch.pi * a) * torch.sin(torch.pi * b) + a / 2 - b
        return torch.stack([first, second], dim=-1)


class Pendulum:
    """H = p^2 / 2 + 1 - cos q, states x = (q, p) in float64."""

    def energy(self, x: Tensor) -> Tensor:
        q, p = x.unbind(-1)
        return p.square() / 2 + 2 * (q / 2).sin().square()

    def gradient(self, x: Tensor) -> Tensor:
        q, p = x.unbind(-1)
        return torch.stack([q.sin(), p], dim=-1)

    def field(self, x: Tensor) -> Tensor:
        q, p = x.unbind(-1)
        return torch.stack([p, -q.sin()], dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Oscillations of amplitude 0.3 to 2.8, released at rest or pushed through the lowest point."""
        draw = torch.rand(2, count, generator=generator, dtype=torch.float64)
        amplitude = 0.3 + 2.5 * draw[0]
        still = torch.zeros_like(amplitude)
        turned = torch.stack([amplitude, still], dim=-1)
        fast = torch.stack([still, 2 * (amplitude / 2).sin()], dim=-1)
        return torch.where((draw[1] < 0.5).unsqueeze(-1), turned, fast)

    def trajectory(self, x0: Tensor, times: Sequence[float]) -> Tensor:
        return reference_trajectory(lambda _, x: self.field(x), x0, times, rtol=1e-12, atol=1e-14)


class LargestOfThree:
    """grad F for F = max over three matrices A of (x - 1/2)' A (x - 1/2), scaled to gradients of length one on average.

    Eq. 22 of "Gradient Networks": with a = (i + j - 2) / (2 d - 2) and D = ln d (1 + |i - j|) the matrices are
    (2 + sin 4 pi a) / D, (1 + 2 a) / D and (3 - 2 a) / D, entry by entry.
    """

    def __init__(self, features: int) -> None:
        self.features = features
        index = torch.arange(1, features + 1, dtype=torch.float64)
        rows = index.unsqueeze(1)
        a = (rows + index - 2) / (2 * features - 2)
        decay = torch.log(torch.tensor(float(features))) * (1 + (rows - index).abs())
        numerators = torch.stack([2 + torch.sin(4 * torch.pi * a), 1 + 2 * a, 3 - 2 * a])
        self.matrices = (numerators / decay).float()  # (3, d, d)
        self.scale = 1.0
        points = torch.rand(10_000, features, generator=torch.Generator().manual_seed(0))
        self.scale = float(self.gradient(points).norm(dim=1).mean())

    def _products(self, x: Tensor) -> Tensor:
        return torch.einsum("nd,kde->nke", x - 0.5, self.matrices)

    def pieces(self, x: Tensor) -> Tensor:
        """Which matrix is at work at points (n, d)."""
        forms = torch.einsum("nke,ne->nk", self._products(x), x - 0.5)
        return forms.argmax(dim=1)

    def gradient(self, x: Tensor) -> Tensor:
        chosen = self._products(x)[torch.arange(len(x)), self.pieces(x)]
        return 2 * chosen / self.scale

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, self.features, generator=generator)
        return x, self.gradient(x)
