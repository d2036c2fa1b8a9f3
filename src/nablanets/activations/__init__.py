"""Gradient activations and their names.

>>> import torch
>>> make_activation("tanh").potential(torch.zeros(2)).tolist()
[0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from nablanets.activations.base import ElementwiseActivation, GradientActivation, GroupActivation, GroupDerivative
from nablanets.activations.elementwise import (
    Abs,
    Gaussian,
    Identity,
    LeakyReLU,
    Polynomial,
    ReLU,
    Sigmoid,
    Sine,
    Softplus,
    Squareplus,
    Tanh,
    WTanh,
)
from nablanets.activations.group import PNorm, Radial, Softmax, WSoftmax
from nablanets.activations.spline import Spline
from nablanets.errors import IllegalActivationError, unknown_name

#: How an activation is asked for: its name, ``(name, options)``, or a subclass of :class:`GradientActivation`.
ActivationSpec: TypeAlias = "str | Sequence[Any] | type[GradientActivation]"

ACTIVATIONS: dict[str, type[GradientActivation]] = {
    "identity": Identity,
    "tanh": Tanh,
    "wtanh": WTanh,
    "sigmoid": Sigmoid,
    "softplus": Softplus,
    "squareplus": Squareplus,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "abs": Abs,
    "sine": Sine,
    "gaussian": Gaussian,
    "polynomial": Polynomial,
    "spline": Spline,
    "softmax": Softmax,
    "wsoftmax": WSoftmax,
    "pnorm": PNorm,
    "radial": Radial,
}


def register_activation(name: str, activation: type[GradientActivation]) -> None:
    """Give an activation class a name, so that maps which use it can be saved and loaded.

    Raises:
        IllegalActivationError: the name belongs to another class already.
    """
    if ACTIVATIONS.get(name, activation) is not activation:
        raise IllegalActivationError(f"register_activation: {name!r} is taken by {ACTIVATIONS[name].__name__}.")
    ACTIVATIONS[name] = activation


def normalise_spec(spec: ActivationSpec) -> tuple[str | type[GradientActivation], dict[str, Any]]:
    """Split a specification into a name (the class itself, if it has no name) and its options."""
    parts: Sequence[Any] = (spec, {}) if isinstance(spec, str | type) else spec
    name, options = parts if isinstance(parts, Sequence) and len(parts) == 2 else (parts, {})
    if isinstance(name, type) and issubclass(name, GradientActivation):
        names = [known for known, cls in ACTIVATIONS.items() if cls is name]
        return (names[0] if names else name), dict(options)
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise IllegalActivationError(
            f"expected an activation as a name, a pair (name, options), or a subclass of ElementwiseActivation or "
            f"GroupActivation with forward, potential and derivative; got {spec!r}."
        )
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return name, dict(options)


def make_activation(spec: ActivationSpec, units: Sequence[int] = (), *, monotone: bool = False) -> GradientActivation:
    """Build an activation for a block of units.

    Args:
        spec: a name, a pair ``(name, options)`` such as ``("pnorm", {"p": 3})``, or a class.
        units: shape of the block, ``(h,)`` or ``(M, h)``.
        monotone: require an increasing activation.

    Raises:
        UnknownNameError: no activation has that name.
        IllegalActivationError: it is not increasing although ``monotone`` asks for it, or an option is wrong.
    """
    name, options = normalise_spec(spec)
    cls = ACTIVATIONS[name] if isinstance(name, str) else name
    try:
        activation = cls(units, monotone=monotone, **options)
    except TypeError as error:
        raise IllegalActivationError(f"activation {name!r} cannot be built with options {options}: {error}") from error
    if monotone and not activation.increasing:
        legal = ", ".join(n for n, c in ACTIVATIONS.items() if c((), monotone=True).increasing)
        raise IllegalActivationError(
            f"a monotone map needs an increasing activation, and {name!r} is not (slopes {activation.slopes}). "
            f"Choose one of {legal}, declare `slopes` with a lower end >= 0 on your class, or use monotone=False."
        )
    return activation


__all__ = [
    "ACTIVATIONS",
    "ActivationSpec",
    "ElementwiseActivation",
    "GradientActivation",
    "GroupActivation",
    "GroupDerivative",
    "make_activation",
    "normalise_spec",
    "register_activation",
]
