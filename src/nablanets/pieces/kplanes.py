"""k-planes: alternating affine fits per cluster and assignment to the fit with the least error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The search looks at so many random combinations of the gradient's components instead of all of them.
_SKETCH = 32
# Iterations of one descent.
_ITERATIONS = 60
# A fraction of the variance that counts as rounding.
_ROUNDING = 1e-9
# k-means is run so many times, counts where it leaves less than this fraction of the gradients' variance, and a further
# cluster is worth it where it leaves less than this part of what noise would.
_CLUSTERINGS, _CLUSTERED, _WORTH = 10, 0.1, 0.9
# In so few dimensions neighbourhoods of samples are a start, those of so many of them.
_LOCAL_FEATURES, _ANCHORS = 8, 200
# Dropping a piece is tried only if it raises the error by less than this factor.
_MISSED = 4.0


@dataclass(frozen=True)
class State:
    """Labels and the squared errors (n, K) that they come from; own samples' errors are those of leaving them out."""

    labels: Tensor
    errors: Tensor
    total: float


class PlaneSearch:
    """Descents of k-planes in whitened coordinates, in float32; see :func:`nablanets.pieces.identify_pieces`.

    Args:
        x, g: samples, (n, d).
        generator: of the sketch and the random labels.
    """

    def __init__(self, x: Tensor, g: Tensor, generator: torch.Generator) -> None:
        self.generator = generator
        self.features = x.shape[1]
        z = _whitened(x.double())
        design = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        sketch = g.double()
        if self.features > _SKETCH:
            mix = torch.randn(self.features, _SKETCH, generator=self.generator, dtype=torch.float64).to(g.device)
            sketch = sketch @ mix / _SKETCH**0.5
        self.gradients = sketch
        sketch = sketch - design @ (design.mT @ sketch / len(x))
        variance = sketch.square().sum(dim=1).mean().clamp(min=torch.finfo(torch.float64).tiny)
        self.design, self.target = design.float(), (sketch / variance.sqrt()).float()

    def run(self, pieces: int, searches: int) -> Tensor:
        """Labels of the best state found."""
        best = self._descend(self._random_labels(len(self.design), pieces), pieces)
        if pieces > 1 and self.features <= _LOCAL_FEATURES:
            best = min(best, self._descend(self._local_labels(pieces), pieces), key=lambda state: state.total)
        failures = 0
        while pieces > 1 and failures < searches and self._missed(best).min() < _MISSED * best.total:
            state = self._descend(self._moved(best), pieces)
            gained = state.total < 0.999 * best.total
            best, failures = (state, 0) if gained else (best, failures + 1)
        return self._pruned(best).labels

    def clusters(self, pieces: int) -> Tensor | None:
        """Labels by the gradients alone, at most so many, if these form clusters.

        The number of clusters is the last that is worth it: to cut one cluster of noise in two takes at most
        2 / (pi d) of the variance, and more is asked for.
        """
        gain = _WORTH * (1 - 2 / (math.pi * self.gradients.shape[1]))
        best, before = cluster(self.gradients, 1, self.generator)
        least = before
        for count in range(2, pieces + 1):
            labels, spread = cluster(self.gradients, count, self.generator)
            if spread < gain * max(before, _ROUNDING):
                best, least = labels, spread
            before = spread
        return best if least < _CLUSTERED else None

    def _descend(self, labels: Tensor, pieces: int) -> State:
        state = self._update(labels, pieces)
        for _ in range(_ITERATIONS):
            if torch.equal(state.labels, labels):
                break
            labels = state.labels
            state = self._update(labels, pieces)
        return state

    def _update(self, labels: Tensor, pieces: int) -> State:
        """Fit all pieces, then assign the samples anew."""
        errors = torch.stack([self._errors(labels == k) for k in range(pieces)], dim=1)
        least, labels = errors.min(dim=1)
        return State(labels, errors, float(least.mean()))

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

    def _moved(self, state: State) -> Tensor:
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

    def _local_labels(self, pieces: int) -> Tensor:
        """Affine fits to neighbourhoods of samples, chosen greedily so that together they explain all samples best."""
        anchors = torch.randperm(len(self.design), generator=self.generator)[:_ANCHORS].to(self.design.device)
        size = min(3 * (self.features + 1), len(self.design))
        near = torch.cdist(self.design[anchors], self.design).topk(size, largest=False).indices
        z, target = self.design[near], self.target[near]
        normal = z.mT @ z
        normal.diagonal(dim1=1, dim2=2).add_(1e-4)
        weights = torch.linalg.solve(normal, z.mT @ target)
        errors = torch.stack([(self.design @ w - self.target).square().sum(dim=1) for w in weights])
        least = self.target.square().sum(dim=1)
        chosen = []
        for _ in range(pieces):
            chosen.append(int(torch.minimum(errors, least).sum(dim=1).argmin()))
            least = torch.minimum(errors[chosen[-1]], least)
        return errors[chosen].argmin(dim=0)

    def _missed(self, state: State) -> Tensor:
        """Mean error without each of the pieces, (K,)."""
        pieces = range(state.errors.shape[1])
        return torch.stack([_without(state.errors, k).amin(dim=1).mean() for k in pieces])

    def _pruned(self, state: State) -> State:
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


def cluster(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Labels of points (n, d) by k-means, and the mean squared distance from the centres over the variance.

    Each start is that of k-means++: centres far from those before it are likelier. Points that take fewer than
    ``count`` values get one label for each value.
    """
    points = points - points.mean(dim=0)
    runs = [_lloyd(points, _far_apart(points, count, generator)) for _ in range(_CLUSTERINGS)]
    labels, spread = min(runs, key=lambda run: run[1])
    return labels, spread / max(float(points.square().sum(dim=1).mean()), 1e-300)


def _far_apart(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows drawn one after the other, with probability proportional to the squared distance from those before."""
    chance = torch.ones_like(points[:, 0])
    chosen: list[Tensor] = []
    while len(chosen) < count and float(chance.max()) > 0:
        chosen.append(points[int(torch.multinomial(chance.cpu(), 1, generator=generator))])
        distance = (points - chosen[-1]).square().sum(dim=1)
        chance = distance if len(chosen) == 1 else torch.minimum(chance, distance)
    return torch.stack(chosen)


def _lloyd(points: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Labels, and the mean squared distance from the nearest centre."""
    labels = torch.zeros_like(points[:, 0], dtype=torch.long)
    for _ in range(_ITERATIONS):
        least, new = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        if torch.equal(new, labels):
            break
        labels = new
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        count = torch.bincount(labels, minlength=len(centres)).unsqueeze(1)
        centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
    return labels, float(least.square().mean())


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
