"""Architectures as JSON values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from nablanets.errors import ModelFileError
from nablanets.serialization.registry import Configurable, find, is_registered

#: Types that tensors in a description may have.
_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
#: Ways from the root to its modules. Sharing makes them more than there are modules, at worst 2^depth.
_MOST_PATHS: Final = 100_000


def encode(module: nn.Module) -> dict[str, Any]:
    """The architecture of a module as JSON values.

    A module that appears again is written as ``{"shared": k}``, where modules count from 0 in the order in which they
    are complete.

    Raises:
        ModelFileError: a part of it has no registered name.
    """
    return _Encoder().module(module)


class _Encoder:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        #: Numbers go by identity, so no module may vanish meanwhile.
        self._alive: list[nn.Module] = []

    def module(self, module: nn.Module) -> dict[str, Any]:
        cls = type(module)
        if not is_registered(cls):
            raise ModelFileError(
                f"cannot save a {cls.__name__}: its architecture is not known by name, so it could not be rebuilt "
                "without running code from the file. Decorate the class with nablanets.savable and give it config(), "
                "or save its state_dict() yourself."
            )
        arguments = cast(Configurable, module).config()
        encoded = {key: self.value(argument, cls.__name__) for key, argument in arguments.items()}
        self._numbers[id(module)] = len(self._alive)
        self._alive.append(module)
        return {"type": cls.__name__, "arguments": encoded}

    def value(self, value: Any, owner: str) -> Any:
        if isinstance(value, nn.Module):
            number = self._numbers.get(id(value))
            return {"module": self.module(value)} if number is None else {"shared": number}
        if isinstance(value, Tensor):
            return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, list | tuple):
            return [self.value(part, owner) for part in value]
        if isinstance(value, dict):
            return {"dict": {key: self.value(part, owner) for key, part in value.items()}}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ModelFileError(
            f"cannot save a {owner} with the argument {value!r}. An activation class of your own needs a name: call "
            "nablanets.register_activation('my_name', MyActivation) before saving and before loading."
        )


def has_shared(description: Any) -> bool:
    """Whether a description refers to a module twice."""
    if isinstance(description, dict):
        return "shared" in description or any(has_shared(value) for value in description.values())
    return isinstance(description, list) and any(has_shared(value) for value in description)


def decode(description: Mapping[str, Any], *, largest_integer: int | None = None) -> nn.Module:
    """Rebuild a module (with arbitrary weights) from what :func:`encode` returned.

    Args:
        description: what ``encode`` returned.
        largest_integer: larger ones are refused, except as seeds; any goes if None.

    Raises:
        ModelFileError: no class of that name is registered, by the library or by a distribution beside it; or the
            description is none that ``encode`` writes.
    """
    return _Decoder(largest_integer).module(description)


class _Decoder:
    def __init__(self, largest_integer: int | None) -> None:
        self._largest_integer = largest_integer
        self._complete: list[nn.Module] = []
        self._paths: dict[int, int] = {}

    def module(self, description: Any) -> nn.Module:
        if not isinstance(description, Mapping) or set(description) != {"type", "arguments"}:
            raise ModelFileError(f"expected a type with its arguments, got {description!r:.100}")
        name, arguments = description["type"], description["arguments"]
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ModelFileError(f"expected the name of a type and its arguments, got {description!r:.100}")
        cls = find(name)
        decoded = {key: self.value(argument, key) for key, argument in arguments.items()}
        module = cls(**decoded)
        self._complete.append(module)
        if self._count_paths(module) > _MOST_PATHS:
            raise ModelFileError(f"a {name} is made of shared parts with over {_MOST_PATHS} ways to them")
        return module

    def value(self, value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [self.value(part, key) for part in value]
        if not isinstance(value, Mapping):
            return self._plain(value, key)
        if set(value) == {"module"}:
            return self.module(value["module"])
        if set(value) == {"shared"}:
            return self._shared(value["shared"])
        if set(value) == {"tensor", "dtype"}:
            return _tensor(value["tensor"], value["dtype"])
        if set(value) == {"dict"} and isinstance(value["dict"], Mapping):
            return {name: self.value(part, name) for name, part in value["dict"].items()}
        raise ModelFileError(f"argument {key!r:.100} is described by {value!r:.100}, which stands for nothing")

    def _plain(self, value: Any, key: str) -> Any:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        limit = self._largest_integer
        if is_integer and limit is not None and abs(value) > limit and "seed" not in key:
            raise ModelFileError(f"argument {key!r:.100} is {value!r:.40}, more than a file of this size can hold")
        return value

    def _shared(self, number: Any) -> nn.Module:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._complete):
            raise ModelFileError(f"module {number!r:.100} is shared before it is described")
        return self._complete[number]

    def _count_paths(self, module: nn.Module) -> int:
        """Ways from a module to itself and all modules in it."""
        if id(module) not in self._paths:
            self._paths[id(module)] = 1 + sum(self._count_paths(child) for child in module._modules.values() if child)
        return self._paths[id(module)]


def _tensor(shape: Any, dtype: Any) -> Tensor:
    is_shape = isinstance(shape, list) and all(
        isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in shape
    )
    if not is_shape or not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelFileError(f"a tensor is described by shape {shape!r:.100} and type {dtype!r:.100}")
    return torch.zeros(shape, dtype=_DTYPES[dtype])
