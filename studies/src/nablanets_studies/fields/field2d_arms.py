"""How each arm of the two-dimensional experiments is built and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

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


class Plan(NamedTuple):
    """How a network is trained: the best of several starts, each with the best of several settings by validation error.

    Attributes:
        starts, start_steps: so many networks go on for so many steps, then the best of them alone.
        choices: settings to choose from.
    """

    starts: int
    start_steps: int
    choices: list[FitSettings]


#: ``make(parameters, monotone)`` builds a network of two variables with at most that many parameters.
Constructor = Callable[[int, bool], nn.Module]


@dataclass(frozen=True)
class TrainedArm:
    """A network that is trained.

    Attributes:
        name: on the page.
        make: its constructor.
        plan: of its training.
        start: changes its initial weights, given the training points.
        pictured: whether its field is drawn.
    """

    name: str
    make: Constructor
    plan: Callable[[Field2DConfig, FitSettings], Plan]
    start: Callable[[nn.Module, Tensor], None]
    pictured: bool = False

    def build(self, parameters: int, x: Tensor, *, monotone: bool) -> nn.Module:
        """A fresh network with its start."""
        net = self.make(parameters, monotone)
        self.start(net, x)
        return net

    def train(
        self, config: Field2DConfig, seed: int, train: Samples, validation: Samples, *, monotone: bool
    ) -> tuple[nn.Module, FitResult]:
        """The trained network with the settings of the least validation error."""
        common = FitSettings(steps=config.steps, batch_size=config.batch_size, seed=seed)
        plan = self.plan(config, common.update(schedule=config.schedule))
        tried = []
        for settings in plan.choices:
            fitted = fit_best_start(
                lambda: self.build(config.parameters, train[0], monotone=monotone),
                *train,
                validation=validation,
                progress=False,
                starts=plan.starts,
                start_steps=plan.start_steps,
                settings=settings,
            )
            tried.append(fitted)
        return min(tried, key=lambda pair: pair[1].best_validation_error)


@dataclass(frozen=True)
class SolvedArm:
    """A map that is solved for, without training."""

    name: str
    solve: Callable[[Samples], nn.Module]


def _one_rate(config: Field2DConfig, common: FitSettings) -> Plan:
    """The rate of the gradient networks."""
    return Plan(config.starts, config.start_steps, [common.update(learning_rate=config.learning_rate)])


def _best_rate(config: Field2DConfig, common: FitSettings) -> Plan:
    """The rates that baselines choose from."""
    choices = [common.update(learning_rate=rate) for rate in config.baseline_rates]
    return Plan(config.starts, config.start_steps, choices)


def _levenberg(config: Field2DConfig, common: FitSettings) -> Plan:
    """Levenberg-Marquardt; starts are halved on the way."""
    settings = common.update(
        optimizer="levenberg", steps=config.lm_iterations, batch_size=config.lm_samples, validate_every=5
    )
    return Plan(config.lm_starts, config.lm_halving, [settings])


def _published(config: Field2DConfig, common: FitSettings) -> Plan:
    """The authors' protocol: one start at a constant rate."""
    return Plan(1, config.start_steps, [common.update(learning_rate=5e-3, schedule="constant")])


def _gradnet_c(parameters: int, monotone: bool) -> GradNetC:
    """The published network, of exactly 100 parameters."""
    return GradNetC(2, 7, 4, activation="tanh", monotone=monotone, linear=False)


def _gradnet_m(parameters: int, monotone: bool) -> GradNetM:
    """The published network, of 94 parameters."""
    return GradNetM(2, 7, 4, activation="softmax", monotone=monotone, linear=False)


def _widest(make: Callable[[int, int], nn.Module]) -> Constructor:
    """The widest network within the budget of a constructor (features, width)."""

    def build(parameters: int, monotone: bool) -> nn.Module:
        return match_parameters(lambda width: make(2, width), parameters)

    return build


_mlp = _widest(MLP)
_potential = _widest(mlp_potential)


def _from_data(net: nn.Module, x: Tensor) -> None:
    """Our start, where the data are, for all gradient maps; an MLP keeps its own."""
    if isinstance(net, GradientMap):
        initialise_from_data(net, x)


def _as_published(net: nn.Module, x: Tensor) -> None:
    cast(GradNetC | GradNetM, net).start_as_published()


def _affine(samples: Samples) -> AffineField:
    """The best affine field by least squares."""
    affine = AffineField(2)
    affine.fit(*samples)
    return affine


Arm = TrainedArm | SolvedArm

#: What is compared, in the order of the table: the papers' nets, the same by Levenberg-Marquardt with two baselines, the
#: authors' protocol to the letter, the baselines.
ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        TrainedArm("gradnet-c", _gradnet_c, _one_rate, _from_data, pictured=True),
        TrainedArm("gradnet-m", _gradnet_m, _one_rate, _from_data, pictured=True),
        TrainedArm("gradnet-c-lm", _gradnet_c, _levenberg, _from_data, pictured=True),
        TrainedArm("gradnet-m-lm", _gradnet_m, _levenberg, _from_data, pictured=True),
        TrainedArm("mlp-lm", _mlp, _levenberg, _from_data),
        TrainedArm("mlp-potential-lm", _potential, _levenberg, _from_data),
        TrainedArm("paper-c", _gradnet_c, _published, _as_published),
        TrainedArm("paper-m", _gradnet_m, _published, _as_published),
        SolvedArm("affine", _affine),
        TrainedArm("mlp", _mlp, _best_rate, _from_data, pictured=True),
        TrainedArm("mlp-potential", _potential, _best_rate, _from_data),
        TrainedArm("icnn", _widest(icnn_gradient), _best_rate, _from_data),
        TrainedArm("convex-ridge", _widest(convex_ridge), _best_rate, _from_data),
    )
}
