"""Gradient residual connections: a skip that carries the gradient of the block's own output sum."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nablanets.residual.branch import Branch
from nablanets.residual.settings import ResidualSettings
from nablanets.residual.skip import GradientSkip


class GradientResidual(GradientSkip):
    r"""A block with a gradient residual connection: F(x) + P((1 - s) x + s g(x)), s = sigmoid(alpha).

    :math:`g(x) = J_F(x)^T v = \nabla_x \sum_i v_i F_i(x)` is the gradient of the block's own output sum. It comes in
    closed form, by a reverse sweep through the layers that the block's forward calls: linear, convolutional,
    normalising, elementwise, gated; other layers go through ``torch.func.vjp``, each by itself, and so do whole blocks
    whose forward cannot be read. Changing the structure of a block after wrapping it needs a new layer.

    After Pan, Ying, Torr, Liu, "Gradient Residual Connections" (2026), Eq. 2. The paper's are the convex combination,
    v = 1, the stop-gradient and the skips "pure" and "gradient". Ours are the axes of the norm, the gain, the other
    probes, and the skip "added".

    Args:
        block: F, from a batch to a batch of the same shape (or see ``projection``).
        alpha: the start of alpha, a number or a tensor per channel; an nn.Parameter, or a module that returns alpha,
            is used as it is and may be shared between blocks.
        projection: P, applied to the skip; needed where the block changes the shape.
        settings: further fields of :class:`ResidualSettings`: learn_alpha, per_channel, normalize, gain,
            stop_gradient, probe, skip, norm, channels, channel_dim.

    Raises:
        ConstantSumError: the block ends in a normalisation, so that its output sum is constant and g is rounding
            noise. Blocks whose forward cannot be read are tried once, at the first call outside torch.compile.
        InvalidInputError: a setting does not fit the block.

    >>> layer = GradientResidual(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)), alpha=-3.0)
    >>> x = torch.randn(5, 4)
    >>> layer(x).shape, layer.gradient(x).shape
    (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        block: nn.Module,
        alpha: float | Tensor | nn.Module = 0.0,
        *,
        projection: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        checked = ResidualSettings.of(alpha=alpha, **settings)
        super().__init__(Branch.of(block, checked.norm), block, checked)
        self.block = block
        self.projection = projection

    @property
    def closed_form(self) -> bool:
        """Whether no part of the gradient needs ``torch.func.vjp``."""
        return self.branch.closed(self.block)

    def gradient(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """g(x) = J_F(x)^T v, of the shape of x, not normalised."""
        return super().gradient(self.block, x)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(self.block, x, self.projection)
