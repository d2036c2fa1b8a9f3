"""Offsets of potentials, so that the largest of them is the right one at every sample.

Affine pieces f_k are gradients of quadratic potentials F_k, each up to a constant c_k. The field is the gradient of
max_k (F_k + c_k), so the constants decide where one piece ends and the next begins. The samples say it in part only: a
sample of piece k demands F_k + c_k >= F_l + c_l for all l, which bounds c_l - c_k from one side.

Four candidates are made from closed forms or a linear program, each right in another case. Each is then improved by
coordinate descent on the error of the hard maximum, and the best is taken. (Our choice.)
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from scipy.optimize import linprog
from torch import Tensor

from nablanets.pieces.identify import Pieces

# Sweeps of the coordinate descent over all offsets, at most.
_NUM_SWEEPS = 20
# Pairs of neighbours, for two pieces, between which the potential is asked to be continuous.
_NUM_PAIRS = 5
# Samples among which neighbours are looked for, so that their distances fit into memory.
_NEIGHBOUR_SAMPLES = 2000
# Distances and gaps below this count as this, so that weights stay finite.
_LEAST_GAP = 1e-12
# Ridge of the meeting point, relative: for directions in which no two pieces differ.
_MEETING_RIDGE = 1e-14
# A move must lower the error by more than this share of what no offsets could avoid...
_UNAVOIDABLE_SHARE = 1e-9
# ...and than this share of the changes that it consists of, which is their rounding.
_ROUNDING = 1e-12
_TINY = 1e-300


def compare(pieces: Pieces, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The potentials of the pieces at samples, and the products of their errors.

    Args:
        pieces: K of them.
        x, g: samples, (n, d).

    Returns:
        F_k, zero at the centre, (n, K); <f_k - g, f_l - g> for all pairs of pieces, (n, K, K).
    """
    gradients = pieces.gradients(x)  # (K, n, d)
    # F_k(x) = <(f_k(centre) + f_k(x)) / 2, x - centre>, since f_k is affine.
    middle = (gradients + pieces.values.unsqueeze(1)) / 2
    potentials = (middle * (x - pieces.centre)).sum(dim=2).mT  # (n, K)
    errors = (gradients - g).movedim(0, 1)  # (n, K, d)
    return potentials, errors @ errors.mT


def find_offsets(pieces: Pieces, potentials: Tensor, errors: Tensor, x: Tensor) -> Tensor:
    """Offsets c for which the largest F_k + c_k is that of the piece which explains each sample best.

    Of candidates with the same error, one that the descent did not have to move is taken: it is exact where the pieces
    meet as it assumes, while samples alone determine offsets to about 1 / n.

    Args:
        pieces: K of them.
        potentials: F_k at the samples, (n, K).
        errors: squared errors of the pieces there, (n, K).
        x: samples, (n, d).

    Returns:
        c, (K,).
    """
    labels = errors.argmin(dim=1)
    candidates = (
        _meeting_offsets(pieces),
        _middle_offsets(potentials, labels),
        _widest_margin_offsets(potentials, labels),
        _continuous_offsets(potentials, labels, x),
    )
    ranked = []
    for candidate in candidates:
        offsets = _descend(potentials, errors, candidate)
        moved = not torch.equal(candidate, offsets)
        ranked.append((_hard_error(potentials, errors, offsets), moved, offsets))
    _, _, best = min(ranked, key=lambda entry: entry[:2])
    return best


def _meeting_offsets(pieces: Pieces) -> Tensor:
    """Offsets that make all potentials equal at the point where the pieces' gradients agree best.

    Exact for pieces that meet in a point, as those of homogeneous functions do. The point minimises the sum of
    |f_k - mean f|^2.
    """
    matrices = pieces.matrices - pieces.matrices.mean(dim=0)  # (K, d, d)
    values = pieces.values - pieces.values.mean(dim=0)  # (K, d)
    normal = (matrices @ matrices).sum(dim=0)
    right = torch.einsum("kij,kj->i", matrices, values)
    normal.diagonal().add_(_MEETING_RIDGE * float(normal.diagonal().mean()) + _TINY)
    point = pieces.centre - torch.linalg.solve(normal, right)
    potentials, _ = compare(pieces, point.unsqueeze(0), point.unsqueeze(0))  # (1, K)
    return potentials.mean() - potentials[0]


def _middle_offsets(potentials: Tensor, labels: Tensor) -> Tensor:
    """Offsets whose differences lie in the middle of what the samples of each two pieces allow.

    A sample of piece k asks for c_k - c_l >= F_l - F_k, one of piece l for c_k - c_l <= F_l - F_k. The narrower the gap
    between the two bounds, the more the middle of it weighs.
    """
    equations: list[_Equation] = []
    for k, other in itertools.combinations(range(potentials.shape[1]), 2):
        lead = potentials[:, other] - potentials[:, k]
        samples_of_k = labels == k
        samples_of_other = labels == other
        if not bool(samples_of_k.any()) or not bool(samples_of_other.any()):
            continue
        lowest = lead[samples_of_k].max()
        highest = lead[samples_of_other].min()
        gap = float((highest - lowest).abs())
        equations.append(_Equation(k, other, (highest + lowest) / 2, 1 / max(gap, _LEAST_GAP)))
    return _solve_equations(equations, potentials)


def _widest_margin_offsets(potentials: Tensor, labels: Tensor) -> Tensor:
    """Offsets for which every sample's own F_k + c_k exceeds the others by at least a margin, the widest possible.

    A linear program in (c_1, ..., c_K, margin) with c_1 = 0: maximise the margin, where for all k and l

        c_l - c_k + margin <= F_k - F_l   at the samples of k, that is, their least F_k - F_l.
    """
    count = potentials.shape[1]
    rows = []
    limits = []
    for k, other in itertools.permutations(range(count), 2):
        own = potentials[labels == k]
        if len(own) == 0:
            continue
        row = [0.0] * count + [1.0]
        row[other] = 1.0
        row[k] = -1.0
        rows.append(row)
        limits.append(float((own[:, k] - own[:, other]).min()))
    if not rows:
        return potentials.new_zeros(count)
    largest = max(abs(limit) for limit in limits)  # a bound of the margin, so that the program is bounded
    bounds = [(0.0, 0.0), *[(None, None)] * (count - 1), (None, largest)]
    objective = [0.0] * count + [-1.0]
    solution = linprog(objective, rows, limits, bounds=bounds)
    return potentials.new_tensor(solution.x[:count]) if solution.success else potentials.new_zeros(count)


def _continuous_offsets(potentials: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    """Offsets with F_k + c_k = F_l + c_l between the nearest samples of k and l, near ones weighing more."""
    potentials = potentials[:_NEIGHBOUR_SAMPLES]
    labels = labels[:_NEIGHBOUR_SAMPLES]
    x = x[:_NEIGHBOUR_SAMPLES]
    equations: list[_Equation] = []
    for k, other in itertools.combinations(range(potentials.shape[1]), 2):
        samples_of_k = (labels == k).nonzero().squeeze(1)
        samples_of_other = (labels == other).nonzero().squeeze(1)
        distances = torch.cdist(x[samples_of_k], x[samples_of_other]).flatten()
        nearest = distances.topk(min(_NUM_PAIRS, len(distances)), largest=False)
        width = max(len(samples_of_other), 1)
        first = samples_of_k[nearest.indices // width]
        second = samples_of_other[nearest.indices % width]
        lead = potentials[:, other] - potentials[:, k]
        steps = (lead[first] + lead[second]) / 2  # (pairs,)
        for distance, step in zip(nearest.values.tolist(), steps, strict=True):
            equations.append(_Equation(k, other, step, max(distance, _LEAST_GAP) ** -2))
    return _solve_equations(equations, potentials)


class _Equation(NamedTuple):
    """c_k - c_other = value, with a weight."""

    k: int
    other: int
    value: Tensor
    weight: float


def _solve_equations(equations: list[_Equation], like: Tensor) -> Tensor:
    """The offsets of least norm among those that solve the weighted equations best; zero without equations."""
    count = like.shape[1]
    if not equations:
        return like.new_zeros(count)
    matrix = like.new_zeros(len(equations), count)
    for row, equation in zip(matrix, equations, strict=True):
        row[equation.k] = equation.weight
        row[equation.other] = -equation.weight
    weights = like.new_tensor([equation.weight for equation in equations])
    values = torch.stack([equation.value for equation in equations])
    right = (weights * values).unsqueeze(1)
    return torch.linalg.lstsq(matrix, right, driver="gelsd").solution.squeeze(1)


def _hard_error(potentials: Tensor, errors: Tensor, offsets: Tensor) -> float:
    """Sum over samples of the squared error of the piece whose F_k + c_k is the largest."""
    largest = (potentials + offsets).argmax(dim=1, keepdim=True)
    return float(errors.gather(1, largest).sum())


def _descend(potentials: Tensor, errors: Tensor, offsets: Tensor) -> Tensor:
    """Coordinate descent of the error of the hard maximum, with an exact search along each coordinate."""
    offsets = offsets.clone()
    if len(offsets) == 1:
        return offsets
    for _ in range(_NUM_SWEEPS):
        before = offsets.clone()
        for k in range(len(offsets)):
            offsets[k] = _best_offset(potentials, errors, offsets, k)
        if torch.equal(before, offsets):
            break
    return offsets


def _best_offset(potentials: Tensor, errors: Tensor, offsets: Tensor, k: int) -> Tensor:
    """The offset of piece k that minimises the error while the others stay; the present one if none is better.

    As c_k rises, samples change one after the other from their largest other piece to piece k. The error is constant
    between these thresholds, so sorting them and summing the changes gives its minimum exactly.
    """
    scores = potentials + offsets
    scores[:, k] = -torch.inf
    rival = scores.argmax(dim=1, keepdim=True)
    rival_score = scores.gather(1, rival).squeeze(1)
    rival_error = errors.gather(1, rival).squeeze(1)
    thresholds, order = (rival_score - potentials[:, k]).sort()  # sample i belongs to piece k above threshold i
    changes = (errors[:, k] - rival_error)[order]
    totals = torch.cat([changes.new_zeros(1), changes.cumsum(dim=0)])  # after the first 0, 1, ..., n changes
    present = totals[torch.searchsorted(thresholds, offsets[k])]
    best = int(totals.argmin())
    rounding = _UNAVOIDABLE_SHARE * float(errors.amin(dim=1).sum()) + _ROUNDING * float(changes.abs().sum())
    if float(present - totals[best]) <= rounding:
        return offsets[k]
    below = thresholds[best - 1] if best > 0 else thresholds[0] - 1
    above = thresholds[best] if best < len(thresholds) else thresholds[-1] + 1
    return (below + above) / 2
