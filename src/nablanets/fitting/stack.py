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
from nablanets.fitting.derivatives import Derivatives, Rows
from nablanets.maps.protocols import unit_points
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

    def jacobians(self, theta: Tensor, x: Tensor, members: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Derivatives of the values at common points (n, d) in the parameters, (B, p, d, n), and values (B, d, n)."""
        rows = self.derivatives(theta, x, members)
        return rows.full(), rows.value

    @torch.no_grad()
    def derivatives(self, theta: Tensor, x: Tensor, members: Tensor | slice = slice(None)) -> Rows:
        """The same as :class:`~nablanets.fitting.derivatives.Rows`, which the next call may write over.

        In closed form where the network has the methods of :class:`~.protocols.HasParameterJacobian`, else by
        ``torch.func.jacrev``.
        """
        if not self._knows_derivatives:
            return Rows(*self._jacobians_by_autograd(theta, x, members))
        if len(theta) == 1:
            self._become(theta[0], members)
            return self._derivatives.at(x).unsqueeze(0)
        if self.shares_buffers:
            self._become(theta, members)
            return self._derivatives.at(x, len(theta))

        def one(theta: Tensor, fixed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return functional_call(self._derivatives_of_one, self._inside(theta, fixed), (x,))

        return Rows(*vmap(one)(theta, self._fixed(members)))

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


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _shapes(net: nn.Module) -> dict[str, tuple[bool, tuple[int, ...]]]:
    return {name: (tensor.requires_grad, tuple(tensor.shape)) for name, tensor in _tensors(net).items()}
