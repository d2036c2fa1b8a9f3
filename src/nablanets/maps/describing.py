"""What a network is, in one line: the names and sizes that it was built with, and how many parameters it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nablanets.parameters import count_parameters

# Lists with more entries than this (groups, masses) are told by their shape.
_LONGEST_LIST = 4


def describe_map(module: nn.Module, config: Callable[[], dict[str, Any]], **facts: Any) -> str:
    """The line of a network that knows its constructor arguments, which ``config`` returns.

    On the meta device, where numbers have no values, arguments that are made of numbers are left out.
    """
    try:
        arguments = config()
    except (NotImplementedError, RuntimeError):
        arguments = dict(module.named_children())
    return describe(module, {**facts, **arguments})


def describe(module: nn.Module, facts: Mapping[str, Any]) -> str:
    """The line of a network, and below it one for each network inside it.

    Args:
        module: the network.
        facts: what to tell: numbers, names, tensors (by shape) and the networks inside.

    >>> print(describe(nn.Linear(2, 3), {"features": 2, "inner": nn.Tanh()}))
    Linear(features=2, 9 parameters
      inner: Tanh()
    )
    """
    told = []
    inside = []
    for name, value in facts.items():
        parts = list(_modules(name, value))
        if parts:
            inside += parts
        else:
            told.append(f"{name}={_short(name, value)}")
    count = count_parameters(module)
    told.append(f"{count:,} parameter{'' if count == 1 else 's'}")
    line = f"{type(module).__name__}({', '.join(told)}"
    if not inside:
        return f"{line})"
    nested = []
    for name, part in inside:
        text = repr(part).replace("\n", "\n  ")
        nested.append(f"  {name}: {text}")
    return "\n".join([line, *nested, ")"])


def _modules(name: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    """The networks that a fact stands for, each with its name."""
    if isinstance(value, nn.Module):
        yield name, value
    elif isinstance(value, list) and value and all(isinstance(each, nn.Module) for each in value):
        for k, each in enumerate(value):
            yield f"{name}[{k}]", each


def _short(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{' x '.join(map(str, value.shape))}>"
    if name == "activation" and isinstance(value, Sequence) and len(value) == 2:
        kind, options = value
        return repr(kind) if not options else repr((kind, options))
    if isinstance(value, list) and (len(value) > _LONGEST_LIST or any(isinstance(each, list) for each in value)):
        return f"<{' x '.join(map(str, _shape(value)))}>"
    return repr(value)


def _shape(values: Any) -> list[int]:
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        values = values[0] if values else None
    return shape
