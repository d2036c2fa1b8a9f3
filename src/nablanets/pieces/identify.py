"""Identification of a piecewise affine gradient: which affine pieces there are, and which sample is whose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError, check_finite, check_points, check_positive_int
from nablanets.pieces.kplanes import PlaneSearch

# The search uses at most this many samples per piece: so many, and so many per feature.
_FEW, _PER_FEATURE = 200, 4
# Constant pieces are taken if they leave at most so many times what affine ones do, or what counts as rounding.
_CONSTANT, _ROUNDING = 3.0, 1e-12
# Rounds of the final refinement.
_REFINEMENTS = 10
# Samples that are evaluated at once, with all pieces.
_CHUNK = 4096


@dataclass(frozen=True)
class Pieces:
    """Affine pieces A_k (x - centre) + v_k with symmetric A_k.

    Attributes:
        matrices: A, (K, d, d), float64.
        values: v, the pieces' values at the centre, (K, d).
        centre: (d,).
        labels: the piece of each sample, (n,).
        residual: mean ||A_k (x - centre) + v_k - g||^2 over the samples.
        unexplained: residual over the variance of g: near one if affine pieces do not describe the field, at the level
            of the noise if they do; large values with few pieces call for more.
    """

    matrices: Tensor
    values: Tensor
    centre: Tensor
    labels: Tensor
    residual: float
    unexplained: float

    def __len__(self) -> int:
        return len(self.values)

    def gradients(self, x: Tensor) -> Tensor:
        """The pieces at points (n, d), (K, n, d)."""
        return (x - self.centre) @ self.matrices + self.values.unsqueeze(1)

    def squared_errors(self, x: Tensor, g: Tensor) -> Tensor:
        """||f_k - g||^2 at samples (n, d), (n, K)."""
        parts = zip(x.split(_CHUNK), g.split(_CHUNK), strict=True)
        return torch.cat([(self.gradients(a) - b).square().sum(dim=2).mT for a, b in parts])


def identify_pieces(x: Tensor, g: Tensor, pieces: int = 3, *, searches: int = 3, seed: int = 0) -> Pieces:
    r"""The affine pieces of a piecewise affine gradient, by k-planes.

    Alternates "fit one affine map to the samples of each piece" and "give each sample to the piece that explains its
    gradient best". Four things make this work in high dimension with few samples: a sample's error by its own piece is
    that of leaving it out (residual / (1 - leverage)), or else samples would stay where they are; each fit is shrunk to
    the affine map of all samples by the weight of one sample per direction; the search sees 32 random combinations of
    the gradient's components; and as long as a piece is hardly missed, it is dropped and the one that fits worst is
    split. Pieces that the Bayesian information criterion does not want are removed. In up to eight dimensions the best
    of 200 affine fits to neighbourhoods are a second start. The end is a least-squares fit of symmetric matrices in
    float64 (with a ridge where a piece has at most d samples).

    Where the gradients themselves form clusters (subgradients of max-affine functions, norms, steps) that explain them
    nearly as well, the pieces are the means of these: parallel strips and small cells are then no harder than others.

    Args:
        x: points, (n, d); n / pieces should exceed d.
        g: gradients there, (n, d).
        pieces: how many to look for; too many are removed, too few show in ``unexplained``.
        searches: descents without gain after which the search ends.
        seed: of the start.

    Raises:
        ShapeError, InvalidInputError: samples that do not match, with NaN, or too few.

    >>> x = torch.randn(300, 2)
    >>> found = identify_pieces(x, torch.where(x[:, :1] > 0, 3 * x, x), pieces=2)
    >>> found.unexplained < 1e-12, [round(float(a.trace())) for a in found.matrices.sort(dim=0).values]
    (True, [2, 6])
    """
    x, g = _checked(x, g, pieces)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=generator)[: pieces * (_FEW + _PER_FEATURE * x.shape[1])].to(x.device)
    search = PlaneSearch(x[rows], g[rows], generator)
    labels, clusters = search.run(pieces, searches), search.clusters(pieces)
    x, g = x.double(), g.double()
    affine = _refine(x, g, rows, labels)
    if clusters is None:
        return affine
    constant = _constant(x, g, rows, clusters)
    return constant if constant.unexplained <= _CONSTANT * max(affine.unexplained, _ROUNDING) else affine


def _checked(x: Tensor, g: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
    check_positive_int(pieces, owner="identify_pieces", name="pieces")
    for name, value in (("x", x), ("g", g)):
        check_points(value, x.shape[-1] if x.ndim else 1, owner="identify_pieces", name=name)
        check_finite(value, owner="identify_pieces", name=name)
    if x.ndim != 2 or x.shape != g.shape:
        raise ShapeError(
            f"identify_pieces: expected x and g of one shape (n, d), got {tuple(x.shape)} and {tuple(g.shape)}."
        )
    if len(x) < 2 * pieces:
        raise InvalidInputError(f"identify_pieces: {len(x)} samples are too few for {pieces} pieces.")
    return x.detach(), g.detach()


def _refine(x: Tensor, g: Tensor, rows: Tensor, labels: Tensor) -> Pieces:
    """Symmetric least squares per piece, from labels of some rows, and reassignment until nothing changes."""
    known = labels.new_full((len(x),), -1).index_put((rows,), labels)
    pieces = _fit_symmetric(x[rows], g[rows], labels)
    for _ in range(_REFINEMENTS):
        least, new = pieces.squared_errors(x, g).min(dim=1)
        if torch.equal(new, known):
            break
        known, pieces = new, _fit_symmetric(x, g, new)
    return _judged(pieces, g, least, known)


def _constant(x: Tensor, g: Tensor, rows: Tensor, labels: Tensor) -> Pieces:
    """Pieces without slope: the means of clusters of gradients."""
    masks = [labels == k for k in range(int(labels.max()) + 1)]
    values = torch.stack([g[rows][mask].mean(dim=0) for mask in masks])
    pieces = Pieces(g.new_zeros(len(values), *(2 * g.shape[1:])), values, x.mean(dim=0), labels, math.nan, math.nan)
    return _judged(pieces, g, *pieces.squared_errors(x, g).min(dim=1))


def _judged(pieces: Pieces, g: Tensor, least: Tensor, labels: Tensor) -> Pieces:
    """The pieces with labels and what they leave unexplained."""
    residual = float(least.mean())
    variance = float((g - g.mean(dim=0)).square().sum(dim=1).mean())
    return replace(pieces, labels=labels, residual=residual, unexplained=residual / max(variance, 1e-300))


def _fit_symmetric(x: Tensor, g: Tensor, labels: Tensor) -> Pieces:
    """One symmetric affine map per label in use; the ridge of small pieces pulls them to the map of all samples."""
    centre = x.mean(dim=0)
    y, count = x - centre, torch.bincount(labels)
    matrix, value, ridge = y.new_zeros(x.shape[1], x.shape[1]), y.new_zeros(x.shape[1]), 0.0
    if int(count[count > 0].min()) <= x.shape[1]:
        (matrix, value), ridge = symmetric_regression(y, g), float(y.square().mean())
        g = g - y @ matrix - value
    used = count.nonzero().squeeze(1).tolist()
    ridges = [ridge if count[k] <= x.shape[1] else 0.0 for k in used]
    fits = [symmetric_regression(y[labels == k], g[labels == k], r) for k, r in zip(used, ridges, strict=True)]
    matrices, values = (torch.stack(parts) for parts in zip(*fits, strict=True))
    return Pieces(matrices + matrix, values + value, centre, labels, math.nan, math.nan)


def symmetric_regression(y: Tensor, g: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """The symmetric A and v that minimise sum ||A y + v - g||^2 + ridge ||A||^2.

    They solve A S + S A = C + C^T with S = Y^T Y + ridge I and C = Y^T G.
    """
    mean, middle = y.mean(dim=0), g.mean(dim=0)
    y, g = y - mean, g - middle
    values, vectors = torch.linalg.eigh(y.mT @ y)
    right = vectors.mT @ (y.mT @ g) @ vectors
    # At the level of rounding there is always a ridge, for directions that the samples do not reach.
    values = values.clamp(min=0) + max(ridge, 1e-13 * float(values[-1]), 1e-300)
    matrix = vectors @ ((right + right.mT) / (values + values.unsqueeze(1))) @ vectors.mT
    matrix = (matrix + matrix.mT) / 2
    return matrix, middle - matrix @ mean
