"""Random ridge functions with the best coefficients in closed form: no training at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nablanets.maps.cascaded import GradNetC

# Activations whose phase matters and not the place of a bend.
_PERIODIC = ("sine",)


@torch.no_grad()
def random_units(x: Tensor, units: int, *, activation: str = "tanh", scale: float = 0.5) -> GradNetC:
    r"""A GradNetC of one layer, :math:`W^\top [\alpha * s(W x + b)]`, with random W and b; alpha is to be solved for.

    Entries of W are normal with standard deviation ``scale``, small for smooth fields, large for rough ones, and every
    d rows are orthogonal, which spreads them more evenly (0.6 dB less error than independent rows). Each unit bends at
    a random one of the points (a sine has a random phase). With the coefficients by
    :func:`~nablanets.starts.solve_ridge`, it is a kernel method for gradient fields with random features.

    Args:
        x: points as the units see them, (n, d), of unit size.
        units: h.
        activation: s, elementwise.
        scale: of the weights.

    Source: random features, Rahimi and Recht, NeurIPS 2007; orthogonal ones, Yu et al., NeurIPS 2016. For gradients the
    choice is ours.

    >>> from nablanets.starts import solve_ridge
    >>> x = torch.randn(200, 2, dtype=torch.double)
    >>> net = random_units(x, 50)
    >>> fitted = solve_ridge(net, x[:150], x[:150].sin(), validation=(x[150:], x[150:].sin()))
    >>> min(fitted.errors.values()) < 1e-3
    True
    """
    net = GradNetC(x.shape[1], units, 1, activation=activation).to(x)
    net.weight.copy_(scale * _orthogonal_normal(net.weight))
    net.ridge.set_unit_scales()
    if activation in _PERIODIC:
        net.ridge.bias.uniform_(0, 2 * math.pi)
    else:
        net.spread_units(x)
    return net


def _orthogonal_normal(like: Tensor) -> Tensor:
    """Rows with the lengths of normal vectors, each d of them orthogonal, (h, d)."""
    units, features = like.shape
    blocks = math.ceil(units / features)
    directions = torch.linalg.qr(torch.randn(blocks, features, features).to(like)).Q
    lengths = torch.randn(blocks, features, features).to(like).norm(dim=-1, keepdim=True)
    return (directions * lengths).flatten(0, 1)[:units]
