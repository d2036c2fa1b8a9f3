"""Identification of a piecewise affine gradient: which affine pieces there are, and which sample is whose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nablanets.arrays import as_tensor
from nablanets.errors import InvalidInputError, ShapeError, check_finite, check_points, check_positive_int
from nablanets.pieces.clusters import find_clusters
from nablanets.pieces.kplanes import PlaneSearch
from nablanets.pieces.regression import symmetric_regression

# Samples per piece that the search uses at most: this many, and...
_SEARCH_SAMPLES = 200
# ...this many more for each feature, so that every affine fit is overdetermined.
_SEARCH_SAMPLES_PER_FEATURE = 4
# Constant pieces are taken if they leave at most this many times what affine ones leave, which are more flexible.
_CONSTANT_IS_AS_GOOD = 3.0
# A share of the variance that counts as rounding in float64.
_ROUNDING = 1e-12
# Rounds of the final refinement, at most.
_NUM_REFINEMENTS = 10
# Samples that are evaluated at once with all pieces, to bound the memory.
_CHUNK = 4096
_TINY = 1e-300


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
        parts = []
        for x_part, g_part in zip(x.split(_CHUNK), g.split(_CHUNK), strict=True):
            differences = self.gradients(x_part) - g_part  # (K, chunk, d)
            parts.append(differences.square().sum(dim=2).mT)
        return torch.cat(parts)


def identify_pieces(x: Tensor, g: Tensor, pieces: int = 3, *, searches: int = 3, seed: int = 0) -> Pieces:
    r"""The affine pieces of a piecewise affine gradient.

    1. k-planes labels a subset of the samples: it alternates between fitting one affine map to each piece and giving
       each sample to the piece that explains its gradient best, and it removes pieces that are not needed. See
       :mod:`nablanets.pieces.kplanes`.
    2. A symmetric affine map is fitted to the samples of each piece in float64, and all samples are assigned anew,
       until none moves. Pieces with at most d samples get a ridge.
    3. Where the gradients themselves form clusters (subgradients of max-affine functions, norms, steps) that explain
       them nearly as well, the pieces are the means of these: parallel strips and small cells are then no harder than
       others.

    Args:
        x: points, (n, d); n / pieces should exceed d.
        g: gradients there, (n, d).
        pieces: how many to look for; too many are removed, too few show in ``unexplained``.
        searches: descents without gain after which the search ends.
        seed: of the start.

    Raises:
        ShapeError, InvalidInputError: samples that do not match, with NaN, or too few.

    Reference: k-planes by Bradley and Mangasarian, "k-plane clustering", Journal of Global Optimization 16 (2000). The
    rest is our choice.

    >>> x = torch.randn(300, 2)
    >>> found = identify_pieces(x, torch.where(x[:, :1] > 0, 3 * x, x), pieces=2)
    >>> found.unexplained < 1e-12, [round(float(a.trace())) for a in found.matrices.sort(dim=0).values]
    (True, [2, 6])
    """
    x = as_tensor(x, owner="identify_pieces", name="x")
    g = as_tensor(g, owner="identify_pieces", name="g")
    x, g = _checked(x, g, pieces)
    generator = torch.Generator().manual_seed(seed)
    rows = _search_rows(x, pieces, generator)
    search = PlaneSearch(x[rows], g[rows], generator)
    labels = search.run(pieces, searches)
    clusters = find_clusters(search.gradients, pieces, generator)
    x = x.double()
    g = g.double()
    affine = _refine(x, g, rows, labels)
    if clusters is None:
        return affine
    constant = _constant_pieces(x, g, rows, clusters)
    acceptable = _CONSTANT_IS_AS_GOOD * max(affine.unexplained, _ROUNDING)
    return constant if constant.unexplained <= acceptable else affine


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


def _search_rows(x: Tensor, pieces: int, generator: torch.Generator) -> Tensor:
    """The rows of a random subset of the samples, for the search."""
    most = pieces * (_SEARCH_SAMPLES + _SEARCH_SAMPLES_PER_FEATURE * x.shape[1])
    return torch.randperm(len(x), generator=generator)[:most].to(x.device)


def _refine(x: Tensor, g: Tensor, rows: Tensor, labels: Tensor) -> Pieces:
    """Symmetric least squares per piece and reassignment of all samples, until nothing changes.

    Args:
        x, g: all samples, (n, d).
        rows, labels: the samples whose piece is known to begin with, and their pieces, (m,).
    """
    unknown = labels.new_full((len(x),), -1)
    current = unknown.index_put((rows,), labels)
    pieces = _fit_symmetric(x[rows], g[rows], labels)
    for _ in range(_NUM_REFINEMENTS):
        least, nearest = pieces.squared_errors(x, g).min(dim=1)
        if torch.equal(nearest, current):
            break
        current = nearest
        pieces = _fit_symmetric(x, g, nearest)
    return _with_residual(pieces, g, least, current)


def _constant_pieces(x: Tensor, g: Tensor, rows: Tensor, labels: Tensor) -> Pieces:
    """Pieces without slope: the means of clusters of gradients.

    Args:
        x, g: all samples, (n, d).
        rows, labels: the samples that were clustered, and their clusters, (m,).
    """
    features = g.shape[1]
    clustered = g[rows]
    means = [clustered[labels == k].mean(dim=0) for k in range(int(labels.max()) + 1)]
    values = torch.stack(means)
    flat = g.new_zeros(len(values), features, features)
    pieces = Pieces(flat, values, x.mean(dim=0), labels, math.nan, math.nan)
    least, nearest = pieces.squared_errors(x, g).min(dim=1)
    return _with_residual(pieces, g, least, nearest)


def _with_residual(pieces: Pieces, g: Tensor, least: Tensor, labels: Tensor) -> Pieces:
    """The pieces with labels of all samples and with what they leave unexplained."""
    residual = float(least.mean())
    variance = float((g - g.mean(dim=0)).square().sum(dim=1).mean())
    return replace(pieces, labels=labels, residual=residual, unexplained=residual / max(variance, _TINY))


def _fit_symmetric(x: Tensor, g: Tensor, labels: Tensor) -> Pieces:
    """One symmetric affine map per label in use.

    A piece with at most d samples does not determine its map: a ridge pulls it to the affine map of all samples.
    """
    features = x.shape[1]
    centre = x.mean(dim=0)
    y = x - centre
    counts = torch.bincount(labels)
    used = counts.nonzero().squeeze(1).tolist()
    common_matrix = y.new_zeros(features, features)
    common_value = y.new_zeros(features)
    ridge = 0.0
    if int(counts[used].min()) <= features:
        common_matrix, common_value = symmetric_regression(y, g)
        ridge = float(y.square().mean())
        g = g - y @ common_matrix - common_value
    matrices = []
    values = []
    for piece in used:
        own = labels == piece
        scarce = bool(counts[piece] <= features)
        matrix, value = symmetric_regression(y[own], g[own], ridge if scarce else 0.0)
        matrices.append(matrix + common_matrix)
        values.append(value + common_value)
    return Pieces(torch.stack(matrices), torch.stack(values), centre, labels, math.nan, math.nan)
