"""Gradient residual connections: a skip that carries the gradient of the block's own output sum."""

from __future__ import annotations

from torch import Tensor, nn

from nablanets.residual.branch import Branch, Norm
from nablanets.residual.skip import GradientSkip, Normalize, Probe, Skip


class GradientResidual(GradientSkip):
    r"""A block with a gradient residual connection: F(x) + P((1 - s) x + s g(x)), s = sigmoid(alpha).

    :math:`g(x) = J_F(x)^T v = \nabla_x \sum_i v_i F_i(x)` is the gradient of the block's own output sum. It comes in
    closed form, by a reverse sweep through the layers that the block's forward calls: linear, convolutional,
    normalising, elementwise, gated; other layers go through ``torch.func.vjp``, each by itself, and so do whole blocks
    whose forward cannot be read. Changing the structure of a block after wrapping it needs a new layer.

    After Pan, Ying, Torr, Liu, "Gradient Residual Connections" (2026), Eq. 2. The paper's are the convex combination,
    v = 1, the stop-gradient and the arms "none", "identity", "scalar", "magnitude", "pure" and "gradient". Ours are the
    axes of the norm, what exactly "magnitude" is, the gain, the other probes, and the controls "damped", "random" and
    "added".

    Args:
        block: F, from a batch to a batch of the same shape (or see ``projection``).
        alpha: the start of alpha, a number or a tensor per channel; an nn.Parameter, or a module that returns alpha,
            is used as it is and may be shared between blocks.
        learn_alpha: train alpha.
        per_channel: one alpha per channel.
        normalize: what g is scaled to unit norm over: "position" (the channels of each position), "sample" (all but
            the batch), "channel" (the positions of each channel of a sample), "none". Where g = 0 it stays 0.
        gain: g is multiplied by it, after normalising.
        stop_gradient: do not back-propagate through g.
        probe: v: "ones", "random" (fixed signs), "learned" (starts at ones), or a tensor per channel.
        projection: P, applied to the skip; needed where the block changes the shape.
        skip: "gradient"; "pure" (g alone); "added" (s g alone, for networks without skips); "magnitude"
            ((1 - s) x + s |g| x / |x|); and the controls "random" (a fixed random vector in place of g), "damped"
            ((1 - s) x), "identity" (x), "scalar" (a trained multiple of x, from 1), "none".
        norm: normalisations in the block: "exact"; "constant" (their statistics count as constants in g); "before"
            (g is the gradient of what comes before the last one).
        channels, channel_dim: for blocks whose layers do not tell: the number of channels, and their dimension
            counted from the end.

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
        learn_alpha: bool = True,
        per_channel: bool = False,
        normalize: Normalize = "position",
        gain: float = 1.0,
        stop_gradient: bool = True,
        probe: Probe | Tensor = "ones",
        projection: nn.Module | None = None,
        skip: Skip = "gradient",
        norm: Norm = "exact",
        channels: int | None = None,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__(
            Branch.of(block, norm),
            block,
            alpha=alpha,
            learn_alpha=learn_alpha,
            per_channel=per_channel,
            normalize=normalize,
            gain=gain,
            stop_gradient=stop_gradient,
            probe=probe,
            skip=skip,
            channels=channels,
            channel_dim=channel_dim,
        )
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
