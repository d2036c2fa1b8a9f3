"""The text of a C function: declarations and loops."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import torch

from nablanets.interop.c.loops import literal, suffix
from nablanets.interop.c.values import Base, Group, Statement

_WIDTH = 118
_INDENT = "    "
VARIABLES = "ijklmnopqr"


def c_type(dtype: torch.dtype) -> str:
    """C's type for numbers."""
    if not dtype.is_floating_point:
        return "int"
    return "float" if dtype == torch.float32 else "double"


def comment(text: str) -> str:
    """A comment of C of any text, in as many lines as it needs."""
    safe = text.replace("*/", "* /").replace("/*", "/ *").replace("??/", "? ?/")
    lines = []
    for line in safe.splitlines():
        lines += textwrap.wrap(line, _WIDTH - 3, break_long_words=False, subsequent_indent="    ") or [""]
    if len(lines) == 1:
        return f"/* {lines[0]} */"
    return "/*\n" + "\n".join(f" * {line}".rstrip() for line in lines) + "\n */"


def array_of_numbers(name: str, values: torch.Tensor) -> str:
    """The definition of a constant array, or of a number, whose literals read back as the same numbers."""
    literals = [literal(number, values.dtype).strip("()") for number in values.flatten().tolist()]
    shape = " x ".join(map(str, values.shape))
    start = f"static const {c_type(values.dtype)} {name}"
    if len(literals) == 1:
        return f"{start} = {literals[0]};\n"
    lines = textwrap.fill(", ".join(literals), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return f"{start}[{len(literals)}] = {{ /* {shape} */\n{lines},\n}};\n"


def body(groups: Sequence[Group]) -> list[str]:
    """The lines of a function: the loops, and before each the arrays that it writes first."""
    declared: set[Base] = set()
    lines: list[str] = []
    place = ""
    for group in groups:
        places = ", ".join(dict.fromkeys(statement.place for statement in group.statements))
        if places != place:
            place = places
            lines.append(comment(place))
        lines += _declarations(group, declared)
        lines += _loops(group.shape, VARIABLES, _statements(group))
    return [_INDENT + line for text in lines for line in text.splitlines()]


def _declarations(group: Group, declared: set[Base]) -> Iterator[str]:
    """Arrays that need memory; what is summed in these loops begins here."""
    for statement in group.statements:
        base = statement.target.base
        first = base not in declared and not base.declared
        needs_array = base.size > 1 and base.stored
        if first and (needs_array or statement.outside):
            declared.add(base)
            kind = c_type(base.dtype)
            if base.size > 1:
                yield f"{kind} {base.name}[{base.size}];"
        if statement.outside and statement.fold is not None:
            start = statement.fold.start(suffix(base.dtype))
            if base.size == 1:
                yield f"{base.name} = {start};" if base.declared else f"{c_type(base.dtype)} {base.name} = {start};"
            else:
                yield from _loops((base.size,), VARIABLES, [f"{base.name}[{VARIABLES[0]}] = {start};"])


def _loops(shape: Sequence[int], variables: str, inside: Sequence[str]) -> Iterator[str]:
    """Nested loops around some lines."""
    for depth, size in enumerate(shape):
        variable = variables[depth]
        yield f"{_INDENT * depth}for (int {variable} = 0; {variable} < {size}; {variable}++) {{"
    for line in inside:
        yield _INDENT * len(shape) + line
    for depth in reversed(range(len(shape))):
        yield _INDENT * depth + "}"


def _statements(group: Group) -> list[str]:
    lines: list[str] = []
    for statement in group.statements:
        lines += _statement(statement, group)
    return lines


def _statement(statement: Statement, group: Group) -> Iterator[str]:
    target = statement.target
    base = target.base
    index = _index(target.shape, VARIABLES)
    inner = _index(statement.inner, VARIABLES[len(group.shape) :])
    operands = []
    for operand in statement.operands:
        local = not operand.base.given and not operand.base.stored and operand.base.size > 1
        operands.append(operand.base.name if local else operand.element([*index, *inner]))
    value = statement.expression(operands, index)
    is_local = not base.declared and (base.size == 1 or not base.stored)
    written = base.name if is_local else target.element(index)
    kind = c_type(base.dtype)
    if statement.fold is None:
        yield f"const {kind} {written} = {value};" if is_local else f"{written} = {value};"
        return
    f = suffix(base.dtype)
    step = statement.fold.step.format(target=written, value=value, f=f)
    if statement.outside:
        yield step
        return
    start = statement.fold.start(f)
    yield f"{kind} {written} = {start};" if is_local else f"{written} = {start};"
    yield from _loops(statement.inner, VARIABLES[len(group.shape) :], [step])


def _index(shape: Sequence[int], variables: str) -> list[str]:
    """A variable for each dimension, of which those of one element need none."""
    names = iter(variables)
    return [next(names) if size > 1 else "0" for size in shape]
