"""How each arm of the two-dimensional experiments is built and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nablanets.fitting import FitResult, FitSettings, fit_best_start
from nablanets.maps import GradientMap, GradNetC, GradNetM
from nablanets.starts import initialise_from_data
from nablanets_studies.baselines import MLP, AffineField, convex_ridge, icnn_gradient, match_parameters, mlp_potential

Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Field2DConfig:
    """Settings of a run.

    Attributes:
        parameters: the budget that baselines are matched to (the published C has exactly 100, M has 94).
        samples: training points.
        validation_samples: further points, to choose the best checkpoint and the baselines' rates.
        batch_size: points per step.
        steps: optimisation steps.
        starts, start_steps: every network is the best of so many starts after so many steps each, within ``steps``.
        schedule: of the learning rate.
        learning_rate: of the gradient networks.
        baseline_rates: the rates that each baseline may choose from, by validation error, for each seed.
        lm_iterations: of Levenberg-Marquardt, in the arms that end in -lm.
        lm_starts, lm_samples: with how many starts and samples for each it begins.
        lm_halving: after so many iterations the better half of the starts goes on, with twice the samples.
        test_side: the test points are a grid of this side.
    """

    parameters: int = 100
    samples: int = 100_000
    validation_samples: int = 10_000
    batch_size: int = 1000
    steps: int = 20_000
    starts: int = 8
    start_steps: int = 500
    schedule: str = "constant"
    learning_rate: float = 5e-3
    baseline_rates: tuple[float, ...] = (5e-3, 2e-2)
    lm_iterations: int = 480
    lm_starts: int = 16
    lm_samples: int = 128
    lm_halving: int = 60
    test_side: int = 100


_BASELINES: dict[str, Callable[[int], nn.Module]] = {
    "mlp": lambda width: MLP(2, width),
    "mlp-potential": lambda width: mlp_potential(2, width),
    "icnn": lambda width: icnn_gradient(2, width),
    "convex-ridge": lambda width: convex_ridge(2, width),
}

#: The nets that the papers describe, and what is compared with them.
GRADNETS, BASELINES = ("gradnet-c", "gradnet-m"), tuple(_BASELINES)
#: Single starts of the authors' kind, their protocol to the letter.
PAPER = ("paper-c", "paper-m")
#: Trained by Levenberg-Marquardt.
SECOND_ORDER = tuple(f"{arm}-lm" for arm in (*GRADNETS, "mlp", "mlp-potential"))


def train_arm(
    config: Field2DConfig, arm: str, seed: int, train: Samples, validation: Samples, *, monotone: bool
) -> tuple[nn.Module, FitResult]:
    """The trained network of an arm; baselines choose their rate by validation error."""
    common = FitSettings(steps=config.steps, batch_size=config.batch_size, seed=seed).update(schedule=config.schedule)
    starts, start_steps = config.starts, config.start_steps
    choices = [common.update(learning_rate=config.learning_rate)]
    if arm in SECOND_ORDER:
        starts, start_steps = config.lm_starts, config.lm_halving
        second = {"optimizer": "levenberg", "batch_size": config.lm_samples, "validate_every": 5}
        choices = [common.update(steps=config.lm_iterations, **second)]
    elif arm in PAPER:
        starts, choices = 1, [common.update(learning_rate=5e-3, schedule="constant")]
    elif arm in BASELINES:
        choices = [common.update(learning_rate=rate) for rate in config.baseline_rates]
    tried = [
        fit_best_start(
            lambda: build(arm, config.parameters, train[0], monotone=monotone),
            *train,
            validation=validation,
            progress=False,
            starts=starts,
            start_steps=start_steps,
            settings=settings,
        )
        for settings in choices
    ]
    return min(tried, key=lambda pair: pair[1].best_validation_error)


def affine_field(train: Samples) -> AffineField:
    """The best affine field by least squares."""
    affine = AffineField(2)
    affine.fit(*train)
    return affine


def build(arm: str, parameters: int, x: Tensor, *, monotone: bool) -> nn.Module:
    """A fresh network, with our start from the data unless it is the authors'."""
    if arm in PAPER:
        net = _published(f"gradnet-{arm[-1]}", monotone=monotone)
        authors_start(net)
        return net
    name = arm.removesuffix("-lm")
    built = _published(name, monotone=monotone) if name in GRADNETS else match_parameters(_BASELINES[name], parameters)
    if isinstance(built, GradientMap):
        initialise_from_data(built, x)
    return built


def _published(name: str, *, monotone: bool) -> GradNetC | GradNetM:
    if name == "gradnet-c":
        return GradNetC(2, 7, 4, activation="tanh", monotone=monotone, linear=False)
    return GradNetM(2, 7, 4, activation="softmax", monotone=monotone, linear=False)


@torch.no_grad()
def authors_start(net: GradNetC | GradNetM) -> None:
    """Free scales from U(-1/2, 1/2), weights and offsets from U(-1/sqrt d, 1/sqrt d), as in the authors' code.

    That the scales of M have the range of those of C is our assumption.
    """
    raw = (net.ridge.alpha_raw, net.ridge.beta_raw) if isinstance(net, GradNetC) else (net.scale_raw, net.sharpness_raw)
    for scale in raw:
        scale.uniform_(-0.5, 0.5)
    net.bias.uniform_(-(net.features**-0.5), net.features**-0.5)
