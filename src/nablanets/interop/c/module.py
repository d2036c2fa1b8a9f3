"""Gradient maps as C: a file to compile, and its header."""

from __future__ import annotations

import copy
import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from nablanets.errors import ExportError
from nablanets.interop.c.lowering import KNOWN, unknown
from nablanets.interop.c.names import identifier
from nablanets.interop.c.source import Description, Reference, SourceFile
from nablanets.interop.tracing import Both, Gradient, Jacobian, differentiate, freeze, trace
from nablanets.maps import GradientMap
from nablanets.serialization import atomic_path
from nablanets.verify import certificate

if TYPE_CHECKING:
    from nablanets.tables import ColumnNames

#: How far the test in the file may be off, relative to the largest value: rounding, in another order of sums.
_SELFTEST_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
#: Points of the test in the file.
_TEST_POINTS = 5
_COMPILERS = ("cc", "gcc", "clang")


def write(net: GradientMap, x: Tensor, path: Path, columns: ColumnNames | None = None) -> tuple[Path, ...]:
    """Write the file and its header; the names and units of columns go into a comment."""
    point = x[:1]
    values, jacobian = _graphs(net, point)
    file = SourceFile(net, identifier(path.stem), x.dtype)
    file.know(values)
    file.know(jacobian)
    file.add(values, _results(values)[0], "gradient")
    file.add(values, _results(values)[1], "potential")
    file.add(jacobian, _results(jacobian)[0], "jacobian")
    description = Description(columns, _certified(net))
    texts = {path: file.text(description, _reference(net, x[:_TEST_POINTS])), path.with_suffix(".h"): file.header()}
    for target, text in texts.items():
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(texts)


def evaluate(files: tuple[Path, ...], x: Tensor) -> tuple[Tensor, ...] | str:
    """f(x), F(x) and J(x) by the file, compiled; or why not."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return f"there is no C compiler ({', '.join(_COMPILERS)})."
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "map.so")
        command = [compiler, "-std=c99", "-O2", "-fPIC", "-shared", str(files[0]), "-o", str(library), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{compiler} cannot compile it: {done.stderr.strip()[:300]}"
        return run(library, identifier(files[0].stem), x)


def run(library: Path, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(x), F(x) and J(x) at points (n, d) by a shared library."""
    n, d = x.shape
    functions = ctypes.CDLL(str(library))
    potential_of = getattr(functions, f"{name}_potential")
    potential_of.restype = ctypes.c_double if x.dtype == torch.float64 else ctypes.c_float
    points = x.contiguous()
    gradient = torch.empty(n, d, dtype=x.dtype)
    jacobian = torch.empty(n, d, d, dtype=x.dtype)
    potential = torch.empty(n, dtype=x.dtype)
    for k in range(n):
        getattr(functions, f"{name}_gradient")(_pointer(points[k]), _pointer(gradient[k]))
        getattr(functions, f"{name}_jacobian")(_pointer(points[k]), _pointer(jacobian[k]))
        potential[k] = potential_of(_pointer(points[k]))
    return gradient, potential, jacobian


def _pointer(row: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(row.data_ptr())


def _graphs(net: GradientMap, point: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph of f and F, and that of J, at one point, in operations that C has a word for."""
    values = point_graph(Both(net), point)
    try:
        return values, point_graph(Jacobian(net), point)
    except ExportError:  # no closed form, or one in other operations
        jacobian = differentiate(values, point, _rules())
        if missing := unknown(jacobian.graph):
            raise _no_word(net, missing) from None
        return values, jacobian


def point_graph(module: Gradient, point: Tensor) -> fx.GraphModule:
    """The graph of a module at one point (1, d), in operations that C has a word for.

    Raises:
        ExportError: torch cannot trace it, or C has no word for an operation.
    """
    program = trace(module, point, any_number=False)
    graph = freeze(program)
    if not unknown(graph.graph):
        return graph
    graph = freeze(program.run_decompositions(_rules()))
    if missing := unknown(graph.graph):
        raise _no_word(module.net, missing)
    return graph


def _rules() -> dict[Any, Any]:
    """Decompositions of operations that C has no word for into those of core ATen."""
    return {op: rule for op, rule in torch.export.default_decompositions().items() if str(op) not in KNOWN}


def _no_word(net: GradientMap, missing: str) -> ExportError:
    return ExportError(
        f"cannot write this {type(net).__name__} in C: there is no word for the operation {missing}. Use other "
        "operations in the map, or export it as 'onnx' or 'torch'."
    )


def _results(graph: fx.GraphModule) -> list[fx.Node]:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    result: Any = output.args[0]
    return list(result) if isinstance(result, list | tuple) else [result]


@torch.no_grad()
def _reference(net: GradientMap, x: Tensor) -> Reference:
    return Reference(x, net(x), net.potential(x), net.jacobian(x).dense(), _SELFTEST_TOLERANCE[x.dtype])


def _certified(net: GradientMap) -> str:
    """What a certificate of the map, in double precision, says."""
    try:
        result = certificate(copy.deepcopy(net).double())
    except Exception as error:  # a map of the user's own, which the checks call with batches of any shape
        return f"No certificate: {type(error).__name__} in its checks."
    verdict = "passed" if result.passed else "FAILED"
    lines = [f"Certificate, at {result.points} standard normal points in {result.dtype}: {verdict}"]
    for check in result.checks:
        required = f" ({check.requirement})" if check.requirement else ""
        lines.append(f"    {check.value:9.2e}  {check.name}{required}")
    return "\n".join(lines)
