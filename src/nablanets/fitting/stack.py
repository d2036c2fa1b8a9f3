"""Several networks of one architecture as one function of their stacked parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from nablanets.errors import InvalidInputError
from nablanets.maps import GradientMap
from nablanets.maps.protocols import HasParameterJacobian, supports, unit_points
from nablanets.parameters import fixed_copy


class Stack:
    """B networks of one architecture, evaluated together.

    The parameters of each network are laid end to end as one row of a matrix. To evaluate, ``torch.func`` calls one
    network, the skeleton, with the parameters of a row in place of its own, and ``vmap`` does that for all rows at
    once: each operation of the network becomes one batched operation.

    Attributes:
        theta: trained parameters, one row of p numbers per network.
        shares_buffers: whether all of them have the same buffers.

    Args:
        nets: networks that differ in the values of their parameters and buffers only; they are not changed.
        dtype: of the computation; that of the networks if not given.

    Raises:
        InvalidInputError: no networks, networks of different architecture, or nothing to train.

    >>> stack = Stack([nn.Linear(2, 2) for _ in range(3)])
    >>> stack.theta.shape, stack.values(stack.theta, torch.zeros(5, 2)).shape
    (torch.Size([3, 6]), torch.Size([3, 5, 2]))
    """

    def __init__(self, nets: Sequence[nn.Module], dtype: torch.dtype | None = None) -> None:
        shapes = [_shapes(net) for net in nets]
        if not nets or any(shape != shapes[0] for shape in shapes) or not any(t for t, _ in shapes[0].values()):
            raise InvalidInputError("expected at least one network, all of one architecture, with trained parameters.")
        self.skeleton = fixed_copy(nets[0]).to(dtype)
        self._trained = {name: shape for name, (trained, shape) in shapes[0].items() if trained}
        self._sizes = [prod(shape) for shape in self._trained.values()]
        states = [_tensors(fixed_copy(net).to(dtype)) for net in nets]
        rows = [torch.cat([state[name].detach().flatten() for name in self._trained]) for state in states]
        self.theta = torch.stack(rows)  # (B, p)
        not_trained = [name for name in states[0] if name not in self._trained]
        self.fixed = {name: torch.stack([state[name].detach() for state in states]) for name in not_trained}
        # Closed forms take the parameters of all networks at once, but only one set of buffers.
        self._buffers = [name for name, _ in self.skeleton.named_buffers()]
        self.shares_buffers = all(bool((self.fixed[name] == self.fixed[name][:1]).all()) for name in self._buffers)
        # A copy whose parameters are set to rows of theta; shared ones of the skeleton do not survive functional_call.
        self._present = copy.deepcopy(self.skeleton)
        self._tensors = _tensors(self._present)
        self._held = self.theta.new_empty(0)
        self._derivatives = Derivatives(self._present, list(self._trained))
        self._knows_derivatives = self._derivatives.are_known()
        self._derivatives_of_one = Derivatives(self.skeleton, list(self._trained))

    def one(self, theta: Tensor, fixed: dict[str, Tensor], x: Tensor) -> Tensor:
        """The network with parameters theta (p) and buffers ``fixed`` at x."""
        return functional_call(self.skeleton, {**self._named(theta), **fixed}, (x,))

    def call(self, reading: nn.Module, theta: Tensor) -> Any:
        """What a module returns, which holds the skeleton as ``net``, with the parameters of all networks at once."""
        fixed = dict(self.fixed)
        if self.shares_buffers:
            fixed |= {name: fixed[name][0] for name in self._buffers}
        return functional_call(reading, self._inside(theta, fixed), ())

    def unit_points(self, x: Tensor) -> Tensor:
        """:func:`~nablanets.maps.protocols.unit_points` of networks that share their buffers."""
        return unit_points(self._present, x)

    def values(self, theta: Tensor, x: Tensor, members: Tensor | slice = slice(None)) -> Tensor:
        """Networks with the given parameters, one row each, at common points (n, d) or own (B, n, d): (B, n, d)."""
        if len(theta) == 1 and not torch.is_grad_enabled():
            self._become(theta[0], members)
            return cast(Tensor, self._present(x if x.ndim == 3 else x.unsqueeze(0)))
        return vmap(self.one, (0, 0, 0 if x.ndim == 3 else None))(theta, self._fixed(members), x)

    @torch.no_grad()
    def jacobians(self, theta: Tensor, x: Tensor, members: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Derivatives of the values at common points (n, d) in the parameters, (B, p, d, n), and values (B, d, n).

        In closed form where the network has the methods of :class:`~.protocols.HasParameterJacobian`, else by
        ``torch.func.jacrev``. The next call may write over them.
        """
        if not self._knows_derivatives:
            return self._jacobians_by_autograd(theta, x, members)
        if len(theta) == 1:
            self._become(theta[0], members)
            jacobian, value = self._derivatives.at(x)
            return jacobian.unsqueeze(0), value.unsqueeze(0)
        if self.shares_buffers:
            self._become(theta, members)
            return self._derivatives.at(x, len(theta))

        def one(theta: Tensor, fixed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return functional_call(self._derivatives_of_one, self._inside(theta, fixed), (x,))

        return vmap(one)(theta, self._fixed(members))

    def _jacobians_by_autograd(self, theta: Tensor, x: Tensor, members: Tensor | slice) -> tuple[Tensor, Tensor]:
        def twice(theta: Tensor, fixed: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.one(theta, fixed, x)
            return y, y

        each = vmap(vmap(jacrev(twice, has_aux=True), (None, None, 0)), (0, 0, None))
        jacobian, value = each(theta, self._fixed(members), x)  # (B, n, d, p)
        return jacobian.movedim(-1, 1).mT, value.mT

    @torch.no_grad()
    def _become(self, theta: Tensor, members: Tensor | slice) -> None:
        """Let the copy be one network (p), or all of them (B, p) with parameters that have a leading dimension."""
        if theta.shape != self._held.shape:
            self._held = theta.clone()
            for name, value in self._named(self._held).items():
                self._tensors[name].data = value
        else:
            self._held.copy_(theta)  # the parameters are views of it
        for name, value in self._fixed(members).items():
            if name not in self._buffers:
                self._tensors[name].data = value if theta.ndim == 2 else value[0]
            elif not self.shares_buffers:
                self._tensors[name].copy_(value[0])

    def present(self, theta: Tensor) -> nn.Module:
        """One module whose parameters are those of all networks, with a leading dimension, until the next call."""
        self._become(theta, slice(None))
        return self._present

    def _inside(self, theta: Tensor, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and buffers by the names that they have in a module that holds the skeleton as ``net``."""
        return {f"net.{name}": value for name, value in {**self._named(theta), **fixed}.items()}

    def keep(self, members: Tensor) -> None:
        """Drop all networks but these."""
        self.theta = self.theta[members]
        self.fixed = self._fixed(members)

    @torch.no_grad()
    def write(self, member: int, net: nn.Module, theta: Tensor | None = None) -> None:
        """Put the parameters and buffers of one network into a module."""
        theta = self.theta if theta is None else theta
        values = {**self._named(theta[member]), **self._fixed(member)}
        for name, tensor in _tensors(net).items():
            tensor.copy_(values[name])

    def _fixed(self, members: Tensor | slice | int) -> dict[str, Tensor]:
        return {name: value[members] for name, value in self.fixed.items()}

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of rows of theta (*, p) as the parameters that they are, (*, *shape) each."""
        named = {}
        for part, (name, shape) in zip(theta.split(self._sizes, dim=-1), self._trained.items(), strict=True):
            named[name] = part.view((*theta.shape[:-1], *shape))
        return named


class Derivatives(nn.Module):
    """The derivatives of a network in all trained parameters, as one matrix.

    Args:
        net: the network.
        names: of its trained parameters, in the order of the rows.
    """

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.net = net
        self.names = names
        self._present_names = _names(net)
        self._arrays: dict[torch.Size, Tensor] = {}
        parameter = next(net.parameters())
        self._identity = torch.eye(getattr(net, "features", 0)).to(parameter)

    @torch.no_grad()
    def are_known(self) -> bool:
        """Whether the network knows its derivatives in all that is trained."""
        if not supports(self.net, HasParameterJacobian):
            return False
        net = cast(GradientMap, self.net)
        known = self._parts(net.as_points(torch.zeros(1, net.features)))
        return known is not None and set(self.names) <= set(known[1])

    def at(self, x: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Derivatives at points (n, d), (p, d, n), in an array that is written again, and the values (d, n).

        ``count`` is the leading dimension of parameters and results, if there is one.
        """
        value, rows = self._rows(x, count)
        shape = torch.Size([*rows[0].shape[:-3], sum(row.shape[-3] for row in rows), *rows[0].shape[-2:]])
        if shape not in self._arrays:
            self._arrays = {shape: rows[0].new_empty(shape)}
        return torch.cat(rows, dim=-3, out=self._arrays[shape]), value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same in fresh memory, as ``vmap`` needs it, of the parameters that ``functional_call`` has put there."""
        value, rows = self._rows(x, names=_names(self.net))
        return torch.cat(rows, dim=-3), value

    def _rows(
        self, x: Tensor, count: int | None = None, names: dict[int, str] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        known = self._parts(x, count, names)
        if known is None:
            raise InvalidInputError("Derivatives: the network does not know its derivatives in its parameters.")
        value, rows = known
        return value, [rows[name] for name in self.names]

    def _parts(
        self, x: Tensor, count: int | None = None, names: dict[int, str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The values (d, n), and derivatives (size of the parameter, d, n) by name; those of shared ones are sums."""
        net = cast(Any, self.net)
        names = self._present_names if names is None else names
        found = net.parameter_jacobian(x, self._identity.to(x.device))
        if found is None:
            return None
        value, parts = found
        leading = () if count is None else (count,)
        rows: dict[str, Tensor] = {}
        for parameter, derivative in parts:
            name = names[id(parameter)]
            flat = derivative.reshape(*leading, -1, *derivative.shape[-2:])
            rows[name] = rows[name] + flat if name in rows else flat
        return value, rows


def _names(net: nn.Module) -> dict[int, str]:
    """The names of parameters by their identity."""
    return {id(parameter): name for name, parameter in net.named_parameters()}


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _shapes(net: nn.Module) -> dict[str, tuple[bool, tuple[int, ...]]]:
    return {name: (tensor.requires_grad, tuple(tensor.shape)) for name, tensor in _tensors(net).items()}
