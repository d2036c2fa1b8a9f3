"""The networks of the super-resolution study, its pictures, and how an arm is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from nablanets_studies.residual.arms import ARMS as SKIPS

#: Of the short trainings that choose rates and alphas; test trainings have small seeds.
_TRIAL_SEED = 1000
#: So many pictures validate.
_VALIDATION_PICTURES = 10


@dataclass(frozen=True)
class Method:
    """What the skips of a network carry, and what else is special about it.

    Attributes:
        name: of the method.
        skip: settings of a residual block.
        alpha: where alpha starts: chosen by validation pictures, or as chosen for "gradient"; None: there is no alpha.
        carries_gradients: whether the skip carries a gradient.
        control: whether it is one that gradients are compared with beside the standard skip.
        depth: blocks over those of the configuration.
        guided: has Sobel maps as further inputs.
    """

    name: str
    skip: Mapping[str, Any]
    alpha: Literal["chosen", "of gradient"] | None = None
    carries_gradients: bool = False
    control: bool = False
    depth: float = 1.0
    guided: bool = False


def _carrying(name: str, skip: Mapping[str, Any]) -> Method:
    return Method(name, skip, alpha="chosen", carries_gradients=True)


STANDARD = Method("standard", SKIPS["standard"])
GRADIENT = _carrying("gradient", SKIPS["gradient"])
_ALL_METHODS = (
    STANDARD,
    Method("no-skip", SKIPS["no-skip"], control=True),
    Method("damped", SKIPS["damped"], alpha="of gradient", control=True),
    Method("random", SKIPS["random"], alpha="of gradient", control=True),
    GRADIENT,
    _carrying("gradient-full", SKIPS["gradient-full"]),
    _carrying("gradient-probe", SKIPS["gradient-probe"]),
    _carrying("gradient-full-probe", {**SKIPS["gradient-full"], "probe": "learned"}),
    Method("guided", SKIPS["standard"], guided=True),
    Method("deeper", SKIPS["standard"], control=True, depth=1.5),
)
METHODS = {method.name: method for method in _ALL_METHODS}


@dataclass(frozen=True)
class Budget:
    """What is equal for all arms of a comparison.

    Attributes:
        name: in the settings.
        title: in sentences.
        versus: what learning curves are drawn against, a field of the history.
    """

    name: str
    title: str
    versus: str


EPOCHS = Budget("epochs", "epochs", versus="step")
TIME = Budget("time", "training time", versus="seconds")
BUDGETS = {budget.name: budget for budget in (EPOCHS, TIME)}


@dataclass(frozen=True)
class SuperResolutionArm:
    """A method that is trained with a budget."""

    method: Method
    budget: Budget

    @property
    def name(self) -> str:
        return f"{self.method.name}-{self.budget.name}"


_ALL_ARMS = [SuperResolutionArm(method, budget) for budget in BUDGETS.values() for method in METHODS.values()]
#: All that there can be, by name.
ARMS = {arm.name: arm for arm in _ALL_ARMS}


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
    methods: tuple[str, ...] = tuple(METHODS)
    budgets: tuple[str, ...] = tuple(BUDGETS)
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


def arms_of(config: SuperResolutionConfig) -> list[SuperResolutionArm]:
    """The trained arms of a run.

    Raises:
        UnknownNameError: there is no such method or budget.
    """
    for name in config.methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    for name in config.budgets:
        if name not in BUDGETS:
            raise unknown_name("budget", name, BUDGETS)
    methods = [METHODS[name] for name in config.methods]
    budgets = [BUDGETS[name] for name in config.budgets]
    return [SuperResolutionArm(method, budget) for budget in budgets for method in methods]


def build(config: SuperResolutionConfig, method: Method, alpha: float) -> EDSR:
    """The network of a method, with alpha where its training starts."""
    return EDSR(
        config.scale,
        blocks=round(method.depth * config.blocks),
        width=config.width,
        skip=method.skip if method.alpha is None else {**method.skip, "alpha": alpha},
        activation=config.activation,
        residual_scale=config.residual_scale,
        tail=config.tail,  # type: ignore[arg-type]
        onto_bicubic=config.onto_bicubic,
        guided=method.guided,
    )


def source_of(config: SuperResolutionConfig) -> str:
    """Where pictures come from: "packaged", "embedded" or the folder."""
    return "embedded" if config.data == "packaged" and not are_packaged() else config.data


@lru_cache(maxsize=4)
def pictures_of(config: SuperResolutionConfig) -> Pictures:
    """The pictures of a run."""
    source = source_of(config)
    if source in ("packaged", "embedded"):
        read = packaged_photographs if source == "packaged" else embedded_photographs
        train = read("train")
        validation = read("validation")
        tests = {"test": read("test")}
    else:
        folder = Path(source)
        train = photographs_of(folder / config.train)
        validation = photographs_of(folder / config.validation)
        tests = {name: photographs_of(folder / name) for name in config.tests}
    chosen = [middle(picture, config.validation_side) for picture in validation.pictures[:_VALIDATION_PICTURES]]
    return Pictures(train, chosen, tests)


@lru_cache(maxsize=2)
def _patches(config: SuperResolutionConfig) -> PatchPairs:
    return PatchPairs(pictures_of(config).train.pictures, config.scale, config.patch)


def train_arm(
    config: SuperResolutionConfig,
    method: Method,
    choice: Choice,
    *,
    seed: int,
    budget: Budget = EPOCHS,
    epochs: float | None = None,
    report: Report | Callable[[Any], None] = lambda _: None,
) -> tuple[EDSR, Trained]:
    """A network of a method, trained by epochs (those of the configuration if None) or by time."""
    by_epochs = budget == EPOCHS
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
    patches = _patches(config)
    validation = pictures_of(config).validation
    return net, train_super_resolution(net, patches, validation, settings, report=report)


@lru_cache(maxsize=256)
def choose(config: SuperResolutionConfig, name: str) -> Choice:
    """The alpha and rate of a method with the highest PSNR of the validation pictures after a short training."""
    method = METHODS[name]
    alphas = config.alphas if method.carries_gradients else config.alphas[:1]
    if method.alpha == "of gradient" and GRADIENT.name in config.methods:
        alphas = (choose(config, GRADIENT.name).alpha,)
    choices = [Choice(alpha, rate) for alpha in alphas for rate in config.rates]
    if len(choices) == 1:
        return choices[0]

    def error(choice: Choice) -> float:
        _, trained = train_arm(config, method, choice, seed=_TRIAL_SEED, epochs=config.trial_epochs)
        return trained.record.history[-1].validation_error

    return min(choices, key=error)
