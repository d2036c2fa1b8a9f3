"""The motor study in tables: its settings, and the methods that learn a flux map from a few operating points.

All methods see the same operating points in per unit. Those that have something to choose do so by the same
cross-validation inside these points; the points that errors are quoted at are seen by none.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator, RBFInterpolator
from torch import Tensor

from nablanets.automatic import autofit
from nablanets.extras import needed
from nablanets.fitting import FitSettings, fit_best_start
from nablanets.maps import Conjugate, GradientMap, GradNetC, GradNetM, Quadratic, Sum, Symmetrized
from nablanets.parameters import count_parameters
from nablanets.starts import initialise_from_data, standardised

#: Per unit, far below the errors of all methods.
_ADDED_SLOPE = 1e-7

#: From points (n, 2) to the other quantity there.
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MotorConfig:
    """Settings of a run.

    Attributes:
        data: a flux map, .npz or a table (see :mod:`nablanets_studies.problems.motor`); empty for the model machine.
        stride: every stride-th operating point is learned from, the others are held out.
        rated_current, rated_voltage, rated_frequency: of the name plate (A and V rms, Hz), which per unit is about.
        pole_pairs: for the torque.
        mirrored: whether the machine is the same with iq and psi_q negated; only then the arm "mirrored-m" says anything.
        folds: of the cross-validation.
        starts, iterations, halving: of each fit by Levenberg-Marquardt; the worse half of the starts is dropped every
            ``halving`` iterations.
        budget: seconds of one ``autofit``.
        mlp_steps: iterations of L-BFGS of the MLPs.
        calls_in_c: evaluations in one measurement of the time in C; 0 measures none.
    """

    data: str = ""
    stride: int = 10
    rated_current: float = 8.8
    rated_voltage: float = 460.0
    rated_frequency: float = 60.0
    pole_pairs: int = 2
    mirrored: bool = True
    folds: int = 5
    starts: int = 4
    iterations: int = 200
    halving: int = 50
    budget: float = 15.0
    mlp_steps: int = 1000
    calls_in_c: int = 200_000


class Trained(NamedTuple):
    """A model of one candidate.

    Attributes:
        predict: the model.
        net: the same where it is a gradient map; else None.
        parameters: numbers that it stores.
        description: what the method chose by itself, in words, if it did.
    """

    predict: Predict
    net: GradientMap | None
    parameters: int
    description: str = ""


#: From points, values and a seed to a model.
Train = Callable[[MotorConfig, Tensor, Tensor, int], Trained]


@dataclass(frozen=True)
class Candidate:
    """One choice of settings of a method."""

    name: str
    train: Train


@dataclass(frozen=True)
class Method:
    """What is compared: one candidate, or several among which cross-validation chooses.

    Attributes:
        name: on the page.
        candidates: of the configuration.
        gradient: whether the result is a gradient map of this library.
        explicit: whether it is evaluated without solving, so that it can be written in C.
    """

    name: str
    candidates: Sequence[Candidate]
    gradient: bool = False
    explicit: bool = True


class Chosen(NamedTuple):
    """The outcome of a method.

    Attributes:
        trained: the candidate of the least validation error, on all points.
        name: of that candidate.
        validation_rmse: of the cross-validation; None where there was nothing to choose.
    """

    trained: Trained
    name: str
    validation_rmse: float | None


def learn(method: Method, config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Chosen:
    """Choose a candidate by cross-validation, and train it on all points."""
    if len(method.candidates) == 1:
        only = method.candidates[0]
        trained = only.train(config, x, g, seed)
        return Chosen(trained, trained.description or only.name, None)
    folds = _folds(len(x), config.folds, seed)
    errors = [_validation_error(each, config, x, g, folds, seed) for each in method.candidates]
    best = int(np.argmin(errors))
    chosen = method.candidates[best]
    return Chosen(chosen.train(config, x, g, seed), chosen.name, errors[best])


def _folds(count: int, number: int, seed: int) -> list[Tensor]:
    """Rows that are held out in turn."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return list(order.chunk(number))


def _validation_error(
    candidate: Candidate, config: MotorConfig, x: Tensor, g: Tensor, folds: Sequence[Tensor], seed: int
) -> float:
    """Root mean square error over the held-out rows of all folds; infinite where a candidate cannot be fitted."""
    total = 0.0
    for rows in folds:
        is_held_out = torch.zeros(len(x), dtype=torch.bool)
        is_held_out[rows] = True
        try:
            trained = candidate.train(config, x[~is_held_out], g[~is_held_out], seed)
        except np.linalg.LinAlgError:
            return math.inf
        total += float((trained.predict(x[rows]) - g[rows]).square().sum())
    return math.sqrt(total / g.numel())


def _gradient_network(build: Callable[[], GradientMap], *, mirrored: bool = False) -> Train:
    """Several starts by Levenberg-Marquardt on all points; the best by its error on them."""

    def train(config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Trained:
        torch.manual_seed(seed)

        def start() -> GradientMap:
            net = build().double()
            if mirrored:
                return _mirrored(net, x)
            net = standardised(net, x, g)
            initialise_from_data(net, x)
            return net

        settings = FitSettings(
            steps=config.iterations, optimizer="levenberg", batch_size=len(x), validate_every=10, seed=seed
        )
        net, _ = fit_best_start(
            start,
            x,
            g,
            starts=config.starts,
            start_steps=config.halving,
            settings=settings,
            validation=(x, g),
            progress=False,
        )
        if not isinstance(net, GradientMap):
            raise TypeError(f"expected a gradient map, got {type(net).__name__}.")
        return Trained(_without_graph(net), net, count_parameters(net))

    return train


def _mirrored(net: GradientMap, x: Tensor) -> GradientMap:
    """A map with f(x_d, -x_q) = (f_d, -f_q), by an average over the two; the q axis is scaled but not shifted."""
    spread = x.std(dim=0)
    shift = torch.stack([-x[:, 0].mean() / spread[0], spread.new_zeros(())])
    identity_and_mirror = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=x.dtype)
    return Symmetrized(net.pullback(1 / spread, shift), identity_and_mirror)


def _inverse(train: Train) -> Train:
    """The inverse of a network that has learned the reverse direction.

    A multiple of the identity is added that changes nothing but what is certified: monotone networks can have a least
    slope of zero, and then not every value need have an inverse.
    """

    def train_reverse(config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Trained:
        reverse = train(config, g, x, seed)
        if reverse.net is None:
            raise TypeError("expected the reverse direction to be learned by a gradient map.")
        diagonal = x.new_full((x.shape[1],), _ADDED_SLOPE)
        net = Conjugate(
            Sum([reverse.net, Quadratic.from_diagonal(diagonal, torch.zeros_like(diagonal), monotone=True)])
        )
        return Trained(_without_graph(net), net, reverse.parameters)

    return train_reverse


def _without_graph(net: GradientMap) -> Predict:
    def predict(points: Tensor) -> Tensor:
        with torch.no_grad():
            return net(points)

    return predict


def _autofit(config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Trained:
    """What the library does when it is told nothing but that the map is monotone."""
    result = autofit(x, g, monotone="increasing", budget=config.budget, seed=seed, progress=False)
    return Trained(_without_graph(result.net), result.net, count_parameters(result.net), result.chosen)


def _linear(config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Trained:
    """A linear look-up table: triangles between the points, the nearest point outside, of what an affine map leaves."""
    columns = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    coefficients = torch.linalg.lstsq(columns, g).solution
    rest = (g - columns @ coefficients).numpy()
    triangles = LinearNDInterpolator(x.numpy(), rest)
    nearest = NearestNDInterpolator(x.numpy(), rest)

    def predict(points: Tensor) -> Tensor:
        inside = triangles(points.numpy())
        values = np.where(np.isnan(inside), nearest(points.numpy()), inside)
        affine = torch.cat([points, torch.ones(len(points), 1, dtype=points.dtype)], dim=1) @ coefficients
        return affine + torch.from_numpy(values)

    return Trained(predict, None, 2 * g.numel())


def _radial(kernel: str, epsilon: float, smoothing: float) -> Train:
    """Radial basis functions of coordinates with unit deviation."""

    def train(config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Trained:
        centre, spread = x.mean(dim=0), x.std(dim=0)

        def scaled(points: Tensor) -> np.ndarray:
            return ((points - centre) / spread).numpy()

        table = RBFInterpolator(scaled(x), g.numpy(), kernel=kernel, epsilon=epsilon, smoothing=smoothing)
        return Trained(lambda points: torch.from_numpy(table(scaled(points))), None, 2 * g.numel())

    return train


def _mlp(hidden: tuple[int, ...], penalty: float) -> Train:
    """scikit-learn's MLP by L-BFGS, on standardised columns."""

    def train(config: MotorConfig, x: Tensor, g: Tensor, seed: int) -> Trained:
        learner = needed("sklearn.neural_network", extra="motor", purpose="MLPs", distribution="nablanets-studies")
        centre_x, spread_x = x.mean(dim=0), x.std(dim=0)
        centre_g, spread_g = g.mean(dim=0), g.std(dim=0)
        net = learner.MLPRegressor(
            hidden_layer_sizes=hidden,
            activation="tanh",
            solver="lbfgs",
            alpha=penalty,
            max_iter=config.mlp_steps,
            max_fun=2 * config.mlp_steps,
            tol=1e-8,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it could go on
            net.fit(((x - centre_x) / spread_x).numpy(), ((g - centre_g) / spread_g).numpy())

        def predict(points: Tensor) -> Tensor:
            values = torch.from_numpy(net.predict(((points - centre_x) / spread_x).numpy()))
            return values * spread_g + centre_g

        sizes = [2, *hidden, 2]
        return Trained(predict, None, sum((a + 1) * b for a, b in itertools.pairwise(sizes)))

    return train


def _mlps(sizes: Sequence[tuple[int, ...]]) -> list[Candidate]:
    penalties = (1e-5, 1e-3, 1e-2)
    return [
        Candidate(f"{'x'.join(map(str, hidden))}, penalty {penalty:g}", _mlp(hidden, penalty))
        for hidden, penalty in itertools.product(sizes, penalties)
    ]


def _radials(kernel: str, widths: Sequence[float]) -> list[Candidate]:
    smoothings = (0.0, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2)
    return [
        Candidate(f"{kernel}, width {1 / width:g}, smoothing {smoothing:g}", _radial(kernel, width, smoothing))
        for width, smoothing in itertools.product(widths, smoothings)
    ]


_M = Candidate("M 6x2", _gradient_network(lambda: GradNetM(2, 6, 2, monotone=True)))
_SMALLER_M = Candidate("M 8x1", _gradient_network(lambda: GradNetM(2, 8, 1, monotone=True)))
_C = Candidate("C 12x1", _gradient_network(lambda: GradNetC(2, 12, 1, monotone=True)))
_INVERSE = Candidate("M 6x2 of the reverse", _inverse(_M.train))
_MIRRORED = Candidate("M 6x2, mirrored", _gradient_network(lambda: GradNetM(2, 6, 2, monotone=True), mirrored=True))


_METHODS = (
    Method("autofit", [Candidate("autofit", _autofit)], gradient=True),
    Method("gradnet-m", [_M], gradient=True),
    Method("inverse-m", [_INVERSE], gradient=True, explicit=False),
    Method("mirrored-m", [_MIRRORED], gradient=True),
    Method("chosen", [_M, _SMALLER_M, _C], gradient=True),
    Method("linear-table", [Candidate("triangles", _linear)]),
    Method("cubic-rbf", _radials("cubic", (1.0,))),
    Method("gaussian-rbf", _radials("gaussian", (0.25, 0.35, 0.5, 0.7, 1.0))),
    Method("small-mlp", _mlps([(19,), (7, 7)])),
    Method("mlp", _mlps([(16, 16), (32, 32), (64,)])),
)


#: By name; at most 100 parameters in "small-mlp" and in all gradient networks but that of "autofit", which chooses.
METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
#: What is learned: flux linkages of currents, or the reverse.
DIRECTIONS = ("flux", "current")


class Arm(NamedTuple):
    """A direction and a method."""

    direction: str
    method: Method

    @classmethod
    def of(cls, name: str) -> Arm:
        direction, _, method = name.partition("-")
        return cls(direction, METHODS[method])


ARMS = [f"{direction}-{method}" for direction in DIRECTIONS for method in METHODS]
