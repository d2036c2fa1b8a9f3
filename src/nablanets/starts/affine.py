"""Networks that start as the best affine gradient map, so that training can only gain on it."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.activations.base import TwoWeights
from nablanets.errors import InvalidInputError
from nablanets.maps import GradNetC, GradNetM, Quadratic
from nablanets.maps.network import GradientNetwork
from nablanets.parameters import inverse_softplus
from nablanets.pieces.regression import symmetric_regression

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
        set_linear_term(net, matrix)
    elif net.monotone:
        groups = net.num_modules if isinstance(net, GradNetM) else 1
        weight = framed_root(matrix, net.weight.shape[:-1].numel(), groups).to(x)
        if isinstance(net, GradNetC):
            spread_cascade(net, weight, x)
        else:
            spread = (x @ weight.mT).std(dim=0).square().mean().sqrt()
            scale = _SPREAD_M * (len(weight) / weight.shape[1]) ** 0.25
            spread_modules(net, weight, x, sharpness=scale / float(spread))
    else:
        raise InvalidInputError(
            "initialise_affine: a network that is neither monotone nor has a linear term cannot start as an affine "
            "map. Build it with linear=True."
        )
    centre_error(net, x, g)


def set_linear_term(net: GradientNetwork, matrix: Tensor) -> None:
    """Let the linear term be the symmetric matrix (d, d), or what its rank can hold of it."""
    if net.linear is None:
        raise InvalidInputError(f"set_linear_term: {type(net).__name__} has no linear term. Build it with linear=True.")
    term = Quadratic.from_matrix(matrix, rank=net.linear.rank, monotone=net.monotone)
    net.linear.load_state_dict(term.to(net.bias).state_dict(), strict=False)


def centre_error(net: GradientNetwork, x: Tensor, g: Tensor) -> None:
    """Choose the constant b so that the mean error over samples is zero."""
    net.bias.add_((g - net(x)).mean(dim=0))


def framed_root(matrix: Tensor, rows: int, groups: int = 1) -> Tensor:
    """W = Q A^{1/2}, (rows, d): Q random with orthonormal columns whose sums over each group of rows vanish."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = min(len(values), rows - groups) if groups > 1 else min(len(values), rows)
    draw = torch.randn(groups, rows // groups, kept, dtype=matrix.dtype)
    if groups > 1:
        draw = draw - draw.mean(dim=1, keepdim=True)
    frame = torch.linalg.qr(draw.flatten(0, 1)).Q.to(matrix.device)
    lowest = len(values) - kept
    return (frame * values[lowest:].clamp(min=0).sqrt()) @ vectors[:, lowest:].mT


def spread_cascade(net: GradNetC, weight: Tensor, x: Tensor) -> None:
    """Give GradNet-C the weights W (h, d), bends where the data are, and units of mean slope one; linear for wtanh."""
    net.weight.copy_(weight)
    for units in net.ridge.activations:
        for part in units.modules():
            if isinstance(part, TwoWeights):
                part.b_raw.copy_(part.a_raw)
    ridge, raw = net.ridge, inverse_softplus if net.monotone else torch.as_tensor
    u = x @ weight.mT
    spread = u.std(dim=0).clamp(min=1e-12)
    ridge.bias.copy_(-(x[torch.randint(len(x), ridge.bias.shape, device=x.device)] * weight).sum(dim=-1))
    ridge.beta_raw.copy_(raw((_SPREAD_C / len(ridge.beta_raw) / spread).expand_as(ridge.beta_raw)))
    ridge.alpha_raw.copy_(raw(torch.ones_like(ridge.alpha_raw)))
    ridge.alpha_raw[-1] = raw(1 / ridge.derivative(u).mean(dim=0))


def spread_modules(net: GradNetM, weight: Tensor, x: Tensor, sharpness: float) -> None:
    """Give monotone GradNet-M the weights W (M h, d) around the mean of the data, t, and scales for mean slope one."""
    net.weight.copy_(weight.unflatten(0, net.weight.shape[:2]))
    net.hidden_bias.copy_(-net.weight @ x.mean(dim=0))
    net.sharpness_raw.fill_(inverse_softplus(sharpness))
    slopes = net.units.derivative(net._hidden(x))
    diagonal = slopes if isinstance(slopes, Tensor) else slopes.diagonal
    net.scale_raw.copy_(inverse_softplus(1 / (sharpness * diagonal.mean(dim=(0, 2)))))


def _shrink_core(net: GradNetC | GradNetM, x: Tensor, size: float) -> None:
    outer = net.ridge.alpha_raw[-1] if isinstance(net, GradNetC) else net.scale_raw
    outer.copy_(torch.full_like(outer, inverse_softplus(1.0)) if net.monotone else outer.sign())
    core = float(net._core(x).std(dim=0).square().mean().sqrt())
    factor = _CORE * size / max(core, 1e-30)
    outer.copy_(torch.full_like(outer, inverse_softplus(factor)) if net.monotone else factor * outer)
