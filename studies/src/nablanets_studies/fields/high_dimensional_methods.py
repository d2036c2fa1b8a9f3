"""The high-dimensional fields in tables: their settings, and the methods that learn them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from nablanets.maps import GradNetC, GradNetM, GradNetMixture, Quadratic
from nablanets.starts import initialise_affine, initialise_from_data, initialise_ridges
from nablanets_studies.baselines import MLP, icnn_gradient, match_parameters, mlp_potential
from nablanets_studies.problems.fields import Field

#: Quadratics of the mixture, and pieces that identification looks for unless its method says otherwise.
_EXPERTS = 3

#: ``make(field, parameters, linear)`` builds a network for a field; ``linear`` is the rank of a linear term, True for a
#: full one, False for none.
Constructor = Callable[[Field, int, bool | int], nn.Module]
#: ``start(net, x, g)`` changes the initial weights of a network, given samples.
Start = Callable[[nn.Module, Tensor, Tensor], None]


def _gradnet_c(field: Field, parameters: int, linear: bool | int) -> nn.Module:
    d = field.features
    return match_parameters(lambda width: GradNetC(d, width, monotone=field.convex, linear=linear), parameters)


def _gradnet_m(field: Field, parameters: int, linear: bool | int) -> nn.Module:
    d = field.features
    return match_parameters(lambda width: GradNetM(d, width, monotone=field.convex, linear=linear), parameters)


def _mixture(field: Field, parameters: int, linear: bool | int) -> nn.Module:
    """A smooth maximum of quadratics of the largest rank that fits, centred in the cube."""
    d = field.features
    # Of each expert: d (rank + 3) numbers; four more of the mixture.
    rank = min(d, (parameters - 4) // (_EXPERTS * d) - 3)
    experts = [Quadratic(d, rank, monotone=field.convex) for _ in range(_EXPERTS)]
    return GradNetMixture(experts).pullback(torch.ones(d), torch.full((d,), -0.5))


def _plain(make: Callable[[int, int], nn.Module]) -> Constructor:
    """A baseline, from its constructor (features, width)."""

    def build(field: Field, parameters: int, linear: bool | int) -> nn.Module:
        return match_parameters(lambda width: make(field.features, width), parameters)

    return build


def _as_it_is(net: nn.Module, x: Tensor, g: Tensor) -> None:
    """The usual initial weights."""


def _from_data(net: nn.Module, x: Tensor, g: Tensor) -> None:
    """Bends where the data are."""
    initialise_from_data(_gradnet(net), x)


def _affine_start(net: nn.Module, x: Tensor, g: Tensor) -> None:
    """The best affine gradient map."""
    initialise_from_data(_gradnet(net), x)
    initialise_affine(_gradnet(net), x, g)


def _ridge_start(net: nn.Module, x: Tensor, g: Tensor) -> None:
    """The best affine gradient map, and ridge functions of what it leaves."""
    initialise_from_data(_gradnet(net), x)
    initialise_ridges(_gradnet(net), x, g)


def _gradnet(net: nn.Module) -> GradNetC | GradNetM:
    """These starts are for gradient networks; the table below gives them to no other."""
    return cast(GradNetC | GradNetM, net)


@dataclass(frozen=True)
class TrainedMethod:
    """A network that is trained.

    Attributes:
        name: on the page.
        make: its constructor.
        start: of its weights.
        affine: whether the start has an affine part, for which networks that are not monotone need a linear term.
        convex_only: whether it is for convex fields alone.
    """

    name: str
    make: Constructor
    start: Start = _as_it_is
    affine: bool = False
    convex_only: bool = False

    def build(self, field: Field, parameters: int, x: Tensor, g: Tensor) -> nn.Module:
        """A network within a budget of parameters, at its start for samples (n, d) of the field."""
        net = self.make(field, parameters, self._linear(field, parameters))
        self.start(net, x, g)
        return net

    def _linear(self, field: Field, parameters: int) -> bool | int:
        """A full linear term, unless it would take more than half of the parameters: then the rank that takes half."""
        if not self.affine or field.convex:
            return False
        d = field.features
        half = parameters // 2
        if d * d + 2 * d <= parameters / 2:
            return True
        return max(1, half // d - 2)


@dataclass(frozen=True)
class IdentifiedMethod:
    """Pieces that are identified from samples; for convex fields alone.

    Attributes:
        name: on the page.
        pieces: how many are looked for.
        limited: whether the pieces keep to the budget of parameters.
        noisy: whether the gradients have noise.
    """

    name: str
    pieces: int = _EXPERTS
    limited: bool = True
    noisy: bool = False
    convex_only: bool = True


@dataclass(frozen=True)
class AffineMethod:
    """The best affine map."""

    name: str
    convex_only: bool = False


Method = TrainedMethod | IdentifiedMethod | AffineMethod

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        AffineMethod("affine"),
        TrainedMethod("gradnet-c", _gradnet_c, _from_data),
        TrainedMethod("gradnet-m", _gradnet_m, _from_data),
        TrainedMethod("gradnet-c-affine-start", _gradnet_c, _affine_start, affine=True),
        TrainedMethod("gradnet-m-affine-start", _gradnet_m, _affine_start, affine=True),
        TrainedMethod("gradnet-c-ridge-start", _gradnet_c, _ridge_start, affine=True),
        TrainedMethod("gradnet-m-ridge-start", _gradnet_m, _ridge_start, affine=True, convex_only=True),
        TrainedMethod("mixture", _mixture),
        IdentifiedMethod("identified"),
        IdentifiedMethod("identified-unlimited", limited=False),
        IdentifiedMethod("identified-noisy", noisy=True),
        IdentifiedMethod("identified-2", pieces=2),
        IdentifiedMethod("identified-6", pieces=6),
        TrainedMethod("mlp", _plain(MLP)),
        TrainedMethod("mlp-potential", _plain(mlp_potential)),
        TrainedMethod("icnn", _plain(icnn_gradient)),
    )
}


@dataclass(frozen=True)
class HighDimensionalConfig:
    """Settings of a run.

    Attributes:
        features: the dimensions d.
        methods: which of the arms to run; the names are those of the table without field and dimension.
        parameters_per_feature: the budget is this times d.
        steps, batch_size: of training, each batch of fresh points.
        rates, trial_steps: each trained arm takes the best of the rates, times 32 / d, by validation after so many steps.
        samples_per_feature, samples: identification uses d times the first, but at least the second, many points.
        affine_samples_per_feature, start_samples: the affine baseline and the starts use d times the first, but at least
            the second.
        noise: of the gradients in the noisy arms, relative to their root mean square.
        validation_samples, test_samples: further points.
    """

    features: tuple[int, ...] = (32, 256, 1024)
    methods: tuple[str, ...] = tuple(METHODS)
    parameters_per_feature: int = 1024
    steps: int = 10_000
    batch_size: int = 100
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    trial_steps: int = 500
    samples_per_feature: int = 10
    affine_samples_per_feature: int = 50
    samples: int = 4000
    start_samples: int = 20_000
    noise: float = 0.01
    validation_samples: int = 2000
    test_samples: int = 10_000

    def points_for(self, method: Method, features: int) -> int:
        """How many samples a method sees."""
        if isinstance(method, IdentifiedMethod):
            return max(self.samples, self.samples_per_feature * features)
        return max(self.start_samples, self.affine_samples_per_feature * features)

    def budget(self, features: int) -> int:
        """Parameters of the networks."""
        return self.parameters_per_feature * features
