"""Clusters of points by k-means: pieces whose gradient is constant."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

# Starts of k-means; the best result counts.
_NUM_STARTS = 10
# Iterations from each start. Well separated clusters settle within a few.
_NUM_ITERATIONS = 30
# Clusters are worth having if they leave less than this share of the variance...
_MOST_LEFT = 0.1
# ...and one more of them if it leaves less than this part of what a cut through noise would leave.
_WORTH = 0.9
# Share of the variance that counts as rounding.
_ROUNDING = 1e-9
_TINY = 1e-300


def cluster(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Labels of points by k-means, and the mean squared distance from the centres over the variance.

    Points that take fewer than ``count`` values get one label for each value.

    Each start is that of k-means++ (Arthur and Vassilvitskii, 2007), by :func:`scipy.cluster.vq.kmeans2`.

    Args:
        points: (n, d).
        count: how many clusters, at most.
        generator: of the starts.

    Returns:
        labels (n,), the share of the variance that is left.
    """
    centred = points - points.mean(dim=0)
    data = centred.double().cpu().numpy()
    num_values = len(np.unique(data, axis=0))
    count = min(count, num_values)
    seed = int(torch.randint(2**31, (), generator=generator))
    random = np.random.default_rng(seed)
    best_labels = np.zeros(len(data), dtype=np.int64)
    least = math.inf
    for _ in range(_NUM_STARTS):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a cluster that runs empty is no harm: another start is better
            centres, labels = kmeans2(data, count, iter=_NUM_ITERATIONS, minit="++", seed=random)
        distance = float(((data - centres[labels]) ** 2).sum(axis=1).mean())
        if distance < least:
            best_labels = labels.astype(np.int64)
            least = distance
    variance = float((data**2).sum(axis=1).mean())
    return torch.from_numpy(best_labels).to(points.device), least / max(variance, _TINY)


def find_clusters(points: Tensor, most: int, generator: torch.Generator) -> Tensor | None:
    """Labels by k-means with at most so many clusters, or None if the points form no clusters.

    The number of clusters is the last that is worth it. To cut a round cluster of noise in d dimensions in two takes
    2 / (pi d) of its variance away, so a further cluster has to take more.

    Args:
        points: (n, d).
        most: the largest number of clusters.
        generator: of the starts.
    """
    dimensions = points.shape[1]
    noise_leaves = 1 - 2 / (math.pi * dimensions)
    best, previous = cluster(points, 1, generator)
    left = previous
    for count in range(2, most + 1):
        labels, spread = cluster(points, count, generator)
        if spread < _WORTH * noise_leaves * max(previous, _ROUNDING):
            best = labels
            left = spread
        previous = spread
    return best if left < _MOST_LEFT else None
