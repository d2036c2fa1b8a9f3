"""Reading a module's forward with ``torch.fx``: structure is found in what a module does, not in what it is called.

The forward runs once with a symbol in place of the tensor, and every operation on it is recorded as a node of a graph;
children are recorded as calls, without looking inside. The nodes are then translated one by one into the steps of a
:class:`Program`. Where a child has no rule of its own, its forward is read in the same way, and its steps stand in
place of the call; if it cannot be read, the call stays.

What a foreign forward computes with plain numbers, and which branch it takes by them, is as it was at the time of
reading. A forward that depends on ``training`` is not read: it is traced in both modes, and the graphs must agree.
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
    return program_of(module, graph_of(module))


def program_of(module: nn.Module, graph: fx.Graph | None) -> Program | None:
    """The program of a whole graph of one argument, or None if there is no graph or an operation is not known."""
    if graph is None:
        return None
    first, *nodes = graph.nodes
    result = nodes[-1].args[0]
    return compile_nodes(module, nodes[:-1], first, result)


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
    in_training, in_evaluation = ([_signature(node) for node in graph.nodes] for graph in graphs)
    return graphs[0] if in_training == in_evaluation else None


def compile_nodes(root: nn.Module, nodes: Iterable[fx.Node], start: fx.Node, output: Any) -> Program | None:
    """The program of some nodes of the root's graph, with the value of ``start`` as its input.

    None if one of the operations is not known, or needs a value from outside of the nodes.
    """
    builder = _Builder(root)
    try:
        slot = builder.add(root, "", nodes, start, output, Slot(0))
    except _UnknownOperationError:
        return None
    return Program(tuple(builder.steps), slot.place)


class _UnknownOperationError(Exception):
    pass


class _Call(nn.Module):
    """Calls a function with a module and one argument: tracing sees no more of the module's signature."""

    def __init__(self, inner: nn.Module, function: Callable[[Any, Any], Any] = call) -> None:
        super().__init__()
        self.inner = inner
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner, x)


class _Tracer(fx.Tracer):
    """Looks into one module, and records its children as calls."""

    def __init__(self, opened: nn.Module) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self.opened


def child_name(node: fx.Node) -> str:
    """The name that a node's child or parameter has in the module that was read."""
    return str(node.target).removeprefix("inner.")


def _signature(node: fx.Node) -> tuple[Any, ...]:
    """What must agree in training and evaluation; ``F.dropout(training=...)`` is known, and may differ."""
    keywords = {k: v for k, v in node.kwargs.items() if not (node.target is F.dropout and k == "training")}
    return node.op, node.target, str(node.args), str(keywords)


class _Builder:
    """Translates nodes into steps, and counts the slots."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.steps: list[Step] = []
        self.slots = 0

    def add(
        self, owner: nn.Module, prefix: str, nodes: Iterable[fx.Node], start: fx.Node, output: Any, slot: Slot
    ) -> Slot:
        """Add the steps of some nodes, and return the slot of their output.

        Args:
            owner: the module whose forward the nodes are from.
            prefix: the owner's name in the root, with a dot behind it, or nothing for the root itself.
            nodes: in the order of the forward.
            start: the node whose value is given.
            output: the node whose value is wanted.
            slot: where the value of ``start`` is.

        Raises:
            _UnknownOperationError: an operation has no rule, or needs a value that the nodes do not compute.
        """
        values: dict[fx.Node, Any] = {start: slot}  # the slot or parameter that stands for each node
        for node in nodes:
            values[node] = self._node(owner, prefix, node, values)
        result = values.get(output)
        if not isinstance(result, Slot):
            raise _UnknownOperationError
        return result

    def _node(self, owner: nn.Module, prefix: str, node: fx.Node, values: dict[fx.Node, Any]) -> Slot | Attribute:
        name = child_name(node)
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
        """The steps of a child without a rule that can be read, otherwise one step that calls the child."""
        if len(arguments) != 1 or keywords or not isinstance(arguments[0], Slot):
            raise _UnknownOperationError
        child = owner.get_submodule(name)
        graph = graph_of(child) if rule_of(child) is None else None
        if graph is not None:
            steps_before = len(self.steps)
            slots_before = self.slots
            first, *nodes = graph.nodes
            result = nodes[-1].args[0]
            try:
                return self.add(child, f"{prefix}{name}.", nodes[:-1], first, result, arguments[0])
            except _UnknownOperationError:  # forget the part that was read
                del self.steps[steps_before:]
                self.slots = slots_before
        return self._step(prefix + name, arguments, {}, is_module=True)

    def _function(self, prefix: str, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Slot:
        """One step for dropout, arithmetic with known pullbacks, or an elementwise function."""
        if not (arguments and all(isinstance(a, Slot | Attribute | int | float) for a in arguments)):
            raise _UnknownOperationError
        if target is F.dropout and "training" in keywords and isinstance(arguments[0], Slot) and len(arguments) == 1:
            return self._step(target, arguments, {"p": keywords.get("p", 0.5), "owner": prefix.removesuffix(".")})
        if target in ARITHMETIC and len(arguments) == 2 and not keywords and _has_pullbacks(target, arguments):
            return self._step(target, arguments, {})
        if target in SLOPES and isinstance(arguments[0], Slot):
            if len(arguments) > 1:
                bound = inspect.signature(target).bind(*arguments, **keywords).arguments
                keywords = {k: v for k, v in bound.items() if v is not arguments[0]}
            keywords.pop("inplace", None)  # never in place: the slope and the skip need what came in
            return self._step(target, arguments[:1], keywords)
        raise _UnknownOperationError

    def _step(
        self, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], *, is_module: bool = False
    ) -> Slot:
        self.slots += 1
        self.steps.append(Step(target, arguments, self.slots, keywords, is_module))
        return Slot(self.slots)


def _has_pullbacks(target: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the pullbacks of an arithmetic operation cover these arguments: none goes through a divisor."""
    depends_on_input = [isinstance(a, Slot) for a in arguments]
    if target in DIV:
        return depends_on_input == [True, False]
    return any(depends_on_input)
