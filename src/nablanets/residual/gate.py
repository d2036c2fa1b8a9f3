"""The gate of a skip, and the dimensions over which its parts are normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.residual.mixing import unit


class Gate(nn.Module):
    r"""s = sigmoid(alpha), and where the channels of x are. What a kind of skip sees of its layer.

    Attributes:
        alpha: a scalar or one number per channel, or a module that returns it; only for skips that have a gate.
        normalize: what is scaled to unit norm, "position", "sample", "channel" or "none".
        gain: a number that multiplies g after normalising.
        inputs: the number of channels of x, if it is known.
        channel_dim: the dimension of the channels, counted from the end.
    """

    alpha: Tensor | nn.Module

    def __init__(self, normalize: str, gain: float, inputs: int | None, channel_dim: int) -> None:
        super().__init__()
        self.normalize = normalize
        self.gain = gain
        self.inputs = inputs
        self.channel_dim = channel_dim

    def add_alpha(self, alpha: float | Tensor | nn.Module, *, learn: bool, per_channel: bool) -> None:
        """Make alpha a parameter, or a buffer if it is not trained; parameters and modules are taken as they are."""
        if isinstance(alpha, nn.Module | nn.Parameter):
            self.alpha = alpha
            return
        start = torch.as_tensor(alpha, dtype=torch.get_default_dtype()).clone()
        if per_channel:
            start = start.expand(self.input_channels("alpha per channel")).clone()
        if learn:
            self.alpha = nn.Parameter(start)
        else:
            self.register_buffer("alpha", start)

    def gate(self) -> Tensor:
        """s, a scalar or one number per channel."""
        alpha = self.alpha
        return torch.sigmoid(alpha() if isinstance(alpha, nn.Module) else alpha)

    def gate_for(self, x: Tensor) -> Tensor:
        """s in the type of x, so that it broadcasts against x."""
        return self.placed(self.gate(), x)

    def normalized(self, g: Tensor) -> Tensor:
        """c g / |g| with the norm that ``normalize`` names, c g for "none"; c is the gain."""
        if self.normalize != "none":
            g = unit(g, self.norm_dims(g))
        return g if self.gain == 1 else self.gain * g

    def norm_dims(self, x: Tensor, normalize: str | None = None) -> list[int]:
        """The dimensions that one norm runs over, counted from the end; none for "none".

        Raises:
            InvalidInputError: a norm over positions was asked for, and x has none.
        """
        normalize = normalize or self.normalize
        if normalize == "position":
            return [self.channel_dim]
        if normalize == "none":
            return []
        positions = self._positions(x)
        if normalize == "sample":
            return [self.channel_dim, *positions]
        if not positions:
            raise InvalidInputError(
                f"GradientResidual: normalize='channel' runs over positions, but an input of shape {tuple(x.shape)} "
                "has none. Use 'position' or 'sample', which are the same there."
            )
        return positions

    def _positions(self, x: Tensor) -> list[int]:
        """The dimensions of x that are neither the batch nor the channels, counted from the end."""
        if self.channel_dim == -1:  # (batch, *positions, channels)
            return list(range(1 - x.ndim, -1))
        return list(range(self.channel_dim + 1, 0))  # (batch, channels, *positions)

    def placed(self, values: Tensor, like: Tensor) -> Tensor:
        """A scalar, or values per channel (C,) as (C, 1, ...), in the type of ``like``, to broadcast against it."""
        values = values if values.dtype == like.dtype else values.to(like.dtype)
        return values if values.ndim == 0 else values.reshape(-1, *[1] * (-1 - self.channel_dim))

    def input_channels(self, purpose: str) -> int:
        """The number of channels of x, which something needs.

        Raises:
            InvalidInputError: the block does not tell it.
        """
        return needed_channels(self.inputs, purpose)


def needed_channels(channels: int | None, purpose: str) -> int:
    """A number of channels, or an error that says how to give it."""
    if channels is None:
        raise InvalidInputError(
            f"GradientResidual: {purpose} needs the number of channels, which the block does not tell. "
            "Give channels=..., and channel_dim=... if they are not in the last dimension."
        )
    return channels
