"""Where a model of any library has residual blocks, found in what the modules' forwards compute.

For each sum a + b in the graph of a forward (see ``reading``):

1. Take one operand as the shortcut and the other as the end of the branch, and then the other way round. The branch
   starts at the shortcut's own value, z. If no branch is found so, the shortcut is tried as an affine map of z: the
   chain of affine modules that ends in it is followed back, and each value on it is tried as z.
2. Collect the nodes that compute the end of the branch from z. It must need nothing else, all of its operations must be
   known, and there must be an elementwise function among them: sums of linear maps, and those of attention, are left.
3. If the sum is all that the forward does beside things before z and after the sum, the whole module is a
   :class:`Block`. Otherwise the branch must be a :class:`Chain` of children, each called once, so that one of them can
   compute all of it while the forward around them stays as it is.
"""

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
from nablanets.residual.reading import child_name, compile_nodes, graph_of, program_of
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
    if not residuals:
        return NO_SUM
    if any(_changes_input(module, found) for found in residuals):
        return "its branch changes the input in place, and with it the skip: set inplace=False"
    parts: list[Part] = []
    for found in residuals:
        part: Part | None = _block(module, graph, found) if len(residuals) == 1 else None
        part = part or _chain(module, graph, found)
        if part is not None:
            parts.append(part)
    if parts:
        return parts
    names = ", ".join(repr(found.add.name) for found in residuals)
    return f"the branch or the surroundings of the sum {names} have operations that are not known"


def square_chains(module: nn.Sequential) -> list[Part]:
    """Runs Linear, ..., Linear of a Sequential that keep the number of features, for networks without skips.

    Runs have two linear layers, and do not overlap.
    """
    names = [*module._modules]
    children = [*module]
    if len(set(map(id, children))) < len(children):  # a layer that is used twice cannot compute one run only
        return []
    linear = [i for i, child in enumerate(children) if isinstance(child, nn.Linear)]
    found: list[Part] = []
    end_of_last = -1
    for first, last in itertools.pairwise(linear):
        inside = children[first : last + 1]
        is_square = children[first].in_features == children[last].out_features
        is_nonlinear = any(isinstance(child, _ACTIVATIONS) for child in inside)
        if first <= end_of_last or not is_square or not is_nonlinear:
            continue
        branch = _chain_program(module, names[first : last + 1])
        if branch is not None:
            found.append(Chain(branch, names[last], tuple(names[first:last]), added=False))
            end_of_last = last
    return found


def _chain_program(module: nn.Module, names: list[str]) -> Program | None:
    def run(owner: Any, x: Any) -> Any:
        for name in names:
            x = owner._modules[name](x)
        return x

    return program_of(module, graph_of(module, run))


def _encoder_layer(module: nn.Module) -> list[Part] | str:
    first = module.norm_first
    graph = graph_of(module, lambda layer, x: layer._ff_block(layer.norm2(x) if first else x))
    branch = program_of(module, graph)
    if branch is None:
        return "its activation is no function that is known"
    return [EncoderLayer(branch, ("norm2",) if first else ())]


@dataclass(frozen=True)
class _Residual:
    """A sum shortcut(z) + F(z) in a graph.

    Attributes:
        add: the sum.
        start: z.
        end: F(z).
        nodes: those that compute F(z) from z, in order.
        shortcut: the other operand of the sum, z or an affine map of it.
        branch: F as a program.
    """

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
    operands = list(itertools.permutations(add.all_input_nodes, 2))
    for end, shortcut in operands:
        found = _residual_from(module, add, start=shortcut, end=end, shortcut=shortcut)
        if found is not None:
            return found
    for end, shortcut in operands:
        for start in _affine_sources(module, shortcut):
            found = _residual_from(module, add, start=start, end=end, shortcut=shortcut)
            if found is not None:
                return found
    return None


def _residual_from(
    module: nn.Module, add: fx.Node, *, start: fx.Node, end: fx.Node, shortcut: fx.Node
) -> _Residual | None:
    nodes = _between(start, end)
    if not nodes:
        return None
    branch = compile_nodes(module, nodes, start, end)
    if branch is None or not _nonlinear(module, branch):
        return None
    return _Residual(add, start, end, nodes, shortcut, branch)


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
    return any(
        _is_activation(module.get_submodule(step.target), step.target) if step.is_module else step.target in SLOPES
        for step in branch.steps
    )


def _is_activation(child: nn.Module, name: str) -> bool:
    """By its class, or for classes of other libraries by having no parameters and a name that says so."""
    if isinstance(child, _ACTIVATIONS):
        return True
    is_unknown = rule_of(child) is None and not any(True for _ in child.parameters())
    return is_unknown and name.rpartition(".")[2].startswith("act")


def _changes_input(module: nn.Module, found: _Residual) -> bool:
    """Whether the branch begins with an operation in place."""
    for node in found.nodes:
        if found.start not in node.all_input_nodes:
            continue
        inside = _child(module, node).modules() if node.op == "call_module" else ()
        first_leaf = next((m for m in inside if not any(True for _ in m.children())), None)
        if getattr(first_leaf, "inplace", False) or node.kwargs.get("inplace"):
            return True
    return False


def _block(module: nn.Module, graph: fx.Graph, found: _Residual) -> Block | None:
    """The module as one block, if its forward has one argument and the residual sum is all that it does."""
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return None
    nodes = list(graph.nodes)
    first = nodes[0]
    output = nodes[-1].args[0]
    # Values inside of the branch and the shortcut must not be used elsewhere: nobody computes them afterwards.
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
    before, shortcut, after = parts
    return Block(found.branch, before, shortcut, after)


def _chain(module: nn.Module, graph: fx.Graph, found: _Residual) -> Chain | None:
    """The branch as a chain of children that are called once; the module's own forward stays as it is.

    The child with most parameters becomes the host. Children at the end that do nothing are left out of the chain, such
    as dropout with p = 0 that the attention uses too.
    """
    if found.shortcut is not found.start or any(len(node.users) != 1 for node in found.nodes):
        return None
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def called_once(nodes: list[fx.Node]) -> bool:
        return all(node.op == "call_module" and calls[node.target] == 1 for node in nodes)

    nodes = list(found.nodes)
    while nodes and not called_once(nodes) and _does_nothing(module, nodes[-1]):
        nodes.pop()
    if not nodes or not called_once(nodes):
        return None
    names = [child_name(node) for node in nodes]
    host = max(names, key=lambda name: sum(p.numel() for p in module.get_submodule(name).parameters()))
    return Chain(found.branch, host, tuple(name for name in names if name != host))


def _does_nothing(module: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    child = _child(module, node)
    return isinstance(child, nn.Identity) or (isinstance(child, nn.Dropout) and child.p == 0)


def _child(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(child_name(node))
