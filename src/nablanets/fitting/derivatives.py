"""The derivatives of a network in all trained parameters, row by row."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from nablanets.activations.base import ParameterColumns
from nablanets.errors import InvalidInputError
from nablanets.maps import GradientMap
from nablanets.maps.protocols import HasParameterJacobian, supports

# Products are kept as they are where an entry of a Gram matrix takes so many fewer multiply-adds; with fewer, passing
# over the matrices once more takes longer.
_LEAST_SAVED = 512


class Workspace:
    """Arrays by name that are written again, of any shape that fits into what was needed before.

    Fresh memory costs more than the arithmetic on it.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like.detach()
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        count = prod(shape)
        if name not in self._kept or len(self._kept[name]) < count:
            self._kept[name] = self._like.new_zeros(count)
        return self._kept[name][:count].view(shape)


class Rows(NamedTuple):
    """Derivatives of the values of B networks at n points, a row for each parameter.

    Attributes:
        dense: those in the first parameters, (B, p - q, d, n).
        value: the values, (B, d, n).
        scalars, vectors: those in the last q parameters are products of numbers (B, q, n) and vectors (B, q, d); None
            if there are none.
    """

    dense: Tensor
    value: Tensor
    scalars: Tensor | None = None
    vectors: Tensor | None = None

    def full(self) -> Tensor:
        """All derivatives, (B, p, d, n)."""
        if self.scalars is None or self.vectors is None:
            return self.dense
        return torch.cat([self.dense, self.scalars.unsqueeze(-2) * self.vectors.unsqueeze(-1)], dim=-3)

    def unsqueeze(self, dim: int) -> Rows:
        """With a further dimension."""
        return Rows(*(None if part is None else part.unsqueeze(dim) for part in self))  # type: ignore[arg-type]


class Derivatives(nn.Module):
    """The derivatives of a network in all trained parameters.

    Args:
        net: the network.
        names: of its trained parameters, in the order of the rows.
    """

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.net = net
        self.names = names
        self._own_names = _names(net)
        parameter = next(net.parameters())
        self._workspace = Workspace(parameter)
        self._identity = torch.eye(getattr(net, "features", 0)).to(parameter)

    @torch.no_grad()
    def are_known(self) -> bool:
        """Whether the network knows its derivatives in all that is trained."""
        if not supports(self.net, HasParameterJacobian):
            return False
        net = cast(GradientMap, self.net)
        found = cast(Any, net).parameter_jacobian(net.as_points(torch.zeros(1, net.features)), self._identity)
        return found is not None and set(self.names) <= {self._own_names[id(own.parameter)] for own in found[1]}

    def at(self, x: Tensor, count: int | None = None) -> Rows:
        """Derivatives at points (n, d), in arrays that are written again, with the leading dimension ``count`` if any.

        The products at the end are kept as they are: a Gram matrix of q products at n points takes q^2 n multiply-adds
        instead of q^2 n d.
        """
        value, found = self._found(x, self._own_names)
        leading = () if count is None else (count,)
        num_products = 0
        saved = (value.shape[-2] - 1) * value.shape[-1]  # multiply-adds of each entry of a Gram matrix
        if saved >= _LEAST_SAVED:
            while num_products < len(found) and found[-1 - num_products].vectors is not None:
                num_products += 1
        products = found[len(found) - num_products :]
        dense = self._dense(found[: len(found) - num_products], leading, value.shape)
        if not products:
            return Rows(dense, value)
        scalars = [own.columns.reshape(*leading, -1, value.shape[-1]) for own in products]
        vectors = [cast(Tensor, own.vectors).reshape(*leading, -1, value.shape[-2]) for own in products]
        return Rows(dense, value, self._joined("scalars", scalars), self._joined("vectors", vectors))

    def _dense(self, found: list[ParameterColumns], leading: tuple[int, ...], shape: torch.Size) -> Tensor:
        """The rows of some parameters, (*leading, rows, d, n), in an array that is kept."""
        features, samples = shape[-2:]
        sizes = [own.parameter.numel() // prod(leading) for own in found]
        result = self._workspace("dense", *leading, sum(sizes), features, samples)
        parts = result.split(sizes, dim=-3)
        for own, part in zip(found, parts, strict=True):
            if own.vectors is None:
                part.copy_(own.columns.reshape(part.shape))
            else:
                scalars = own.columns.reshape(*leading, -1, 1, samples)
                vectors = own.vectors.reshape(*leading, -1, features, 1)
                torch.mul(scalars, vectors, out=part)
        return result

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of one network, (p, d, n), and the values (d, n), in fresh memory as ``vmap`` needs it.

        They are those with the parameters that ``functional_call`` has put there.
        """
        value, found = self._found(x, _names(self.net))
        return torch.cat([own.full().reshape(-1, *value.shape) for own in found]), value

    def _found(self, x: Tensor, names: dict[int, str]) -> tuple[Tensor, list[ParameterColumns]]:
        """The values, and the derivatives in all parameters in their order; those of shared ones are sums."""
        known = cast(Any, self.net).parameter_jacobian(x, self._identity.to(x.device))
        if known is None:
            raise InvalidInputError("Derivatives: the network does not know its derivatives in its parameters.")
        found: dict[str, ParameterColumns] = {}
        for own in known[1]:
            name = names[id(own.parameter)]
            if name in found:
                total = found[name].full() + own.full()
                found[name] = ParameterColumns(own.parameter, total)
            else:
                found[name] = own
        return known[0], [found[name] for name in self.names]

    def _joined(self, name: str, rows: list[Tensor]) -> Tensor:
        """The rows one after the other, (*leading, rows, numbers), in an array that is kept."""
        count = sum(row.shape[-2] for row in rows)
        result = self._workspace(name, *rows[0].shape[:-2], count, rows[0].shape[-1])
        return torch.cat(rows, dim=-2, out=result)


def _names(net: nn.Module) -> dict[int, str]:
    """The names of parameters by their identity."""
    return {id(parameter): name for name, parameter in net.named_parameters()}
