"""Layers with a closed form: their value and their pullback, c -> J^T c, without autograd.

A cotangent that is the same for every sample has no batch dimension, and spatial dimensions of size one where it is the
same at all positions. Rules keep it so until it meets the data in a nonlinearity. Nothing behind the last nonlinearity
of a block is therefore computed per sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.activations.base import ElementwiseActivation
from nablanets.residual import norms
from nablanets.residual.elementwise import MODULES, activation, activation_of_ours
from nablanets.residual.linear import conv, linear
from nablanets.residual.sweep import PassThrough, Pull, Rule, Sweep, call

#: Layers that make a new tensor, which nothing else refers to.
MAKING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *norms.BATCH_NORMS)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module, or None if it has none of its own (a subclass with a forward of its own has none)."""
    if type(module) in _RULES:
        return _RULES[type(module)]
    classes = list(type(module).__mro__)
    if PassThrough in classes:  # what the module was before it handed its input on
        classes = classes[classes.index(PassThrough) + 1 :]
    for cls in classes:
        if cls in _RULES:
            return _RULES[cls] if classes[0].forward is cls.forward else None  # type: ignore[attr-defined]
    return activation_of_ours if isinstance(module, ElementwiseActivation) else None


def _identity(module: nn.Module, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    return call(module, x), lambda c: c


def _dropout(module: nn.Dropout, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    return dropout(x, module.p, training=module.training)


def dropout(x: Tensor, p: float, *, training: bool) -> tuple[Tensor, Pull]:
    """Dropout with the same mask in both directions; it draws the random numbers that torch would."""
    if not training or p == 0:
        return x, lambda c: c
    mask = F.dropout(torch.ones_like(x), p)
    return x * mask, lambda c: c * mask


def _flatten(module: nn.Flatten, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    y = call(module, x)
    return y, lambda c: c.expand(y.shape).reshape(x.shape)


def _prelu(module: nn.PReLU, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    weight = sweep.maybe_detach(module.weight).to(x.dtype)
    slope = weight if x.ndim < 2 else weight.reshape(-1, *[1] * (x.ndim - 2))
    return call(module, x), lambda c: c * torch.where(x > 0, torch.ones_like(slope), slope)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: conv,
    nn.Conv2d: conv,
    nn.Conv3d: conv,
    nn.Identity: _identity,
    nn.Dropout: _dropout,
    nn.Flatten: _flatten,
    nn.PReLU: _prelu,
    nn.BatchNorm1d: norms.batch_norm,
    nn.BatchNorm2d: norms.batch_norm,
    nn.BatchNorm3d: norms.batch_norm,
    nn.InstanceNorm1d: norms.instance_norm,
    nn.InstanceNorm2d: norms.instance_norm,
    nn.InstanceNorm3d: norms.instance_norm,
    nn.LayerNorm: norms.layer_norm,
    nn.GroupNorm: norms.group_norm,
    nn.Softmax: norms.softmax,
    **dict.fromkeys(MODULES, activation),
}
