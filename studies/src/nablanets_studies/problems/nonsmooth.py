"""Fields that jump: subgradients of convex functions with kinks. All are ours, not the papers'."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from nablanets.errors import check_positive_int
from nablanets_studies.problems.fields import Field

_SITES_SEED = 0


class NonsmoothField(Field):
    """A subgradient field of a convex function that is not differentiable on its kinks."""

    convex = True

    @abstractmethod
    def kink_distance(self, x: Tensor) -> Tensor:
        """Distance from points (*, d) to the nearest kink, where the field jumps, (*)."""


class MaxAffine(NonsmoothField):
    r"""The subgradients of F = 4 max_k [(p_k - 1/2) . (x - 1/2) - |p_k - 1/2|^2 / 2].

    They are 4 (p_k - 1/2) for the site p_k that is nearest to x. The sites are fixed random points of the cube, and
    every piece is the largest one somewhere: in the Voronoi cell of its site.

    Args:
        features: d.
        pieces: how many sites.

    Raises:
        InvalidInputError: fewer than one feature or piece.

    >>> field = MaxAffine()
    >>> torch.equal(field.gradient(field.sites), 4 * (field.sites - 0.5))
    True
    """

    name = "max-affine"
    formula = "F = 4 max_k [(p_k - 1/2).(x - 1/2) - |p_k - 1/2|^2 / 2]"
    size = 4.0

    def __init__(self, features: int = 2, pieces: int = 6, dtype: torch.dtype = torch.float32) -> None:
        check_positive_int(features, owner="MaxAffine", name="features")
        check_positive_int(pieces, owner="MaxAffine", name="pieces")
        self.features = features
        self.dtype = dtype
        generator = torch.Generator().manual_seed(_SITES_SEED)
        self.sites = torch.rand(pieces, features, generator=generator, dtype=torch.float64).to(dtype)

    def _distances(self, x: Tensor) -> Tensor:
        """Squared distances to all sites, (*, pieces)."""
        return (x.unsqueeze(-2) - self.sites.to(x)).square().sum(dim=-1)

    def potential(self, x: Tensor) -> Tensor:
        return self.size / 2 * ((x - 0.5).square().sum(dim=-1) - self._distances(x).amin(dim=-1))

    def gradient(self, x: Tensor) -> Tensor:
        return self.size * (self.sites.to(x)[self._distances(x).argmin(dim=-1)] - 0.5)

    def kink_distance(self, x: Tensor) -> Tensor:
        squares = self._distances(x)
        sites = self.sites.to(x)
        nearest = squares.argmin(dim=-1)
        between = torch.cdist(sites, sites)[nearest]
        bisectors = (squares - squares.amin(dim=-1, keepdim=True)) / (2 * between)
        return torch.where(between > 0, bisectors, torch.inf).amin(dim=-1)


class L1Norm(NonsmoothField):
    """The subgradients sign(x - 1/2) of F = |x - 1/2|_1.

    >>> L1Norm().gradient(torch.tensor([0.2, 0.9])).tolist()
    [-1.0, 1.0]
    """

    name = "l1"
    formula = "F = |x - 1/2|_1"

    def __init__(self, features: int = 2, dtype: torch.dtype = torch.float32) -> None:
        check_positive_int(features, owner="L1Norm", name="features")
        self.features = features
        self.dtype = dtype

    def potential(self, x: Tensor) -> Tensor:
        return (x - 0.5).abs().sum(dim=-1)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.sign(x - 0.5)

    def kink_distance(self, x: Tensor) -> Tensor:
        return (x - 0.5).abs().amin(dim=-1)


class Staircase(NonsmoothField):
    r"""A field that climbs in jumps: the subgradients of F = (2/K) sum_k max(w.x - c_k, 0).

    The unit vector w is proportional to (1, 2, .., d), and the K thresholds c_k divide its range over the cube evenly.

    Args:
        features: d.
        steps: K.

    Raises:
        InvalidInputError: fewer than one feature or step.

    >>> Staircase().gradient(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).norm(dim=1).round(decimals=3).tolist()
    [0.0, 2.0]
    """

    name = "staircase"
    formula = "F = (2/K) sum_k max(w.x - c_k, 0), K = 4"

    def __init__(self, features: int = 2, steps: int = 4, dtype: torch.dtype = torch.float32) -> None:
        check_positive_int(features, owner="Staircase", name="features")
        check_positive_int(steps, owner="Staircase", name="steps")
        self.features = features
        self.dtype = dtype
        direction = torch.arange(1, features + 1, dtype=torch.float64)
        direction = direction / direction.norm()
        self.direction = direction.to(dtype)
        self.thresholds = ((torch.arange(steps) + 0.5) / steps * direction.sum()).to(dtype)

    def _heights(self, x: Tensor) -> Tensor:
        """w.x - c_k, (*, K)."""
        return (x @ self.direction.to(x)).unsqueeze(-1) - self.thresholds.to(x)

    def potential(self, x: Tensor) -> Tensor:
        return 2 * self._heights(x).clamp(min=0).mean(dim=-1)

    def gradient(self, x: Tensor) -> Tensor:
        return 2 * (self._heights(x) > 0).to(x).mean(dim=-1, keepdim=True) * self.direction.to(x)

    def kink_distance(self, x: Tensor) -> Tensor:
        return self._heights(x).abs().amin(dim=-1)
