"""Ways to get a gradient map from samples: what all have in common, and those that need no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch

from nablanets.automatic.task import Fold, Task
from nablanets.fitting import HistoryRow, error
from nablanets.maps import GradientMap, Quadratic
from nablanets.pieces import fit_pieces
from nablanets.pieces.regression import symmetric_regression
from nablanets.starts import random_units, solve_ridge

#: Ridges that random units are solved with, relative.
RIDGES = (1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)


class Trained(NamedTuple):
    """A network after training on a fold.

    Attributes:
        net: it.
        error: mean ||f(x) - g||^2 on the validation samples.
        steps: until the best weights.
        history: of the training, if there was one.
        ridge: that was chosen, if there was one.
        stop_reason: why the training ended.
    """

    net: GradientMap
    error: float
    steps: int = 0
    history: Sequence[HistoryRow] = ()
    ridge: float = 0.0
    stop_reason: str = "closed form"


class Recipe(ABC):
    """A way to get a gradient map from samples."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As users see it."""

    @abstractmethod
    def train(self, task: Task, fold: Fold, seconds: float) -> Trained:
        """Train on a fold within about so many seconds."""

    @abstractmethod
    def refit(self, task: Task, trained: Sequence[Trained], seconds: float) -> GradientMap:
        """The map from all samples, given those of the folds."""


@dataclass(frozen=True)
class Affine(Recipe):
    """f(x) = A x + b with a symmetric A: the floor that everything else has to be better than."""

    @property
    def name(self) -> str:
        return "affine"

    @torch.no_grad()
    def train(self, task: Task, fold: Fold, seconds: float) -> Trained:
        x, g = task.training(fold)
        size_x = float((x - x.mean(dim=0)).abs().max()) or 1.0
        size_g = float(g.abs().max()) or 1.0
        matrix, constant = symmetric_regression(x / size_x, g / size_g)
        if task.monotone:  # a map whose matrix is only semidefinite is not strongly monotone, and so none of its kind
            values, vectors = torch.linalg.eigh(matrix)
            matrix = (vectors * values.clamp(min=0)) @ vectors.mT
            constant = (g / size_g - x / size_x @ matrix).mean(dim=0)
        net = Quadratic.from_matrix(matrix * (size_g / size_x), constant * size_g, monotone=task.monotone)
        return Trained(net, error(net, *task.validation(fold)))

    def refit(self, task: Task, trained: Sequence[Trained], seconds: float) -> GradientMap:
        return self.train(task, task.all_samples(), seconds).net


@dataclass(frozen=True)
class RandomUnits(Recipe):
    """Random ridge functions with coefficients in closed form, see :func:`~nablanets.starts.random_units`.

    Attributes:
        units: how many.
        activation: of the units.
        scale: of their weights.
        ridges: that are tried, relative.
    """

    units: int
    activation: str
    scale: float
    ridges: tuple[float, ...] = RIDGES

    @property
    def name(self) -> str:
        return f"{self.units} random {self.activation} units, scale {self.scale:.2g}"

    def train(self, task: Task, fold: Fold, seconds: float) -> Trained:
        return self._solve(task, fold, self.ridges)

    def refit(self, task: Task, trained: Sequence[Trained], seconds: float) -> GradientMap:
        ridge = median(each.ridge for each in trained)
        return self._solve(task, task.all_samples(), (ridge,)).net

    @torch.no_grad()
    def _solve(self, task: Task, fold: Fold, ridges: Sequence[float]) -> Trained:
        samples = task.training(fold)
        validation = task.validation(fold)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            core = random_units(task.seen(samples), self.units, activation=self.activation, scale=self.scale)
        net = task.framed(core, samples)
        solved = solve_ridge(net, *samples, validation=validation, ridges=ridges)
        return Trained(net, error(net, *validation), ridge=solved.ridge)


@dataclass(frozen=True)
class AffinePieces(Recipe):
    """The smooth maximum of quadratic potentials: :func:`~nablanets.pieces.fit_pieces`.

    Attributes:
        pieces: how many.
    """

    pieces: int

    @property
    def name(self) -> str:
        return f"{self.pieces} affine pieces"

    def train(self, task: Task, fold: Fold, seconds: float) -> Trained:
        x, g = task.training(fold)
        net, _, _ = fit_pieces(x, g, self.pieces, monotone=task.monotone, seed=task.seed)
        return Trained(net, error(net, *task.validation(fold)))

    def refit(self, task: Task, trained: Sequence[Trained], seconds: float) -> GradientMap:
        return self.train(task, task.all_samples(), seconds).net
