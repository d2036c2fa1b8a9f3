"""The networks of the super-resolution study, its pictures, and how an arm is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets_studies.images.models import EDSR
from nablanets_studies.images.patches import PatchPairs, middle
from nablanets_studies.images.photographs import (
    Photographs,
    are_packaged,
    embedded_photographs,
    packaged_photographs,
    photographs_of,
)
from nablanets_studies.images.super_resolution import Trained, train_super_resolution
from nablanets_studies.images.training import TrainSettings
from nablanets_studies.residual.arms import ARMS

#: Arms that carry gradients, and those of their size that carry none.
CARRYING = ("gradient", "gradient-full", "gradient-probe", "gradient-full-probe")
CONTROLS = ("standard", "no-skip", "damped", "random")
METHODS = (*CONTROLS, *CARRYING, "guided", "deeper")
BUDGETS = ("epochs", "time")

_SKIPS: dict[str, dict[str, Any]] = {
    **{name: ARMS[name] for name in METHODS if name in ARMS},
    "gradient-full-probe": {**ARMS["gradient-full"], "probe": "learned"},
}
_ALPHA_OF_GRADIENT = ("damped", "random")
_TRIAL_SEED = 1000
_VALIDATION_PICTURES = 10


@dataclass(frozen=True)
class SuperResolutionConfig:
    """Settings of a run.

    Attributes:
        data: "packaged" (photographs inside packages; without them those inside scikit-image and scikit-learn),
            "embedded" (only the latter), or a folder that holds the folders below.
        train, validation, tests: folders of pictures in ``data``, if that is a folder.
        methods: which of the arms to run.
        budgets: "epochs" and "time", each a training of its own.
        scale: 2, 3 or 4.
        blocks, width, residual_scale, tail, onto_bicubic, activation: of EDSR.
        epochs: passes of 16,000 patches in the trainings by epochs.
        seconds: processor time of the trainings by time, without validation.
        batch_size, patch: patches per step, and their size in pixels of the small picture.
        rates, alphas: what each arm chooses from by the PSNR of the validation pictures.
        trial_epochs: the choice is made after so many epochs.
        ema: decay of the average of weights that is validated and tested; 0 for none.
        precision: of Lightning Fabric.
        validate_every: steps between evaluations.
        validation_side: validation pictures are cut to so many pixels each way, from their middle.
    """

    data: str = "sr-data"
    train: str = "DIV2K_train_HR"
    validation: str = "DIV2K_valid_HR"
    tests: tuple[str, ...] = ("Set5", "Set14", "BSD100", "Urban100", "DIV2K_valid_HR")
    methods: tuple[str, ...] = METHODS
    budgets: tuple[str, ...] = BUDGETS
    scale: int = 2
    blocks: int = 16
    width: int = 64
    residual_scale: float = 1.0
    tail: str = "stages"
    onto_bicubic: bool = False
    activation: str = "relu"
    epochs: float = 500.0
    seconds: float = 100_000.0
    batch_size: int = 16
    patch: int = 48
    rates: tuple[float, ...] = (1e-4,)
    alphas: tuple[float, ...] = (-3.0,)
    trial_epochs: float = 10.0
    ema: float = 0.0
    precision: str = "32-true"
    validate_every: int = 10_000
    validation_side: int = 1000


class Choice(NamedTuple):
    """What validation pictures chose for an arm."""

    alpha: float
    rate: float


class Pictures(NamedTuple):
    """The pictures of a run; the tests by the name of their set."""

    train: Photographs
    validation: list[torch.Tensor]
    tests: dict[str, Photographs]


def build(config: SuperResolutionConfig, method: str, alpha: float) -> EDSR:
    """The network of a method; "deeper" is "standard" with 1.5 times the blocks."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    skip = _SKIPS.get(method, _SKIPS["standard"])
    gated = skip["skip"] in ("gradient", "damped", "random")
    return EDSR(
        config.scale,
        blocks=round(1.5 * config.blocks) if method == "deeper" else config.blocks,
        width=config.width,
        skip={**skip, "alpha": alpha} if gated else skip,
        activation=config.activation,
        residual_scale=config.residual_scale,
        tail=config.tail,  # type: ignore[arg-type]
        onto_bicubic=config.onto_bicubic,
        guided=method == "guided",
    )


def source_of(config: SuperResolutionConfig) -> str:
    """Where pictures come from: "packaged", "embedded" or the folder."""
    return "embedded" if config.data == "packaged" and not are_packaged() else config.data


@lru_cache(maxsize=4)
def pictures_of(config: SuperResolutionConfig) -> Pictures:
    """The pictures of a run."""
    source = source_of(config)
    if source in ("packaged", "embedded"):
        part = packaged_photographs if source == "packaged" else embedded_photographs
        train, validation, tests = part("train"), part("validation"), {"test": part("test")}
    else:
        folder = Path(source)
        train, validation = photographs_of(folder / config.train), photographs_of(folder / config.validation)
        tests = {name: photographs_of(folder / name) for name in config.tests}
    chosen = [middle(p, config.validation_side) for p in validation.pictures[:_VALIDATION_PICTURES]]
    return Pictures(train, chosen, tests)


@lru_cache(maxsize=2)
def _patches(config: SuperResolutionConfig) -> PatchPairs:
    return PatchPairs(pictures_of(config).train.pictures, config.scale, config.patch)


def train_arm(
    config: SuperResolutionConfig,
    method: str,
    choice: Choice,
    *,
    seed: int,
    budget: str = "epochs",
    epochs: float | None = None,
    report: Report | Callable[[Any], None] = lambda _: None,
) -> tuple[EDSR, Trained]:
    """A network of an arm, trained by epochs or by time."""
    by_epochs = budget == "epochs"
    settings = TrainSettings(
        epochs=(epochs or config.epochs) if by_epochs else None,
        seconds=None if by_epochs else config.seconds,
        batch_size=config.batch_size,
        learning_rate=choice.rate,
        optimizer="adam",
        ema=config.ema or None,
        precision=config.precision,
        channels_last=True,
        validate_every=config.validate_every,
        seed=seed,
    )
    torch.manual_seed(seed)
    net = build(config, method, choice.alpha)
    patches, validation = _patches(config), pictures_of(config).validation
    return net, train_super_resolution(net, patches, validation, settings, report=report)


@lru_cache(maxsize=256)
def choose(config: SuperResolutionConfig, method: str) -> Choice:
    """The alpha and rate with the highest PSNR of the validation pictures after a short training."""
    alphas = config.alphas if method in CARRYING else config.alphas[:1]
    if method in _ALPHA_OF_GRADIENT and "gradient" in config.methods:
        alphas = (choose(config, "gradient").alpha,)
    choices = [Choice(alpha, rate) for alpha in alphas for rate in config.rates]
    if len(choices) == 1:
        return choices[0]

    def error(choice: Choice) -> float:
        _, trained = train_arm(config, method, choice, seed=_TRIAL_SEED, epochs=config.trial_epochs)
        return trained.record.history[-1].validation_error

    return min(choices, key=error)
