"""Statements on elements, put into loops.

A statement joins the first loops over its shape that come late enough for what it reads: a value that is read only
there, element by element, needs no array. Products and sums run in loops of their own inside a statement; or, where
what they sum is made by loops that go over all of it, they are summed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch

from nablanets.interop.c.operations import WORDS, number
from nablanets.interop.c.values import Array, Base, Fold, Group, Statement, long_dimensions

#: From how many elements on a row is worth loops of its own.
_LONG_ROW: Final = 8
#: The code of a statement's right side, of the code of its operands and the variables of the loops.
Expression = Callable[[list[str], Sequence[str]], str]
#: An array with a letter for each of its dimensions, as einsum has them.
Lettered = tuple[Array, str]


def suffix(dtype: torch.dtype) -> str:
    """The end of the names of C's functions, and of literals, for a type."""
    return "f" if dtype == torch.float32 else ""


def literal(value: Any, dtype: torch.dtype) -> str:
    """A number as code for computations in a type; what is no number (None, a name) as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return number(value, suffix(dtype)) if dtype.is_floating_point else str(int(value))


def _product(code: list[str], _: Sequence[str]) -> str:
    return " * ".join(code)


class Loops:
    """The loops of one function, made statement by statement.

    Args:
        name: gives a name of C to a value.
        place: what the first statements belong to; set it before others.

    Attributes:
        groups: loops over a shape, in the order in which they run.
    """

    def __init__(self, name: Callable[[str], str], place: str) -> None:
        self.name = name
        self.place = place
        self.groups: list[Group] = []

    def new(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Base:
        """An array that nothing has been written to."""
        return Base(self.name(name), tuple(shape), dtype)

    def filled(self, value: float, shape: Sequence[int], dtype: torch.dtype) -> Array:
        """A number everywhere; it is written as such where it is read."""
        return Base(literal(value, dtype), (), dtype, given=True).array().spread(shape)

    def copy(self, source: Array, name: str) -> Array:
        """A new array with the elements of a view in order."""
        base = self.new(name, source.shape, source.base.dtype)
        self.write(base.array(), [source], _product)
        return base.array()

    def convert(self, source: Array, dtype: torch.dtype, name: str) -> Array:
        """In another type."""
        before = source.base.dtype
        if before == dtype or not (before.is_floating_point or dtype.is_floating_point):
            return source
        if not dtype.is_floating_point:
            word = f"whole{suffix(before)}({{}})"
        else:
            word = "(float){}" if dtype == torch.float32 else "(double){}"
        base = self.new(name, source.shape, dtype)
        self.write(base.array(), [source], lambda code, _: word.format(code[0]))
        return base.array()

    def word(self, operation: str, name: str, dtype: torch.dtype | None = None, /, **arguments: Any) -> Array:
        """An elementwise operation by C's word for it, in the type of its operands unless said otherwise.

        Args:
            operation: a key of ``WORDS``.
            name: of the result.
            dtype: of the result.
            arguments: arrays, which are broadcast, and numbers.
        """
        arrays = {key: value for key, value in arguments.items() if isinstance(value, Array)}
        reals = [array.base.dtype for array in arrays.values() if array.base.dtype.is_floating_point]
        first = next(iter(arrays.values())).base.dtype
        working = max(reals, key=lambda real: real.itemsize, default=dtype or first)
        numbers = {key: literal(value, working) for key, value in arguments.items() if key not in arrays}
        word = WORDS[operation]

        def expression(code: list[str], _: Sequence[str]) -> str:
            parts = {**numbers, **dict(zip(arrays, code, strict=True)), "f": suffix(working)}
            return word.format(**parts) if isinstance(word, str) else word(**parts)

        shape = torch.broadcast_shapes(*(array.shape for array in arrays.values()))
        terms = [array for array in arrays.values() if not array.is_zero]
        if operation == "aten.add.Tensor" and len(arrays) == 2 and len(terms) == 1:
            (term,) = terms
            if numbers["alpha"] == literal(1, working) and term.base.dtype == (dtype or working):
                return term.spread(shape)
        base = self.new(name, shape, dtype or working)
        self.write(base.array(), list(arrays.values()), expression)
        return base.array()

    def write(self, target: Array, operands: Sequence[Array], expression: Expression) -> None:
        """Write an expression of the operands' elements to each element of a view."""
        spread = tuple(operand.spread(target.shape) for operand in operands)
        self._place(Statement(target, spread, expression, self.place), elementwise=target.is_whole)

    def fold(self, fold: Fold, name: str, out: str, *operands: Lettered) -> Array:
        """The product of the operands, folded (summed) over the letters that are not in ``out``."""
        sizes: dict[str, int] = {}
        for array, letters in operands:
            for letter, size in zip(letters, array.shape, strict=True):
                sizes[letter] = max(size, sizes.get(letter, 1))
        base = self.new(name, [sizes[letter] for letter in out], operands[0][0].base.dtype)
        made = self._fold_where_made(fold, base, out, operands, sizes)
        if not made and not self._fold_row_by_row(fold, base, out, operands, sizes):
            inner = [letter for letter in sizes if letter not in out and sizes[letter] > 1]
            spread = tuple(array.over(own, out + "".join(inner), sizes) for array, own in operands)
            inner_sizes = tuple(sizes[letter] for letter in inner)
            statement = Statement(base.array(), spread, _product, self.place, fold if inner else None, inner_sizes)
            self._place(statement, elementwise=True)
        return base.array()

    def drop_unused(self, results: Iterable[Base]) -> None:
        """Remove statements that no result depends on: of some values only the shape is used."""
        wanted = set(results)
        for group in reversed(self.groups):
            kept = []
            for statement in reversed(group.statements):
                if statement.target.base in wanted:
                    wanted |= {operand.base for operand in statement.operands}
                    kept.append(statement)
            group.statements = kept[::-1]
        self.groups = [group for group in self.groups if group.statements]

    def _fold_where_made(
        self, fold: Fold, base: Base, out: str, operands: Sequence[Lettered], sizes: dict[str, int]
    ) -> bool:
        """Fold inside the loops that make an operand, if they go over all letters and the other operands are known."""
        for array, letters in operands:
            if array.base.given or not array.base.elementwise or not array.is_whole:
                continue
            group = self.groups[array.base.group]
            if set(letters) != set(sizes) or len(set(letters)) < len(letters) or base.size == array.base.size:
                continue
            spread = tuple(other.over(own, letters, sizes) for other, own in operands)
            if group.shape != long_dimensions(spread[0].shape):
                continue
            if any(self._known(other, group.shape, inside=True) > array.base.group for other in spread):
                continue
            self._fold_inside(array.base.group, fold, base.array().over(out, letters, sizes), spread)
            return True
        return False

    def _fold_row_by_row(
        self, fold: Fold, base: Base, out: str, operands: Sequence[Lettered], sizes: dict[str, int]
    ) -> bool:
        """Fold in loops whose innermost one goes along a row of the result and of an operand, as processors like it.

        Only where that is worth loops of its own: rows are long, and the other order would stride through an operand.
        """
        inner = [letter for letter in sizes if letter not in out and sizes[letter] > 1]
        if not inner or not out or sizes[out[-1]] < _LONG_ROW:
            return False
        order = out[:-1] + "".join(inner) + out[-1]
        spread = tuple(array.over(own, order, sizes) for array, own in operands)
        strides = [array.layout.stride() for array in spread]
        if all(stride[-1] != 1 for stride in strides) or any(stride[-2] == 1 for stride in strides if stride[-1] != 0):
            return False
        shape = long_dimensions(spread[0].shape)
        self.groups.append(Group(shape))
        self._fold_inside(len(self.groups) - 1, fold, base.array().over(out, order, sizes), spread)
        return True

    def _fold_inside(self, index: int, fold: Fold, target: Array, operands: tuple[Array, ...]) -> None:
        """Fold into a target in loops that go over all that is folded."""
        statement = Statement(target, operands, _product, self.place, fold, outside=True)
        self.groups[index].statements.append(statement)
        target.base.group = index
        target.base.stored = True
        self._note_reads(statement, index)

    def _place(self, statement: Statement, *, elementwise: bool) -> None:
        """Put a statement into the first loops over its shape in which all that it reads is known."""
        shape = long_dimensions(statement.target.shape)
        inside = not statement.inner
        base = statement.target.base
        first = max((self._known(operand, shape, inside=inside) for operand in statement.operands), default=0)
        if base.elementwise:  # all of it is written already: this changes a part
            first = max(first, base.group + 1)
        later = range(first, len(self.groups))
        index = next((k for k in later if self.groups[k].shape == shape), len(self.groups))
        if index == len(self.groups):
            self.groups.append(Group(shape))
        self.groups[index].statements.append(statement)
        base.group = max(base.group, index)
        base.elementwise = elementwise
        base.stored = base.stored or not elementwise
        self._note_reads(statement, index)

    def _known(self, operand: Array, shape: tuple[int, ...], *, inside: bool) -> int:
        """The first group over a shape in which an operand can be read."""
        base = operand.base
        if base.given:
            return 0
        same = inside and base.elementwise and operand.is_whole and self.groups[base.group].shape == shape
        return base.group if same else base.group + 1

    @staticmethod
    def _note_reads(statement: Statement, index: int) -> None:
        """Arrays that are read in other loops than those that make them need memory."""
        for operand in statement.operands:
            base = operand.base
            if not base.given and base.group != index:
                base.stored = True
