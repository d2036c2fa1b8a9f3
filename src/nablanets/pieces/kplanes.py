"""k-planes: clusters of samples, each of which one affine map explains.

k-means alternates between fitting a point to every cluster and giving every sample to the nearest point. k-planes
(Bradley and Mangasarian, 2000) has planes for points. Here the planes are graphs of affine maps from x to the gradient
g, as in the fitting of max-affine functions (Magnani and Boyd, 2009):

    repeat
        fit an affine map to the samples of each piece
        give each sample to the piece whose map has the least squared error there
    until no sample moves

Such a descent ends in a local minimum. What is added to the plain method:

- **Leave one out.** A fit with about as many samples as unknowns passes through its own samples, so none would ever
  leave. The error of a sample by its own piece is therefore that of the fit without the sample, which linear regression
  gives for free: residual / (1 - leverage).
- **Ridge.** Each fit is pulled to the affine map of all samples, with the weight of one sample per direction.
- **Sketch.** The search looks at 32 random combinations of the gradient's components; errors keep their proportions
  (Johnson and Lindenstrauss, 1984), and each step costs d / 32 times less.
- **Drop and split.** As long as some piece is hardly missed, it is dropped, the piece with the largest error is split
  in two at random, and the descent starts again from there.
- **Neighbourhoods.** In low dimension, affine fits to the neighbourhoods of random samples are a second start.
- **Pruning.** At the end, pieces that the Bayesian information criterion (Schwarz, 1978) does not want are removed.

References:
    Bradley and Mangasarian, "k-plane clustering", Journal of Global Optimization 16 (2000).
    Magnani and Boyd, "Convex piecewise-linear fitting", Optimization and Engineering 10 (2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Components of the sketched gradient.
_SKETCH_FEATURES = 32
# Iterations of one descent, at most; most end by themselves after ten to thirty.
_NUM_ITERATIONS = 60
# Weight of the ridge: that of one sample per direction.
_RIDGE = 1.0
# Leverages are taken as at most one minus this, so that the error without a sample stays finite.
_LEAST_FREEDOM = 1e-3
# Mean errors below this share of the variance are rounding (the search runs in float32).
_ROUNDING = 1e-9
# Dropping a piece is tried only if it raises the mean error by less than this factor.
_HARDLY_MISSED = 4.0
# A descent has gained something if it lowers the mean error to less than this part.
_GAIN = 0.999
# Up to this dimension neighbourhoods of samples are a start; beyond, none is full of samples of one piece.
_LOCAL_FEATURES = 8
# Neighbourhoods to choose from.
_NUM_NEIGHBOURHOODS = 200
# Samples in a neighbourhood, for each unknown of an affine map: so many that chance does not make a good fit.
_SAMPLES_PER_UNKNOWN = 3
# Ridge of fits to neighbourhoods, which are small: their normal matrices must only be invertible.
_LOCAL_RIDGE = 1e-4
# Whitening leaves directions alone whose variance is below this share of the largest.
_NO_VARIANCE = 1e-10


@dataclass(frozen=True)
class Partition:
    """Which sample belongs to which piece, and the errors that say so.

    Attributes:
        labels: the piece of each sample, (n,): the one with the least error.
        errors: squared errors of all pieces at all samples, (n, K). Of the samples that a piece was fitted to, they are
            those of the fit without the sample.
        mean_error: mean over samples of the least error, relative to the variance.
    """

    labels: Tensor
    errors: Tensor
    mean_error: float

    @property
    def num_pieces(self) -> int:
        return self.errors.shape[1]

    def errors_without(self, piece: int) -> Tensor:
        """The errors with one piece ruled out, (n, K)."""
        errors = self.errors.clone()
        errors[:, piece] = math.inf
        return errors

    def mean_errors_without(self) -> Tensor:
        """The mean error if a piece were dropped and its samples given to the others, for each piece, (K,)."""
        means = [self.errors_without(piece).amin(dim=1).mean() for piece in range(self.num_pieces)]
        return torch.stack(means)

    def drop(self, piece: int) -> Tensor:
        """Labels after one piece is dropped and those behind it move up, (n,)."""
        kept = [k for k in range(self.num_pieces) if k != piece]
        return self.errors[:, kept].argmin(dim=1)


class PlaneSearch:
    """The search for affine pieces in whitened coordinates, in float32.

    Args:
        x, g: points and gradients there, (n, d).
        generator: of the sketch and of random labels.

    Attributes:
        gradients: the sketched gradients, (n, s), float64.
        design: whitened points with a one behind them, (n, d + 1).
        target: what the affine map of all samples leaves of the sketched gradients, with unit variance, (n, s).
    """

    def __init__(self, x: Tensor, g: Tensor, generator: torch.Generator) -> None:
        self.generator = generator
        self.features = x.shape[1]
        whitened = _whiten(x.double())
        ones = torch.ones_like(whitened[:, :1])
        design = torch.cat([whitened, ones], dim=1)  # (n, d + 1)
        self.gradients = self._sketch(g.double())
        # The columns of the design are orthogonal with mean square one, so this is the regression on them.
        coefficients = design.mT @ self.gradients / len(x)  # (d + 1, s)
        residual = self.gradients - design @ coefficients
        variance = residual.square().sum(dim=1).mean().clamp(min=torch.finfo(torch.float64).tiny)
        self.design = design.float()
        self.target = (residual / variance.sqrt()).float()

    def run(self, num_pieces: int, patience: int) -> Tensor:
        """Labels of the best partition found, (n,).

        Args:
            num_pieces: of the search; fewer may be left.
            patience: descents without gain after which the search ends.
        """
        best = self._descend(self._random_labels(len(self.design), num_pieces), num_pieces)
        if num_pieces == 1:
            return best.labels
        if self.features <= _LOCAL_FEATURES:
            other = self._descend(self._neighbourhood_labels(num_pieces), num_pieces)
            if other.mean_error < best.mean_error:
                best = other
        failures = 0
        while failures < patience and bool(best.mean_errors_without().min() < _HARDLY_MISSED * best.mean_error):
            moved = self._descend(self._drop_and_split(best), num_pieces)
            if moved.mean_error < _GAIN * best.mean_error:
                best = moved
                failures = 0
            else:
                failures += 1
        return self._prune(best).labels

    def _descend(self, labels: Tensor, num_pieces: int) -> Partition:
        """Alternate between fits and assignments until no sample moves."""
        partition = self._update(labels, num_pieces)
        for _ in range(_NUM_ITERATIONS):
            if torch.equal(partition.labels, labels):
                break
            labels = partition.labels
            partition = self._update(labels, num_pieces)
        return partition

    def _update(self, labels: Tensor, num_pieces: int) -> Partition:
        """Fit all pieces to the samples with their labels, then give each sample to the best fit."""
        columns = [self._fit_errors(labels == piece) for piece in range(num_pieces)]
        errors = torch.stack(columns, dim=1)
        least, new_labels = errors.min(dim=1)
        return Partition(new_labels, errors, float(least.mean()))

    def _fit_errors(self, own: Tensor) -> Tensor:
        """Squared errors at all samples of the ridge regression on some of them; at these, without the sample, (n,)."""
        design = self.design[own]
        normal = design.mT @ design
        normal.diagonal().add_(_RIDGE)
        factor = torch.linalg.cholesky(normal)
        coefficients = torch.cholesky_solve(design.mT @ self.target[own], factor)  # (d + 1, s)
        errors = (self.design @ coefficients - self.target).square().sum(dim=1)
        # Leverage of a sample z: z^T (Z^T Z + ridge)^{-1} z.
        half = torch.linalg.solve_triangular(factor, design.mT, upper=False)
        leverage = half.square().sum(dim=0)
        freedom = (1 - leverage).clamp(min=_LEAST_FREEDOM)
        errors[own] /= freedom.square()
        return errors

    def _drop_and_split(self, partition: Partition) -> Tensor:
        """Labels after dropping the piece that is missed least and splitting the one with the largest total error."""
        own_errors = partition.errors.gather(1, partition.labels.unsqueeze(1)).squeeze(1)  # (n,)
        totals = torch.bincount(partition.labels, own_errors, partition.num_pieces)
        worst = int(totals.argmax())
        missed = partition.mean_errors_without()
        missed[worst] = math.inf
        spare = int(missed.argmin())
        labels = partition.errors_without(spare).argmin(dim=1)
        members = (labels == worst).nonzero().squeeze(1)
        halves = self._random_labels(len(members), 2)
        labels[members[halves == 1]] = spare
        return labels

    def _prune(self, partition: Partition) -> Partition:
        """Remove pieces as long as the information criterion n d log(mean error) + unknowns log(n d) falls.

        A symmetric affine map has d (d + 3) / 2 unknowns, so a piece may go if that raises the mean error by less than
        the factor exp((d + 3) / 2 log(n d) / n).
        """
        d = self.features
        n = len(self.design)
        allowed = math.exp((d + 3) / 2 * math.log(n * d) / n)
        while partition.num_pieces > 1:
            missed = partition.mean_errors_without()
            spare = int(missed.argmin())
            if float(missed[spare]) > allowed * max(partition.mean_error, _ROUNDING):
                break
            partition = self._descend(partition.drop(spare), partition.num_pieces - 1)
        return partition

    def _neighbourhood_labels(self, num_pieces: int) -> Tensor:
        """Labels by the affine fits to neighbourhoods of samples that explain all samples best together, (n,).

        The fits are chosen one after the other, each as the one that lowers the total error most.
        """
        order = torch.randperm(len(self.design), generator=self.generator)
        centres = order[:_NUM_NEIGHBOURHOODS].to(self.design.device)
        size = min(_SAMPLES_PER_UNKNOWN * (self.features + 1), len(self.design))
        distances = torch.cdist(self.design[centres], self.design)  # (neighbourhoods, n)
        nearest = distances.topk(size, largest=False).indices  # (neighbourhoods, size)
        design = self.design[nearest]
        normal = design.mT @ design
        normal.diagonal(dim1=1, dim2=2).add_(_LOCAL_RIDGE)
        coefficients = torch.linalg.solve(normal, design.mT @ self.target[nearest])  # (neighbourhoods, d + 1, s)
        errors = torch.stack([(self.design @ c - self.target).square().sum(dim=1) for c in coefficients])
        least = self.target.square().sum(dim=1)  # that of the affine map of all samples, (n,)
        chosen: list[int] = []
        for _ in range(num_pieces):
            totals = torch.minimum(errors, least).sum(dim=1)
            best = int(totals.argmin())
            chosen.append(best)
            least = torch.minimum(errors[best], least)
        return errors[chosen].argmin(dim=0)

    def _random_labels(self, count: int, num_pieces: int) -> Tensor:
        return torch.randint(num_pieces, (count,), generator=self.generator).to(self.design.device)

    def _sketch(self, g: Tensor) -> Tensor:
        """Random combinations of the gradient's components where it has more than that, (n, s)."""
        if self.features <= _SKETCH_FEATURES:
            return g
        mix = torch.randn(self.features, _SKETCH_FEATURES, generator=self.generator, dtype=torch.float64)
        return g @ mix.to(g.device) / _SKETCH_FEATURES**0.5


def _whiten(x: Tensor) -> Tensor:
    """Points (n, d) with zero mean and unit covariance; directions without variance become zero."""
    centred = x - x.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.mT @ centred / len(centred))
    floor = values[-1] * _NO_VARIANCE
    scale = torch.where(values > floor, values, math.inf).rsqrt()
    return centred @ (vectors * scale)
