"""The peers that gradient networks are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from nablanets.activations import ACTIVATIONS, ElementwiseActivation, make_activation
from nablanets.errors import ShapeError, check_points, check_positive_int, unknown_name
from nablanets.maps import Coordinates, FromPotential, GradNetC
from nablanets.parameters import count_parameters, inverse_softplus, softplus
from nablanets.serialization import savable


@savable
class AffineField(nn.Module):
    """x -> M x + b, fitted by least squares in closed form: what any learned field should beat.

    >>> field, x = AffineField(2), torch.randn(20, 2)
    >>> field.fit(x, 3 * x + 1)
    >>> torch.allclose(field(x), 3 * x + 1, atol=1e-4)
    True
    """

    matrix: Tensor
    offset: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("matrix", torch.zeros(features, features))
        self.register_buffer("offset", torch.zeros(features))

    def config(self) -> dict[str, Any]:
        return {"features": self.features}

    def fit(self, x: Tensor, g: Tensor) -> None:
        """Set M and b to the least-squares solution for samples x, g of shape (n, d)."""
        if x.shape != g.shape or x.ndim != 2:
            raise ShapeError(f"AffineField.fit: expected x and g of one shape (n, d), got {x.shape} and {g.shape}.")
        design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).double()
        solution = torch.linalg.lstsq(design, g.double()).solution
        self.matrix.copy_(solution[:-1].mT)
        self.offset.copy_(solution[-1])

    def forward(self, x: Tensor) -> Tensor:
        check_points(x, self.features, owner="AffineField")
        return x @ self.matrix.mT + self.offset


@savable
class MLP(nn.Module):
    """A multilayer perceptron from d features to ``outputs`` (d if None).

    Args:
        features: d.
        hidden_features: width of each hidden layer.
        num_layers: number of hidden layers.
        activation: a parameter-free elementwise activation by name.
        outputs: output dimension.
        frequency: for the sine activation, largest factor of the first layer's weights; its units have factors spread
            evenly from 0 to it, so that coarse and fine structure are both there from the start (a SIREN has one factor
            for all). None keeps the default start.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_layers: int = 2,
        activation: str = "tanh",
        outputs: int | None = None,
        frequency: float | None = None,
    ) -> None:
        super().__init__()
        check_positive_int(hidden_features, owner="MLP", name="hidden_features")
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        self._config = {
            "features": features,
            "hidden_features": hidden_features,
            "num_layers": num_layers,
            "activation": activation,
            "outputs": outputs,
            "frequency": frequency,
        }
        self.activation = cast(ElementwiseActivation, make_activation(activation))
        widths = [features, *[hidden_features] * num_layers, features if outputs is None else outputs]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        with torch.no_grad():
            if frequency is not None:
                layers[0].weight.mul_(torch.linspace(0, frequency, hidden_features + 1)[1:, None])
            if activation == "sine":  # SIREN's U(-sqrt(6 / n), sqrt(6 / n)) for the layers behind the first
                for layer in layers[1:]:
                    layer.weight.mul_(6**0.5)
        self.layers = nn.ModuleList(layers)

    def config(self) -> dict[str, Any]:
        return self._config

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        for layer in hidden:
            x = self.activation(layer(x))
        result: Tensor = last(x)
        return result


@savable
class MLPPotential(MLP):
    """A scalar MLP with its gradient by hand-written back-propagation, the cheapest form of an autograd potential."""

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_layers: int = 2,
        activation: str = "tanh",
        frequency: float | None = None,
    ) -> None:
        super().__init__(features, hidden_features, num_layers, activation, 1, frequency)
        del self._config["outputs"]
        if frequency is not None:
            with torch.no_grad():  # the gradient is larger than the potential by the frequency
                cast(nn.Linear, self.layers[-1]).weight.div_(frequency)

    def gradient(self, x: Tensor) -> Tensor:
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        # Forward: the slope of the activation of each hidden layer.
        slopes = []
        for layer in hidden:
            x, slope = self.activation.value_and_derivative(layer(x))
            slopes.append(slope)
        # Backward: through the transposed layers, from the last to the first.
        gradient = last.weight[0]
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            gradient = (gradient * slope) @ layer.weight
        return gradient


@savable
class Rescaled(nn.Module):
    """x -> c A h(A x + b) for any module h, a diagonal A and numbers c: what standardising does to gradient maps.

    >>> Rescaled(MLP(3, 8), torch.ones(3), torch.zeros(3), 2.0)(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, inner: nn.Module, scale: Tensor, offset: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        self.inner = inner
        self.factor = factor
        self.register_buffer("scale", scale.clone())
        self.register_buffer("offset", offset.clone())

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "scale": self.scale, "offset": self.offset, "factor": self.factor}

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.scale * cast(Tensor, self.inner(self.scale * x + self.offset))


@savable
class CoordinateField(nn.Module):
    """x -> J_phi(x)^T h(phi(x)) for any module h: the symmetries of the coordinates phi, but no potential.

    Of :class:`~nablanets.maps.CoordinatePullback` it lacks only that h is a gradient map.

    Args:
        inner: h.
        coordinates: phi.
        matrices: a group of matrices (n, m, m) over which h is averaged as in :class:`~nablanets.Symmetrized`.

    >>> from nablanets.maps import pair_distances
    >>> CoordinateField(MLP(3, 8), pair_distances(3))(torch.randn(5, 9)).shape
    torch.Size([5, 9])
    """

    matrices: Tensor

    def __init__(self, inner: nn.Module, coordinates: Coordinates, matrices: Tensor | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.coordinates = coordinates
        self.features = coordinates.features
        group = torch.eye(coordinates.outputs).unsqueeze(0) if matrices is None else matrices.clone()
        self.register_buffer("matrices", group)

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "coordinates": self.coordinates, "matrices": self.matrices}

    def forward(self, x: Tensor) -> Tensor:
        check_points(x, self.features, owner="CoordinateField")
        phi, pull = self.coordinates.linearise(x)
        values = self.inner(torch.einsum("nij,...j->n...i", self.matrices, phi))
        return pull(torch.einsum("nij,n...i->...j", self.matrices, values) / len(self.matrices))


@savable
class ICNN(nn.Module):
    """Input-convex neural network (Amos, Xu, Kolter 2017): a scalar network convex in x, softplus units.

    z_1 = s(A_0 x + b_0), z_{k+1} = s(softplus(U_k) z_k + A_k x + b_k), F = softplus(u) z_L + a x.
    """

    def __init__(self, features: int, hidden_features: int, num_layers: int = 2) -> None:
        super().__init__()
        check_positive_int(hidden_features, owner="ICNN", name="hidden_features")
        self._config = {"features": features, "hidden_features": hidden_features, "num_layers": num_layers}
        widths = [hidden_features] * num_layers + [1]
        self.skip = nn.ModuleList(nn.Linear(features, width) for width in widths)
        # Raw weights start near softplus^-1(1 / h), so that the sum over h units starts as a mean.
        start = inverse_softplus(1 / hidden_features)
        self.positive = nn.ParameterList(start + 0.1 * torch.randn(width, hidden_features) for width in widths[1:])

    def config(self) -> dict[str, Any]:
        return self._config

    def forward(self, x: Tensor) -> Tensor:
        z = softplus(self.skip[0](x))
        for raw, skip in zip(self.positive, list(self.skip)[1:], strict=True):
            pre = z @ softplus(raw).mT + skip(x)
            z = softplus(pre)
        return pre

    def gradient(self, x: Tensor) -> Tensor:
        first, *skips = cast(list[nn.Linear], list(self.skip))
        weights = [softplus(raw) for raw in self.positive]
        # Forward: what goes into the softplus of each layer.
        pre = [first(x)]
        for weight, skip in zip(weights, skips, strict=True):
            pre.append(softplus(pre[-1]) @ weight.mT + skip(x))
        # Backward: ``inner`` is the derivative by pre[k]; each layer adds what its skip from x passes on.
        inner = torch.ones_like(pre[-1])
        gradient = inner * skips[-1].weight[0]
        for k in range(len(weights) - 1, -1, -1):
            inner = (inner @ weights[k]) * torch.sigmoid(pre[k])
            from_input = first if k == 0 else skips[k - 1]
            gradient = gradient + inner @ from_input.weight
        return gradient


def mlp_potential(
    features: int, hidden_features: int, num_layers: int = 2, activation: str = "tanh", frequency: float | None = None
) -> FromPotential:
    """The gradient of a scalar MLP (an "autograd potential"; a "Hamiltonian network" in dynamics)."""
    return FromPotential(MLPPotential(features, hidden_features, num_layers, activation, frequency), features)


def icnn_gradient(features: int, hidden_features: int, num_layers: int = 2) -> FromPotential:
    """The gradient of an ICNN."""
    return FromPotential(ICNN(features, hidden_features, num_layers), features, monotone=True)


def convex_ridge(features: int, hidden_features: int, *, knots: int = 9, radius: float = 1.0) -> GradNetC:
    """A convex-ridge network W^T s(W x + b) with a learnable increasing spline per unit.

    After Goujon et al., "A neural-network-based convex regularizer for inverse problems" (2022), with our spline
    (once continuously differentiable instead of piecewise linear) over [-radius, radius]. It is a one-layer monotone
    GradNet-C.
    """
    spline = ("spline", {"knots": knots, "radius": radius})
    return GradNetC(features, hidden_features, num_layers=1, activation=spline, monotone=True, linear=False)


def match_parameters(constructor: Callable[[int], nn.Module], budget: int) -> nn.Module:
    """The widest network ``constructor(width)`` with at most ``budget`` parameters.

    The width is doubled until it is too much, then bisected; networks are counted on the meta device, without memory
    and without random numbers.

    Raises:
        ShapeError: even width 1 has more.

    >>> count_parameters(match_parameters(lambda h: MLP(2, h), 100))
    93
    """

    def size(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(constructor(width))

    if size(1) > budget:
        raise ShapeError(f"match_parameters: width 1 already has {size(1)} parameters, more than the budget {budget}.")
    upper = 1
    while size(upper) <= budget:
        upper *= 2
    lower = upper // 2
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if size(middle) <= budget:
            lower = middle
        else:
            upper = middle
    return constructor(lower)
