"""Modules that change their class in place, so that their weights, names and attributes stay what they were.

A converted module gets a class with two bases: one of the classes below, whose forward adds the gradient residual, and
the class that it had before. The new class keeps both by name (``_kind`` and ``_original_class``), so that it can be
copied, pickled and taken away again whatever the original's own bases are. What a conversion needs beside the skip is
in one attribute (``_conversion``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.residual.find import Block
from nablanets.residual.skip import GradientSkip
from nablanets.residual.sweep import PassThrough


class AttachedSkip(GradientSkip):
    """A skip inside a converted model; weights from before the conversion load without it."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class Conversion:
    """What a converted module knows beside its skip.

    Attributes:
        root: the module that owns the layers of F. It stands here since it must not become a submodule.
        block: the parts of a forward that is one residual block.
        fast_path: which activation torch's fused kernel for encoder layers used, 0 for no fused kernel.
    """

    root: nn.Module | None = None
    block: Block | None = None
    fast_path: int = 0


class Swapped(nn.Module):
    """What all converted modules share."""

    _kind: ClassVar[type[Swapped]]
    _original_class: ClassVar[type[nn.Module]]
    _conversion: Conversion
    #: Tells :func:`nablanets.serialization.save` why not, and the user what to do.
    cannot_be_saved = (
        "holds a gradient residual that add_gradient_residuals put there, which its class does not tell. Save the "
        "weights with safetensors.torch.save_model(model, path); to load them, build the model, convert it with the "
        "same settings, and call safetensors.torch.load_model(model, path). remove_gradient_residuals(model) gives "
        "back a model that can be saved."
    )
    gradient_residual: AttachedSkip

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (self._kind, self._original_class), self.__dict__


class ConvertedBlock(Swapped):
    """A module whose whole forward is one residual block, after(shortcut(z) + F(z)) with z = before(x)."""

    def forward(self, x: Tensor) -> Tensor:
        block = self._conversion.block
        if block is None:
            raise InvalidInputError("expected a converted block with its parts, got none. Convert the model again.")
        z = x if block.before is None else block.before.run(self, x)
        projection = None if block.shortcut is None else functools.partial(block.shortcut.run, self)
        y: Tensor = self.gradient_residual(self, z, projection=projection)
        return y if block.after is None else block.after.run(self, y)


class ConvertedHost(Swapped, PassThrough):
    """The child that computes a chain of children and what the gradient residual changes.

    It returns F(x) + skip(x) - x, to which the forward of its owner adds x.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _joined(self, x) - x


class ConvertedLayers(Swapped, PassThrough):
    """The last layer of a chain without a skip, F(x) + skip(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return _joined(self, x)


class ConvertedEncoderLayer(Swapped):
    """An ``nn.TransformerEncoderLayer`` with a gradient residual around its feed-forward part."""

    activation_relu_or_gelu: int

    def _ff_block(self, x: Tensor) -> Tensor:
        return _joined(self, x) - x


class PassedOver(Swapped, PassThrough):
    """A child whose work the host of its chain does."""


def _joined(module: Swapped, x: Tensor) -> Tensor:
    """F(x) + skip(x)."""
    joined: Tensor = module.gradient_residual(module._conversion.root, x)
    return joined


def swap(module: nn.Module, kind: type[Swapped], conversion: Conversion | None = None) -> None:
    """Put a class before the class of a module."""
    module.__class__ = _class(kind, type(module))
    module.__dict__["_conversion"] = conversion or Conversion()


def restore(module: Swapped) -> bool:
    """Give a converted module its class and attributes back; whether it had a skip of its own.

    Raises:
        InvalidInputError: its class has been changed again after the conversion.
    """
    original = module._original_class
    if type(module) is not _class(module._kind, original):
        raise InvalidInputError(
            f"remove_gradient_residuals: expected a module as it was converted, but the class of this "
            f"{type(module).__name__} was changed later, for example by a parametrisation. Undo that first."
        )
    if isinstance(module, ConvertedEncoderLayer):
        module.activation_relu_or_gelu = module._conversion.fast_path
    had_skip = not isinstance(module, PassedOver)
    if had_skip:
        del module.gradient_residual
    del module.__dict__["_conversion"]
    module.__class__ = original  # type: ignore[assignment]
    return had_skip


def _class(kind: type[Swapped], original: type[nn.Module]) -> type[nn.Module]:
    """The class of converted modules of one kind that had this class; there is one of each."""
    if (kind, original) not in _classes:
        namespace = {"__module__": original.__module__, "_kind": kind, "_original_class": original}
        _classes[kind, original] = type(f"{kind.__name__}{original.__name__}", (kind, original), namespace)
    return _classes[kind, original]


def _empty(kind: type[Swapped], original: type[nn.Module]) -> nn.Module:
    """A converted module without anything in it, which copying and unpickling fill."""
    cls = _class(kind, original)
    return cls.__new__(cls)


_classes: dict[tuple[type[Swapped], type[nn.Module]], type[nn.Module]] = {}
