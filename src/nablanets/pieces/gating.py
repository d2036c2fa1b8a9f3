"""From identified pieces to one gradient map: the smooth maximum of their potentials, gated as the samples are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.maps import GradientMap, GradNetMixture, Pullback, Quadratic
from nablanets.pieces.identify import Pieces, identify_pieces
from nablanets.pieces.offsets import compare, find_offsets

# Sharpnesses that are tried, in units of one over the spread of the potentials' differences.
_SHARPNESS = [10.0 ** (k / 2) for k in range(-2, 17)]
_CHUNK = 4096


@dataclass(frozen=True)
class Gate:
    """How the maximum is taken: F = (1/t) LSE_k t (F_k + c_k).

    Attributes:
        offsets: c, (K,).
        sharpness: t.
        error: mean ||f(x) - g||^2 over the samples with this gate.
        unexplained: error over the variance of g. Far above that of the pieces if they are no maximum of potentials.
    """

    offsets: Tensor
    sharpness: float
    error: float
    unexplained: float


def fit_pieces(
    x: Tensor, g: Tensor, pieces: int = 3, *, parameters: int | None = None, monotone: bool = True, seed: int = 0
) -> tuple[GradientMap, Pieces, Gate]:
    """Identify the affine pieces of a gradient field and build the map that is their smooth maximum.

    Pieces of a field that is no maximum of smooth potentials cannot be arranged as one. The result is then the best
    affine map, if that has the lower error; ``unexplained`` of the gate tells how much is left.

    Args:
        x, g: samples, (n, d).
        pieces: how many to look for, see :func:`identify_pieces`.
        parameters: how many numbers the map may store; below what full matrices need, the pieces share one factor, see
            :func:`shared_factor`. None sets no limit.
        monotone: build the gradient of a convex potential, by positive definite pieces.
        seed: of the search.

    Returns:
        the map (in the dtype of x), the pieces and the gate.

    Raises:
        ShapeError, InvalidInputError: see :func:`identify_pieces`, :func:`mixture_from_pieces`.

    >>> x = torch.randn(400, 2)
    >>> net, found, gate = fit_pieces(x, x + (x > 0) * torch.tensor([2.0, 0.0]), pieces=2)
    >>> len(found), net.monotone
    (2, True)
    """
    found = [identify_pieces(x, g, count, seed=seed) for count in dict.fromkeys((pieces, 1))]
    built = [(*mixture_from_pieces(p, x, g, parameters=parameters, monotone=monotone), p) for p in found]
    net, gate, best = min(built, key=lambda entry: entry[1].error)
    return net, best, gate


def mixture_from_pieces(
    pieces: Pieces, x: Tensor, g: Tensor, *, parameters: int | None = None, monotone: bool = True
) -> tuple[GradientMap, Gate]:
    """A :class:`GradNetMixture` of quadratics (pulled back to the centre of the pieces), gated as the samples are.

    Where monotone, negative eigenvalues of the pieces are set to zero before anything else.

    Args: see :func:`fit_pieces`.

    Raises:
        InvalidInputError: the limit of parameters is too low for even one shared direction.
    """
    d, count = x.shape[1], len(pieces)
    if monotone:
        pieces = replace(pieces, matrices=torch.stack([_positive(a) for a in pieces.matrices]))
    if parameters is None or count * (d * d + 2 * d) + 2 * d + count + 1 <= parameters:
        gate = fit_gate(pieces, x, g)
        experts = [
            Quadratic.from_matrix(a, v, monotone=monotone) for a, v in zip(pieces.matrices, pieces.values, strict=True)
        ]
        return _assemble(experts, gate, torch.ones_like(pieces.centre), -pieces.centre, x, trainable=False), gate
    width = (parameters - count - 1) // (d + 1 + 2 * count)
    if width < 1:
        raise InvalidInputError(
            f"mixture_from_pieces: {parameters} parameters are too few for {count} pieces in {d} dimensions; "
            f"expected at least {d + 2 + 3 * count}."
        )
    factor, curvatures, slopes = shared_factor(pieces, min(width, d), monotone=monotone)
    matrices = (factor.mT * curvatures.unsqueeze(1)) @ factor
    gate = fit_gate(replace(pieces, matrices=matrices, values=slopes @ factor), x, g)
    experts = [Quadratic.from_diagonal(c, s, monotone=monotone) for c, s in zip(curvatures, slopes, strict=True)]
    return _assemble(experts, gate, factor, -factor @ pieces.centre, x, trainable=True), gate


def _positive(matrix: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix."""
    if int(torch.linalg.cholesky_ex(matrix).info) == 0:
        return matrix
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0)) @ vectors.mT


def _assemble(
    experts: list[Quadratic], gate: Gate, matrix: Tensor, offset: Tensor, like: Tensor, *, trainable: bool
) -> GradientMap:
    mixture = GradNetMixture(experts, gate.sharpness)
    with torch.no_grad():
        mixture.offset.copy_(gate.offsets)
    return Pullback(mixture, matrix, offset, trainable=trainable).to(like)


def shared_factor(pieces: Pieces, width: int, *, monotone: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    r"""One factor for all pieces: A_k ~ V^T diag(c_k) V and v_k ~ V^T s_k, with d numbers per direction instead of K d.

    With R^T R the square root of the mean of A_k^2, restricted to its ``width`` largest eigenvalues, V = O^T R, where O
    are the eigenvectors of a difference of two of the :math:`R^{-T} A_k R^{-1}`: of the one whose eigenvectors make all
    of them most nearly diagonal. Exact for two pieces at full width, and near where the pieces nearly commute after
    this congruence.

    Args:
        pieces: of them matrices and values.
        width: rows of V, at most d.
        monotone: make c positive.

    Returns:
        V (width, d), c (K, width), s (K, width).
    """
    values, vectors = torch.linalg.eigh(torch.stack([a @ a for a in pieces.matrices]).mean(dim=0))
    scale = values[-width:].clamp(min=1e-24 * float(values[-1])).pow(0.25)
    root, inverse = (vectors[:, -width:] * scale).mT, vectors[:, -width:] / scale
    relative = inverse.mT @ pieces.matrices @ inverse
    pairs = list(itertools.combinations(relative, 2)) or [(relative[0], torch.zeros_like(relative[0]))]
    rotations = (torch.linalg.eigh(a - b).eigenvectors for a, b in pairs)
    rotated = [(rotation, _diagonals(rotation.mT @ relative @ rotation)) for rotation in rotations]
    rotation, curvatures = max(rotated, key=lambda pair: float(pair[1].square().sum()))
    slopes = pieces.values @ inverse @ rotation
    return rotation.mT @ root, curvatures.clamp(min=1e-12) if monotone else curvatures, slopes


def _diagonals(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def fit_gate(pieces: Pieces, x: Tensor, g: Tensor) -> Gate:
    """Offsets and sharpness with which the maximum of the pieces' potentials reproduces the samples best.

    See :func:`~nablanets.pieces.offsets.find_offsets`. The sharpness is the one of least error on a grid, the largest
    where it makes no difference.
    """
    parts = [compare(pieces, a, b) for a, b in zip(x.double().split(_CHUNK), g.double().split(_CHUNK), strict=True)]
    potentials, products = (torch.cat(columns) for columns in zip(*parts, strict=True))
    errors = _diagonals(products)
    offsets = find_offsets(pieces, potentials, errors, x.double())
    scores = potentials + offsets
    unit = 1 / float((scores - scores.mean(dim=1, keepdim=True)).std().clamp(min=1e-30)) if len(pieces) > 1 else 1.0
    tried = [(_soft_error(scores * (t * unit), products), t * unit) for t in _SHARPNESS]
    least = min(error for error, _ in tried)
    same = 1.01 * least + 1e-12 * float(errors.mean())
    sharpness = max(t for error, t in tried if error <= same)
    variance = float((g - g.mean(dim=0)).double().square().sum(dim=1).mean())
    return Gate(offsets, sharpness, least, least / max(variance, 1e-300))


def _soft_error(scores: Tensor, products: Tensor) -> float:
    """Mean ||sum_k p_k f_k - g||^2 with p = softmax(scores)."""
    p = torch.softmax(scores, dim=1)
    return float(torch.einsum("nk,nkl,nl->n", p, products, p).mean())


def count_stored(module: nn.Module) -> int:
    """The numbers a module stores, trained or not."""
    return sum(t.numel() for t in module.state_dict().values())
