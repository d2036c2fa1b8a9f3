"""What a module's forward computes, as a list of steps that can be run and swept in reverse.

A program is straight-line code. Slot 0 holds the input, and each step computes the value of its own slot from the
values of earlier ones. Running it makes the values in order; each step gives, with its value, one pullback for every
slot that it reads. The reverse sweep starts with a cotangent of the output and goes through the steps backwards: a step
takes the cotangent of its slot, which is complete by then since all that read it come later, and adds what its
pullbacks make of it to the cotangents of the slots that it reads. What arrives in slot 0 is J^T c.

Steps name submodules and parameters and look them up when they run, so that one program serves copies of a module.
Submodules without a rule go through ``torch.func.vjp``, each by itself.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.residual.elementwise import SLOPES, slope_of
from nablanets.residual.rules import MAKING, dropout, rule_of
from nablanets.residual.sweep import Absorbing, ChannelScale, Pull, Sweep, call, hooked

ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUB = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MUL = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
DIV = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
ARITHMETIC: dict[Any, Callable[[Any, Any], Tensor]] = {
    **dict.fromkeys(ADD, operator.add),
    **dict.fromkeys(_SUB, operator.sub),
    **dict.fromkeys(_MUL, operator.mul),
    **dict.fromkeys(DIV, operator.truediv),
}


class Slot(NamedTuple):
    """The value of an earlier step; 0 is the input."""

    place: int


class Attribute(NamedTuple):
    """A parameter or buffer of the module, by name."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation: a submodule by name, or a function.

    ``inputs`` are the slots that it reads, ``path`` the parts of the submodule's name.
    """

    target: Any
    arguments: tuple[Any, ...]
    slot: int
    keywords: Mapping[str, Any] = field(default_factory=dict)
    is_module: bool = False
    inputs: tuple[int, ...] = field(init=False)
    path: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(a.place for a in self.arguments if isinstance(a, Slot)))
        object.__setattr__(self, "path", tuple(self.target.split(".")) if self.is_module else ())


@dataclass(frozen=True)
class Program:
    """Steps from an input to an output, on the submodules of a root that is given when it runs.

    Attributes:
        steps: in the order of the forward.
        output: the slot that holds the result.
        read_once: the slots that are read exactly once, by a step or as the output.
        done_after: for each step the slots that nothing reads after it.
    """

    steps: tuple[Step, ...]
    output: int
    read_once: frozenset[int] = field(init=False, compare=False)
    done_after: tuple[frozenset[int], ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        readers = Counter(place for step in self.steps for place in step.inputs)
        readers[self.output] += 1
        read_once = frozenset(place for place, count in readers.items() if count == 1)
        last_reader = {place: step.slot for step in self.steps for place in step.inputs}
        last_reader.pop(self.output, None)  # the output is kept for the caller
        done_after = []
        for step in self.steps:
            done_after.append(frozenset(place for place in step.inputs if last_reader.get(place) == step.slot))
        object.__setattr__(self, "read_once", read_once)
        object.__setattr__(self, "done_after", tuple(done_after))

    def run(self, root: nn.Module, x: Tensor) -> Tensor:
        """The output's value."""
        return self.linearise(root, x, Sweep(), frozenset())[0]

    def linearise(self, root: nn.Module, x: Tensor, sweep: Sweep, left_out: frozenset[int]) -> tuple[Tensor, Pull]:
        """The output's value and the pullback c -> J^T c.

        Args:
            root: the module that owns the submodules.
            x: the input.
            sweep: what counts as a constant.
            left_out: slots of steps that the pullback treats as the identity.
        """
        values: dict[int, Tensor] = {0: x}
        pulls: dict[int, tuple[Pull, ...]] = {}  # by slot, one for each of the step's inputs
        for step, done in zip(self.steps, self.done_after, strict=True):
            values[step.slot], backward = _evaluate(step, root, values, sweep)
            pulls[step.slot] = (_identity,) if step.slot in left_out else backward
            if isinstance(pulls[step.slot][0], ChannelScale):
                self._absorb(step, pulls)
            for place in done:  # memory that is given back early is still in the cache when it is used again
                del values[place]

        def pull_back(c: Tensor) -> Tensor:
            cotangents = {self.output: c}
            for step in reversed(self.steps):
                if step.slot not in cotangents:  # the output does not depend on it
                    continue
                c = cotangents.pop(step.slot)
                for source, pull in zip(step.inputs, pulls[step.slot], strict=True):
                    piece = pull(c)
                    cotangents[source] = cotangents[source] + piece if source in cotangents else piece
            return cotangents[0] if 0 in cotangents else torch.zeros_like(x)

        return values[self.output], pull_back

    def _absorb(self, step: Step, pulls: dict[int, tuple[Pull, ...]]) -> None:
        """Let the layer before a step take over its scale per channel, if nothing else reads that layer's value.

        Scaling a layer's weights is cheaper than scaling cotangents, which mostly are larger.
        """
        scale = cast(ChannelScale, pulls[step.slot][0])
        before = step.inputs[0]
        if before not in self.read_once or before not in pulls:
            return
        earlier = pulls[before][0]
        if isinstance(earlier, Absorbing):
            pulls[before] = (earlier.after(scale),)
            pulls[step.slot] = (_identity,)

    def owns_output(self, root: nn.Module) -> bool:
        """Whether the output is a new tensor that nobody else has seen: that of a known layer, without hooks."""
        for step in reversed(self.steps):
            if step.slot == self.output:
                module = submodule(root, step.path) if step.is_module else None
                return isinstance(module, MAKING) and rule_of(module) is not None and not hooked(module)
        return False  # the output is the input

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


def _evaluate(step: Step, root: nn.Module, values: dict[int, Tensor], sweep: Sweep) -> tuple[Tensor, tuple[Pull, ...]]:
    """The value of a step, and a pullback for each slot that it reads."""
    if step.is_module:
        y, pull = pull_through(submodule(root, step.path), values[step.inputs[0]], sweep)
        return y, (pull,)
    arguments = [_argument(argument, root, values) for argument in step.arguments]
    if step.target is F.dropout:
        training = root.get_submodule(step.keywords["owner"]).training
        y, pull = dropout(arguments[0], step.keywords["p"], training=training)
        return y, (pull,)
    if step.target in SLOPES:
        return _elementwise(step, arguments[0], sweep)
    y = ARITHMETIC[step.target](*arguments)
    pulls = _arithmetic(step.target, arguments[0], arguments[1], y, sweep)
    return y, tuple(pull for pull, a in zip(pulls, step.arguments, strict=True) if isinstance(a, Slot))


def _argument(argument: Any, root: nn.Module, values: dict[int, Tensor]) -> Any:
    """The value that an argument of a step stands for."""
    if isinstance(argument, Slot):
        return values[argument.place]
    if isinstance(argument, Attribute):
        return _attribute(root, argument.name)
    return argument


def pull_through(module: nn.Module, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """The value and the pullback of a module, by its rule or by ``torch.func.vjp``."""
    rule = rule_of(module)
    if rule is not None:
        return rule(module, x, sweep)
    return vjp_of(module, x)


def vjp_of(module: nn.Module, x: Tensor) -> tuple[Tensor, Pull]:
    """The value and pullback of any module by ``torch.func.vjp``; buffers that it updates are updated once."""
    if not (module.training and any(True for _ in module.buffers())):
        y, vjp = _vjp(lambda t: call(module, t), x)
        return y, lambda c: vjp(c.to(y.dtype).expand(y.shape))[0]
    module = _Original(module)
    names, buffers = zip(*module.named_buffers(), strict=True)

    def forward(t: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        copies = {name: buffer.clone() for name, buffer in zip(names, buffers, strict=True)}
        value: Tensor = torch.func.functional_call(module, copies, (t,))
        return value, tuple(copies.values())

    y, vjp, updated = _vjp(forward, x, has_aux=True)
    for buffer, value in zip(buffers, updated, strict=True):
        buffer.copy_(value.detach())
    return y, lambda c: vjp(c.to(y.dtype).expand(y.shape))[0]


class _Original(nn.Module):
    """A module as one with a forward that computes its value, also if it hands its input on now."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return call(self.inner, x)


def _vjp(function: Callable[[Tensor], Any], x: Tensor, **settings: bool) -> Any:
    try:
        return torch.func.vjp(function, x, **settings)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        raise InvalidInputError(
            "GradientResidual: part of this block has no closed form, and torch.func.vjp does not run under "
            "checkpoint(..., use_reentrant=False). Use use_reentrant=True, or layers with a closed form."
        ) from error


def _identity(c: Tensor) -> Tensor:
    return c


def _elementwise(step: Step, u: Tensor, sweep: Sweep) -> tuple[Tensor, tuple[Pull, ...]]:
    function = getattr(torch.Tensor, step.target) if isinstance(step.target, str) else step.target
    y = function(u, **step.keywords)
    return y, (slope_of(step.target, u, y, sweep, step.keywords),)


def _arithmetic(target: Any, a: Any, b: Any, y: Tensor, sweep: Sweep) -> tuple[Pull, Pull]:
    """The pullbacks of y = a + b, a - b, a b or a / b to a and to b; that to b is never used for a / b."""
    to_a = _unrepeated(a, y)
    to_b = _unrepeated(b, y)
    if target in ADD:
        return to_a, to_b
    if target in _SUB:
        return to_a, lambda c: to_b(-c)
    factor_a = sweep.maybe_detach(a) if isinstance(a, Tensor) else a
    factor_b = sweep.maybe_detach(b) if isinstance(b, Tensor) else b
    if target in _MUL:
        return lambda c: to_a(c * factor_b), lambda c: to_b(c * factor_a)
    return lambda c: to_a(c / factor_b), _identity


def _unrepeated(operand: Any, y: Tensor) -> Pull:
    """The cotangent of y summed over what broadcasting repeated of an operand."""
    if not isinstance(operand, Tensor) or operand.shape == y.shape:
        return _identity
    shape, full = operand.shape, y.shape
    return lambda c: c.expand(full).sum_to_size(shape)


def submodule(root: nn.Module, path: tuple[str, ...]) -> nn.Module:
    """The submodule at a path; ``get_submodule`` without its checks, since this is done in every step."""
    for part in path:
        root = cast(nn.Module, root._modules[part])
    return root


def _attribute(root: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(owner), leaf)
