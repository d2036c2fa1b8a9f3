"""Identification of a piecewise affine gradient from samples: which affine pieces there are, and which sample is whose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError, check_finite, check_points, check_positive_int

# The search looks at so many random combinations of the gradient's components instead of all of them.
_SKETCH = 32
# It uses at most this many samples per piece: so many, and so many per feature.
_FEW, _PER_FEATURE = 200, 4
# Iterations of one descent, and of the final refinement.
_ITERATIONS, _REFINEMENTS = 60, 10
# A fraction of the variance that counts as rounding.
_ROUNDING = 1e-9
# Dropping a piece is tried only if it raises the error by less than this factor.
_MISSED = 4.0


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

    def gradients(self, x: Tensor, k: int) -> Tensor:
        """Piece k at points (n, d)."""
        return (x - self.centre) @ self.matrices[k] + self.values[k]

    def potentials(self, x: Tensor) -> Tensor:
        """Quadratics with these gradients, zero at the centre, at points (n, d): (n, K)."""
        y = x - self.centre
        pairs = zip(self.matrices, self.values, strict=True)
        return torch.stack([((y @ a) * y).sum(dim=1) / 2 + y @ v for a, v in pairs], dim=1)

    def squared_errors(self, x: Tensor, g: Tensor) -> Tensor:
        """||f_k - g||^2 at samples (n, d), (n, K)."""
        errors = [(self.gradients(x, k) - g).square().sum(dim=1) for k in range(len(self))]
        return torch.stack(errors, dim=1)

    def error_products(self, x: Tensor, g: Tensor) -> Tensor:
        """<f_k - g, f_l - g> for all pairs of pieces at samples (n, d), (n, K, K)."""
        errors = [self.gradients(x, k) - g for k in range(len(self))]
        return torch.stack([torch.stack([(a * b).sum(dim=1) for a in errors], dim=1) for b in errors], dim=1)


def identify_pieces(x: Tensor, g: Tensor, pieces: int = 3, *, searches: int = 3, seed: int = 0) -> Pieces:
    r"""The affine pieces of a piecewise affine gradient, by k-planes.

    Alternates "fit one affine map to the samples of each piece" and "give each sample to the piece that explains its
    gradient best". Four things make this work in high dimension with few samples: a sample's error by its own piece is
    that of leaving it out (residual / (1 - leverage)), or else samples would stay where they are; each fit is shrunk to
    the affine map of all samples by the weight of one sample per direction; the search sees 32 random combinations of
    the gradient's components; and as long as a piece is hardly missed, it is dropped and the one that fits worst is
    split. Pieces that the Bayesian information criterion does not want are removed. The end is a least-squares fit of
    symmetric matrices in float64 (with a ridge where a piece has at most d samples).

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
    labels = _Search(x[rows], g[rows], generator).run(pieces, searches)
    x, g = x.double(), g.double()
    start = _fit_symmetric(x[rows], g[rows], labels)
    return _refine(x, g, start)


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


@dataclass(frozen=True)
class _State:
    """Labels and the squared errors (n, K) that they come from; own samples' errors are those of leaving them out."""

    labels: Tensor
    errors: Tensor
    total: float


class _Search:
    """Descents of k-planes in whitened coordinates, in float32."""

    def __init__(self, x: Tensor, g: Tensor, generator: torch.Generator) -> None:
        self.generator = generator
        self.features = x.shape[1]
        z = _whitened(x.double())
        design = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        sketch = g.double()
        if self.features > _SKETCH:
            mix = torch.randn(self.features, _SKETCH, generator=self.generator, dtype=torch.float64).to(g.device)
            sketch = sketch @ mix / _SKETCH**0.5
        sketch = sketch - design @ (design.mT @ sketch / len(x))
        variance = sketch.square().sum(dim=1).mean().clamp(min=torch.finfo(torch.float64).tiny)
        self.design, self.target = design.float(), (sketch / variance.sqrt()).float()

    def run(self, pieces: int, searches: int) -> Tensor:
        """Labels of the best state found."""
        best = self._descend(self._random_labels(len(self.design), pieces), pieces)
        failures = 0
        while pieces > 1 and failures < searches and self._missed(best).min() < _MISSED * best.total:
            state = self._descend(self._moved(best), pieces)
            gained = state.total < 0.999 * best.total
            best, failures = (state, 0) if gained else (best, failures + 1)
        return self._pruned(best).labels

    def _descend(self, labels: Tensor, pieces: int) -> _State:
        state = self._update(labels, pieces)
        for _ in range(_ITERATIONS):
            if torch.equal(state.labels, labels):
                break
            labels = state.labels
            state = self._update(labels, pieces)
        return state

    def _update(self, labels: Tensor, pieces: int) -> _State:
        """Fit all pieces, then assign the samples anew."""
        errors = torch.stack([self._errors(labels == k) for k in range(pieces)], dim=1)
        least, labels = errors.min(dim=1)
        return _State(labels, errors, float(least.mean()))

    def _errors(self, own: Tensor) -> Tensor:
        """Squared errors of the ridge regression on the samples ``own``, at all samples."""
        z = self.design[own]
        normal = z.mT @ z
        normal.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(normal)
        weights = torch.cholesky_solve(z.mT @ self.target[own], factor)
        errors = (self.design @ weights - self.target).square().sum(dim=1)
        leverage = torch.linalg.solve_triangular(factor, z.mT, upper=False).square().sum(dim=0)
        errors[own] /= (1 - leverage).clamp(min=1e-3).square()
        return errors

    def _moved(self, state: _State) -> Tensor:
        """Labels after dropping the piece that is missed least and splitting the one with the largest error."""
        pieces = state.errors.shape[1]
        own = state.errors.gather(1, state.labels.unsqueeze(1)).squeeze(1)
        worst = int(torch.bincount(state.labels, own, pieces).argmax())
        missed = self._missed(state)
        missed[worst] = math.inf
        spare = int(missed.argmin())
        labels = _without(state.errors, spare).argmin(dim=1)
        split = (labels == worst).nonzero().squeeze(1)
        halves = self._random_labels(len(split), 2)
        labels[split[halves == 1]] = spare
        return labels

    def _missed(self, state: _State) -> Tensor:
        """Mean error without each of the pieces, (K,)."""
        pieces = range(state.errors.shape[1])
        return torch.stack([_without(state.errors, k).amin(dim=1).mean() for k in pieces])

    def _pruned(self, state: _State) -> _State:
        """Remove pieces as long as the information criterion falls: n d log(error) + parameters log(n d)."""
        d, n = self.features, len(self.design)
        allowed = math.exp((d + 3) / 2 * math.log(n * d) / n)
        while (pieces := state.errors.shape[1]) > 1:
            missed = self._missed(state)
            spare = int(missed.argmin())
            if float(missed[spare]) > allowed * max(state.total, _ROUNDING):
                break
            kept = [k for k in range(pieces) if k != spare]
            state = self._descend(state.errors[:, kept].argmin(dim=1), pieces - 1)
        return state

    def _random_labels(self, count: int, pieces: int) -> Tensor:
        return torch.randint(pieces, (count,), generator=self.generator).to(self.design.device)


def _without(errors: Tensor, piece: int) -> Tensor:
    """Errors with one piece ruled out."""
    result = errors.clone()
    result[:, piece] = math.inf
    return result


def _whitened(x: Tensor) -> Tensor:
    """Points with zero mean and unit covariance (directions without variance stay zero)."""
    y = x - x.mean(dim=0)
    values, vectors = torch.linalg.eigh(y.mT @ y / len(y))
    floor = values[-1] * 1e-10
    return y @ (vectors * torch.where(values > floor, values, math.inf).rsqrt())


def _refine(x: Tensor, g: Tensor, pieces: Pieces) -> Pieces:
    """Assignment of all samples and symmetric least squares per piece, until nothing changes."""
    least, labels = pieces.squared_errors(x, g).min(dim=1)
    for _ in range(_REFINEMENTS):
        pieces = _fit_symmetric(x, g, labels)
        least, new = pieces.squared_errors(x, g).min(dim=1)
        if torch.equal(new, labels):
            break
        labels = new
    residual = float(least.mean())
    variance = float((g - g.mean(dim=0)).square().sum(dim=1).mean())
    return replace(pieces, labels=labels, residual=residual, unexplained=residual / max(variance, 1e-300))


def _fit_symmetric(x: Tensor, g: Tensor, labels: Tensor) -> Pieces:
    centre = x.mean(dim=0)
    y = x - centre
    matrix, value = _symmetric_regression(y, g, 0.0)
    rest = g - y @ matrix - value
    spread = float(y.square().mean())
    fits = []
    for k in labels.unique().tolist():
        own = labels == k
        few = int(own.sum()) <= x.shape[1]
        fits.append(_symmetric_regression(y[own], rest[own], spread if few else 0.0))
    matrices, values = (torch.stack(parts) for parts in zip(*fits, strict=True))
    return Pieces(matrices + matrix, values + value, centre, labels, math.nan, math.nan)


def _symmetric_regression(y: Tensor, g: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
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
