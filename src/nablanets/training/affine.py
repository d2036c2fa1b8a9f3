"""Networks that start as the best affine gradient map, so that training can only gain on it."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.activations.base import TwoWeights
from nablanets.errors import InvalidInputError
from nablanets.maps import GradNetC, GradNetM, Quadratic
from nablanets.parameters import inverse_softplus
from nablanets.training.identify import symmetric_regression

# Standard deviation of the units' arguments over the data: of C, whose weighted tanh starts linear; and of M, times
# (units / features)^(1/4), so that what softmax adds to the affine map is as small at any width.
_SPREAD_C, _SPREAD_M = 1.5, 0.25
# Size of the core beside a linear term, relative to the gradients.
_CORE = 0.01


@torch.no_grad()
def initialise_affine(net: GradNetC | GradNetM, x: Tensor, g: Tensor) -> None:
    """Start a network as the best affine gradient map A x + b, found by least squares with a symmetric matrix.

    With a linear term, A goes there and the nonlinear core starts small. A monotone network without one gets A by its
    units: W = Q A^{1/2} with a random Q of orthonormal columns, and outer weights for which the units' mean slope over
    the data is one. GradNet-C with weighted tanh starts with equal weights, which makes its units linear.

    Args:
        net: a fresh network, changed in place.
        x, g: samples, (n, d); Q is drawn from torch's random state.

    Raises:
        InvalidInputError: the network has no linear term and is not monotone.

    >>> net, x = GradNetC(2, 5, monotone=True, linear=False), torch.rand(100, 2)
    >>> initialise_affine(net, x, 3 * x + 1)
    >>> torch.allclose(net(x), 3 * x + 1, atol=1e-4)
    True
    """
    matrix, _ = symmetric_regression(x.double(), g.double())
    if net.linear is not None:
        _shrink_core(net, x, float((g - g.mean(dim=0)).square().mean().sqrt()))
        term = Quadratic.from_matrix(matrix, rank=net.linear.rank, monotone=net.monotone)
        net.linear.load_state_dict(term.to(x).state_dict(), strict=False)
    elif net.monotone:
        groups = net.num_modules if isinstance(net, GradNetM) else 1
        rows = net.weight.shape[:-1].numel()
        weight = _framed_root(matrix, rows, groups).to(x)
        (_spread_over_c if isinstance(net, GradNetC) else _spread_over_m)(net, weight, x)  # type: ignore[arg-type]
    else:
        raise InvalidInputError(
            "initialise_affine: a network that is neither monotone nor has a linear term cannot start as an affine "
            "map. Build it with linear=True."
        )
    net.bias.zero_()
    net.bias.copy_((g - net(x)).mean(dim=0))


def _shrink_core(net: GradNetC | GradNetM, x: Tensor, size: float) -> None:
    outer = net.ridge.alpha_raw[-1] if isinstance(net, GradNetC) else net.scale_raw
    outer.copy_(torch.full_like(outer, inverse_softplus(1.0)) if net.monotone else outer.sign())
    core = float(net._core(x).std(dim=0).square().mean().sqrt())
    factor = _CORE * size / max(core, 1e-30)
    outer.copy_(torch.full_like(outer, inverse_softplus(factor)) if net.monotone else factor * outer)


def _framed_root(matrix: Tensor, rows: int, groups: int) -> Tensor:
    """W = Q A^{1/2}, (rows, d): Q random with orthonormal columns whose sums over each group of rows vanish."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = min(len(values), rows - groups) if groups > 1 else min(len(values), rows)
    draw = torch.randn(groups, rows // groups, kept, dtype=matrix.dtype)
    if groups > 1:
        draw = draw - draw.mean(dim=1, keepdim=True)
    frame = torch.linalg.qr(draw.flatten(0, 1)).Q.to(matrix.device)
    return (frame * values[-kept:].clamp(min=0).sqrt()) @ vectors[:, -kept:].mT


def _spread_over_c(net: GradNetC, weight: Tensor, x: Tensor) -> None:
    net.weight.copy_(weight)
    for units in net.ridge.activations:
        for part in units.modules():
            if isinstance(part, TwoWeights):
                part.b_raw.copy_(part.a_raw)
    ridge = net.ridge
    u = x @ weight.mT
    spread = u.std(dim=0).clamp(min=1e-12)
    ridge.bias.copy_(-(x[torch.randint(len(x), ridge.bias.shape, device=x.device)] * weight).sum(dim=-1))
    ridge.beta_raw.copy_(inverse_softplus((_SPREAD_C / len(ridge.beta_raw) / spread).expand_as(ridge.beta_raw)))
    ridge.alpha_raw.fill_(inverse_softplus(1.0))
    ridge.alpha_raw[-1] = inverse_softplus(1 / ridge.derivative(u).mean(dim=0))


def _spread_over_m(net: GradNetM, weight: Tensor, x: Tensor) -> None:
    net.weight.copy_(weight.unflatten(0, net.weight.shape[:2]))
    net.hidden_bias.copy_(-net.weight @ x.mean(dim=0))
    spread = (x @ weight.mT).std(dim=0).square().mean().sqrt()
    sharpness = _SPREAD_M * (len(weight) / weight.shape[1]) ** 0.25 / float(spread)
    net.sharpness_raw.fill_(inverse_softplus(sharpness))
    slopes = net.units.derivative(net._hidden(x))
    diagonal = slopes if isinstance(slopes, Tensor) else slopes.diagonal
    net.scale_raw.copy_(inverse_softplus(1 / (sharpness * diagonal.mean(dim=(0, 2)))))
