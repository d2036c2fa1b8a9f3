"""What a lowered graph is made of: arrays and views of them, statements on their elements, and loops of statements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

#: The group of what is there before the function begins.
GIVEN: Final = -1


@dataclass(eq=False)
class Base:
    """An array of C, or a scalar where it has one element.

    Attributes:
        name: its name, or the code of a literal.
        shape: of the array; in C it is flat, row by row.
        dtype: torch.float64 (double), torch.float32 (float), torch.bool and integers (int).
        given: whether it is the input, a weight or a literal.
        group: the number of the group of loops that writes it.
        elementwise: whether these loops go over its elements, so that later statements in them may use each element.
        stored: whether it needs memory: something outside the loop that writes it reads it.
        declared: whether the memory is there already, as that of the function's result is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    given: bool = False
    group: int = GIVEN
    elementwise: bool = False
    stored: bool = False
    declared: bool = False

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()

    def array(self) -> Array:
        """All of it."""
        return Array(self, torch.empty(self.shape, dtype=self.dtype, device="meta"))


@dataclass(frozen=True, eq=False)
class Array:
    """A view of an array; ``layout`` is a tensor without data whose strides and offset are those of the view."""

    base: Base
    layout: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layout.shape)

    def spread(self, shape: Sequence[int]) -> Array:
        """Broadcast to a shape."""
        return Array(self.base, self.layout.expand(tuple(shape)))

    def over(self, own: str, letters: str, sizes: dict[str, int]) -> Array:
        """The view that is looped over by ``letters``, where its own dimensions have the letters ``own``."""
        strides = [0] * len(letters)
        for letter, stride, size in zip(own, self.layout.stride(), self.shape, strict=True):
            if size > 1:
                strides[letters.index(letter)] += stride
        shape = [sizes[letter] for letter in letters]
        return Array(self.base, self.layout.as_strided(shape, strides, self.layout.storage_offset()))

    @property
    def is_zero(self) -> bool:
        """Whether it is the number zero everywhere, as a literal."""
        return self.base.given and self.base.name in ("0.0", "0.0f")

    @property
    def is_whole(self) -> bool:
        """Whether the view has each element once, in order, up to dimensions of one element."""
        if self.layout.storage_offset() != 0 or self.layout.numel() != self.base.size:
            return False
        expected = 1
        for size, stride in reversed(list(zip(self.shape, self.layout.stride(), strict=True))):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    def element(self, index: Sequence[str]) -> str:
        """The code of one element, given a variable for each dimension (any code where it has one element)."""
        if self.base.size == 1:
            return self.base.name
        terms = [str(self.layout.storage_offset())] if self.layout.storage_offset() else []
        for size, stride, variable in zip(self.shape, self.layout.stride(), index, strict=True):
            if size > 1 and stride != 0:
                terms.append(variable if stride == 1 else f"{stride} * {variable}")
        return f"{self.base.name}[{' + '.join(terms) or '0'}]"


@dataclass(frozen=True)
class Fold:
    """How many elements become one."""

    start: Callable[[str], str]  # from the suffix of the type
    step: str  # with {target}, {value} and {f}


SUM: Final = Fold(lambda f: f"0.0{f}", "{target} += {value};")
LARGEST: Final = Fold(lambda f: "(-INFINITY)", "{target} = maximum{f}({target}, {value});")
SMALLEST: Final = Fold(lambda f: "INFINITY", "{target} = minimum{f}({target}, {value});")


@dataclass(eq=False)
class Statement:
    """target[index] = expression(operands[index]) for every index of the target's shape.

    With a fold, ``inner`` are the sizes of further loops inside, over which the target is folded; or, where ``outside``
    says so, the loops around the statement already go over what is folded.
    """

    target: Array
    operands: tuple[Array, ...]
    expression: Callable[[list[str], Sequence[str]], str]  # of the operands' code, and of the loops' variables
    place: str
    fold: Fold | None = None
    inner: tuple[int, ...] = ()
    outside: bool = False


@dataclass(eq=False)
class Group:
    """Loops over a shape (without dimensions of one element), with statements inside."""

    shape: tuple[int, ...]
    statements: list[Statement] = field(default_factory=list)


def long_dimensions(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its dimensions of one element.

    >>> long_dimensions((1, 5, 1, 3))
    (5, 3)
    """
    return tuple(size for size in shape if size != 1)
