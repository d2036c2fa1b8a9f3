"""Modules that change their class in place, so that their weights, names and attributes stay what they were."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from nablanets.residual.find import Block
from nablanets.residual.skip import GradientSkip
from nablanets.residual.sweep import Passing


class AttachedSkip(GradientSkip):
    """A skip inside a converted model; weights from before the conversion load without it."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *rest)


class Swapped(nn.Module):
    """What all converted modules share: the class they had, and how they are copied and pickled."""

    gradient_residual: AttachedSkip
    #: Held in a tuple, since it must not become a submodule.
    _owner: tuple[nn.Module, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixin, original = type(self).__bases__
        return _empty, (mixin, original), self.__dict__

    def _added(self, x: Tensor) -> Tensor:
        """F(x) + skip(x) - x, to which the owner adds x."""
        joined: Tensor = self.gradient_residual(self._owner[0], x)
        return joined - x


class ConvertedBlock(Swapped):
    """A module whose whole forward is one residual block."""

    _block: Block

    def forward(self, x: Tensor) -> Tensor:
        block = self._block
        z = x if block.before is None else block.before.run(self, x)
        projection = None if block.shortcut is None else functools.partial(block.shortcut.run, self)
        y: Tensor = self.gradient_residual(self, z, projection=projection)
        return y if block.after is None else block.after.run(self, y)


class ConvertedHost(Swapped, Passing):
    """The child that computes a chain of children and what the gradient residual changes."""

    def forward(self, x: Tensor) -> Tensor:
        return self._added(x)


class ConvertedLayers(Swapped, Passing):
    """The last layer of a chain without a skip, F(x) + skip(x)."""

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.gradient_residual(self._owner[0], x)
        return joined


class ConvertedEncoderLayer(Swapped):
    """An ``nn.TransformerEncoderLayer`` with a gradient residual around its feed-forward part."""

    def _ff_block(self, x: Tensor) -> Tensor:
        return self._added(x)


class Passed(Swapped, Passing):
    """A child whose work its chain's host does."""


def swap(module: nn.Module, mixin: Any, **attributes: Any) -> None:
    """Put a class before the class of a module, and attributes into it."""
    original: Any = type(module)
    module.__class__ = _class(mixin, original)
    module.__dict__.update(attributes)


@functools.cache
def _class(mixin: Any, original: Any) -> type[nn.Module]:
    return type(f"{mixin.__name__}{original.__name__}", (mixin, original), {"__module__": original.__module__})


def _empty(mixin: Any, original: Any) -> nn.Module:
    cls = _class(mixin, original)
    return cls.__new__(cls)
