"""The computation graph of a gradient map: traced for any number of points, and with its weights worked out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from nablanets.errors import ExportError
from nablanets.maps import GradientMap

#: Names that mean something in the files written from a graph.
RESERVED = frozenset({"np", "n", "x", "Path", "gradient", "potential"})
#: Operations that only look at an array in another way; they are not worth a copy of a weight.
_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "flatten.using_ints", "mT.default", "movedim.int", "permute.default", "reshape.default", "select.int",
        "slice.Tensor", "squeeze.dim", "t.default", "transpose.int", "unflatten.int", "unsqueeze.default",
        "view.default",
    )
)  # fmt: skip


class Gradient(nn.Module):
    """x -> f(x)."""

    def __init__(self, net: GradientMap) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Potential(Gradient):
    """x -> F(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net.potential(x)


class Both(Gradient):
    """x -> f(x), F(x)."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x), self.net.potential(x)


class Jacobian(Gradient):
    """x -> J(x) as an array."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net.jacobian(x).dense()


def trace(module: Gradient, x: Tensor, *, any_number: bool = True) -> ExportedProgram:
    """The program that a module runs on points of shape (n, d).

    Args:
        module: what to trace.
        x: some points; at least two if the program is to take any number of points.
        any_number: whether it takes as many points as there are; else as many as x has.

    Raises:
        ExportError: torch.export cannot trace it.
    """
    shapes = {"x": {0: Dim("n")}} if any_number else None
    try:
        return torch.export.export(module, (x,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises many kinds, and they share no base class
        raise _untraceable(module.net, error) from error


def _untraceable(net: GradientMap, error: Exception) -> ExportError:
    return ExportError(
        f"torch.export cannot trace this {type(net).__name__}: {_first_line(error)} The gradient must be "
        "plain tensor code that treats each point by itself. FromPotential of a module without a gradient(x) "
        "method goes through torch.func.grad, which torch.export does not trace: give the module a gradient(x)."
    )


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if text.endswith(".") else f"{text}."


def freeze(program: ExportedProgram) -> fx.GraphModule:
    """The graph of a program with one input x, where all that does not depend on x has been computed once.

    So sign constraints, spline tables and eigenvalues are numbers in it. They keep the names of the parameters that
    they come from, and views of them (a transpose, a row) stay views.
    """
    with torch.no_grad():
        return _Freezing(program.module()).result()


def differentiate(graph: fx.GraphModule, x: Tensor, rules: dict[Any, Any]) -> fx.GraphModule:
    """The graph of the Jacobian at one point (1, d), of a frozen graph whose first result is f(x).

    By forward-mode differentiation of the graph in all directions at once: for maps whose Jacobian has no closed form.
    ``rules`` decompose operations.
    """

    def gradient(point: Tensor) -> Tensor:
        return graph(point.unsqueeze(0))[0].squeeze(0)

    def jacobian(points: Tensor, directions: Tensor) -> Tensor:
        def column(direction: Tensor) -> Tensor:
            return torch.func.jvp(gradient, (points[0],), (direction,))[1]

        return torch.func.vmap(column, out_dims=-1)(directions)  # (d, d)

    basis = torch.eye(x.shape[-1], dtype=x.dtype)
    with torch.no_grad():
        columns = torch.func.functionalize(lambda points: jacobian(points, basis))
        traced = make_fx(columns, decomposition_table=rules)(x)
        return _Freezing(traced).result()


class _Freezing:
    """Copies a graph node by node; ``values`` holds what is known without x, ``sources`` the weights behind it."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.root, self.graph = module, nn.Module(), fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.sources: dict[fx.Node, tuple[str, ...]] = {}
        self.copies: dict[fx.Node, fx.Node] = {}
        self.stored: dict[tuple[Any, ...], fx.Node] = {}
        self.names = RESERVED | {node.name for node in module.graph.nodes}

    def result(self) -> fx.GraphModule:
        wanted = needed(node for node in self.module.graph.nodes if node.op == "output")  # not torch's own assertions
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = _attribute(self.module, node.target)
                self.sources[node] = (node.target.removeprefix("net."),)
            elif node.op == "call_function" and node in wanted:
                self._visit(node)
            elif node.op in ("placeholder", "output"):
                self.copies[node] = self.graph.node_copy(node, self._copy)
        return fx.GraphModule(self.root, self.graph)

    def _visit(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes
        if all(source in self.values for source in inputs):
            arguments = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
            self.values[node] = cast(Callable[..., Any], node.target)(*arguments[0], **arguments[1])
            self.sources[node] = tuple(dict.fromkeys(itertools.chain(*(self.sources[source] for source in inputs))))
        else:
            self.copies[node] = self.graph.node_copy(node, self._copy)

    def _copy(self, node: fx.Node) -> fx.Node:
        """The node of the new graph for one of the old, made where it is first used."""
        if node not in self.copies:
            view = str(node.target) in _VIEWS
            self.copies[node] = self.graph.node_copy(node, self._copy) if view else self._store(node)
        return self.copies[node]

    def _store(self, node: fx.Node) -> fx.Node:
        value = self.values[node].detach().contiguous()
        base = _name(node, self.sources[node])
        key = (base, value.dtype, value.shape, value.numpy().tobytes())
        if key not in self.stored:
            name = next(n for n in _candidates(base) if n not in self.names)
            self.names |= {name}
            self.root.register_buffer(name, value)
            self.stored[key] = self.graph.create_node("get_attr", name, name=name)
            self.stored[key].meta["val"] = value
        return self.stored[key]


def needed(results: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that some nodes depend on, and these."""
    found: set[fx.Node] = set()
    queue = list(results)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue += node.all_input_nodes
    return found


def _attribute(module: nn.Module, path: str) -> Tensor:
    *parents, last = path.split(".")
    return getattr(module.get_submodule(".".join(parents)), last)


def _name(node: fx.Node, sources: tuple[str, ...]) -> str:
    """A name for a value: the weight that it comes from, or up to three of them and the operation."""
    paths = [source.removesuffix("_raw").split(".") for source in sources if not source.startswith("lifted_tensor")]
    if len(paths) < 2:
        return "_".join(paths[0]) if paths else "constant"
    shared = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    own = [part for path in paths for part in path[len(shared) :]] if len(paths) <= 3 else []
    return "_".join([*shared, *own, str(node.target).split(".")[1]])


def _candidates(base: str) -> Iterable[str]:
    yield base
    yield from (f"{base}_{k}" for k in itertools.count(2))
