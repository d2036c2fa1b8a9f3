"""What a module's forward computes, as a list of steps that can be run and swept in reverse.

The forward is read with ``torch.fx``, so that structure is found in what a module does, not in what it is called.
Steps name submodules and parameters and look them up when they run; numbers and branches of a foreign forward are
those at the time of reading. Leaves without a rule go through ``torch.func.vjp``, each by itself.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nablanets.residual.elementwise import SLOPES, apply_slope
from nablanets.residual.rules import dropout, rule_of
from nablanets.residual.sweep import Pull, Sweep, call

ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUB = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MUL = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_DIV = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
_ARITHMETIC: dict[Any, Callable[[Any, Any], Tensor]] = {
    **dict.fromkeys(ADD, operator.add),
    **dict.fromkeys(_SUB, operator.sub),
    **dict.fromkeys(_MUL, operator.mul),
    **dict.fromkeys(_DIV, operator.truediv),
}


class Slot(NamedTuple):
    """The value of an earlier step; 0 is the input."""

    place: int


class Attribute(NamedTuple):
    """A parameter or buffer of the module, by name."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation: a submodule by name, or a function."""

    target: Any
    arguments: tuple[Any, ...]
    slot: int
    keywords: Mapping[str, Any] = field(default_factory=dict)
    is_module: bool = False

    @functools.cached_property
    def inputs(self) -> tuple[int, ...]:
        """The slots that it reads."""
        return tuple(a.place for a in self.arguments if isinstance(a, Slot))

    @functools.cached_property
    def path(self) -> tuple[str, ...]:
        """The parts of a submodule's name."""
        return tuple(self.target.split("."))


@dataclass(frozen=True)
class Program:
    """Steps from an input to an output, on the submodules of a root that is given when it runs."""

    steps: tuple[Step, ...]
    output: int

    def run(self, root: nn.Module, x: Tensor) -> Tensor:
        """The output's value."""
        return self.linearise(root, x, Sweep(), frozenset())[0]

    def linearise(self, root: nn.Module, x: Tensor, how: Sweep, skipped: frozenset[int]) -> tuple[Tensor, Pull]:
        """The output's value, and c -> J^T c; the pullback leaves the steps with the ``skipped`` slots out."""
        values: dict[int, Tensor] = {0: x}
        pulls: list[tuple[Step, tuple[Pull, ...]]] = []
        for step in self.steps:
            values[step.slot], pull = _evaluate(step, root, values, how)
            pulls.append((step, (_identity,) if step.slot in skipped else pull))

        def pull_back(c: Tensor) -> Tensor:
            cotangents = {self.output: c}
            for step, backward in reversed(pulls):
                if step.slot not in cotangents:
                    continue
                c = cotangents.pop(step.slot)
                for source, pull in zip(step.inputs, backward, strict=True):
                    piece = pull(c)
                    cotangents[source] = cotangents[source] + piece if source in cotangents else piece
            return cotangents[0] if 0 in cotangents else torch.zeros_like(x)

        return values[self.output], pull_back

    def leaves(self) -> tuple[str, ...]:
        """The names of the submodules that it calls."""
        return tuple(step.target for step in self.steps if step.is_module)

    def tail(self) -> Iterable[Step]:
        """The steps from the output back, as long as each has one input."""
        by_slot = {step.slot: step for step in self.steps}
        slot = self.output
        while slot in by_slot:
            yield by_slot[slot]
            inputs = by_slot[slot].inputs
            if len(inputs) != 1:
                return
            slot = inputs[0]


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
        if target in _ARITHMETIC and len(arguments) == 2 and not keywords and _smooth(target, arguments):
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
    return any(active) and (target not in _DIV or active == [True, False])


def _evaluate(step: Step, root: nn.Module, values: dict[int, Tensor], how: Sweep) -> tuple[Tensor, tuple[Pull, ...]]:
    if step.is_module:
        y, pull = pull_through(submodule(root, step.path), values[step.inputs[0]], how)
        return y, (pull,)
    arguments = [
        values[a.place] if isinstance(a, Slot) else _attribute(root, a.name) if isinstance(a, Attribute) else a
        for a in step.arguments
    ]
    if step.target is F.dropout:
        training = root.get_submodule(step.keywords["owner"]).training
        y, pull = dropout(arguments[0], step.keywords["p"], training=training)
        return y, (pull,)
    if step.target in SLOPES:
        return _elementwise(step, arguments[0], how)
    y = _ARITHMETIC[step.target](*arguments)
    pulls = _arithmetic(step.target, arguments[0], arguments[1], y, how)
    return y, tuple(pull for pull, a in zip(pulls, step.arguments, strict=True) if isinstance(a, Slot))


def pull_through(module: nn.Module, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    """The value and the pullback of a module, by its rule or by ``torch.func.vjp``."""
    rule = rule_of(module)
    if rule is not None:
        return rule(module, x, how)
    return vjp_of(module, x)


def vjp_of(module: nn.Module, x: Tensor) -> tuple[Tensor, Pull]:
    """The value and pullback of any module by ``torch.func.vjp``; buffers that it updates are updated once."""
    if not (module.training and any(True for _ in module.buffers())):
        y, vjp = cast(Any, torch.func.vjp(lambda t: call(module, t), x))
        return y, lambda c: vjp(c.to(y.dtype).expand(y.shape))[0]
    module = _Call(module)
    names, buffers = zip(*module.named_buffers(), strict=True)

    def forward(t: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        copies = {name: buffer.clone() for name, buffer in zip(names, buffers, strict=True)}
        value: Tensor = torch.func.functional_call(module, copies, (t,))
        return value, tuple(copies.values())

    y, vjp, updated = cast(Any, torch.func.vjp(forward, x, has_aux=True))
    for buffer, value in zip(buffers, updated, strict=True):
        buffer.copy_(value.detach())
    return y, lambda c: vjp(c.to(y.dtype).expand(y.shape))[0]


def _identity(c: Tensor) -> Tensor:
    return c


def _elementwise(step: Step, u: Tensor, how: Sweep) -> tuple[Tensor, tuple[Pull, ...]]:
    function = getattr(torch.Tensor, step.target) if isinstance(step.target, str) else step.target
    y = function(u, **step.keywords)
    held_u, held_y = how.hold(u), how.hold(y)
    return y, (lambda c: apply_slope(step.target, c, held_u, held_y, step.keywords),)


def _arithmetic(target: Any, a: Any, b: Any, y: Tensor, how: Sweep) -> tuple[Pull, Pull]:
    def held(t: Any) -> Any:
        return how.hold(t) if isinstance(t, Tensor) else t

    if target in ADD or target in _SUB:
        sign = 1 if target in ADD else -1
        return lambda c: _like(c, a, y), lambda c: _like(c if sign == 1 else -c, b, y)
    if target in _MUL:
        return lambda c: _like(c * held(b), a, y), lambda c: _like(c * held(a), b, y)
    return lambda c: _like(c / held(b), a, y), lambda c: c


def _like(c: Tensor, operand: Tensor, y: Tensor) -> Tensor:
    """The cotangent summed over what broadcasting repeated."""
    return c if operand.shape == y.shape else c.expand(y.shape).sum_to_size(operand.shape)


def submodule(root: nn.Module, path: tuple[str, ...]) -> nn.Module:
    """The submodule at a path; ``get_submodule`` without its checks, since this is done in every step."""
    for part in path:
        root = cast(nn.Module, root._modules[part])
    return root


def _attribute(root: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(owner), leaf)
