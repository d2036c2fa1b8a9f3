"""Reading a module's forward with ``torch.fx``: structure is found in what a module does, not in what it is called.

Numbers and branches of a foreign forward are those at the time of reading; a forward that depends on ``training`` is
not read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from nablanets.residual.elementwise import SLOPES
from nablanets.residual.program import ARITHMETIC, DIV, Attribute, Program, Slot, Step
from nablanets.residual.rules import rule_of
from nablanets.residual.sweep import call


def read(module: nn.Module) -> Program | None:
    """The program of a module, or None if its forward cannot be read."""
    graph = graph_of(module)
    if graph is None:
        return None
    first, *nodes = graph.nodes
    return compile_nodes(module, nodes[:-1], first, nodes[-1].args[0])


def graph_of(module: nn.Module, function: Callable[[Any, Any], Any] = call) -> fx.Graph | None:
    """What ``function(module, x)`` computes with the children as leaves, if it does not depend on ``training``."""
    mode = module.training
    graphs = []
    try:
        for module.training in (True, False):
            graphs.append(_Tracer(module).trace(_Call(module, function)))
    except Exception:  # whatever a foreign forward raises when it sees a symbol instead of a tensor
        return None
    finally:
        module.training = mode
    first, second = ([_signature(node) for node in graph.nodes] for graph in graphs)
    return graphs[0] if first == second else None


def compile_nodes(root: nn.Module, nodes: Iterable[fx.Node], start: fx.Node, output: Any) -> Program | None:
    """The program of some nodes of the root's graph, with the value of ``start`` as its input."""
    builder = _Builder(root)
    try:
        slot = builder.add(root, "", nodes, start, output, Slot(0))
    except _UnknownOperationError:
        return None
    return Program(tuple(builder.steps), slot.place)


class _UnknownOperationError(Exception):
    pass


class _Call(nn.Module):
    """Calls a module with one argument: tracing sees no more of its signature."""

    def __init__(self, inner: nn.Module, function: Callable[[Any, Any], Any] = call) -> None:
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner, x)


class _Tracer(fx.Tracer):
    def __init__(self, opened: nn.Module) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self.opened


def _signature(node: fx.Node) -> tuple[Any, ...]:
    keywords = {k: v for k, v in node.kwargs.items() if not (node.target is F.dropout and k == "training")}
    return node.op, node.target, str(node.args), str(keywords)


class _Builder:
    """Collects the steps of a graph and, in place of children without a rule, theirs."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.steps: list[Step] = []
        self.slots = 0

    def add(
        self, owner: nn.Module, prefix: str, nodes: Iterable[fx.Node], start: fx.Node, output: Any, slot: Slot
    ) -> Slot:
        values: dict[fx.Node, Any] = {start: slot}
        for node in nodes:
            values[node] = self._node(owner, prefix, node, values)
        result = values.get(output)
        if not isinstance(result, Slot):
            raise _UnknownOperationError
        return result

    def _node(self, owner: nn.Module, prefix: str, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        name = str(node.target).removeprefix("inner.")
        if node.op == "get_attr":
            return Attribute(prefix + name)
        try:
            arguments = tuple(values[a] if isinstance(a, fx.Node) else a for a in node.args)
        except KeyError as error:
            raise _UnknownOperationError from error
        if node.op == "call_module":
            return self._module(owner, prefix, name, arguments, node.kwargs)
        return self._function(prefix, node.target, arguments, dict(node.kwargs))

    def _module(self, owner: nn.Module, prefix: str, name: str, arguments: tuple[Any, ...], keywords: Any) -> Slot:
        if len(arguments) != 1 or keywords or not isinstance(arguments[0], Slot):
            raise _UnknownOperationError
        child = owner.get_submodule(name)
        if rule_of(child) is None and (graph := graph_of(child)) is not None:
            before = len(self.steps), self.slots
            first, *nodes = graph.nodes
            try:
                return self.add(child, f"{prefix}{name}.", nodes[:-1], first, nodes[-1].args[0], arguments[0])
            except _UnknownOperationError:
                del self.steps[before[0] :]
                self.slots = before[1]
        return self._step(prefix + name, arguments, {}, is_module=True)

    def _function(self, prefix: str, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Slot:
        if not (arguments and all(isinstance(a, Slot | Attribute | int | float) for a in arguments)):
            raise _UnknownOperationError
        if target is F.dropout and "training" in keywords and isinstance(arguments[0], Slot) and len(arguments) == 1:
            return self._step(target, arguments, {"p": keywords.get("p", 0.5), "owner": prefix.removesuffix(".")})
        if target in ARITHMETIC and len(arguments) == 2 and not keywords and _smooth(target, arguments):
            return self._step(target, arguments, {})
        if target in SLOPES and isinstance(arguments[0], Slot):
            if len(arguments) > 1:
                bound = inspect.signature(target).bind(*arguments, **keywords).arguments
                keywords = {k: v for k, v in bound.items() if v is not arguments[0]}
            keywords.pop("inplace", None)
            return self._step(target, arguments[:1], keywords)
        raise _UnknownOperationError

    def _step(
        self, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], *, is_module: bool = False
    ) -> Slot:
        self.slots += 1
        self.steps.append(Step(target, arguments, self.slots, keywords, is_module))
        return Slot(self.slots)


def _smooth(target: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the rule of an arithmetic operation covers these arguments."""
    active = [isinstance(a, Slot) for a in arguments]
    return any(active) and (target not in DIV or active == [True, False])
