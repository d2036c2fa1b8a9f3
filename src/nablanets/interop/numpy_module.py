"""Gradient maps as plain NumPy: a Python file to read and run, with its weights beside it."""

from __future__ import annotations

import json
import runpy
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from nablanets import serialization
from nablanets.errors import ExportError, ModelFileError
from nablanets.interop.expressions import EXPRESSIONS, HELPERS
from nablanets.interop.numpy_code import Items, body, unknown
from nablanets.interop.tracing import Both, freeze, trace
from nablanets.maps import GradientMap
from nablanets.serialization import atomic_path

_TEMPLATE = '''\
"""A gradient map f = grad F of {d} variables, in {dtype}: f is gradient(x), F is potential(x).

Written by nablanets. It needs NumPy, and its weights in the file {weights} beside this one.
"""

# Architecture:
{architecture}

{math}from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_suffix(".weights.npz"), allow_pickle=False) as _weights:
{loads}


def gradient(x):
    """f(x), of shape (*, {d}), for x of shape (*, {d})."""
    return _gradient(_points(x)).reshape(np.shape(x))


def potential(x):
    """F(x), of shape (*), for x of shape (*, {d}); f determines it up to a constant."""
    return _potential(_points(x)).reshape(np.shape(x)[:-1])


def _points(x):
    """x as an array of shape (n, {d})."""
    x = np.asarray(x, dtype=np.{dtype})
    if x.ndim == 0 or x.shape[-1] != {d}:
        raise ValueError(f"expected x of shape (*, {d}), got {{x.shape}}")
    return x.reshape(-1, {d})


def _gradient(x):
    """f at the rows of x, of shape (n, {d})."""
{gradient}


def _potential(x):
    """F at the rows of x, of shape (n, {d})."""
{potential}
{helpers}'''


def write(net: GradientMap, x: Tensor, path: Path) -> tuple[Path, ...]:
    """Write the module and its weights."""
    weights = path.with_suffix(".weights.npz")
    graph = numpy_graph(net, x)
    text = source(net, graph, x.dtype, weights.name)
    arrays: dict[str, Any] = {name: value.numpy() for name, value in graph.named_buffers()}
    with atomic_path(path) as temporary, atomic_path(weights) as temporary_weights:
        temporary.write_text(text, encoding="utf-8")
        with temporary_weights.open("wb") as file:
            np.savez(file, **arrays)
    return path, weights


def evaluate(files: tuple[Path, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and F(x) by the module."""
    module = runpy.run_path(str(files[0]))
    return torch.from_numpy(module["gradient"](x.numpy())), torch.from_numpy(module["potential"](x.numpy()))


def numpy_graph(net: GradientMap, x: Tensor) -> fx.GraphModule:
    """The graph of a map in operations that NumPy has a word for.

    Others are decomposed into those of core ATen; what has a word of its own is left whole, so that the code stays
    close to the map's.
    """
    program = trace(Both(net), x)
    graph = freeze(program)
    if not unknown(graph.graph):
        return graph
    rules = torch.export.default_decompositions()
    graph = freeze(program.run_decompositions({op: rule for op, rule in rules.items() if str(op) not in EXPRESSIONS}))
    if missing := unknown(graph.graph):
        raise ExportError(
            f"cannot write this {type(net).__name__} in NumPy: there is no word for the operation {missing}. Use other "
            "operations in the map, or export it as 'onnx' or 'torch'."
        )
    return graph


def source(net: GradientMap, graph: fx.GraphModule, dtype: torch.dtype, weights: str) -> str:
    """The text of the module."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    bodies = [body(graph.graph, result, type(net).__name__) for result in output.args[0]]
    helpers = [text for name, text in HELPERS.items() if any(f"{name}(" in body for body in bodies)]
    loads = [f'    {name} = _weights["{name}"]  # {Items(value.shape)}' for name, value in graph.named_buffers()]
    return _TEMPLATE.format(
        d=net.features,
        dtype=str(dtype).removeprefix("torch."),
        weights=weights,
        architecture=textwrap.indent(_architecture(net), "# "),
        math="import math\n" if any("math." in text for text in helpers) else "",
        loads="\n".join(loads) or "    pass",
        gradient=bodies[0],
        potential=bodies[1],
        helpers="".join(f"\n{text}" for text in helpers),
    )


def _architecture(net: GradientMap) -> str:
    try:
        return textwrap.fill(json.dumps(serialization.encode(net)), 118, break_long_words=False)
    except ModelFileError:  # a class without a name: torch's own words
        return str(net)
