"""From identified pieces to one gradient map: the smooth maximum of their potentials, gated as the samples are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.errors import InvalidInputError
from nablanets.maps import GradientMap, GradNetMixture, Pullback, Quadratic
from nablanets.pieces.identify import Pieces, identify_pieces
from nablanets.pieces.offsets import compare, find_offsets

# Sharpnesses that are tried, in units of one over the spread of the potentials' differences: 0.1, 0.32, ..., 1e8.
_SHARPNESSES = [10.0 ** (k / 2) for k in range(-2, 17)]
# Sharpnesses with errors within this factor of the least are as good, and the largest of them is taken.
_AS_GOOD = 1.01
# Errors below this share of the pieces' mean error are rounding.
_ROUNDING = 1e-12
# Samples that are evaluated at once with all pieces, to bound the memory.
_CHUNK = 4096
# Eigenvalues of the shared factor's square are raised to this share of the largest, so that it can be inverted.
_LEAST_EIGENVALUE = 1e-24
# The least curvature of a monotone piece along a direction of the shared factor.
_LEAST_CURVATURE = 1e-12
_TINY = 1e-300


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
    x = as_tensor(x, owner="fit_pieces", name="x")
    g = as_tensor(g, owner="fit_pieces", name="g")
    found = identify_pieces(x, g, pieces, seed=seed)
    net, gate = mixture_from_pieces(found, x, g, parameters=parameters, monotone=monotone)
    if pieces == 1:
        return net, found, gate
    affine = identify_pieces(x, g, 1, seed=seed)
    affine_net, affine_gate = mixture_from_pieces(affine, x, g, parameters=parameters, monotone=monotone)
    if affine_gate.error < gate.error:
        return affine_net, affine, affine_gate
    return net, found, gate


def mixture_from_pieces(
    pieces: Pieces, x: Tensor, g: Tensor, *, parameters: int | None = None, monotone: bool = True
) -> tuple[GradientMap, Gate]:
    """A :class:`GradNetMixture` of quadratics (pulled back to the centre of the pieces), gated as the samples are.

    Where monotone, negative eigenvalues of the pieces are set to zero before anything else.

    Args: see :func:`fit_pieces`.

    Raises:
        InvalidInputError: the limit of parameters is too low for even one shared direction.
    """
    if monotone:
        projected = [_nearest_semidefinite(matrix) for matrix in pieces.matrices]
        pieces = replace(pieces, matrices=torch.stack(projected))
    if parameters is None or _stored_by_full_matrices(pieces) <= parameters:
        return _mixture_of_full_matrices(pieces, x, g, monotone=monotone)
    return _mixture_with_shared_factor(pieces, x, g, parameters, monotone=monotone)


def _stored_by_full_matrices(pieces: Pieces) -> int:
    """Per piece a matrix, two vectors and an offset; in common two vectors and the sharpness."""
    count, d = pieces.values.shape
    return count * (d * d + 2 * d + 1) + 2 * d + 1


def _mixture_of_full_matrices(pieces: Pieces, x: Tensor, g: Tensor, *, monotone: bool) -> tuple[GradientMap, Gate]:
    gate = fit_gate(pieces, x, g)
    experts = []
    for matrix, value in zip(pieces.matrices, pieces.values, strict=True):
        experts.append(Quadratic.from_matrix(matrix, value, monotone=monotone))
    ones = torch.ones_like(pieces.centre)
    return _assemble(experts, gate, ones, -pieces.centre, x, trainable=False), gate


def _mixture_with_shared_factor(
    pieces: Pieces, x: Tensor, g: Tensor, parameters: int, *, monotone: bool
) -> tuple[GradientMap, Gate]:
    """f_k = V^T (c_k V (x - centre) + s_k) with as many rows of V as the limit of parameters allows."""
    count, d = pieces.values.shape
    width = (parameters - count - 1) // (d + 1 + 2 * count)
    if width < 1:
        raise InvalidInputError(
            f"mixture_from_pieces: {parameters} parameters are too few for {count} pieces in {d} dimensions; "
            f"expected at least {d + 2 + 3 * count}."
        )
    factor, curvatures, slopes = shared_factor(pieces, min(width, d), monotone=monotone)
    matrices = (factor.mT * curvatures.unsqueeze(1)) @ factor  # (K, d, d)
    approximate = replace(pieces, matrices=matrices, values=slopes @ factor)
    gate = fit_gate(approximate, x, g)
    experts = []
    for curvature, slope in zip(curvatures, slopes, strict=True):
        experts.append(Quadratic.from_diagonal(curvature, slope, monotone=monotone))
    return _assemble(experts, gate, factor, -factor @ pieces.centre, x, trainable=True), gate


def _nearest_semidefinite(matrix: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix in the Frobenius norm (Higham, 1988)."""
    _, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0:
        return matrix
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0)) @ vectors.mT


def _assemble(
    experts: list[Quadratic], gate: Gate, matrix: Tensor, offset: Tensor, like: Tensor, *, trainable: bool
) -> GradientMap:
    """The gated mixture of experts, pulled back by x -> matrix x + offset."""
    mixture = GradNetMixture(experts, gate.sharpness)
    with torch.no_grad():
        mixture.offset.copy_(gate.offsets)
    return Pullback(mixture, matrix, offset, trainable=trainable).to(like)


def shared_factor(pieces: Pieces, width: int, *, monotone: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    r"""One factor for all pieces: A_k ~ V^T diag(c_k) V and v_k ~ V^T s_k, with d numbers per direction instead of K d.

    1. R^T R is the square root of the mean of A_k^2, restricted to its ``width`` largest eigenvalues: the size that
       the pieces have on average.
    2. Relative to it the pieces are :math:`B_k = R^{-T} A_k R^{-1}`. The eigenvectors O of a difference of two of them
       make both nearly diagonal; of all pairs, the one whose O makes all B_k most nearly diagonal is taken.
    3. V = O^T R, and c_k is the diagonal of O^T B_k O.

    Exact for two pieces at full width, and near where the pieces nearly commute after this congruence. (Our choice; a
    joint diagonalisation without iteration.)

    Args:
        pieces: of them matrices and values.
        width: rows of V, at most d.
        monotone: make c positive.

    Returns:
        V (width, d), c (K, width), s (K, width).
    """
    squares = torch.stack([matrix @ matrix for matrix in pieces.matrices])
    values, vectors = torch.linalg.eigh(squares.mean(dim=0))
    largest = vectors[:, -width:]  # (d, width)
    floor = _LEAST_EIGENVALUE * float(values[-1])
    scale = values[-width:].clamp(min=floor).pow(0.25)
    root = (largest * scale).mT  # R, (width, d)
    inverse = largest / scale  # R^{-1}, (d, width)
    relative = inverse.mT @ pieces.matrices @ inverse  # B, (K, width, width)
    rotation, curvatures = _most_diagonal(relative)
    slopes = pieces.values @ inverse @ rotation
    if monotone:
        curvatures = curvatures.clamp(min=_LEAST_CURVATURE)
    return rotation.mT @ root, curvatures, slopes


def _most_diagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation that makes matrices most nearly diagonal, of the eigenvectors of their differences; and diagonals.

    Args:
        matrices: B, symmetric, (K, w, w).

    Returns:
        O, (w, w), and the diagonals of O^T B_k O, (K, w).
    """
    differences = [first - second for first, second in itertools.combinations(matrices, 2)]
    if not differences:
        differences = [matrices[0]]
    candidates = []
    for difference in differences:
        rotation = torch.linalg.eigh(difference).eigenvectors
        diagonals = (rotation.mT @ matrices @ rotation).diagonal(dim1=-2, dim2=-1)
        candidates.append((rotation, diagonals))
    # The Frobenius norm does not change under rotation, so the largest diagonals leave the least beside them.
    return max(candidates, key=lambda candidate: float(candidate[1].square().sum()))


def fit_gate(pieces: Pieces, x: Tensor, g: Tensor) -> Gate:
    """Offsets and sharpness with which the maximum of the pieces' potentials reproduces the samples best.

    The offsets are those of the hard maximum, see :mod:`nablanets.pieces.offsets`. The sharpness is the one of least
    error on a grid, the largest where it makes no difference.
    """
    x = x.double()
    potentials, products = _compare_in_chunks(pieces, x, g.double())
    errors = products.diagonal(dim1=-2, dim2=-1)  # (n, K)
    offsets = find_offsets(pieces, potentials, errors, x)
    scores = potentials + offsets
    unit = 1.0
    if len(pieces) > 1:
        spread = (scores - scores.mean(dim=1, keepdim=True)).std()
        unit = 1 / float(spread.clamp(min=1e-30))
    tried = []
    for factor in _SHARPNESSES:
        sharpness = factor * unit
        tried.append((sharpness, _soft_error(scores * sharpness, products)))
    least = min(error for _, error in tried)
    acceptable = _AS_GOOD * least + _ROUNDING * float(errors.mean())
    sharpest = max(sharpness for sharpness, error in tried if error <= acceptable)
    variance = float((g - g.mean(dim=0)).double().square().sum(dim=1).mean())
    return Gate(offsets, sharpest, least, least / max(variance, _TINY))


def _compare_in_chunks(pieces: Pieces, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials (n, K) and products of errors (n, K, K), see :func:`~nablanets.pieces.offsets.compare`."""
    potentials = []
    products = []
    for x_part, g_part in zip(x.split(_CHUNK), g.split(_CHUNK), strict=True):
        part = compare(pieces, x_part, g_part)
        potentials.append(part[0])
        products.append(part[1])
    return torch.cat(potentials), torch.cat(products)


def _soft_error(scores: Tensor, products: Tensor) -> float:
    """Mean ||sum_k p_k f_k - g||^2 with p = softmax(scores)."""
    p = torch.softmax(scores, dim=1)
    return float(torch.einsum("nk,nkl,nl->n", p, products, p).mean())


def count_stored(module: nn.Module) -> int:
    """The numbers a module stores, trained or not."""
    return sum(t.numel() for t in module.state_dict().values())
