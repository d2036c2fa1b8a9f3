"""The skip of a gradient residual: the gate, the probe, the norm, and every arm of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, ShapeError, unknown_name
from nablanets.residual.branch import Branch
from nablanets.residual.mixing import mixed, unit
from nablanets.residual.sweep import Pull

Skip = Literal["gradient", "pure", "added", "magnitude", "random", "damped", "identity", "scalar", "none"]
Normalize = Literal["position", "sample", "channel", "none"]
Probe = Literal["ones", "random", "learned"]
SKIPS: tuple[str, ...] = get_args(Skip)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalize)
PROBES: tuple[str, ...] = get_args(Probe)

_WITH_GRADIENT = {"gradient", "pure", "added", "magnitude"}
_WITH_GATE = {"gradient", "added", "magnitude", "random", "damped"}


class GradientSkip(nn.Module):
    r"""What a gradient residual adds to a block F that it does not own. See :class:`GradientResidual`.

    It holds alpha, the probe and the settings, and is called with the module that owns the layers of F.
    """

    alpha: Tensor | nn.Module
    probe: Tensor | None
    vector: Tensor

    def __init__(
        self,
        branch: Branch,
        root: nn.Module,
        *,
        alpha: float | Tensor | nn.Module = 0.0,
        learn_alpha: bool = True,
        per_channel: bool = False,
        normalize: Normalize = "position",
        gain: float = 1.0,
        stop_gradient: bool = True,
        probe: Probe | Tensor = "ones",
        skip: Skip = "gradient",
        channels: int | None = None,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        for kind, name, known in (("skip", skip, SKIPS), ("normalization", normalize, NORMALIZATIONS)):
            if name not in known:
                raise unknown_name(kind, name, known)
        layout = branch.layout(root)
        self.branch = branch
        self.skip, self.normalize, self.stop_gradient = skip, normalize, stop_gradient
        self.gain = gain
        self.inputs, self.outputs = channels or layout.inputs, channels or layout.outputs
        self.channel_dim = layout.dim if channel_dim is None else channel_dim
        if self.channel_dim >= 0:
            raise InvalidInputError(
                f"GradientResidual: expected channel_dim counted from the end, got {channel_dim}. It is -1 for "
                "features, -2, -3 and -4 for the channels of 1-, 2- and 3-dimensional convolutions."
            )
        self._add_gate(alpha, learn_alpha=learn_alpha, per_channel=per_channel)
        self._add_probe(probe)
        self.learns_probe = isinstance(self.probe, nn.Parameter)
        self._probed = skip not in _WITH_GRADIENT or branch.structure_is_known(root)
        self._check(root)
        if self.learns_probe and stop_gradient and not branch.closed(root):
            raise InvalidInputError(
                "GradientResidual: a learned probe under stop_gradient=True needs a closed form for every layer of the "
                "block, which this one has not. Set stop_gradient=False, or probe='random'."
            )

    def gate(self) -> Tensor:
        """s(alpha), a scalar or one number per channel."""
        alpha = self.alpha
        return torch.sigmoid(alpha() if isinstance(alpha, nn.Module) else alpha)

    def gradient(self, root: nn.Module, x: Tensor) -> Tensor:
        """g(x) = J_F(x)^T v, of the shape of x."""
        return self._linearised(root, x)[1]

    def forward(self, root: nn.Module, x: Tensor, projection: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """F(x) + P(skip(x))."""
        if self.skip in _WITH_GRADIENT:
            y, g = self._linearised(root, x)
            if self._mixes and projection is None:
                return self._mixed(_fitting(y, x), x, g, overwrite=self.branch.owns_output(root))
            carried = self._with_gradient(x, g)
        else:
            y = self.branch.run(root, x)
            if self.skip == "none":
                return y
            carried = self._without_gradient(x)
        carried = carried if projection is None else projection(carried)
        return _fitting(y, carried) + carried

    def extra_repr(self) -> str:
        return f"skip={self.skip}, normalize={self.normalize}, stop_gradient={self.stop_gradient}"

    def _linearised(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(root)
        y, pull = self.branch.linearise(root, x, detach=self.stop_gradient and self.learns_probe)
        probe = self._placed_probe(y)
        if not self._probed and not torch.compiler.is_compiling():
            self._probe_numerically(pull, y, probe)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.stop_gradient and not self.learns_probe)):
            g = pull(probe)
        return y, g if g.shape == x.shape else g.expand(x.shape)

    def _check(self, root: nn.Module) -> None:
        if self.skip in _WITH_GRADIENT:
            uniform = self.probe is None or self.learns_probe
            self.branch.refuse_constant_sum(root, uniform=uniform, owner="GradientResidual")

    def _probe_numerically(self, pull: Pull, y: Tensor, probe: Tensor) -> None:
        try:
            self.branch.refuse_vanishing(pull, y, probe, owner="GradientResidual")
        except RuntimeError:  # under vmap no number can be looked at
            return
        self._probed = True

    @property
    def _mixes(self) -> bool:
        """Whether it is the convex combination with g / |g|."""
        return self.skip == "gradient" and self.normalize != "none"

    def _mixed(self, y: Tensor | None, x: Tensor, g: Tensor, *, overwrite: bool = False) -> Tensor:
        s = self._placed(self.gate(), x)
        return mixed(y, x, g.to(x.dtype), s, self._dims(x), self.gain, overwrite=overwrite)

    def _with_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        if self._mixes:
            return self._mixed(None, x, g)
        if self.skip == "magnitude":
            dims = self._dims(g) or self._dims(g, "sample")
            g = torch.linalg.vector_norm(g, dim=dims, keepdim=True) * unit(x, dims)
        elif self.normalize != "none":
            g = unit(g, self._dims(g))
        g = g if self.gain == 1 else self.gain * g
        if self.skip == "pure":
            return g
        s = self._placed(self.gate(), x)
        return s * g if self.skip == "added" else torch.lerp(x, g.to(x.dtype), s)

    def _without_gradient(self, x: Tensor) -> Tensor:
        if self.skip == "identity":
            return x
        if self.skip == "scalar":
            return self.scale * x
        s = self._placed(self.gate(), x)
        if self.skip == "damped":
            return (1 - s) * x
        vector = self._placed(self.vector, x).expand(x.shape)
        return torch.lerp(x, vector if self.normalize == "none" else unit(vector, self._dims(x)), s)

    def _dims(self, x: Tensor, normalize: str | None = None) -> list[int]:
        """The dimensions that one norm runs over."""
        normalize = normalize or self.normalize
        if normalize == "position":
            return [self.channel_dim]
        if normalize == "none":
            return []
        last = self.channel_dim == -1
        positions = list(range(1 - x.ndim, -1) if last else range(self.channel_dim + 1, 0))
        if normalize == "channel" and not positions:
            raise InvalidInputError(
                f"GradientResidual: normalize='channel' runs over positions, but an input of shape {tuple(x.shape)} "
                "has none. Use 'position' or 'sample', which are the same there."
            )
        return positions if normalize == "channel" else [self.channel_dim, *positions]

    def _placed(self, values: Tensor, like: Tensor) -> Tensor:
        """A scalar or values per channel, so that they broadcast against ``like``."""
        values = values if values.dtype == like.dtype else values.to(like.dtype)
        return values if values.ndim == 0 else values.reshape(-1, *[1] * (-1 - self.channel_dim))

    def _placed_probe(self, y: Tensor) -> Tensor:
        return y.new_ones(()) if self.probe is None else self._placed(self.probe, y)

    def _add_gate(self, alpha: float | Tensor | nn.Module, *, learn_alpha: bool, per_channel: bool) -> None:
        if self.skip == "scalar":
            self.scale = nn.Parameter(torch.ones(()))
        if self.skip == "random":
            self.register_buffer("vector", torch.randn(self._needed(self.inputs, "a random vector")))
        if self.skip not in _WITH_GATE:
            return
        if isinstance(alpha, nn.Module | nn.Parameter):
            self.alpha = alpha
            return
        start = torch.as_tensor(alpha, dtype=torch.get_default_dtype()).clone()
        if per_channel:
            start = start.expand(self._needed(self.inputs, "alpha per channel")).clone()
        if learn_alpha:
            self.alpha = nn.Parameter(start)
        else:
            self.register_buffer("alpha", start)

    def _add_probe(self, probe: Probe | Tensor) -> None:
        if isinstance(probe, Tensor):
            if isinstance(probe, nn.Parameter):
                self.probe = probe
            else:
                self.register_buffer("probe", probe.clone())
        elif probe not in PROBES:
            raise unknown_name("probe", probe, PROBES)
        elif probe == "ones" or self.skip not in _WITH_GRADIENT:
            self.probe = None
        elif probe == "learned":
            self.probe = nn.Parameter(torch.ones(self._needed(self.outputs, "a learned probe")))
        else:
            signs = torch.randint(0, 2, (self._needed(self.outputs, "a random probe"),)) * 2.0 - 1
            self.register_buffer("probe", signs.to(torch.get_default_dtype()))

    @staticmethod
    def _needed(channels: int | None, purpose: str) -> int:
        if channels is None:
            raise InvalidInputError(
                f"GradientResidual: {purpose} needs the number of channels, which the block does not tell. "
                "Give channels=..., and channel_dim=... if they are not in the last dimension."
            )
        return channels


def _fitting(y: Tensor, carried: Tensor) -> Tensor:
    """y, if what is carried can be added to it."""
    if y.shape != carried.shape:
        raise ShapeError(
            f"GradientResidual: expected a block that keeps the shape {tuple(carried.shape)} of its skip, but its "
            f"output has {tuple(y.shape)}. Give a projection: a module from the input's shape to the output's."
        )
    return y
