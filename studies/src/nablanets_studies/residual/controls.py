"""Control arms of the comparison of skips: what else could explain that a gradient helps.

:func:`register_controls` adds them to the library's kinds of skips. ``residual.arms`` calls it, so whoever has arms, and
with them every network of the studies, has them: models that were saved with a control load.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nablanets.residual import SkipKind, register_skip
from nablanets.residual.gate import Gate
from nablanets.residual.kinds import required
from nablanets.residual.mixing import unit


class Nothing(SkipKind):
    """No skip: F(x). Is a skip needed at all?"""

    needs_gradient = False
    needs_gate = False

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> None:
        return None


class Identity(SkipKind):
    """x: the standard residual block."""

    needs_gradient = False
    needs_gate = False

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        return x


class TrainedMultiple(SkipKind):
    """A trained multiple of x, from 1: is it the weight of the identity that helps?"""

    needs_gradient = False
    needs_gate = False

    def prepare(self, layer: Gate) -> None:
        layer.scale = nn.Parameter(torch.ones(()))

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        return cast(Tensor, layer.scale) * x


class Damped(SkipKind):
    """(1 - s) x: is it less of the identity that helps?"""

    needs_gradient = False

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        return (1 - layer.gate_for(x)) * x


class RandomVector(SkipKind):
    """(1 - s) x + s r with a fixed random r, scaled to unit norm as g would be: would any vector do?"""

    needs_gradient = False

    def prepare(self, layer: Gate) -> None:
        layer.register_buffer("vector", torch.randn(layer.input_channels("a random vector")))

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        vector = layer.placed(cast(Tensor, layer.vector), x).expand(x.shape)
        if layer.normalize != "none":
            vector = unit(vector, layer.norm_dims(x))
        return torch.lerp(x, vector, layer.gate_for(x))


class Magnitude(SkipKind):
    """(1 - s) x + s |g| x / |x|: is it the size of the gradient that helps, and not its direction?

    The paper has this arm without saying over which dimensions the norms run. Here they are those that g would be
    normalised over, or those of a sample for ``normalize="none"``.
    """

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        g = required(g)
        dims = layer.norm_dims(g) or layer.norm_dims(g, "sample")
        size = torch.linalg.vector_norm(g, dim=dims, keepdim=True)
        scaled = size * unit(x, dims)
        if layer.gain != 1:
            scaled = layer.gain * scaled
        return torch.lerp(x, scaled.to(x.dtype), layer.gate_for(x))


#: Every control by the name that settings and saved models give it.
CONTROLS: dict[str, SkipKind] = {
    "none": Nothing(),
    "identity": Identity(),
    "scalar": TrainedMultiple(),
    "damped": Damped(),
    "random": RandomVector(),
    "magnitude": Magnitude(),
}


def register_controls() -> None:
    """Let ``GradientResidual(block, skip=name)`` find the controls by their names."""
    for name, kind in CONTROLS.items():
        register_skip(name, kind)
