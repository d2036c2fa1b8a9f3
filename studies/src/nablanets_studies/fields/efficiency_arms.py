"""The efficiency study in tables: its settings, its networks, the calls that are timed, and the sizes of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from nablanets.maps import GradNetC, GradNetM, from_potential
from nablanets.parameters import count_parameters
from nablanets_studies.baselines import MLP, icnn_gradient, match_parameters, mlp_potential
from nablanets_studies.machinery.costs import Call, forward_pass, training_step

#: The dimension of the task, and the side of the grid of its test points.
TASK_FEATURES = 2
TEST_SIDE = 64
#: The name of its size.
TASK = "task"


@dataclass(frozen=True)
class Arm:
    """A network of the study.

    Attributes:
        name: on the page.
        make: ``make(features, width)`` builds it.
        ours: whether it is a gradient network of the paper, rather than one of its peers.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    ours: bool = False

    def build(self, features: int, parameters: int) -> nn.Module:
        """The widest network with at most that many parameters."""
        return match_parameters(lambda width: self.make(features, width), parameters)


def _gradnet_c(features: int, width: int) -> nn.Module:
    return GradNetC(features, width, 4, activation="tanh", monotone=True, linear=False)


def _gradnet_m(features: int, width: int) -> nn.Module:
    return GradNetM(features, width, 4, activation="softmax", monotone=True, linear=False)


def _autograd_potential(features: int, width: int) -> nn.Module:
    return from_potential(MLP(features, width, outputs=1), features)


#: The network that every other one takes turns with when it is timed.
REFERENCE = Arm("gradnet-c", _gradnet_c, ours=True)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        REFERENCE,
        Arm("gradnet-m", _gradnet_m, ours=True),
        Arm("mlp", MLP),
        Arm("autograd-potential", _autograd_potential),
        Arm("mlp-potential", mlp_potential),
        Arm("icnn", icnn_gradient),
    )
}


@dataclass(frozen=True)
class Mode:
    """A call that is timed; ``call(net, x)`` makes it."""

    name: str
    title: str
    call: Callable[[nn.Module, Tensor], Call]


FORWARD = Mode("forward", "forward pass", forward_pass)
STEP = Mode("step", "training step", training_step)
MODES = (FORWARD, STEP)


@dataclass(frozen=True)
class Axis:
    """What grows: the dimension or the batch."""

    name: str
    title: str


FEATURES = Axis("d", "d")
BATCH = Axis("b", "batch")
AXES = (FEATURES, BATCH)


@dataclass(frozen=True)
class Size:
    """A batch of points, and the parameters of the networks that take it.

    Attributes:
        name: in results.json.
        value: the number that grows along an axis.
        features, batch: of the points.
        parameters: the budget.
    """

    name: str
    value: int
    features: int
    batch: int
    parameters: int


@dataclass(frozen=True)
class EfficiencyConfig:
    """Settings of a run.

    Attributes:
        budgets: parameters of the networks that learn the task; costs of the task are those of the last.
        samples, validation_samples: points to train on and to choose rates and checkpoints on.
        batch_size, steps: of every fit.
        rates: learning rates that every network of every seed and budget chooses from.
        hidden_features: h of the GradNet-C that sets the number of parameters at each d for the growth.
        features: d for the growth with d, in batches of ``growth_batch``.
        growth_batch: see there.
        batches: batch sizes for the growth with the batch, at d = ``batch_features``.
        batch_features: see there.
        large_features, large_batch: exponents are fitted over d, and batches, from here on.
        repeats: rounds of timing.
        at_least: seconds that each measurement of them lasts; short calls are repeated within it.
    """

    budgets: tuple[int, ...] = (100, 400, 1600)
    samples: int = 5000
    validation_samples: int = 1000
    batch_size: int = 256
    steps: int = 2000
    rates: tuple[float, ...] = (5e-3, 2e-2)
    hidden_features: int = 64
    features: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    growth_batch: int = 64
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    batch_features: int = 32
    large_features: int = 256
    large_batch: int = 256
    repeats: int = 15
    at_least: float = 2e-3

    @property
    def task(self) -> Size:
        """The size of a batch of the task."""
        return Size(TASK, self.batch_size, TASK_FEATURES, self.batch_size, self.budgets[-1])

    def growth(self, axis: Axis) -> list[Size]:
        """The sizes along an axis."""
        if axis is FEATURES:
            return [self._size(axis, d, d, self.growth_batch) for d in self.features]
        return [self._size(axis, batch, self.batch_features, batch) for batch in self.batches]

    def _size(self, axis: Axis, value: int, features: int, batch: int) -> Size:
        parameters = _reference_parameters(features, self.hidden_features)
        return Size(f"{axis.name}{value}", value, features, batch, parameters)

    def large(self, axis: Axis) -> list[Size]:
        """Those that exponents are fitted over."""
        return [size for size in self.growth(axis) if size.value >= self.least(axis)]

    def least(self, axis: Axis) -> int:
        """Where exponents begin."""
        return self.large_features if axis is FEATURES else self.large_batch

    def sizes(self) -> list[Size]:
        """All sizes that are timed."""
        return [self.task, *self.growth(FEATURES), *self.growth(BATCH)]


@lru_cache(maxsize=256)
def _reference_parameters(features: int, width: int) -> int:
    return count_parameters(REFERENCE.make(features, width))
