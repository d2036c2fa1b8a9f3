"""Offsets of potentials, so that their maximum is the right one at every sample."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from scipy.optimize import linprog
from torch import Tensor

from nablanets.pieces.identify import Pieces

_SWEEPS = 20
# Continuity of the potential is asked of so many pairs of samples for two pieces, among the first so many samples.
_PAIRS, _NEIGHBOURS = 5, 2000


def compare(pieces: Pieces, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials that vanish at the centre, (n, K), and <f_k - g, f_l - g> for all pairs of pieces, (n, K, K)."""
    values = pieces.gradients(x)
    potentials = ((values + pieces.values.unsqueeze(1)) * (x - pieces.centre)).sum(dim=2).mT / 2
    errors = (values - g).movedim(0, 1)
    return potentials, errors @ errors.mT


def find_offsets(pieces: Pieces, potentials: Tensor, errors: Tensor, x: Tensor) -> Tensor:
    """Offsets c for which the largest F_k + c_k is that of the piece which explains each sample best.

    Samples know them only by the side of an edge that they lie on, to about 1 / n. Four starts are tried: offsets that
    make all potentials equal where the pieces' gradients agree best (right for pieces that meet in a point, as
    homogeneous ones do, and then exact), those in the middle of what the samples of each two pieces allow, those that
    separate the samples by the widest margin, and those that make the potential continuous between near samples of
    different pieces. From each, offsets move by exact line search over the error of the hard maximum, if that lowers
    the error, and the best is taken; of equals, one that did not have to move.

    Args:
        pieces: K of them.
        potentials: F_k at the samples, (n, K).
        errors: squared errors of the pieces there, (n, K).
        x: samples, (n, d).
    """
    labels = errors.argmin(dim=1)
    starts = (
        _meeting_offsets(pieces),
        _middle_offsets(potentials, labels),
        _widest_margin(potentials, labels),
        _continuous_offsets(potentials, labels, x),
    )
    descents = [(start, _descend_offsets(potentials, errors, start)) for start in starts]
    return min(descents, key=lambda pair: (_hard_error(potentials, errors, pair[1]), not torch.equal(*pair)))[1]


def _meeting_offsets(pieces: Pieces) -> Tensor:
    """Offsets that make the potentials equal at the point where the sum of ||f_k - mean f||^2 is least."""
    spread = pieces.matrices - pieces.matrices.mean(dim=0)
    apart = pieces.values - pieces.values.mean(dim=0)
    normal, right = (spread @ spread).sum(dim=0), torch.einsum("kij,kj->i", spread, apart)
    normal.diagonal().add_(1e-14 * float(normal.diagonal().mean()) + 1e-300)
    point = pieces.centre - torch.linalg.solve(normal, right)
    potentials = compare(pieces, point.unsqueeze(0), point.unsqueeze(0))[0][0]
    return potentials.mean() - potentials


def _middle_offsets(potentials: Tensor, labels: Tensor) -> Tensor:
    """Differences of offsets in the middle of what the samples of both pieces allow, by weighted least squares."""
    equations: list[_Equation] = []
    for k, other in itertools.combinations(range(potentials.shape[1]), 2):
        lead, own, theirs = potentials[:, other] - potentials[:, k], labels == k, labels == other
        if bool(own.any()) and bool(theirs.any()):
            high, low = lead[theirs].min(), lead[own].max()
            equations.append(_Equation(k, other, (high + low) / 2, 1 / max(float((high - low).abs()), 1e-12)))
    return _solve(equations, potentials)


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
    equations: list[_Equation] = []
    for k, other in itertools.combinations(range(potentials.shape[1]), 2):
        own, theirs = ((labels == m).nonzero().squeeze(1) for m in (k, other))
        distances = torch.cdist(x[own], x[theirs]).flatten()
        near = distances.topk(min(_PAIRS, len(distances)), largest=False)
        width = max(len(theirs), 1)
        pairs = torch.stack([own[near.indices // width], theirs[near.indices % width]])
        step = (potentials[pairs, other] - potentials[pairs, k]).mean(dim=0)
        for distance, value in zip(near.values.tolist(), step, strict=True):
            equations.append(_Equation(k, other, value, max(distance, 1e-12) ** -2))
    return _solve(equations, potentials)


class _Equation(NamedTuple):
    """c_k - c_l = value, with a weight."""

    k: int
    other: int
    value: Tensor
    weight: float


def _solve(equations: list[_Equation], like: Tensor) -> Tensor:
    """The smallest offsets that solve the equations best; zero without equations."""
    if not equations:
        return like.new_zeros(like.shape[1])
    weight = like.new_tensor([equation.weight for equation in equations])
    identity = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    rows = identity[[e.k for e in equations]] - identity[[e.other for e in equations]]
    values = torch.stack([equation.value for equation in equations])
    solution = torch.linalg.lstsq(rows * weight.unsqueeze(1), (values * weight).unsqueeze(1), driver="gelsd").solution
    return solution.squeeze(1)


def _hard_error(potentials: Tensor, errors: Tensor, offsets: Tensor) -> float:
    """Sum of the errors of the pieces that are the largest."""
    return float(errors.gather(1, (potentials + offsets).argmax(dim=1, keepdim=True)).sum())


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
