"""What somebody who knows this library would do by hand for each of the ten cases, as candidates of the same search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from autofit_cases import Case
from autofit_methods import Array, Candidate, Predict, Train
from nablanets import GradientMap, GradNetC, GradNetM, fit
from nablanets.fitting import FitSettings, fit_best_start
from nablanets.pieces import fit_pieces
from nablanets.starts import initialise_from_data, standardised
from nablanets_studies.fields.terrain_arms import ridge_network

Build = Callable[[], GradientMap]

_MANY_STEPS = 1_000_000
#: When this program was here.
_BEGAN = time.perf_counter() - time.process_time()


def by_hand(case: Case, seed: int) -> Iterator[Candidate]:
    """The recipes for a case, the most promising first."""
    d = case.x.shape[1]
    if case.name.startswith("motor"):
        yield _levenberg("M 6x2", lambda: GradNetM(d, 6, 2, monotone=True), seed)
        yield _levenberg("C 8x2", lambda: GradNetC(d, 8, 2, monotone=True), seed)
        yield _levenberg("M 8x1", lambda: GradNetM(d, 8, 1, monotone=True), seed)
    elif case.name == "demand":
        yield _levenberg("M 4x2, falling", lambda: GradNetM(d, 4, 2, monotone=True), seed, sign=-1)
        yield _levenberg("M 6x1, falling", lambda: GradNetM(d, 6, 1, monotone=True), seed, sign=-1)
        yield _levenberg("C 8x2, falling", lambda: GradNetC(d, 8, 2, monotone=True), seed, sign=-1)
        yield _levenberg("C 12x2, falling", lambda: GradNetC(d, 12, 2, monotone=True), seed, sign=-1)
    elif case.name == "terrain":
        yield Candidate("256 spline profiles", _terrain(seed))
    elif case.name.startswith("eq22"):
        yield Candidate("three pieces", _pieces(seed))
    else:
        yield from _smooth(d, seed)


def _smooth(d: int, seed: int) -> Iterator[Candidate]:
    """For smooth fields without further knowledge: Levenberg-Marquardt where it is affordable, else L-BFGS."""
    if d <= 4:
        yield _levenberg("M 12x6", lambda: GradNetM(d, 12, 6), seed)
        yield _levenberg("M 12x3", lambda: GradNetM(d, 12, 3), seed)
        yield _levenberg("C 24x2", lambda: GradNetC(d, 24, 2), seed)
        return
    yield _lbfgs("C 64x4", lambda: GradNetC(d, 64, 4), seed)
    yield _lbfgs("M 16x6", lambda: GradNetM(d, 16, 6), seed)
    yield _levenberg("M 12x6", lambda: GradNetM(d, 12, 6), seed, starts=1)


def _wall_seconds(seconds: float) -> float:
    """How long to wait for so many seconds of the processor, as busy as the machine has been since the start."""
    since = time.perf_counter() - _BEGAN
    return seconds * max(1.0, since / max(time.process_time(), 1e-3))


def _tensors(x: Array, g: Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(x).double(), torch.from_numpy(g).double()


def _predictor(net: GradientMap, sign: int = 1) -> Predict:
    def predict(points: Array) -> Array:
        with torch.no_grad():
            parts = [net(part) for part in torch.from_numpy(points).double().split(8192)]
        return sign * torch.cat(parts).numpy()

    return predict


def _started(build: Build, x: torch.Tensor, g: torch.Tensor) -> GradientMap:
    net = standardised(build().double(), x, g)
    initialise_from_data(net, x)
    return net


def _levenberg(name: str, build: Build, seed: int, sign: int = 1, starts: int = 4) -> Candidate:
    """Several starts by Levenberg-Marquardt; nothing is held out, the search has held out already."""

    def train(x_array: Array, g_array: Array, seconds: float) -> Predict:
        x, g = _tensors(x_array, sign * g_array)
        torch.manual_seed(seed)
        settings = FitSettings(
            steps=200,
            optimizer="levenberg",
            batch_size=len(x),
            max_seconds=_wall_seconds(seconds),
            validate_every=10,
            seed=seed,
        )
        net, _ = fit_best_start(
            lambda: _started(build, x, g),
            x,
            g,
            starts=starts,
            start_steps=50,
            settings=settings,
            validation=(x, g),
            progress=False,
        )
        return _predictor(net, sign)

    return Candidate(f"Levenberg, {name}", train)


def _lbfgs(name: str, build: Build, seed: int) -> Candidate:
    def train(x_array: Array, g_array: Array, seconds: float) -> Predict:
        x, g = _tensors(x_array, g_array)
        torch.manual_seed(seed)
        net = _started(build, x, g)
        settings = FitSettings(
            steps=3000,
            optimizer="lbfgs",
            batch_size=len(x),
            max_seconds=_wall_seconds(seconds),
            validate_every=20,
            seed=seed,
        )
        fit(net, x, g, validation=(x, g), progress=False, settings=settings)
        return _predictor(net)

    return Candidate(f"L-BFGS, {name}", train)


def _pieces(seed: int) -> Train:
    def train(x: Array, g: Array, seconds: float) -> Predict:
        net, _, _ = fit_pieces(*_tensors(x, g), 3, seed=seed)
        return _predictor(net)

    return train


def _terrain(seed: int) -> Train:
    """As the study `terrain` does: linear in what is trained, in the unit disk, Adam with a penalty."""

    def train(x_array: Array, g_array: Array, seconds: float) -> Predict:
        x, g = torch.from_numpy(x_array), torch.from_numpy(g_array)
        centre = x.mean(dim=0)
        radius = float((x - centre).norm(dim=1).max())
        size = float(g.square().mean().sqrt())
        points = ((x - centre) / radius).float()
        torch.manual_seed(seed)
        net = ridge_network(256, 256)
        settings = FitSettings(
            steps=_MANY_STEPS,
            max_seconds=_wall_seconds(seconds),
            batch_size=512,
            learning_rate=1e-2,
            weight_decay=2e-4,
            validate_every=100,
            seed=seed,
        )
        fit(net, points, (g / size).float(), validation=0.05, progress=False, settings=settings)

        def predict(where: Array) -> Array:
            scaled = ((torch.from_numpy(where) - centre) / radius).float()
            with torch.no_grad():
                return net(scaled).double().numpy() * size

        return predict

    return train
