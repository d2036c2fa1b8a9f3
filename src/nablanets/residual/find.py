"""Where a model of any library has residual blocks, found in what the modules' forwards compute."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from nablanets.activations.base import ElementwiseActivation
from nablanets.residual.elementwise import MODULES, SLOPES
from nablanets.residual.program import ADD, Program
from nablanets.residual.reading import compile_nodes, graph_of
from nablanets.residual.rules import rule_of

NO_SUM = "no sum of an input and a nonlinear function of it alone, in operations that are known"
_ACTIVATIONS: tuple[type[nn.Module], ...] = (*MODULES, ElementwiseActivation)


@dataclass(frozen=True)
class Block:
    """A residual block as a whole, forward(x) = after(shortcut(z) + F(z)) with z = before(x)."""

    branch: Program
    before: Program | None = None
    shortcut: Program | None = None
    after: Program | None = None


@dataclass(frozen=True)
class Chain:
    """Children that are called one after the other, F(x) = m_k(... m_1(x)).

    ``added`` tells whether the owner adds x to it. One of them, the host, will compute F.
    """

    branch: Program
    host: str
    passing: tuple[str, ...]
    added: bool = True


@dataclass(frozen=True)
class EncoderLayer:
    """The feed-forward part of an ``nn.TransformerEncoderLayer``."""

    branch: Program
    passing: tuple[str, ...]


Part = Block | Chain | EncoderLayer


def blocks_of(module: nn.Module) -> list[Part] | str:
    """The residual blocks in a module's own forward, or why there are none."""
    if type(module).forward is nn.TransformerEncoderLayer.forward:
        return _encoder_layer(module)
    graph = graph_of(module)
    if graph is None:
        return "its forward cannot be read: it branches, or needs more than one argument"
    residuals = [found for node in graph.nodes if (found := _residual(module, node)) is not None]
    if any(_changes_input(module, found) for found in residuals):
        return "its branch changes the input in place, and with it the skip: set inplace=False"
    single = len(residuals) == 1
    blocks = [(single and _block(module, graph, found)) or _chain(module, graph, found) for found in residuals]
    converted: list[Part] = [block for block in blocks if block is not None]
    if converted or not residuals:
        return converted or NO_SUM
    names = ", ".join(repr(found.add.name) for found in residuals)
    return f"the branch or the surroundings of the sum {names} have operations that are not known"


def square_chains(module: nn.Sequential) -> list[Part]:
    """Runs Linear, ..., Linear of a Sequential that keep the number of features, for networks without skips."""
    names, children = [*module._modules], [*module]
    linear = [i for i, child in enumerate(children) if isinstance(child, nn.Linear)]
    found: list[Part] = []
    end = -1
    for first, last in itertools.pairwise(linear):
        inside = children[first : last + 1]
        square = children[first].in_features == children[last].out_features
        if first <= end or not square or len(set(map(id, children))) < len(children):
            continue
        branch = _chain_program(module, names[first : last + 1])
        if branch is not None and any(isinstance(child, _ACTIVATIONS) for child in inside):
            found.append(Chain(branch, names[last], tuple(names[first:last]), added=False))
            end = last
    return found


def _chain_program(module: nn.Module, names: list[str]) -> Program | None:
    def run(owner: Any, x: Any) -> Any:
        for name in names:
            x = owner._modules[name](x)
        return x

    return _program(module, graph_of(module, run))


def _program(module: nn.Module, graph: fx.Graph | None) -> Program | None:
    if graph is None:
        return None
    first, *nodes = graph.nodes
    return compile_nodes(module, nodes[:-1], first, nodes[-1].args[0])


def _encoder_layer(module: nn.Module) -> list[Part] | str:
    first = module.norm_first
    graph = graph_of(module, lambda layer, x: layer._ff_block(layer.norm2(x) if first else x))
    branch = _program(module, graph)
    if branch is None:
        return "its activation is no function that is known"
    return [EncoderLayer(branch, ("norm2",) if first else ())]


@dataclass(frozen=True)
class _Residual:
    add: fx.Node
    start: fx.Node
    end: fx.Node
    nodes: list[fx.Node]
    shortcut: fx.Node
    branch: Program


def _residual(module: nn.Module, add: fx.Node) -> _Residual | None:
    """The branch and shortcut of a sum, if it is one of z (or an affine map of it) and a nonlinear function of z."""
    if add.target not in ADD or len(add.args) != 2 or not all(isinstance(a, fx.Node) for a in add.args):
        return None
    for projected in (False, True):
        for end, shortcut in itertools.permutations(add.all_input_nodes, 2):
            for start in _affine_sources(module, shortcut) if projected else [shortcut]:
                nodes = _between(start, end)
                branch = nodes and compile_nodes(module, nodes, start, end)
                if nodes and branch and _nonlinear(module, branch):
                    return _Residual(add, start, end, nodes, shortcut, branch)
    return None


def _between(start: Any, end: Any) -> list[fx.Node] | None:
    """The nodes that compute ``end`` from ``start`` alone, in order; None if it needs anything else."""
    nodes: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is start or node in nodes:
            continue
        if node.op == "placeholder":
            return None
        nodes.add(node)
        waiting.extend(node.all_input_nodes)
    return [node for node in start.graph.nodes if node in nodes] or None


def _affine_sources(module: nn.Module, node: Any) -> Iterator[fx.Node]:
    """The inputs of the chain of affine modules that ends in ``node``."""
    while node.op == "call_module" and len(node.all_input_nodes) == 1:
        if any(isinstance(m, _ACTIVATIONS) for m in _child(module, node).modules()):
            return
        node = node.all_input_nodes[0]
        yield node


def _nonlinear(module: nn.Module, branch: Program) -> bool:
    """Whether an elementwise function is in it (a branch of attention or of linear layers alone has none)."""
    for step in branch.steps:
        if not step.is_module and step.target in SLOPES:
            return True
        if step.is_module:
            child, last = module.get_submodule(step.target), step.target.rpartition(".")[2]
            unknown = rule_of(child) is None and not any(True for _ in child.parameters())
            if isinstance(child, _ACTIVATIONS) or (unknown and last.startswith("act")):
                return True
    return False


def _changes_input(module: nn.Module, found: _Residual) -> bool:
    """Whether the branch begins with an operation in place."""
    for node in found.nodes:
        if found.start in node.all_input_nodes:
            inside = _child(module, node).modules() if node.op == "call_module" else ()
            first = next((m for m in inside if not any(True for _ in m.children())), None)
            if getattr(first, "inplace", False) or node.kwargs.get("inplace"):
                return True
    return False


def _block(module: nn.Module, graph: fx.Graph, found: _Residual) -> Block | None:
    """The module as one block, if its forward has one argument and the residual sum is all that it does."""
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return None
    nodes = list(graph.nodes)
    first, output = nodes[0], nodes[-1].args[0]
    inside = {*found.nodes, *(_between(found.start, found.shortcut) or [])} - {found.start}
    if any(user not in inside and user is not found.add for node in inside for user in node.users):
        return None
    parts = []
    for start, end in ((first, found.start), (found.start, found.shortcut), (found.add, output)):
        needed = [] if start is end else _between(start, end)
        part = None if needed is None else compile_nodes(module, needed, start, end)
        if part is None:
            return None
        parts.append(part if part.steps else None)
    return Block(found.branch, *parts)


def _chain(module: nn.Module, graph: fx.Graph, found: _Residual) -> Chain | None:
    """The branch as a chain of children that are called once; the module's own forward stays as it is."""
    names = [str(node.target).removeprefix("inner.") for node in found.nodes]
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    single = all(node.op == "call_module" and calls[node.target] == 1 for node in found.nodes)
    inline = all(len(node.users) == 1 for node in found.nodes)
    while names and not single and _does_nothing(module, found.nodes[len(names) - 1]):
        names.pop()
        rest = found.nodes[: len(names)]
        single = all(node.op == "call_module" and calls[node.target] == 1 for node in rest)
    if not (names and single and inline and found.shortcut is found.start):
        return None
    host = max(names, key=lambda name: sum(p.numel() for p in module.get_submodule(name).parameters()))
    return Chain(found.branch, host, tuple(name for name in names if name != host))


def _does_nothing(module: nn.Module, node: fx.Node) -> bool:
    child = _child(module, node)
    return isinstance(child, nn.Identity) or (isinstance(child, nn.Dropout) and child.p == 0)


def _child(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target).removeprefix("inner."))
