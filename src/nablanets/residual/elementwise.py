"""Elementwise functions as torch.nn has them: the pullback c -> c s'(u) of each, in one fused operation.

Some slopes are computed from the output y = s(u), the others from the input u; only that one is kept until the sweep.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.activations.base import ElementwiseActivation
from nablanets.residual.sweep import Pull, Sweep, call

_aten = torch.ops.aten
#: (c, t, **arguments) -> c s'(u), where t is y for the functions in :data:`_FROM_OUTPUT` and u for others.
Slope = Callable[..., Tensor]


# Slopes that are piecewise constant take what they depend on detached: autograd would make zeros for it, and add them.


def _relu(c: Tensor, y: Tensor) -> Tensor:
    return _aten.threshold_backward(c, y.detach(), 0)


def _leaky_relu(c: Tensor, u: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _aten.leaky_relu_backward(c, u.detach(), negative_slope, False)


def _elu(c: Tensor, u: Tensor, alpha: float = 1.0) -> Tensor:
    return _aten.elu_backward(c, alpha, 1.0, 1.0, False, u)


def _gelu(c: Tensor, u: Tensor, approximate: str = "none") -> Tensor:
    return _aten.gelu_backward(c.expand(u.shape).contiguous(), u, approximate=approximate)  # oneDNN does not broadcast


def _silu(c: Tensor, u: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.silu_backward(c, u)
    sigmoid = torch.sigmoid(u)  # the fused operation has no derivative of its own
    return c * sigmoid * (1 + u * (1 - sigmoid))


def _mish(c: Tensor, u: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.mish_backward(c, u)
    t = torch.tanh(F.softplus(u))
    return c * (t + u * torch.sigmoid(u) * (1 - t * t))


def _softplus(c: Tensor, u: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return _aten.softplus_backward(c, u, beta, threshold)


def _hardtanh(c: Tensor, u: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return _aten.hardtanh_backward(c, u.detach(), min_val, max_val)


def _hardswish(c: Tensor, u: Tensor) -> Tensor:
    return _aten.hardswish_backward(c, u)


def _tanh(c: Tensor, y: Tensor) -> Tensor:
    return _aten.tanh_backward(c, y)


def _sigmoid(c: Tensor, y: Tensor) -> Tensor:
    return _aten.sigmoid_backward(c, y)


def _relu6(c: Tensor, u: Tensor) -> Tensor:
    return _hardtanh(c, u, 0.0, 6.0)


def _sin(c: Tensor, u: Tensor) -> Tensor:
    return c * torch.cos(u)


def _cos(c: Tensor, u: Tensor) -> Tensor:
    return -c * torch.sin(u)


def _neg(c: Tensor, u: Tensor) -> Tensor:
    return -c


#: Functions that a traced forward may call, by object or, for methods of a tensor, by name.
SLOPES: Mapping[Any, Slope] = {
    F.relu: _relu, torch.relu: _relu, "relu": _relu,
    F.leaky_relu: _leaky_relu, F.elu: _elu, F.gelu: _gelu, F.silu: _silu, F.mish: _mish,
    F.softplus: _softplus, F.hardtanh: _hardtanh, F.relu6: _relu6, F.hardswish: _hardswish,
    F.tanh: _tanh, torch.tanh: _tanh, "tanh": _tanh,
    F.sigmoid: _sigmoid, torch.sigmoid: _sigmoid, "sigmoid": _sigmoid,
    torch.sin: _sin, "sin": _sin, torch.cos: _cos, "cos": _cos,
    torch.neg: _neg, operator.neg: _neg, "neg": _neg,
}  # fmt: skip

_FROM_OUTPUT: frozenset[Slope] = frozenset({_relu, _tanh, _sigmoid})

#: The function and arguments that a module of torch.nn stands for.
MODULES: Mapping[type[nn.Module], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    nn.ReLU: (F.relu, ()),
    nn.LeakyReLU: (F.leaky_relu, ("negative_slope",)),
    nn.ELU: (F.elu, ("alpha",)),
    nn.GELU: (F.gelu, ("approximate",)),
    nn.SiLU: (F.silu, ()),
    nn.Mish: (F.mish, ()),
    nn.Softplus: (F.softplus, ("beta", "threshold")),
    nn.ReLU6: (F.relu6, ()),
    nn.Hardtanh: (F.hardtanh, ("min_val", "max_val")),
    nn.Hardswish: (F.hardswish, ()),
    nn.Tanh: (torch.tanh, ()),
    nn.Sigmoid: (torch.sigmoid, ()),
}


def slope_of(function: Any, u: Tensor, y: Tensor, sweep: Sweep, arguments: Mapping[str, Any]) -> Pull:
    """c -> c s'(u) for a function of :data:`SLOPES`, with y = s(u); it keeps only one of both."""
    slope = SLOPES[function]
    kept = sweep.maybe_detach(y if slope in _FROM_OUTPUT else u)
    return lambda c: slope(c if c.dtype == kept.dtype else c.to(kept.dtype), kept, **arguments)


def activation(module: nn.Module, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """An activation of torch.nn."""
    function, names = next(MODULES[cls] for cls in type(module).__mro__ if cls in MODULES)
    arguments = {name: getattr(module, name) for name in names}
    # Never in place: the slope and the skip need what came in.
    y = call(module, x) if not getattr(module, "inplace", False) else function(x, **arguments)
    return y, slope_of(function, x, y, sweep, arguments)


def activation_of_ours(module: ElementwiseActivation, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """An activation of this package."""
    u = sweep.maybe_detach(x)
    return call(module, x), lambda c: c * module.derivative(u)
