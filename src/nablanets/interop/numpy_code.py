"""From a graph of torch operations to lines of NumPy."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, fx

from nablanets.interop.expressions import EXPRESSIONS
from nablanets.interop.tracing import needed


class Items(tuple[Any, ...]):
    """A tuple whose text is code.

    >>> str(Items(["a", 2])), str(Items(["a"]))
    ('(a, 2)', '(a,)')
    """

    def __str__(self) -> str:
        return f"({', '.join(map(str, self))}{',' if len(self) == 1 else ''})"


def unknown(graph: fx.Graph) -> str:
    """The first operation that NumPy has no word for, and the submodule that it is in; nothing if there is none."""
    nodes = (node for node in graph.nodes if is_operation(node) and name_of(node) not in EXPRESSIONS)
    return next((" in ".join(filter(None, (name_of(node), place_of(node)))) for node in nodes), "")


def body(graph: fx.Graph, result: fx.Node, owner: str) -> str:
    """The lines of the function of x that returns ``result``: one for each operation, under the names of submodules.

    Views of weights stand where they are used.
    """
    lines: list[str] = []
    wanted, place = needed([result]), owner
    for node in graph.nodes:
        if node in wanted and is_operation(node) and not _in_place(node):
            if (place_of(node) or owner) != place:
                place = place_of(node) or owner
                lines.append(f"    # {place}")
            value = node.meta["val"]
            shape = f"  # {_shape(value)}" if isinstance(value, Tensor) else ""
            lines.append(f"    {node.name} = {_expression(node)}{shape}")
    lines.append(f"    return {_code(result)}")
    if any(re.search(r"\bn\b", line.split("#")[0]) for line in lines):
        lines.insert(0, "    n = len(x)")
    return "\n".join(lines)


def is_operation(node: fx.Node) -> bool:
    """A call whose result is an array (numbers are sizes, which are known)."""
    return node.op == "call_function" and not isinstance(node.meta["val"], torch.SymInt | int)


def name_of(node: fx.Node) -> str:
    """aten.mul.Tensor, ...; or the name of a function of Python's."""
    overload = isinstance(node.target, torch._ops.OpOverload)
    return str(node.target) if overload else getattr(node.target, "__name__", str(node.target))


def _in_place(node: fx.Node) -> bool:
    """Whether the code of a node stands where it is used: it costs nothing, and a name would say no more."""
    return EXPRESSIONS.get(name_of(node)) == "{self}" or not any(n.op == "placeholder" for n in needed([node]))


def place_of(node: fx.Node) -> str:
    """The submodule that a node belongs to, and its class."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    path = path.removeprefix("net").removeprefix(".")
    return f"{path}: {kind.rpartition('.')[2]}" if path else ""


def _code(value: Any) -> Any:
    """An argument of an operation as code; numbers stay numbers."""
    if isinstance(value, fx.Node):
        return _value(value)
    if isinstance(value, list | tuple):
        return Items(_code(item) for item in value)
    if isinstance(value, torch.dtype):
        return f"np.{str(value).removeprefix('torch.').replace('bool', 'bool_')}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return value


def _value(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if not is_operation(node):
        return _size(node.meta["val"])
    return _expression(node) if _in_place(node) else node.name


def _size(size: Any) -> str:
    """A size, where torch's symbol for the number of points is n."""
    return re.sub(r"\bs\d+\b", "n", str(size))


def _shape(value: Tensor) -> Items:
    return Items(_size(size) for size in value.shape)


def _expression(node: fx.Node) -> str:
    arguments = {name: _code(value) for name, value in arguments_of(node).items()}
    value = node.meta["val"]
    arguments["shape"] = _shape(value) if isinstance(value, Tensor) else None
    rule = EXPRESSIONS[name_of(node)]
    return rule.format(**arguments) if isinstance(rule, str) else rule(**arguments)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call, by name."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(zip(("self", "index"), node.args, strict=True))
    schema = node.target._schema.arguments
    positional = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | positional | dict(node.kwargs)
