"""Stochastic Lanczos quadrature: the log-determinant of large positive definite operators from products alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nablanets.errors import SingularJacobianError, check_positive_int


class LogdetEstimate(NamedTuple):
    """An estimate of log det J and the standard error of its random part, per matrix."""

    value: Float[Tensor, "*batch"]
    standard_error: Float[Tensor, "*batch"]


class Products(Protocol):
    """What the method needs of an operator."""

    features: int
    batch_shape: torch.Size

    @property
    def reference(self) -> Tensor: ...
    def __matmul__(self, v: Tensor) -> Tensor: ...


def estimate_logdet(operator: Products, *, probes: int, steps: int, seed: int) -> LogdetEstimate:
    r"""log det J = E[z^T log(J) z] over random signs z, each term by the Gauss rule of a Lanczos factorisation.

    The gradient is that of E[w^T J z] with w = J^{-1} z held fixed, which the same factorisation yields.

    Reference: Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIMAX 38 (2017).
    """
    for name, count in (("probes", probes), ("steps", steps)):
        check_positive_int(count, owner="logdet_estimate", name=name)
    like = operator.reference
    generator = torch.Generator().manual_seed(seed)
    shape = (probes, *operator.batch_shape, operator.features)
    z = torch.randint(0, 2, shape, generator=generator).to(like) * 2 - 1
    with torch.no_grad():
        terms, solved = _quadrature(operator, z, min(steps, operator.features))
    value = terms.mean(dim=0)
    if torch.is_grad_enabled():
        work = (solved * (operator @ z)).sum(dim=-1).mean(dim=0)
        value = value + work - work.detach()
    spread = terms.std(dim=0) if probes > 1 else torch.full_like(value, torch.inf)
    return LogdetEstimate(value, spread.detach() / probes**0.5)


def _quadrature(operator: Products, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """z^T log(J) z and J^{-1} z."""
    basis, tridiagonal = _lanczos(operator, z, steps)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    if bool((nodes <= 0).any()):
        raise SingularJacobianError(
            "logdet_estimate: a Jacobian is numerically singular. A positive definite linear term (linear=True, "
            "'diagonal' or a rank) keeps the Jacobian of a monotone map invertible."
        )
    first = vectors[..., 0, :]
    size = z.square().sum(dim=-1)
    value = size * (first.square() * nodes.log()).sum(dim=-1)
    coordinates = torch.einsum("...mk,...k->...m", vectors, first / nodes)
    return value, size.sqrt().unsqueeze(-1) * torch.einsum("m...d,...m->...d", basis, coordinates)


def _lanczos(operator: Products, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal basis (steps, *batch, d) of the Krylov space of z, and the matrix (*batch, steps, steps) on it.

    Where the space is exhausted early, the remaining vectors are zero and the matrix has ones: the rule ignores them.
    """
    basis = z.new_zeros(steps, *z.shape)
    matrix = z.new_zeros(*z.shape[:-1], steps, steps)
    q, alive = z / z.norm(dim=-1, keepdim=True), torch.ones_like(z[..., 0], dtype=torch.bool)
    for k in range(steps):
        basis[k] = q
        w = operator @ q
        matrix[..., k, k] = torch.where(alive, (w * q).sum(dim=-1), 1.0)
        size = w.norm(dim=-1)
        for _ in range(2):  # orthogonalise against all, twice: three-term recurrences lose orthogonality
            w = w - torch.einsum(
                "m...d,m...->...d", basis[: k + 1], torch.einsum("m...d,...d->m...", basis[: k + 1], w)
            )
        beta = w.norm(dim=-1)
        alive = alive & (beta > 10 * z.shape[-1] ** 0.5 * torch.finfo(z.dtype).eps * size)
        q = torch.where(alive.unsqueeze(-1), w / beta.unsqueeze(-1), 0.0)
        if k + 1 < steps:
            matrix[..., k, k + 1] = matrix[..., k + 1, k] = torch.where(alive, beta, 0.0)
    return basis, matrix
