"""Ridge regression for the outer coefficients of a gradient network, also inside other maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import Samples, check_samples
from nablanets.maps import CoordinatePullback, GradientMap, GradNetC, GradNetM, Pullback, Scale, Symmetrized
from nablanets.starts.outer import OuterTerm, outer_terms

# Numbers in the design matrix that are held at once.
_CHUNK = 2**25


class RidgeFit(NamedTuple):
    """The ridge that was taken, and the mean squared error on the validation samples for each one tried."""

    ridge: float
    errors: dict[float, float]


@torch.no_grad()
def solve_ridge(
    net: GradientMap,
    x: Tensor,
    g: Tensor,
    *,
    validation: Samples,
    ridges: Sequence[float] = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4),
) -> RidgeFit:
    r"""Put the coefficients that f is linear in, theta, into a network by ridge regression; the ridge by validation.

    With the inner weights fixed, :math:`f(x) = Z(x)\,\theta`, and theta minimises

    .. math:: \tfrac1n \sum_i |Z(x_i)\theta - g_i|^2 + \lambda\,\tau\,|\theta|^2,

    with tau the mean diagonal of the normal matrix. With random inner weights this is the primal form of a kernel
    method for gradient fields. Costs n d p^2 multiply-adds for p coefficients, and memory for p^2 numbers.

    Args:
        net: a GradNetC or GradNetM that is not monotone, or any nest of pullbacks (also to coordinates), symmetrised
            maps and scalings around one; changed in place.
        x, g: points and gradients, (n, d).
        validation: points and gradients that choose lambda.
        ridges: the lambda to try.

    Raises:
        InvalidInputError: another kind of map, or a monotone one (:func:`~nablanets.starts.solve_outer` keeps signs).

    >>> from nablanets import pair_forces
    >>> net, x = pair_forces(GradNetC(3, 50, 1, activation="sine"), 3), torch.randn(50, 9)
    >>> solve_ridge(net, x, -x, validation=(x, -x)).ridge in (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
    True
    """
    x, g = check_samples(net, x, g, owner="solve_ridge")
    terms = outer_terms(_core(net))
    gram, right = _normal_equations(net, x, g)
    values, basis = torch.linalg.eigh(gram)
    rotated, size = basis.mT @ right, gram.diagonal().mean()
    errors = {}
    for ridge in ridges:
        _write(terms, basis @ (rotated / (values.clamp(min=0) + ridge * size)))
        errors[ridge] = float((net(validation[0]) - validation[1]).square().sum(dim=-1).mean())
    best = min(errors, key=errors.__getitem__)
    _write(terms, basis @ (rotated / (values.clamp(min=0) + best * size)))
    return RidgeFit(best, errors)


def _write(terms: list[OuterTerm], theta: Tensor) -> None:
    for term, part in zip(terms, theta.split([term.target.numel() for term in terms]), strict=True):
        term.target.copy_(part)


def _core(net: GradientMap) -> GradNetC | GradNetM:
    """The network inside."""
    if isinstance(net, GradNetC | GradNetM) and not net.monotone:
        return net
    if isinstance(net, CoordinatePullback | Pullback | Scale | Symmetrized):
        return _core(net.inner)
    raise InvalidInputError(
        "solve_ridge: expected a GradNetC or GradNetM that is not monotone, also inside pullbacks, symmetrised maps "
        f"and scalings, got {type(net).__name__}{' with monotone=True' if net.monotone else ''}."
    )


def _normal_equations(net: GradientMap, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Z^T Z / n and Z^T g / n in float64, over chunks of samples."""
    size = _design(net, x[:1]).shape[-1]
    gram, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    rows = max(1, _CHUNK // (size * net.features * _copies(net)))
    for points, values in zip(x.split(rows), g.split(rows), strict=True):
        z = _design(net, points).flatten(0, 1).double()
        gram += z.mT @ z
        right += z.mT @ values.flatten().double()
    return gram / len(x), right / len(x)


def _copies(net: GradientMap) -> int:
    """How many points the innermost network sees for one."""
    inner = getattr(net, "inner", None)
    own = len(net.matrices) if isinstance(net, Symmetrized) else 1
    return own * (1 if inner is None else _copies(inner))


def _design(net: GradientMap, x: Tensor) -> Tensor:
    """Z(x): f per unit of each coefficient, (*, d, p)."""
    if isinstance(net, GradNetC | GradNetM):
        return torch.cat([term.columns(x) for term in outer_terms(net)], dim=-1)
    if isinstance(net, Scale):
        return net.factor * _design(net.inner, x)
    if isinstance(net, Pullback):
        inner = _design(net.inner, net.image(x))
        return net.matrix.unsqueeze(-1) * inner if net.matrix.ndim == 1 else net.matrix.mT @ inner
    if isinstance(net, Symmetrized):
        group = torch.diag_embed(net.matrices) if net.matrices.ndim == 2 else net.matrices
        return torch.einsum("nij,n...ip->...jp", group, _design(net.inner, net.orbit(x))) / len(group)
    if not isinstance(net, CoordinatePullback):
        raise InvalidInputError(f"solve_ridge: cannot see what {type(net).__name__} is linear in.")
    phi, pull = net.coordinates.linearise(x)
    return torch.func.vmap(pull, in_dims=-1, out_dims=-1)(_design(net.inner, phi))
