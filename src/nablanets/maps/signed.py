"""A scalar network that increases, or decreases, in chosen variables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nablanets.parameters import inverse_softplus
from nablanets.serialization import savable

# Weights whose sign is fixed start at least this large, in units of the others' size.
_LEAST = 0.05
# Standard deviation of the units' inputs at the start, where the variables have one: units bend inside the data.
_SPREAD = 1.5


@savable
class SignedNetwork(nn.Module):
    r"""Two layers of units through weights of fixed sign, beside a linear part,

    .. math:: F(x) = a \cdot \tanh\bigl(A \tanh(W x + b) + b'\bigr) + c \cdot x, \qquad A, a \ge 0,

    where the columns of W and the entries of c have the signs of the variables. So F is monotone in them; in variables
    without a sign it is any function. Bounded units are convex on one side and concave on the other: nonnegative
    weights between units that are convex everywhere would leave convex functions only.

    Args:
        features: d.
        hidden_features: units in the first layer.
        groups: units in the second layer.
        signs: for each variable 1 (increasing), -1 (decreasing) or 0 (free).

    Reference:
        Daniels and Velikova, Monotone and partially monotone neural networks, IEEE Trans. Neural Networks 21, 2010.

    >>> F = SignedNetwork(2, 8, 4, signs=[1, 0])
    >>> bool((F.gradient(torch.randn(10, 2))[:, 0] >= 0).all())
    True
    """

    def __init__(self, features: int, hidden_features: int, groups: int, signs: list[int]) -> None:
        super().__init__()
        self.sizes = (features, hidden_features, groups)
        self.signs = list(signs)
        sign = torch.tensor(signs)
        self.register_buffer("sign", sign, persistent=False)
        weight = _SPREAD * torch.randn(hidden_features, features) / features**0.5
        self.weight_raw = nn.Parameter(torch.where(sign == 0, weight, _raw(weight)))
        self.bias = nn.Parameter(_SPREAD * torch.randn(hidden_features))
        self.inner_raw = nn.Parameter(_raw(torch.randn(groups, hidden_features) / hidden_features**0.5))
        self.inner_bias = nn.Parameter(torch.randn(groups))
        self.outer_raw = nn.Parameter(_raw(torch.randn(groups) / groups**0.5))
        linear = 0.1 * torch.randn(features)
        self.linear_raw = nn.Parameter(torch.where(sign == 0, linear, _raw(linear)))

    def config(self) -> dict[str, Any]:
        features, hidden_features, groups = self.sizes
        return {"features": features, "hidden_features": hidden_features, "groups": groups, "signs": self.signs}

    def _signed(self, raw: Tensor) -> Tensor:
        """Weights whose last dimension is that of the variables."""
        sign = self.get_buffer("sign")
        return torch.where(sign == 0, raw, sign * softplus(raw))

    def _layers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.tanh(x @ self._signed(self.weight_raw).mT + self.bias)  # (*, hidden_features)
        second = torch.tanh(first @ softplus(self.inner_raw).mT + self.inner_bias)  # (*, groups)
        return first, second

    def forward(self, x: Tensor) -> Tensor:
        """F(x), of shape (*)."""
        _, second = self._layers(x)
        return second @ softplus(self.outer_raw) + x @ self._signed(self.linear_raw)

    def gradient(self, x: Tensor) -> Tensor:
        """grad F, of shape (*, d)."""
        first, second = self._layers(x)
        outer = softplus(self.outer_raw) * (1 - second.square())
        inner = (outer @ softplus(self.inner_raw)) * (1 - first.square())
        return inner @ self._signed(self.weight_raw) + self._signed(self.linear_raw)


def _raw(weight: Tensor) -> Tensor:
    """What softplus makes weights of these sizes, without their signs, and none of them tiny."""
    return inverse_softplus(weight.abs() + _LEAST * weight.square().mean().sqrt())
