"""Coordinates in which a potential has a symmetry: distances between particles, and to fixed centres."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, ShapeError, check_points, unknown_name
from nablanets.maps.describing import describe_map
from nablanets.maps.groups import generated_group
from nablanets.parameters import first_tensor
from nablanets.serialization import savable
from nablanets.tensors import kept

#: Functions s of the distance r: s(r) and s'(r) / r.
_KINDS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "distance": lambda r: (r, 1 / r),
    "inverse": lambda r: (1 / r, -(r**-3)),
    "log": lambda r: (r.log(), r**-2),
}


class Coordinates(nn.Module, ABC):
    r"""A function :math:`\phi : \mathbb{R}^n \to \mathbb{R}^m` that comes with the products of its Jacobian.

    Attributes:
        features: n.
        outputs: m.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.outputs = outputs

    @abstractmethod
    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """phi(x), (*, m), and the product c -> J_phi(x)^T c for c of shape (*, m)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments."""

    def __repr__(self) -> str:
        return describe_map(self, self.config, features=self.features, outputs=self.outputs)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        check_points(x, self.features, owner=type(self).__name__, like=first_tensor(self))
        return self.linearise(x)[0]


@savable
class Distances(Coordinates):
    r"""Distances :math:`\phi_k = s(|\sum_i D_{ki} x_i - c_k|)` of particles x_i from each other or from centres c_k.

    A function of the distances between particles is invariant under translations, rotations and reflections of them
    all; one of the distances from a centre is so under rotations about it. Particles must not coincide with each other,
    nor with a centre, where a distance is not differentiable.

    Args:
        differences: D, (m, particles); a row has 1 and -1 for a pair, a single 1 for a distance from a centre.
        centres: c, (m, dimensions).
        kind: s(r) is the "distance" r itself, its "inverse" or its "log".

    Shapes:
        x ``(*, particles * dimensions)``, particle by particle -> ``(*, m)``.

    >>> Distances(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 3))(torch.tensor([0.0, 0, 0, 0, 3, 4]))
    tensor([5.])
    """

    differences: Tensor
    centres: Tensor

    def __init__(self, differences: Tensor, centres: Tensor, kind: str = "distance") -> None:
        if differences.ndim != 2 or centres.ndim != 2 or len(differences) != len(centres):
            raise ShapeError(
                "Distances: expected differences of shape (m, particles) and centres of shape (m, dimensions), got "
                f"{tuple(differences.shape)} and {tuple(centres.shape)}."
            )
        if kind not in _KINDS:
            raise unknown_name("kind of distance", kind, _KINDS)
        super().__init__(differences.shape[1] * centres.shape[1], len(differences))
        self.kind = kind
        self.register_buffer("differences", kept(differences))
        self.register_buffer("centres", kept(centres))

    def config(self) -> dict[str, Any]:
        return {"differences": self.differences, "centres": self.centres, "kind": self.kind}

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        particles = x.unflatten(-1, (self.differences.shape[1], self.centres.shape[1]))
        delta = self.differences @ particles - self.centres
        value, slope = _KINDS[self.kind](delta.square().sum(dim=-1).sqrt())

        def pull(c: Tensor) -> Tensor:
            return (self.differences.mT @ ((c * slope).unsqueeze(-1) * delta)).flatten(-2)

        return value, pull


def pair_distances(particles: int, dimensions: int = 3, *, kind: str = "inverse") -> Distances:
    """Distances between all pairs of particles, (0, 1), (0, 2), ..., (1, 2), ...

    >>> pair_distances(9).outputs
    36
    """
    if particles < 2:
        raise InvalidInputError(f"pair_distances: expected at least two particles, got {particles}.")
    first, second = torch.combinations(torch.arange(particles)).unbind(-1)
    rows = torch.eye(particles)
    return Distances(rows[first] - rows[second], torch.zeros(len(first), dimensions), kind)


def distances_from(centres: Tensor, *, kind: str = "distance") -> Distances:
    """Distances of one particle from fixed centres (m, dimensions).

    >>> distances_from(torch.zeros(1, 3))(torch.tensor([0.0, 3.0, 4.0]))
    tensor([5.])
    """
    return Distances(centres.new_ones(len(centres), 1), centres, kind)


def pair_permutations(particles: int, alike: Sequence[Sequence[int]]) -> Tensor:
    """What exchanges of alike particles do to the pairs of :func:`pair_distances`: a group of permutation matrices.

    Args:
        particles: how many.
        alike: groups of particles, by index, that may be exchanged among themselves.

    >>> pair_permutations(9, [(3, 4, 5), (6, 7)]).shape    # 3! 2! exchanges
    torch.Size([12, 36, 36])
    """
    pairs = {frozenset(pair): k for k, pair in enumerate(itertools.combinations(range(particles), 2))}
    swaps = []
    for group in alike:
        if not all(0 <= i < particles for i in group) or len(set(group)) != len(group):
            raise InvalidInputError(f"pair_permutations: expected indices of {particles} particles, got {list(group)}.")
        for a, b in itertools.pairwise(group):
            exchange = {a: b, b: a}
            target = [pairs[frozenset(exchange.get(i, i) for i in pair)] for pair in pairs]
            swaps.append(torch.eye(len(pairs))[target])
    return generated_group(torch.stack(swaps)) if swaps else torch.eye(len(pairs)).unsqueeze(0)
