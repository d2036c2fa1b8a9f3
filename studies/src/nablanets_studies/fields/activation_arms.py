"""The activation study in tables: its settings, its targets, and the networks that learn them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from nablanets.activations import ACTIVATIONS, ElementwiseActivation, GroupActivation
from nablanets.fitting.batches import Samples
from nablanets.maps import GradNetC, GradNetM
from nablanets.pieces import fit_pieces
from nablanets_studies.baselines import MLP, AffineField, match_parameters, mlp_potential
from nablanets_studies.problems.fields import ConvexField, Field, NonconvexField
from nablanets_studies.problems.nonsmooth import L1Norm, MaxAffine, Staircase

TARGETS: dict[str, Field] = {
    target.name: target for target in (ConvexField(), NonconvexField(), MaxAffine(), L1Norm(), Staircase())
}
#: How many affine pieces are looked for by identification.
PIECES = 6
#: Layers of GradNet-C, modules of GradNet-M.
_DEPTH = 4

#: ``make(width, monotone)`` builds a network of two variables.
Constructor = Callable[[int, bool], nn.Module]
#: ``solve(samples, target, seed)`` finds a map of the target without training.
Solver = Callable[[Samples, Field, int], nn.Module]


@dataclass(frozen=True)
class _Arm:
    """What learns the targets.

    Attributes:
        name: on the page.
        baseline: whether gradient networks are compared with it.
        curl_free: whether it is a gradient by construction.
    """

    name: str
    baseline: bool = True
    curl_free: bool = True


@dataclass(frozen=True)
class SolvedArm(_Arm):
    """A map that is solved for, without training."""

    solve: Solver = field(kw_only=True)


@dataclass(frozen=True)
class TrainedArm(_Arm):
    """A network that is trained.

    Attributes:
        make: its constructor.
        activation: that of a gradient network of ours, by name; None for all others.
    """

    make: Constructor = field(kw_only=True)
    activation: str | None = None

    @property
    def can_be_monotone(self) -> bool:
        """Whether its activation allows a monotone network."""
        return self.activation is not None and bool(ACTIVATIONS[self.activation]((1,), monotone=True).increasing)

    @property
    def kind(self) -> str:
        """What sort of activation a gradient network has; empty for all others.

        >>> arms = gradient_arms(("tanh", "abs", "softmax", "spline", "identity"))
        >>> [arms[name].kind for name in ("c-tanh", "m-abs", "m-softmax", "c-spline", "c-identity")]
        ['smooth', 'piecewise linear', 'group', 'spline', 'linear']
        """
        return "" if self.activation is None else _kind(self.activation)

    def build(self, budget: int, *, monotone: bool) -> nn.Module:
        """The widest fresh network with at most that many parameters."""
        return match_parameters(lambda width: self.make(width, monotone), budget)


Arm = TrainedArm | SolvedArm

#: Kinds of activations in the order of the page.
KINDS = ("linear", "smooth", "piecewise linear", "polynomial", "spline", "group")


def _kind(activation: str) -> str:
    if activation == "identity":
        return "linear"
    if activation in ("polynomial", "spline"):
        return activation
    cls = ACTIVATIONS[activation]
    if issubclass(cls, GroupActivation):
        return "group"
    kinked = issubclass(cls, ElementwiseActivation) and bool(cls.kinks)
    return "piecewise linear" if kinked else "smooth"


def _gradnet_c(activation: str) -> TrainedArm:
    def make(width: int, monotone: bool) -> nn.Module:
        return GradNetC(2, width, _DEPTH, activation=activation, monotone=monotone, linear=False)

    return TrainedArm(f"c-{activation}", make=make, activation=activation, baseline=False)


def _gradnet_m(activation: str) -> TrainedArm:
    def make(width: int, monotone: bool) -> nn.Module:
        return GradNetM(2, width, _DEPTH, activation=activation, monotone=monotone, linear=False)

    return TrainedArm(f"m-{activation}", make=make, activation=activation, baseline=False)


def solve_affine(samples: Samples, target: Field, seed: int) -> nn.Module:
    """The best affine map."""
    affine = AffineField(target.features)
    affine.fit(*samples)
    return affine


def _identify(samples: Samples, target: Field, seed: int) -> nn.Module:
    net, _, _ = fit_pieces(*samples, PIECES, monotone=target.convex, seed=seed)
    return net


AFFINE = SolvedArm("affine", solve=solve_affine, curl_free=False)
#: No trained network but what the library offers for such targets: affine pieces identified from samples.
IDENTIFIED = SolvedArm("identified", solve=_identify, baseline=False)

_OTHERS: tuple[Arm, ...] = (
    AFFINE,
    TrainedArm("mlp-tanh", make=lambda width, monotone: MLP(2, width), curl_free=False),
    TrainedArm("mlp-relu", make=lambda width, monotone: MLP(2, width, activation="relu"), curl_free=False),
    TrainedArm("mlp-potential", make=lambda width, monotone: mlp_potential(2, width)),
    IDENTIFIED,
)


def gradient_arms(activations: Sequence[str]) -> dict[str, TrainedArm]:
    """The gradient networks by name: elementwise activations in GradNet-C, all in GradNet-M.

    >>> list(gradient_arms(("tanh", "softmax")))
    ['c-tanh', 'm-tanh', 'm-softmax']
    """
    arms: list[TrainedArm] = []
    for activation in activations:
        if not issubclass(ACTIVATIONS[activation], GroupActivation):
            arms.append(_gradnet_c(activation))
        arms.append(_gradnet_m(activation))
    return {arm.name: arm for arm in arms}


def arms_of(activations: Sequence[str]) -> dict[str, Arm]:
    """All arms by name."""
    return {**gradient_arms(activations), **{arm.name: arm for arm in _OTHERS}}


#: All gradient networks, and every arm that a run can have.
GRADIENT_ARMS = gradient_arms(tuple(ACTIVATIONS))
ARMS = arms_of(tuple(ACTIVATIONS))


@dataclass(frozen=True)
class ActivationsConfig:
    """Settings of a run.

    Attributes:
        activations: their names; group activations are in GradNet-M only.
        targets: fields to learn, by name.
        parameters: every network is the widest with at most so many.
        samples, validation_samples: points to train on and to choose rates and checkpoints on.
        batch_size, steps: of every fit.
        rates: learning rates that every network of every seed and target chooses from.
        test_side: the test points are a grid of this side.
        margin: test points farther than this from every kink count as away from the kinks.
    """

    activations: tuple[str, ...] = tuple(ACTIVATIONS)
    targets: tuple[str, ...] = tuple(TARGETS)
    parameters: int = 400
    samples: int = 5000
    validation_samples: int = 1000
    batch_size: int = 128
    steps: int = 1000
    rates: tuple[float, ...] = (1e-2, 4e-2)
    test_side: int = 64
    margin: float = 0.05
