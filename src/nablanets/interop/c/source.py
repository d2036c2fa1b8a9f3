"""The text of a C file and of its header: three functions, their weights, and a test of them."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from nablanets import serialization
from nablanets.errors import ModelFileError
from nablanets.interop.c.loops import Loops, literal
from nablanets.interop.c.lowering import lower
from nablanets.interop.c.names import Names
from nablanets.interop.c.operations import HELPERS
from nablanets.interop.c.text import array_of_numbers, body, c_type, comment
from nablanets.interop.c.values import Array, Base
from nablanets.maps import GradientMap

if TYPE_CHECKING:
    from nablanets.tables import ColumnNames

_FILE = """\
{about}

#include <math.h>

{prototypes}

{weights}{helpers}
{functions}
{selftest}"""

_HEADER = """\
{about}
#ifndef {guard}
#define {guard}

#define {upper}_FEATURES {d}

#ifdef __cplusplus
extern "C" {{
#endif

{prototypes}
#ifdef __cplusplus
}}
#endif

#endif
"""

_SELFTEST = """\
#ifdef NABLANETS_SELFTEST
/* Compares with values of the map at {count} points: cc -std=c99 -DNABLANETS_SELFTEST {name}.c -lm && ./a.out */
#include <stdio.h>

{tables}
/* The largest difference from the reference, or from the largest so far; NaN stays. */
static {type} test_difference({type} before, {type} value, {type} reference)
{{
    const {type} difference = fabs{f}(value - reference);
    return difference > before || isnan(difference) ? difference : before;
}}

int main(void)
{{
    {type} gradient_difference = 0;
    {type} potential_difference = 0;
    {type} jacobian_difference = 0;
    for (int n = 0; n < {count}; n++) {{
        {type} f[{d}];
        {type} J[{dd}];
        {name}_gradient(test_x + {d} * n, f);
        {name}_jacobian(test_x + {d} * n, J);
        const {type} F = {name}_potential(test_x + {d} * n);
        potential_difference = test_difference(potential_difference, F, test_F[n]);
        for (int i = 0; i < {d}; i++) {{
            gradient_difference = test_difference(gradient_difference, f[i], test_f[{d} * n + i]);
        }}
        for (int i = 0; i < {dd}; i++) {{
            jacobian_difference = test_difference(jacobian_difference, J[i], test_J[{dd} * n + i]);
        }}
    }}
    printf("gradient  differs by %.1e (largest value {largest_f:.2e})\\n", (double)gradient_difference);
    printf("potential differs by %.1e (largest value {largest_F:.2e})\\n", (double)potential_difference);
    printf("jacobian  differs by %.1e (largest value {largest_J:.2e})\\n", (double)jacobian_difference);
    const int equal = gradient_difference <= {allowed_f} && potential_difference <= {allowed_F} &&
        jacobian_difference <= {allowed_J};
    puts(equal ? "passed" : "FAILED");
    return equal ? 0 : 1;
}}
#endif
"""


@dataclass(frozen=True)
class Reference:
    """Points and what the map gives there, for the test in the file."""

    x: Tensor  # (n, d)
    gradient: Tensor  # (n, d)
    potential: Tensor  # (n)
    jacobian: Tensor  # (n, d, d)
    tolerance: float  # relative to the largest value of each


@dataclass(frozen=True)
class Description:
    """What the comment at the top of the file says beside sizes."""

    columns: ColumnNames | None
    certificate: str


class SourceFile:
    """A C file that is written function by function, with the weights that the functions share.

    Args:
        net: the map, for the comments.
        name: what the functions' names begin with.
        dtype: of the numbers.
    """

    def __init__(self, net: GradientMap, name: str, dtype: torch.dtype) -> None:
        self.net = net
        self.name = name
        self.dtype = dtype
        self.names = Names({f"{name}_{part}" for part in ("gradient", "potential", "jacobian")})
        self.weights: dict[tuple[object, ...], Base] = {}
        self.definitions: list[str] = []
        self.functions: list[str] = []
        self.numbers = 0
        self.memory = 0

    @property
    def type(self) -> str:
        return c_type(self.dtype)

    def know(self, graph: fx.GraphModule) -> None:
        """Write the weights of a graph, before any function: no name inside one hides a weight."""
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                self._weight(graph, node)

    def add(self, graph: fx.GraphModule, result: fx.Node, part: str) -> None:
        """Write a function: "gradient", "potential" or "jacobian"."""
        d = self.net.features
        point = Base("x" if d > 1 else "x[0]", (1, d), self.dtype, given=True)
        given: dict[str, Array] = {}
        for node in graph.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                given[node.name] = point.array() if node.op == "placeholder" else self._weight(graph, node)
        loops = Loops(Names(self.names.taken), type(self.net).__name__)
        value = lower(graph.graph, result, given, loops)
        out = {"gradient": "f", "jacobian": "J"}.get(part)
        if out is not None:
            value = _into(loops, value, out)
        loops.drop_unused([value.base])
        lines = body(loops.groups)
        if out is None:
            lines.append(f"    return {value.element(['0'] * len(value.shape))};")
        if not any("x[" in line for line in lines):
            lines.insert(0, "    (void)x;")
        self.memory = max(self.memory, _stack(loops))
        self.functions.append("\n".join([self.signature(part), "{", *lines, "}"]))

    def signature(self, part: str) -> str:
        """The first line of a function."""
        d = self.net.features
        arguments = f"const {self.type} x[{d}]"
        if part == "potential":
            return f"{self.type} {self.name}_potential({arguments})"
        out = f"f[{d}]" if part == "gradient" else f"J[{d * d}]"
        return f"void {self.name}_{part}({arguments}, {self.type} {out})"

    def _weight(self, graph: fx.GraphModule, node: fx.Node) -> Array:
        """The array of a weight; weights with the same numbers are one array."""
        value: Tensor = getattr(graph, str(node.target))
        key = (value.dtype, tuple(value.shape), value.numpy().tobytes())
        if key not in self.weights:
            name = self.names(str(node.target))
            self.definitions.append(array_of_numbers(name, value))
            self.numbers += value.numel()
            self.weights[key] = Base(name, tuple(value.shape), value.dtype, given=True)
        return self.weights[key].array()

    def text(self, description: Description, reference: Reference) -> str:
        """The file."""
        functions = "\n\n".join(self.functions)
        return _FILE.format(
            about=comment(self._about(description)),
            prototypes=self.prototypes().rstrip("\n"),
            weights="\n".join(self.definitions),
            helpers=_helpers(functions),
            functions=functions,
            selftest="\n" + self._selftest(reference),
        )

    def header(self) -> str:
        """The header file."""
        upper = self.name.upper()
        return _HEADER.format(
            about=comment(f"A gradient map f = grad F of {self.net.features} variables. Written by nablanets."),
            guard=f"{upper}_H",
            upper=upper,
            d=self.net.features,
            prototypes=self.prototypes(),
        )

    def prototypes(self) -> str:
        """The three functions, each with what it does."""
        d = self.net.features
        texts = {
            "gradient": f"f(x), {d} numbers. f must not overlap x.",
            "potential": "F(x); f determines it up to a constant.",
            "jacobian": f"The derivatives df_i / dx_j in J[{d} * i + j], a symmetric matrix. J must not overlap x.",
        }
        return "".join(f"{comment(text)}\n{self.signature(part)};\n\n" for part, text in texts.items())

    def _about(self, description: Description) -> str:
        d = self.net.features
        parts = [
            f"A gradient map f = grad F of {d} variables, in {self.type}. Written by nablanets.",
            "",
            f"    {self.name}_gradient(x, f)     f(x)",
            f"    {self.name}_potential(x)       F(x)",
            f"    {self.name}_jacobian(x, J)     the derivatives of f",
            "",
            *_columns(description.columns, d),
            "",
            f"{self.numbers} constants, {_bytes(self.numbers * self.dtype.itemsize)}; at most {_bytes(self.memory)} of "
            "stack for arrays. C99 with math.h; no allocation, no state, so it may be called from any thread. NaN in x "
            "gives NaN (not with -ffast-math).",
            "",
            description.certificate,
            "",
            "Architecture: " + _architecture(self.net),
        ]
        return "\n".join(parts)

    def _selftest(self, reference: Reference) -> str:
        d = self.net.features
        values = {
            "test_x": reference.x,
            "test_f": reference.gradient,
            "test_F": reference.potential,
            "test_J": reference.jacobian,
        }
        largest = {name[-1]: float(value.abs().max()) for name, value in values.items()}
        allowed = {f"allowed_{k}": literal(reference.tolerance * size, self.dtype) for k, size in largest.items()}
        return _SELFTEST.format(
            name=self.name,
            type=self.type,
            f="f" if self.type == "float" else "",
            d=d,
            dd=d * d,
            count=len(reference.x),
            tables="\n".join(array_of_numbers(name, value) for name, value in values.items()),
            **{f"largest_{k}": size for k, size in largest.items()},
            **allowed,
        )


def _helpers(text: str) -> str:
    """The helpers that a text calls, and those that they call."""
    found = ""
    for name, helper in reversed(HELPERS.items()):
        for kind, f in (("double", ""), ("float", "f")):
            if re.search(rf"\b{name}{f}\(", text + found):
                found = helper.replace("TYPE", kind).replace("§", f) + "\n" + found
    return f"\n{found}".rstrip("\n") + "\n" if found else ""


def _into(loops: Loops, value: Array, name: str) -> Array:
    """Let a result be written into the memory of that name."""
    base = value.base
    if base.given or not value.is_whole:
        base = Base(name, value.shape, base.dtype)
        loops.write(base.array(), [value], lambda code, _: code[0])
    base.name = name if base.size > 1 else f"{name}[0]"
    base.stored = True
    base.declared = True
    return base.array()


def _stack(loops: Loops) -> int:
    """Bytes of the arrays of a function."""
    bases = {statement.target.base for group in loops.groups for statement in group.statements}
    arrays = [base for base in bases if base.stored and base.size > 1 and not base.declared]
    return sum(base.size * (4 if base.dtype != torch.float64 else 8) for base in arrays)


def _bytes(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1024:.0f} KiB"


def _columns(columns: ColumnNames | None, features: int) -> list[str]:
    """Names and units of x, f and F, where they are known."""
    if columns is None:
        return [f"x has {features} numbers without names; f[i] is the derivative of F by x[i]."]
    lines = []
    for i, (name, unit) in enumerate(zip(columns.x, columns.x_units, strict=True)):
        lines.append(f"    x[{i}]  {_with_unit(name, unit)}")
    for i, (name, unit) in enumerate(zip(columns.g, columns.g_units, strict=True)):
        lines.append(f"    f[{i}]  {_with_unit(name, unit)}")
    lines.append(f"    F     {_with_unit('potential', columns.potential_unit)}")
    return lines


def _with_unit(name: str, unit: str | None) -> str:
    return name if unit is None or f"[{unit}]" in name or f"({unit})" in name else f"{name} [{unit}]"


def _architecture(net: GradientMap) -> str:
    try:
        return json.dumps(serialization.encode(net))
    except ModelFileError:  # a class without a name: torch's own words
        return textwrap.shorten(str(net), 1000)
