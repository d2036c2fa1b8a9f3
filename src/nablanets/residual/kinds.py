"""What a skip carries past a block: the kinds that users need, and the place where others join."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError
from nablanets.residual.gate import Gate
from nablanets.residual.mixing import mixed


class SkipKind(ABC):
    """What is carried past a block F. One object without state of its own serves all layers of its kind.

    Attributes:
        needs_gradient: whether it uses g(x); blocks are only evaluated if it does not.
        needs_gate: whether it uses s = sigmoid(alpha); layers have no alpha if it does not.
    """

    needs_gradient: ClassVar[bool] = True
    needs_gate: ClassVar[bool] = True

    def prepare(self, layer: Gate) -> None:  # noqa: B027  # most kinds add nothing
        """Give a new layer parameters or buffers of this kind's own."""

    @abstractmethod
    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor | None:
        """What is added to F(x), of the shape of x; None for nothing.

        Args:
            layer: has the gate, ``layer.gate_for(x)``, and scales g as its settings say, ``layer.normalized(g)``.
            x: the input of the block.
            g: J_F(x)^T v, not normalised; None for kinds that need no gradient.
        """

    def joined(self, layer: Gate, y: Tensor, x: Tensor, g: Tensor | None, *, overwrite: bool) -> Tensor:
        """y + what is carried, in the shape of x. Kinds may compute both at once.

        Args:
            layer, x, g: as in :meth:`carried`.
            y: F(x).
            overwrite: nobody else needs y, so that the result may take its place.
        """
        carried = self.carried(layer, x, g)
        return y if carried is None else fitting(y, carried) + carried


class GatedGradient(SkipKind):
    """(1 - s) x + s g."""

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        g = required(g)
        if layer.normalize != "none":
            return mixed(None, x, g.to(x.dtype), layer.gate_for(x), layer.norm_dims(x), layer.gain)
        return torch.lerp(x, layer.normalized(g).to(x.dtype), layer.gate_for(x))

    def joined(self, layer: Gate, y: Tensor, x: Tensor, g: Tensor | None, *, overwrite: bool) -> Tensor:
        if layer.normalize == "none":
            return super().joined(layer, y, x, g, overwrite=overwrite)
        g = required(g).to(x.dtype)
        y = fitting(y, x)
        return mixed(y, x, g, layer.gate_for(x), layer.norm_dims(x), layer.gain, overwrite=overwrite)


class PureGradient(SkipKind):
    """g alone."""

    needs_gate = False

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        return layer.normalized(required(g))


class AddedGradient(SkipKind):
    """s g, for networks without skips."""

    def carried(self, layer: Gate, x: Tensor, g: Tensor | None) -> Tensor:
        return layer.gate_for(x) * layer.normalized(required(g))


def required(g: Tensor | None) -> Tensor:
    """The gradient, for kinds that asked for it by ``needs_gradient``."""
    if g is None:
        raise InvalidInputError("expected the gradient of the block, got None. Set needs_gradient = True in the kind.")
    return g


def fitting(y: Tensor, carried: Tensor) -> Tensor:
    """y, if what is carried can be added to it.

    Raises:
        ShapeError: the shapes differ.
    """
    if y.shape != carried.shape:
        raise ShapeError(
            f"GradientResidual: expected a block that keeps the shape {tuple(carried.shape)} of its skip, but its "
            f"output has {tuple(y.shape)}. Give a projection: a module from the input's shape to the output's."
        )
    return y


_KINDS: dict[str, SkipKind] = {
    "gradient": GatedGradient(),
    "pure": PureGradient(),
    "added": AddedGradient(),
}


def register_skip(name: str, kind: SkipKind) -> None:
    """Give a kind of skip a name, by which ``GradientResidual(block, skip=name)`` finds it.

    This is how a study adds the control arms of its comparison, without the library knowing them.

    Raises:
        InvalidInputError: the name belongs to a kind of another class, or it is no :class:`SkipKind`.

    >>> from nablanets import GradientResidual
    >>> class Halved(SkipKind):
    ...     needs_gradient = needs_gate = False
    ...     def carried(self, layer, x, g):
    ...         return x / 2
    >>> register_skip("halved", Halved())
    >>> block, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    >>> bool(torch.equal(GradientResidual(block, skip="halved")(x), block(x) + x / 2))
    True
    """
    if not isinstance(kind, SkipKind):
        raise InvalidInputError(f"register_skip: expected an object of a subclass of SkipKind, got {kind!r}.")
    taken = _KINDS.get(name)
    if taken is not None and type(taken) is not type(kind):
        raise InvalidInputError(
            f"register_skip: {name!r} is taken by {type(taken).__name__}. Choose another name for "
            f"{type(kind).__name__}."
        )
    _KINDS[name] = kind


def registered_skips() -> tuple[str, ...]:
    """The names of all kinds of skips."""
    return tuple(_KINDS)


def skip_kind(name: str) -> SkipKind:
    """The kind of skip of a name that :func:`registered_skips` lists."""
    return _KINDS[name]
