"""From a graph of torch operations for one point to loops.

Views cost nothing: a view is the layout that torch itself gives to a tensor without data, so an element of it is an
element of the array that it looks at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from nablanets.errors import ExportError
from nablanets.interop.c.composite import COMPOSITE
from nablanets.interop.c.loops import Loops
from nablanets.interop.c.operations import WORDS
from nablanets.interop.c.values import Array
from nablanets.interop.numpy_code import arguments_of, is_operation, name_of, place_of
from nablanets.interop.tracing import needed

_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "_unsafe_view.default", "diagonal.default", "expand.default", "expand_as.default", "flatten.using_ints",
        "mT.default", "movedim.int", "permute.default", "reshape.default", "select.int", "slice.Tensor",
        "split.Tensor", "split_with_sizes.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "t.default",
        "transpose.int", "unbind.int", "unflatten.int", "unsqueeze.default", "view.default",
    )
)  # fmt: skip
_SAME = frozenset(f"aten.{name}.default" for name in ("alias", "clone", "contiguous", "detach"))
_CONVERSIONS = frozenset({"aten.to.dtype", "aten._to_copy.default"})
#: Arrays of one number: the number, or the argument that it is.
_FILLED: dict[str, float | str] = {
    "aten.full_like.default": "fill_value",
    "aten.new_zeros.default": 0.0,
    "aten.ones_like.default": 1.0,
    "aten.zeros_like.default": 0.0,
}
#: Operations that C has a way to write.
KNOWN = frozenset({*_VIEWS, *_SAME, *_CONVERSIONS, *_FILLED, *WORDS, *COMPOSITE, "getitem"})


def unknown(graph: fx.Graph) -> str:
    """The first operation that C has no word for, and the submodule that it is in; nothing if there is none."""
    nodes = (node for node in graph.nodes if is_operation(node) and name_of(node) not in KNOWN)
    return next((" in ".join(filter(None, (name_of(node), place_of(node)))) for node in nodes), "")


def lower(graph: fx.Graph, result: fx.Node, given: dict[str, Array], loops: Loops) -> Array:
    """Write the operations that a result depends on into loops, and return the result.

    Args:
        graph: of operations for one point.
        result: a node of it.
        given: the arrays of the input x and of the weights, by the names of their nodes.
        loops: where the statements go.
    """
    values: dict[fx.Node, Any] = {}
    owner = loops.place
    wanted = needed([result])
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            values[node] = given[node.name]
        elif node in wanted and is_operation(node):
            loops.place = place_of(node) or owner
            values[node] = _operation(loops, node, {k: _argument(v, values) for k, v in arguments_of(node).items()})
    value = values[result]
    if not isinstance(value, Array):
        raise ExportError("cannot write this map in C: its result is no tensor.")
    return value


def _argument(value: Any, values: dict[fx.Node, Any]) -> Any:
    """An argument with arrays in place of nodes, and sizes as numbers."""
    if isinstance(value, fx.Node):
        return values[value] if value in values else int(value.meta["val"])
    if isinstance(value, list | tuple):
        return [_argument(item, values) for item in value]
    return value


def _operation(loops: Loops, node: fx.Node, arguments: dict[str, Any]) -> Any:
    name = name_of(node)
    if name == "getitem":
        return arguments["self"][arguments["index"]]
    if name in _VIEWS:
        return _view(loops, node, arguments)
    meta = node.meta["val"]
    if name in _FILLED:
        fill = _FILLED[name]
        value = arguments[fill] if isinstance(fill, str) else fill
        return loops.filled(value, meta.shape, meta.dtype)
    if name in _SAME or name in _CONVERSIONS:
        return loops.convert(arguments["self"], meta.dtype, node.name)
    if name in WORDS:
        return loops.word(name, node.name, meta.dtype, **arguments)
    return COMPOSITE[name](loops, node.name, **arguments)


def _view(loops: Loops, node: fx.Node, arguments: dict[str, Any]) -> Any:
    """The view, or views, of an array; where torch would copy, of a copy."""
    source = arguments.pop("self")
    views = _views_of(node, source, arguments)
    return _views_of(node, loops.copy(source, node.name), arguments) if views is None else views


def _views_of(node: fx.Node, source: Array, arguments: dict[str, Any]) -> Any:
    """What a view operation gives, or None if that is no view of the source."""
    is_reshape = name_of(node) in ("aten.view.default", "aten._unsafe_view.default")  # of memory in another order here
    target: Any = torch.ops.aten.reshape.default if is_reshape else node.target
    others = {key: value.layout if isinstance(value, Array) else value for key, value in arguments.items()}
    if is_reshape:
        others = {"shape": others["size"]}
    result = target(source.layout, **others)
    parts = list(result) if isinstance(result, list | tuple) else [result]
    storage = source.layout.untyped_storage()._cdata
    if any(part.untyped_storage()._cdata != storage for part in parts):
        return None
    arrays = [Array(source.base, part) for part in parts]
    return arrays if isinstance(result, list | tuple) else arrays[0]
