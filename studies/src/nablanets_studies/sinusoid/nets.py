"""The networks of the sinusoid studies by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nablanets.errors import unknown_name
from nablanets.residual.branch import Branch
from nablanets.residual.mixing import unit
from nablanets.serialization import savable
from nablanets_studies.residual.arms import ARMS, residual

_FOURIER_DEVIATION = 10.0
_SIREN_FREQUENCY = 30.0
_PROBES = 4
#: Products of a training step, in those of a plain step: one more for g, another two for back-propagating through it.
_STOPPED, _FULL = 7 / 6, 3 / 2


class Variant(NamedTuple):
    """What a network of the study is, but for its size.

    Attributes:
        arm: settings of the residual blocks, see :mod:`nablanets_studies.residual.arms`.
        activation: "relu", "gelu", "tanh" or "sine"; the study's if None.
        blocks: how many; the study's number if None.
        cost: of a training step, in products, relative to the standard skip.
        first_only: whether blocks after the first one have the standard skip.
        as_torch: whether all initial weights are PyTorch's.
        widened: whether the width grows until a step has ``cost`` times the products, rather than the skip costing them.
        fourier: whether random Fourier features stand in place of the first layer.
        siren: whether the network is a SIREN, without skips.
    """

    arm: Mapping[str, Any]
    activation: str | None = None
    blocks: int | None = None
    cost: float = 1.0
    first_only: bool = False
    as_torch: bool = False
    widened: bool = False
    fourier: bool = False
    siren: bool = False

    @property
    def carries(self) -> bool:
        """Whether the skip carries a gradient."""
        name = self.arm["arm"]
        return name == "several" or ARMS[name]["skip"] in ("gradient", "pure", "magnitude")


OTHER_ACTIVATIONS = ("relu", "gelu", "sine")
_FULL_GRADIENT = {"arm": "gradient-full"}
_RMS = {"arm": "gradient", "gain": 8.0}  # at the width of 64, g / |g| times 8 has a root mean square of 1

VARIANTS: dict[str, Variant] = {
    **{name: Variant({"arm": name}) for name in ("standard", "no-skip", "scalar", "damped", "random")},
    **{name: Variant({"arm": name}, cost=_STOPPED) for name in ("magnitude", "pure", "gradient", "gradient-probe")},
    "gradient-full": Variant(_FULL_GRADIENT, cost=_FULL),
    **{f"gradient-full-x{gain}": Variant({**_FULL_GRADIENT, "gain": gain}, cost=_FULL) for gain in (2, 4, 8)},
    "gradient-raw": Variant({"arm": "gradient", "normalize": "none"}, cost=_STOPPED),
    "gradient-raw-x4": Variant({"arm": "gradient", "normalize": "none", "gain": 4}, cost=_STOPPED),
    "gradient-unit-full": Variant({"arm": "gradient", "stop_gradient": False}, cost=_FULL),
    "gradient-rms": Variant(_RMS, cost=_STOPPED),
    "gradient-rms-full": Variant({**_RMS, "stop_gradient": False}, cost=_FULL),
    "alpha-low": Variant({"arm": "gradient", "alpha": -3.0}, cost=_STOPPED),
    "alpha-high": Variant({"arm": "gradient", "alpha": 3.0}, cost=_STOPPED),
    "alpha-learned": Variant({"arm": "gradient", "learn_alpha": True}, cost=_STOPPED),
    "alpha-channels": Variant({"arm": "gradient", "learn_alpha": True, "per_channel": True}, cost=_STOPPED),
    "full-x4-channels": Variant({**_FULL_GRADIENT, "gain": 4, "learn_alpha": True, "per_channel": True}, cost=_FULL),
    "probe-random": Variant({"arm": "gradient", "probe": "random"}, cost=_STOPPED),
    "probe-several": Variant({"arm": "several"}, cost=1 + _PROBES / 6),
    "full-x4-random": Variant({**_FULL_GRADIENT, "gain": 4, "probe": "random"}, cost=_FULL),
    "full-x4-learned": Variant({**_FULL_GRADIENT, "gain": 4, "probe": "learned"}, cost=_FULL),
    "full-x4-first": Variant({**_FULL_GRADIENT, "gain": 4}, cost=7 / 6, first_only=True),
    **{f"standard-{n}-blocks": Variant({"arm": "standard"}, blocks=n) for n in (2, 5)},
    **{f"gradient-{n}-blocks": Variant({"arm": "gradient"}, blocks=n, cost=_STOPPED) for n in (2, 5)},
    **{f"standard-{act}": Variant({"arm": "standard"}, act) for act in OTHER_ACTIVATIONS},
    **{f"no-skip-{act}": Variant({"arm": "no-skip"}, act) for act in OTHER_ACTIVATIONS},
    **{f"damped-{act}": Variant({"arm": "damped"}, act) for act in OTHER_ACTIVATIONS},
    **{f"gradient-{act}": Variant({"arm": "gradient"}, act, cost=_STOPPED) for act in OTHER_ACTIVATIONS},
    **{f"full-x4-{act}": Variant({**_FULL_GRADIENT, "gain": 4}, act, cost=_FULL) for act in OTHER_ACTIVATIONS},
    **{f"{name}-torch": Variant({"arm": name}, "relu", as_torch=True) for name in ("standard", "no-skip", "damped")},
    "gradient-torch": Variant({"arm": "gradient"}, "relu", cost=_STOPPED, as_torch=True),
    "wider": Variant({"arm": "standard"}, cost=_FULL, widened=True),
    "fourier": Variant({"arm": "standard"}, fourier=True),
    "siren": Variant({"arm": "no-skip"}, siren=True),
}


class Sine(nn.Module):
    """sin(w x)."""

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sine": Sine}


class SeveralProbes(nn.Module):
    """F(x) + (x + sum_k m_k J^T v_k / |J^T v_k|) / 2, with trained probes v_k and mixtures m_k per channel.

    J is under stop-gradient, as with one trained probe.
    """

    def __init__(self, block: nn.Module, width: int, probes: int = _PROBES) -> None:
        super().__init__()
        self.block, self.branch = block, Branch.of(block, "exact")
        self.probes = nn.Parameter(torch.randn(probes, 1, width))
        self.mixture = nn.Parameter(torch.ones(probes, 1, width) / probes**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y, pull = self.branch.linearise(self.block, x, detach=True)
        g = (self.mixture * unit(pull(self.probes), [-1])).sum(dim=0)
        return y + (x + g) / 2


@savable
class SinusoidNet(nn.Module):
    """A network of one variable: a linear layer, residual blocks of two layers, a linear layer, by He's initial weights.

    "wider" is "standard" at a width with 1.5 times the products, the cost of back-propagating through the gradient;
    "fourier" is "standard" behind random Fourier features in place of the first layer; "siren" has as many layers of
    sines and no skips. "-torch" starts as PyTorch's ReLU networks do. ``first_scale`` is the bound of the first layer's initial weights and biases (1 in PyTorch).

    >>> SinusoidNet("gradient", width=8, blocks=2, alpha=3.0)(torch.zeros(5, 1)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        method: str,
        width: int = 64,
        blocks: int = 3,
        alpha: float = 0.0,
        first_scale: float = 1.0,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if method not in VARIANTS:
            raise unknown_name("method", method, VARIANTS)
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self._arguments = {"method": method, "width": width, "blocks": blocks}
        self._arguments |= {"alpha": alpha, "first_scale": first_scale, "activation": activation}
        variant = VARIANTS[method]
        if variant.siren:
            self.layers = _siren(width, blocks)
            return
        if variant.widened:
            # The products of a layer grow with the square of the width.
            width = round(variant.cost**0.5 * width)
        first = FourierFeatures(width, _FOURIER_DEVIATION) if variant.fourier else nn.Linear(1, width)
        kind = _ACTIVATIONS[variant.activation or activation]
        middle = [_residual(width, variant, kind(), alpha, k) for k in range(variant.blocks or blocks)]
        self.layers = nn.Sequential(first, *middle, nn.Linear(width, 1))
        if not variant.as_torch:
            _initialise(self.layers, first_scale)

    def config(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class FourierFeatures(nn.Module):
    """cos and sin of 2 pi w x, for fixed w from a normal distribution."""

    frequencies: Tensor

    def __init__(self, width: int, deviation: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", deviation * torch.randn(1, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x @ self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


def _residual(width: int, variant: Variant, activation: nn.Module, alpha: float, number: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, width))
    if variant.arm["arm"] == "several":
        return SeveralProbes(block, width)
    if variant.first_only and number:
        return residual(block, "standard")
    return residual(block, variant.arm, alpha=alpha, learn_alpha=False)


@torch.no_grad()
def _initialise(layers: nn.Sequential, scale: float) -> None:
    """He's weights; in the first layer weights and biases uniform on [-scale, scale]."""
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    if isinstance(layers[0], nn.Linear):
        layers[0].weight.uniform_(-scale, scale)
        layers[0].bias.uniform_(-scale, scale)


@torch.no_grad()
def _siren(width: int, blocks: int) -> nn.Sequential:
    hidden = [nn.Linear(width, width) for _ in range(2 * blocks)]
    first, last = nn.Linear(1, width), nn.Linear(width, 1)
    first.weight.uniform_(-1, 1)
    bound = (6 / width) ** 0.5 / _SIREN_FREQUENCY
    for layer in (*hidden, last):
        layer.weight.uniform_(-bound, bound)
    sines = (part for layer in hidden for part in (layer, Sine(_SIREN_FREQUENCY)))
    return nn.Sequential(first, Sine(_SIREN_FREQUENCY), *sines, last)
