"""From a context to what it does to a network."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, cast

from jaxtyping import Float
from torch import Tensor, nn

from nablanets.parameters import inverse_softplus, softplus


class Modulation(NamedTuple):
    """What a context does: scale and shift of the hidden units, and a constant added to f."""

    scale: Float[Tensor, "*batch h"]
    shift: Float[Tensor, "*batch h"]
    constant: Float[Tensor, "*batch d"]


class Conditioner(nn.Module):
    """A multilayer perceptron with SiLU units that maps a context (*, k) to a :class:`Modulation`.

    Where its last layer gives zero the scale is one; with ``monotone`` the scale is positive (softplus).
    """

    def __init__(
        self, context_features: int, width: int, depth: int, *, hidden_features: int, features: int, monotone: bool
    ) -> None:
        super().__init__()
        self.monotone = monotone
        self.hidden_features = hidden_features
        sizes = pairwise([context_features, *[width] * depth])
        hidden = [layer for inputs, outputs in sizes for layer in (nn.Linear(inputs, outputs), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2 * hidden_features + features))

    def forward(self, c: Float[Tensor, "*batch k"]) -> Modulation:
        """Scale, shift and constant at a context."""
        h = self.hidden_features
        out = self.layers(c)  # (*, 2 h + d)
        scale = out[..., :h]
        shift = out[..., h : 2 * h]
        constant = out[..., 2 * h :]
        scale = softplus(scale + inverse_softplus(1.0)) if self.monotone else 1 + scale
        return Modulation(scale, shift, constant)

    def constant_bias(self) -> Tensor:
        """The part (d) of the constant that does not depend on the context: a view of the last layer's biases."""
        last = cast(nn.Linear, self.layers[-1])
        return last.bias[2 * self.hidden_features :]
