"""From identified pieces to one gradient map: the smooth maximum of their potentials, gated as the samples are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.maps import GradientMap, GradNetMixture, Pullback, Quadratic
from nablanets.training.identify import Pieces, identify_pieces

# Sharpnesses that are tried, in units of one over the spread of the potentials' differences.
_SHARPNESS = [10.0 ** (k / 2) for k in range(-2, 17)]
_SWEEPS = 20
_CHUNK = 4096
# Continuity of the potential is asked of so many pairs of samples for two pieces, among the first so many samples.
_PAIRS, _NEIGHBOURS = 5, 2000


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
    >>> net, found, gate = fit_pieces(x, torch.where(x[:, :1] > 0, 3 * x - 1, x), pieces=2)
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

    Samples know offsets only by the side of an edge that they lie on, to about 1 / n. Three starts are tried: offsets
    that make all potentials equal where the pieces' gradients agree best (right for pieces that meet in a point, as
    homogeneous ones do, and then exact), those that separate the samples by the widest margin, and those that make the
    potential continuous between near samples of different pieces. From each, offsets move by exact line search over the
    error of the hard maximum, if that lowers the error, and the best is taken. The sharpness is the one of least error
    on a grid, the largest where it makes no difference.
    """
    parts = [_compare(pieces, a, b) for a, b in zip(x.double().split(_CHUNK), g.double().split(_CHUNK), strict=True)]
    potentials, products = (torch.cat(columns) for columns in zip(*parts, strict=True))
    errors = _diagonals(products)
    labels = errors.argmin(dim=1)
    starts = (
        _meeting_offsets(pieces),
        _widest_margin(potentials, labels),
        _continuous_offsets(potentials, labels, x.double()),
    )
    descents = [_descend_offsets(potentials, errors, start) for start in starts]
    offsets = min(descents, key=lambda c: float(errors.gather(1, (potentials + c).argmax(dim=1, keepdim=True)).sum()))
    scores = potentials + offsets
    unit = 1 / float((scores - scores.mean(dim=1, keepdim=True)).std().clamp(min=1e-30)) if len(pieces) > 1 else 1.0
    tried = [(_soft_error(scores * (t * unit), products), t * unit) for t in _SHARPNESS]
    least = min(error for error, _ in tried)
    same = 1.01 * least + 1e-12 * float(errors.mean())
    sharpness = max(t for error, t in tried if error <= same)
    variance = float((g - g.mean(dim=0)).double().square().sum(dim=1).mean())
    return Gate(offsets, sharpness, least, least / max(variance, 1e-300))


def _compare(pieces: Pieces, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials that vanish at the centre, (n, K), and <f_k - g, f_l - g> for all pairs of pieces, (n, K, K)."""
    values = pieces.gradients(x)
    potentials = ((values + pieces.values.unsqueeze(1)) * (x - pieces.centre)).sum(dim=2).mT / 2
    errors = (values - g).movedim(0, 1)
    return potentials, errors @ errors.mT


def _soft_error(scores: Tensor, products: Tensor) -> float:
    """Mean ||sum_k p_k f_k - g||^2 with p = softmax(scores)."""
    p = torch.softmax(scores, dim=1)
    return float(torch.einsum("nk,nkl,nl->n", p, products, p).mean())


def _meeting_offsets(pieces: Pieces) -> Tensor:
    """Offsets that make the potentials equal at the point where the sum of ||f_k - mean f||^2 is least."""
    spread = pieces.matrices - pieces.matrices.mean(dim=0)
    apart = pieces.values - pieces.values.mean(dim=0)
    normal, right = (spread @ spread).sum(dim=0), torch.einsum("kij,kj->i", spread, apart)
    normal.diagonal().add_(1e-14 * float(normal.diagonal().mean()) + 1e-300)
    point = pieces.centre - torch.linalg.solve(normal, right)
    potentials = _compare(pieces, point.unsqueeze(0), point.unsqueeze(0))[0][0]
    return potentials.mean() - potentials


def _widest_margin(potentials: Tensor, labels: Tensor) -> Tensor:
    """Offsets for which every sample's own F_k + c_k exceeds the others by the most, at worst (a linear program)."""
    count = potentials.shape[1]
    rows, limits = [], []
    for k, other in itertools.permutations(range(count), 2):
        own = potentials[labels == k]
        if len(own):
            # c_other - c_k + margin <= min over the samples of k of F_k - F_other
            rows.append([float(m == other) - float(m == k) for m in range(count)] + [1.0])
            limits.append(float((own[:, k] - own[:, other]).min()))
    if not rows:
        return potentials.new_zeros(count)
    free = [(0.0, 0.0), *[(None, None)] * (count - 1), (None, max(map(abs, limits)))]
    solution = linprog([0.0] * count + [-1.0], rows, limits, bounds=free)
    return potentials.new_tensor(solution.x[:count]) if solution.success else potentials.new_zeros(count)


def _continuous_offsets(potentials: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    """Offsets with F_k + c_k = F_l + c_l between the nearest samples of k and l, by weighted least squares."""
    potentials, labels, x = potentials[:_NEIGHBOURS], labels[:_NEIGHBOURS], x[:_NEIGHBOURS]
    rows, values = [], []
    for k, other in itertools.combinations(range(potentials.shape[1]), 2):
        own, theirs = ((labels == m).nonzero().squeeze(1) for m in (k, other))
        distances = torch.cdist(x[own], x[theirs]).flatten()
        near = distances.topk(min(_PAIRS, len(distances)), largest=False)
        width = max(len(theirs), 1)
        pairs = torch.stack([own[near.indices // width], theirs[near.indices % width]])
        step = (potentials[pairs, other] - potentials[pairs, k]).mean(dim=0)
        row = potentials.new_zeros(len(step), potentials.shape[1])
        row[:, k], row[:, other] = 1.0, -1.0
        weight = near.values.clamp(min=1e-12).square().reciprocal()
        rows.append(row * weight.unsqueeze(1))
        values.append(step * weight)
    if not rows:
        return potentials.new_zeros(potentials.shape[1])
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(values).unsqueeze(1), driver="gelsd").solution.squeeze(1)


def _descend_offsets(potentials: Tensor, errors: Tensor, offsets: Tensor) -> Tensor:
    """Coordinate descent of the mean error of the hard maximum."""
    offsets = offsets.clone()
    for _ in range(_SWEEPS if len(offsets) > 1 else 0):
        before = offsets.clone()
        for k in range(len(offsets)):
            offsets[k] = _best_offset(potentials, errors, offsets, k)
        if torch.equal(before, offsets):
            break
    return offsets


def _best_offset(potentials: Tensor, errors: Tensor, offsets: Tensor, k: int) -> Tensor:
    """The offset of piece k that minimises the error while the others stay; the present one if none is better."""
    scores = potentials + offsets
    scores[:, k] = -torch.inf
    rival = scores.argmax(dim=1, keepdim=True)
    # Sample i belongs to piece k from the offset bends[i] on, and its error then changes by gains[i].
    bends, order = (scores.gather(1, rival).squeeze(1) - potentials[:, k]).sort()
    gains = (errors[:, k] - errors.gather(1, rival).squeeze(1))[order]
    total = torch.cat([gains.new_zeros(1), gains.cumsum(dim=0)])
    present = total[torch.searchsorted(bends, offsets[k])]
    best = int(total.argmin())
    rounding = 1e-9 * float(errors.amin(dim=1).sum()) + 1e-12 * float(gains.abs().sum())
    if float(present - total[best]) <= rounding:
        return offsets[k]
    below = bends[best - 1] if best > 0 else bends[0] - 1
    above = bends[best] if best < len(bends) else bends[-1] + 1
    return (below + above) / 2


def count_stored(module: nn.Module) -> int:
    """The numbers a module stores, trained or not."""
    return sum(t.numel() for t in module.state_dict().values())
