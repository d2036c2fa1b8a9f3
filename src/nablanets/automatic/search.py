"""The search for the best recipe within a budget of time.

1. The affine map, random units (every activation and scale with few units), affine pieces, and more and more of the
   best random units: none of them needs training, and together they say how smooth a field is.
2. Reflections x_j -> -x_j that leave the field as it is, where the coordinates allow them: the best random units are
   solved for again inside the reflection, which is kept if the error on the folds falls clearly.
3. Small networks by Levenberg-Marquardt, on the first fold; those near the best are trained on the other folds too.
4. Where there are many samples, a larger network by Adam for what time is left, or free profiles where the field is
   rough; of a rough field, more random units and small networks are not tried.

Every recipe is judged by its mean square error on samples that it has not seen. Where two are about as good, the one
with fewer parameters wins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from nablanets.automatic.networks import SMALL_NETWORKS, FreeProfiles, LargeNetwork
from nablanets.automatic.recipes import Affine, AffinePieces, RandomUnits, Recipe, Trained
from nablanets.automatic.task import Fold, Task, possible_reflections
from nablanets.errors import NablaError
from nablanets.maps import GradNetC, GradNetM
from nablanets.parameters import count_parameters

# Random units that find out activation and scale, and how many are tried then.
_FIRST_UNITS = 250
_MORE_UNITS = (1000, 2000, 4000, 8000)
_ACTIVATIONS = ("tanh", "sine", "softplus")
_SCALES = (0.15, 0.3, 0.6, 1.2, 2.4)
# Scales around the best one, tried again with more units.
_AROUND = (0.7, 1.0, 1.4)
# Numbers in the normal equations' work, samples x units^2, that take a second, about.
_UNITS_WORK = 6e9
# Random units may have so many coefficients for each number in the samples.
_UNITS_PER_NUMBER = 2.0
# A reflection is kept if it divides the error at least by this.
_REFLECTION_GAIN = 1.5
# Recipes with errors within this factor of the best on the first fold go on to the others,
_CLOSE = 4.0
# at most so many.
_FINALISTS = 3
# Errors within this factor are as good as the least.
_AS_GOOD = 1.005
# Errors below this share of the mean square gradient are rounding, and nothing more is tried.
_EXACT = 1e-20
# Shares of the budget: the first random units; more of them, as long as each step divides the error by a factor;
_UNITS_SHARE = 0.25
_MORE_UNITS_SHARE = 0.6
_WIDENING_GAIN = 1.2
# small networks on the first fold;
_SMALL_SHARE = 0.35
# What is left for the last fit on all samples.
_REFIT_SHARE = 0.15
# Levenberg-Marquardt is for fields of at most so many features.
_SMALL_FEATURES = 16
# Larger networks need so many samples to be worth their time.
_MANY_SAMPLES = 2000
# A field is rough if what is left of it is more than this share of what the affine map leaves.
_ROUGH = 0.5
# How many affine pieces are looked for, as long as more of them help, and their share of the budget.
_PIECES = (2, 3, 4, 6)
_PIECES_SHARE = 0.35
# A share of a second that every training gets at least.
_LEAST_SECONDS = 0.3


class Clock:
    """A budget of seconds from now on."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.began = time.perf_counter()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    def left(self, reserved: float = 0.0) -> float:
        """Seconds until the budget, less a share of it, is spent."""
        return self.budget * (1 - reserved) - self.spent


@dataclass
class Attempt:
    """One recipe and what became of it.

    Attributes:
        recipe, task: what was tried, and on what (the task says whether monotone, and which reflections).
        trained: a network for each fold that it was trained on.
        parameters: of the network.
        seconds: that it took.
        failure: why there is no network, if there is none.
    """

    recipe: Recipe
    task: Task
    trained: list[Trained] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        kinds = []
        if self.task.monotone:
            kinds.append("monotone")
        if self.task.reflections:
            kinds.append("reflected in " + ", ".join(f"x{j + 1}" for j in self.task.reflections))
        return ", ".join([self.recipe.name, *kinds])

    @property
    def is_complete(self) -> bool:
        return len(self.trained) == len(self.task.folds)

    @property
    def first_error(self) -> float:
        """On the first fold."""
        return self.trained[0].error if self.trained else math.inf

    @property
    def error(self) -> float:
        """Mean ||f(x) - g||^2 over the samples held out by all folds; infinite until all are done."""
        if not self.is_complete:
            return math.inf
        sizes = [len(fold.validation) for fold in self.task.folds]
        total = sum(size * each.error for size, each in zip(sizes, self.trained, strict=True))
        return total / sum(sizes)


class Search:
    """What was tried so far, and what to try next.

    Args:
        task: samples and folds; whether only monotone maps are wanted.
        may_be_monotone: the samples increase, so that monotone networks are tried as well.
        clock: of the whole fit.
        say: called with a line about every attempt.
    """

    def __init__(self, task: Task, may_be_monotone: bool, clock: Clock, say: Callable[[Attempt], None]) -> None:
        self.task = task
        self.may_be_monotone = may_be_monotone
        self.clock = clock
        self.say = say
        self.attempts: list[Attempt] = []
        self._mean_square = float(task.g.square().sum(dim=1).mean())

    def run(self) -> None:
        """Try everything that the budget allows."""
        self._try(Affine(), self.task)
        self._complete_all()
        stages = (
            self._scan_units,
            self._scan_pieces,
            self._scan_more_units_and_reflections,
            self._scan_small_networks,
            self._scan_large_networks,
        )
        for stage in stages:
            stage()
            if self._least_first_error() < _EXACT * self._mean_square:
                break
        self._complete_best()

    def best(self) -> Attempt:
        """The attempt with the least error on all folds, or one about as good with fewer parameters."""
        complete = [attempt for attempt in self.attempts if attempt.is_complete and self._is_wanted(attempt)]
        least = min(attempt.error for attempt in complete)
        as_good = [attempt for attempt in complete if attempt.error <= _AS_GOOD * least]
        return min(as_good, key=lambda attempt: attempt.parameters)

    def _is_wanted(self, attempt: Attempt) -> bool:
        return attempt.task.monotone or not self.task.monotone

    def _least_first_error(self) -> float:
        return min((each.first_error for each in self.attempts if self._is_wanted(each)), default=math.inf)

    def _try(self, recipe: Recipe, task: Task, seconds: float = math.inf) -> Attempt:
        """Train a recipe on the first fold."""
        attempt = Attempt(recipe, task)
        self._train(attempt, task.folds[:1], seconds)
        self.attempts.append(attempt)
        self.say(attempt)
        return attempt

    def _train(self, attempt: Attempt, folds: Iterable[Fold], seconds: float) -> None:
        began = time.perf_counter()
        try:
            for fold in folds:
                trained = attempt.recipe.train(attempt.task, fold, max(_LEAST_SECONDS, seconds))
                if not math.isfinite(trained.error):
                    attempt.failure = "its numbers are not finite"
                    break
                attempt.trained.append(trained)
                attempt.parameters = count_parameters(trained.net)
        except (NablaError, torch.linalg.LinAlgError) as reason:  # type: ignore[attr-defined]
            attempt.failure = str(reason)
        attempt.seconds += time.perf_counter() - began

    def _complete(self, attempt: Attempt) -> None:
        """Train a recipe on the folds that are left, each for as long as on the first."""
        if attempt.failure or attempt.is_complete:
            return
        left = attempt.task.folds[len(attempt.trained) :]
        share = self.clock.left(_REFIT_SHARE) / len(left)
        self._train(attempt, left, min(2 * attempt.seconds, share))

    def _complete_all(self) -> None:
        for attempt in self.attempts:
            self._complete(attempt)

    def _complete_best(self) -> None:
        """Train the recipes that were best on the first fold on the others."""
        least = self._least_first_error()
        near = [each for each in self.attempts if self._is_wanted(each) and each.first_error <= _CLOSE * least]
        near.sort(key=lambda attempt: attempt.first_error)
        for attempt in near[:_FINALISTS]:
            if attempt.is_complete or self.clock.left(_REFIT_SHARE) > 0 or attempt is near[0]:
                self._complete(attempt)

    def _is_rough(self) -> bool:
        """Many samples of a field of which neither random units nor pieces explain half."""
        affine = self.attempts[0].first_error
        least = min(attempt.first_error for attempt in self.attempts)  # of random units too, whatever is wanted
        return least > _ROUGH * affine and len(self.task.folds[0].training) >= _MANY_SAMPLES

    def _scan_units(self) -> None:
        """Random units of every activation and scale; of one activation for a monotone task, which they only inform."""
        task = replace(self.task, monotone=False)
        first = min(_FIRST_UNITS, max(8, int(_UNITS_PER_NUMBER * task.x.numel())))
        activations = _ACTIVATIONS[:1] if self.task.monotone else _ACTIVATIONS
        for activation in activations:
            for scale in _SCALES:
                if self.clock.left(1 - _UNITS_SHARE) > 0 or len(self.attempts) == 1:
                    self._try(RandomUnits(first, activation, scale), task)

    def _scan_more_units_and_reflections(self) -> None:
        best = _least([attempt for attempt in self.attempts if isinstance(attempt.recipe, RandomUnits)])
        if best is None or self._is_rough():
            return
        self._scan_reflections(best if self.task.monotone else self._widen(best))

    def _widen(self, best: Attempt) -> Attempt:
        """More and more of the best random units, as long as that lowers the error and there is time."""
        task = best.task
        for units in _MORE_UNITS:
            recipe = best.recipe
            trainings = len(task.folds) + 1 + (len(_AROUND) if units == _MORE_UNITS[0] else 0)
            work = trainings * len(task.folds[0].training) * units**2 / _UNITS_WORK
            is_affordable = work < self.clock.left(1 - _MORE_UNITS_SHARE)
            if not isinstance(recipe, RandomUnits) or units > _UNITS_PER_NUMBER * task.x.numel() or not is_affordable:
                break
            factors = _AROUND if units == _MORE_UNITS[0] else (1.0,)
            ridge = best.trained[0].ridge
            wider = replace(recipe, units=units, ridges=(ridge * 100, ridge, ridge / 100))
            others = [self._try(replace(wider, scale=factor * recipe.scale), task) for factor in factors]
            better = _least(others)
            if better is None or better.first_error > best.first_error:
                break
            has_gained = better.first_error * _WIDENING_GAIN < best.first_error
            best = better
            if not has_gained:
                break
        return best

    def _scan_reflections(self, units: Attempt) -> None:
        """Keep the reflections that lower the error of random units on all folds."""
        if self.task.features > _SMALL_FEATURES:
            return
        self._complete(units)
        best = units
        for coordinate in possible_reflections(self.task.x):
            if self.clock.left(1 - _MORE_UNITS_SHARE) < 0:
                break
            reflected = best.task.with_reflections((*best.task.reflections, coordinate))
            attempt = self._try(best.recipe, reflected)
            if attempt.first_error > best.first_error / _REFLECTION_GAIN:
                continue
            self._complete(attempt)
            if attempt.error < best.error / _REFLECTION_GAIN:
                best = attempt
        self.task = self.task.with_reflections(best.task.reflections)

    def _scan_pieces(self) -> None:
        task = replace(self.task, reflections=())
        for pieces in _PIECES:
            enough = len(task.folds[0].training) > 2 * pieces * (task.features + 1)
            if not enough or self.clock.left(1 - _PIECES_SHARE) < 0:
                break
            before = self._least_first_error()
            attempt = self._try(AffinePieces(pieces), task)
            if attempt.first_error > before:
                break

    def _scan_small_networks(self) -> None:
        if self.task.features > _SMALL_FEATURES or self._is_rough():
            return
        reserved = 1 - _UNITS_SHARE - _SMALL_SHARE
        numbers = len(self.task.folds[0].training) * self.task.features
        tasks = [self.task]
        if self.may_be_monotone and not self.task.monotone:
            tasks.append(self.task.with_monotone())
        recipes = [recipe for recipe in SMALL_NETWORKS if recipe.parameters(self.task) <= numbers]
        queue = [(recipe, task) for recipe in recipes for task in tasks]
        for place, (recipe, task) in enumerate(queue):
            left = self.clock.left(reserved)
            if left < 0:
                break
            self._try(recipe, task, left / math.sqrt(len(queue) - place))

    def _scan_large_networks(self) -> None:
        samples = len(self.task.folds[0].training)
        if samples < _MANY_SAMPLES or self.task.reflections:
            return
        recipe: Recipe = LargeNetwork(GradNetM, 64, 4)
        if self.task.features > 3:
            recipe = LargeNetwork(GradNetC, 128, 2)
        elif self._is_rough() and not self.task.monotone:
            recipe = FreeProfiles(256, 256)
        seconds = self.clock.left(_REFIT_SHARE) / len(self.task.folds)
        if seconds > _LEAST_SECONDS:
            self._try(recipe, self.task, seconds)


def _least(attempts: Sequence[Attempt]) -> Attempt | None:
    """The one with the least error on the first fold."""
    usable = [attempt for attempt in attempts if attempt.trained]
    return min(usable, key=lambda attempt: attempt.first_error, default=None)
