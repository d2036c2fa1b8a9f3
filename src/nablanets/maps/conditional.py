"""Gradient maps that depend on a context: f(x; c), a gradient in x for every c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from nablanets import serialization
from nablanets.activations import ActivationSpec, normalise_spec
from nablanets.errors import ShapeError, check_points, check_positive_int
from nablanets.keywords import explain_keywords
from nablanets.maps.cascaded import CascadedMap, CascadeParts, cascade_responses, random_projection
from nablanets.maps.conditioner import Conditioner
from nablanets.maps.describing import describe_map
from nablanets.maps.quadratic import LinearSpec, make_linear_term
from nablanets.maps.ridge import RidgeCascade
from nablanets.parameters import first_tensor
from nablanets.serialization import savable


@savable
@explain_keywords
class ConditionalGradNet(nn.Module):
    r"""A network f(x; c) that is the gradient in x of a potential F(x; c), for every context c.

    .. math:: f(x; c) = W^\top [a(c) \odot \phi(W x + \delta(c))] + b(c) \; (+ A x),

    with the elementwise cascade phi of GradNetC. A small MLP with SiLU units, the conditioner, computes a (positive
    if ``monotone``), delta and b. ``given(c)`` is a :class:`~nablanets.GradientMap` with all that belongs to one;
    ``net(x, c)`` is its value.

    Args:
        features: d.
        context_features: k, the dimension of c. Contexts should be of order one.
        hidden_features: h.
        num_layers: layers of the cascade.
        activation: an elementwise activation.
        monotone: convex in x for every c.
        linear: the linear term A, which does not depend on c: True, a rank, "diagonal", or False.
        conditioner_width: units of each hidden layer of the conditioner.
        conditioner_depth: its number of hidden layers.

    Shapes:
        x ``(*, d)`` and c ``(k)``, one context for all, or ``(*, k)``, broadcast against x -> f(x; c) ``(*, d)``.

    Raises:
        IllegalActivationError: a group activation, or one that is not increasing in a monotone net.

    >>> net = ConditionalGradNet(3, 2, 16, monotone=True).double()
    >>> x, c = torch.randn(5, 3, dtype=torch.double), torch.randn(5, 2, dtype=torch.double)
    >>> net(x, c).shape, net.given(c).potential(x).shape
    (torch.Size([5, 3]), torch.Size([5]))
    >>> one = net.given(c[0])
    >>> torch.allclose(one.inverse(one(x)), x)
    True
    """

    def __init__(
        self,
        features: int,
        context_features: int,
        hidden_features: int,
        num_layers: int = 2,
        activation: ActivationSpec = "wtanh",
        monotone: bool = False,
        linear: LinearSpec = True,
        conditioner_width: int = 32,
        conditioner_depth: int = 2,
    ) -> None:
        super().__init__()
        sizes = {
            "features": features,
            "context_features": context_features,
            "hidden_features": hidden_features,
            "num_layers": num_layers,
            "conditioner_width": conditioner_width,
            "conditioner_depth": conditioner_depth,
        }
        for name, value in sizes.items():
            check_positive_int(value, owner="ConditionalGradNet", name=name)
        spec = list(normalise_spec(activation))
        self._config = {**sizes, "activation": spec, "monotone": monotone, "linear": linear}
        self.features = features
        self.context_features = context_features
        self.monotone = monotone
        self.projection = random_projection(hidden_features, features)
        spread = features**-0.5
        self.ridge = RidgeCascade(hidden_features, num_layers, activation, monotone=monotone, spread=spread)
        self.linear = make_linear_term(linear, features, monotone=monotone)
        self.conditioner = Conditioner(
            context_features,
            conditioner_width,
            conditioner_depth,
            hidden_features=hidden_features,
            features=features,
            monotone=monotone,
        )

    def config(self) -> dict[str, Any]:
        """Constructor arguments, from which :func:`nablanets.load` rebuilds the network."""
        return self._config

    def __repr__(self) -> str:
        return describe_map(self, self.config)

    def save(self, path: str | Path) -> None:
        """Write architecture and weights to a safetensors file; :func:`nablanets.load` reads it back."""
        serialization.save(self, path)

    @property
    def weight(self) -> Tensor:
        """W, (h, d): a view of ``projection``."""
        return self.projection.mT

    def given(self, c: Float[Tensor, "*batch k"]) -> GivenContext:
        """The gradient map x -> f(x; c).

        It evaluates this network as it is at the time, and passes derivatives on to its parameters and to c.
        """
        like = first_tensor(self)
        check_points(c, self.context_features, owner="ConditionalGradNet.given", name="c", like=like)
        return GivenContext(self, c)

    def forward(self, x: Float[Tensor, "*batch d"], c: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        """f(x; c)."""
        like = first_tensor(self)
        check_points(x, self.features, owner="ConditionalGradNet", like=like)
        check_points(c, self.context_features, owner="ConditionalGradNet", name="c", like=like)
        return self.value(x, c)

    def value(self, x: Tensor, c: Tensor) -> Tensor:
        """f(x; c) for arguments that are checked."""
        _check_contexts(x, c)
        parts = self.parts(c)
        u = x @ parts.weight.mT  # (*, h)
        return parts.combine(cascade_responses(u, parts), x)

    def parts(self, c: Tensor) -> CascadeParts:
        """What the formula of a cascaded map, :class:`~nablanets.maps.cascaded.CascadedMap`, needs at a context."""
        scale, shift, constant = self.conditioner(c)
        return CascadeParts(self.weight, constant, self.linear, self.ridge, scale, shift)


@savable
class GivenContext(CascadedMap):
    """x -> f(x; c) at fixed c; see :meth:`ConditionalGradNet.given`. Its potential is zero at x = 0 for every c.

    All formulas are those of GradNetC, :class:`~nablanets.maps.cascaded.CascadedMap`, with a(c), delta(c) and b(c).

    Args:
        net: the conditional network, shared and not copied.
        context: c, of shape (k) for one context, or one per sample in a shape that broadcasts to the batch of x.

    Raises:
        ShapeError: the context has the wrong dimension, or, at evaluation, does not broadcast against x.

    >>> net = ConditionalGradNet(2, 1, 8)
    >>> f = net.given(torch.tensor([0.5]))
    >>> torch.equal(f(torch.zeros(4, 2)), net(torch.zeros(4, 2), torch.tensor([0.5])))
    True
    """

    context: Tensor

    def __init__(self, net: ConditionalGradNet, context: Tensor) -> None:
        # Not compared with the network's dtype: a file's network is converted only once it is built.
        check_points(context, net.context_features, owner="ConditionalGradNet.given", name="c")
        super().__init__(net.features, monotone=net.monotone)
        self.net = net
        self.register_buffer("context", context)

    def config(self) -> dict[str, Any]:
        return {"net": self.net, "context": self.context}

    def rows(self, index: Tensor) -> GivenContext:
        if self.context.ndim == 1:
            return self
        contexts = self.context.reshape(-1, self.net.context_features)
        if len(contexts) == 1:
            return GivenContext(self.net, contexts[0])
        if len(index) > len(contexts):
            raise ShapeError(
                f"solving needs one context for all or one per sample, got {len(contexts)} contexts for {len(index)} "
                "samples. Repeat them: net.given(c.expand(*y.shape[:-1], -1))."
            )
        return GivenContext(self.net, contexts[index])

    def _parts(self, x: Tensor | None = None) -> CascadeParts:
        if x is not None:
            _check_contexts(x, self.context)
        return self.net.parts(self.context)

    def _constant_parameters(self) -> Tensor:
        return self.net.conditioner.constant_bias()

    def outer_rest(self, x: Tensor) -> Tensor:
        """What the linear term has besides coefficients, and the part of b(c) that depends on c."""
        varying = self._parts().constant - self._constant_parameters()
        return super().outer_rest(x) + varying


def _check_contexts(x: Tensor, c: Tensor) -> None:
    """Raise unless the contexts broadcast to the batch of x."""
    batch = x.shape[:-1]
    contexts = c.shape[:-1]
    fits = len(contexts) <= len(batch) and all(
        n in (1, size) for n, size in zip(contexts[::-1], batch[::-1], strict=False)
    )
    if not fits:
        raise ShapeError(
            f"expected one context, or contexts that broadcast to the batch {tuple(batch)} of x, got c of shape "
            f"{tuple(c.shape)}. To evaluate one point at many contexts, repeat it: x.expand(*c.shape[:-1], -1)."
        )
