"""Methods that a practitioner would try, each tuned by the same search inside the training samples.

A method is a list of candidates. `search` tries one after the other on the same splits until the time is spent, takes
the one with the least validation error, and fits it again to all training samples. Splits leave out whole lines of
grids, as `nablanets.fitting.grids.hold_out` does.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.neural_network import MLPRegressor

from nablanets.fitting.grids import hold_out

Array: TypeAlias = np.ndarray
#: From points (m, d) to gradients (m, d).
Predict: TypeAlias = Callable[[Array], Array]
#: From training samples and a number of seconds that should do, to a model.
Train: TypeAlias = Callable[[Array, Array, float], Predict]

#: Held out in each split.
_FRACTION = 0.2
#: A candidate that is so much worse than the best one on the first split is not tried on the others.
_HOPELESS = 4.0
#: Above so many samples an RBF interpolant is made of neighbours: a system of all of them takes too long.
_RBF_SAMPLES = 4000
#: Smoothing with neighbours at least: some of their many systems would be singular to rounding.
_LEAST_LOCAL_SMOOTHING = 1e-9


@dataclass(frozen=True)
class Candidate:
    """One choice of settings."""

    name: str
    train: Train


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        predict: of the best candidate, fitted to all training samples.
        chosen: its name.
        validation_error: mean square of its errors on the held-out parts of the splits, over that of g there.
        tried: candidates.
        seconds: of wall time in all.
    """

    predict: Predict
    chosen: str
    validation_error: float
    tried: int
    seconds: float


def splits(x: Array, seed: int) -> list[tuple[Array, Array]]:
    """Rows to train on and to validate on: five times for few samples, once for many."""
    count = 5 if len(x) <= 500 else 2 if len(x) <= 2500 else 1
    points = torch.from_numpy(x)
    result = []
    for number in range(count):
        held_out = hold_out(points, _FRACTION, torch.Generator().manual_seed(100 * seed + number))
        result.append((held_out.training.numpy(), held_out.validation.numpy()))
    return result


def search(
    candidates: Iterator[Candidate], x: Array, g: Array, seconds: float, seed: int, *, expected: int = 5
) -> Outcome:
    """Try candidates in their order while there is time for another one, and refit the best.

    The time is the processor's, so that other programs on the machine do not shorten a search. It is shared out evenly
    among so many candidates as are expected, and the last fit.
    """
    began = time.perf_counter()
    begin = time.process_time()
    parts = splits(x, seed)
    share = seconds / (expected * len(parts) + 1)
    best_error = math.inf
    best_first = math.inf
    best: Candidate | None = None
    longest = 0.0
    tried = 0
    for candidate in candidates:
        started = time.process_time()
        if best is not None and started - begin + longest * (1 + 1 / len(parts)) > seconds:
            break
        error, first = _validate(candidate, x, g, parts, share, _HOPELESS * best_first)
        tried += 1
        longest = max(longest, time.process_time() - started)
        if best is None or error < best_error:
            best_error = error
            best_first = first
            best = candidate
    if best is None:
        raise ValueError("search: expected at least one candidate.")
    predict = best.train(x, g, share)
    return Outcome(predict, best.name, best_error, tried, time.perf_counter() - began)


def _validate(
    candidate: Candidate, x: Array, g: Array, parts: list[tuple[Array, Array]], share: float, limit: float
) -> tuple[float, float]:
    """The relative error over all splits, and on the first; infinite if it fails or is hopeless on the first."""
    errors = 0.0
    size = 0.0
    first = math.inf
    for number, (training, validation) in enumerate(parts):
        try:
            predict = candidate.train(x[training], g[training], share)
            difference = predict(x[validation]) - g[validation]
        except np.linalg.LinAlgError:
            return math.inf, math.inf  # a singular system; those of neighbours are solved where they are evaluated
        errors += float(np.square(difference).sum())
        size += float(np.square(g[validation]).sum())
        if not math.isfinite(errors):
            return math.inf, math.inf
        if number == 0:
            first = errors / size
            if first > limit:
                return math.inf, math.inf
    return errors / size, first


def standardise(train: Train) -> Train:
    """The same on columns of zero mean and unit deviation."""

    def wrapped(x: Array, g: Array, seconds: float) -> Predict:
        mean_x, mean_g = x.mean(axis=0), g.mean(axis=0)
        scale_x = np.maximum(x.std(axis=0), 1e-300)
        scale_g = np.maximum(g.std(axis=0), 1e-300)
        predict = train((x - mean_x) / scale_x, (g - mean_g) / scale_g, seconds)
        return lambda points: predict((points - mean_x) / scale_x) * scale_g + mean_g

    return wrapped


def affine() -> Iterator[Candidate]:
    """The floor: least squares of an affine map, which need not be a gradient."""

    def train(x: Array, g: Array, seconds: float) -> Predict:
        columns = np.column_stack([x, np.ones(len(x))])
        coefficients = np.linalg.lstsq(columns, g, rcond=None)[0]
        return lambda points: np.column_stack([points, np.ones(len(points))]) @ coefficients

    yield Candidate("affine", standardise(train))


def rbf(samples: int, features: int) -> Iterator[Candidate]:
    """Radial basis functions: kernel, width, smoothing, and neighbours where there are many samples."""
    neighbours: tuple[int | None, ...] = (None,) if samples <= _RBF_SAMPLES else (30, 60)
    widths = tuple(factor / math.sqrt(features) for factor in (0.5, 1.0, 0.25, 2.0))
    kernels = [("cubic", 1.0), ("thin_plate_spline", 1.0), *(("gaussian", width) for width in widths)]
    for smoothing in (1e-6, 1e-3, 0.0, 1e-9, 1e-1, 1.0, 1e-2, 1e-4):
        if samples > _RBF_SAMPLES and smoothing < _LEAST_LOCAL_SMOOTHING:
            continue
        for (kernel, epsilon), near in itertools.product(kernels, neighbours):
            name = f"{kernel} epsilon {epsilon:.2g} smoothing {smoothing:g} neighbours {near or 'all'}"
            yield Candidate(name, standardise(_rbf(kernel, epsilon, smoothing, near)))


def _rbf(kernel: str, epsilon: float, smoothing: float, neighbours: int | None) -> Train:
    def train(x: Array, g: Array, seconds: float) -> Predict:
        return RBFInterpolator(x, g, neighbors=neighbours, smoothing=smoothing, kernel=kernel, epsilon=epsilon)

    return train


def mlp(samples: int, seed: int) -> Iterator[Candidate]:
    """scikit-learn's multilayer perceptron by L-BFGS: sizes, penalty, activation."""
    sizes = ((32, 32), (64, 64), (16, 16), (64,), (128, 128), (8, 8), (16,))
    for alpha in (1e-4, 1e-2, 1e-6, 1e-1):
        for hidden, activation in itertools.product(sizes, ("tanh", "relu")):
            name = f"{'x'.join(str(width) for width in hidden)} {activation} alpha {alpha:g}"
            yield Candidate(name, standardise(_mlp(hidden, alpha, activation, seed)))


def _mlp(hidden: tuple[int, ...], alpha: float, activation: str, seed: int) -> Train:
    def train(x: Array, g: Array, seconds: float) -> Predict:
        # A step takes about six multiply-adds per weight and sample, at some 5 GFLOP/s.
        sizes = [x.shape[1], *hidden, g.shape[1]]
        weights = sum(a * b for a, b in itertools.pairwise(sizes))
        second_per_step = 12 * weights * len(x) / 5e9 + 2e-4
        steps = int(min(3000, max(50, seconds / second_per_step)))
        net = MLPRegressor(
            hidden_layer_sizes=hidden,
            activation=activation,
            solver="lbfgs",
            alpha=alpha,
            max_iter=steps,
            max_fun=2 * steps,
            tol=1e-7,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            net.fit(x, g[:, 0] if g.shape[1] == 1 else g)
        return lambda points: net.predict(points).reshape(len(points), -1)

    return train


def boosting(samples: int, seed: int) -> Iterator[Candidate]:
    """Gradient boosting of trees, one model per component."""
    least = (2, 5, 20) if samples <= 500 else (20, 5)
    for leaf, (rate, rounds), leaves in itertools.product(least, ((0.1, 200), (0.05, 600)), (31, 8)):
        name = f"rate {rate} rounds {rounds} leaves {leaves} of {leaf}"
        yield Candidate(name, _boosting(rate, rounds, leaves, leaf, seed))


def _boosting(rate: float, rounds: int, leaves: int, leaf: int, seed: int) -> Train:
    def train(x: Array, g: Array, seconds: float) -> Predict:
        models = []
        for component in range(g.shape[1]):
            model = HistGradientBoostingRegressor(
                learning_rate=rate,
                max_iter=rounds,
                max_leaf_nodes=leaves,
                min_samples_leaf=leaf,
                early_stopping=False,
                random_state=seed,
            )
            models.append(model.fit(x, g[:, component]))
        return lambda points: np.column_stack([model.predict(points) for model in models])

    return train
