"""A limit to what building a module may allocate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nablanets.errors import ModelFileError

#: Elements that any file may allocate in one operation (4 MiB in float32), and altogether.
_ONE: Final = 2**20
_ALL: Final = 2**24
#: Elements per byte of the file. A bfloat16 file has one for two bytes; initialisers make some copies.
_ONE_PER_BYTE: Final = 0.5
_ALL_PER_BYTE: Final = 8
#: Operations that any file may take, and further ones for each tensor in it.
_OPERATIONS: Final = 5_000
_OPERATIONS_PER_TENSOR: Final = 40


class AllocationGuard(TorchDispatchMode):
    """Inside this context, operations whose results outgrow a file of ``size`` bytes are refused.

    The size of a result is foreseen from the shapes of the arguments where results can be larger than these.

    Args:
        size: bytes of the file.
        tensors: how many are in it.

    Raises:
        ModelFileError: a result, all results together, or the number of operations is too large.
    """

    def __init__(self, size: int, tensors: int) -> None:
        super().__init__()
        self._size = size
        self._most_at_once = int(max(_ONE, _ONE_PER_BYTE * size))
        self._elements_left = max(_ALL, _ALL_PER_BYTE * size)
        self._operations_left = _OPERATIONS + _OPERATIONS_PER_TENSOR * tensors

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler, which takes seconds, at the first operation.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._operations_left -= 1
        if self._operations_left < 0:
            raise self._error("takes more operations to build")
        if not _allocates(func):
            return func(*args, **kwargs)
        self._check(_foreseen(func, args, kwargs))
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._elements_left -= leaf.numel()
                self._check(leaf.numel())
        return result

    def _check(self, elements: int) -> None:
        if elements > min(self._most_at_once, self._elements_left):
            raise self._error(f"needs a tensor of {elements} elements, more")

    def _error(self, what: str) -> ModelFileError:
        return ModelFileError(f"its architecture {what} than a file of {self._size} bytes can be for")


def _allocates(func: Any) -> bool:
    """Whether a result of an operation is new memory: no view, and not one of the arguments."""
    return any(returned.alias_info is None for returned in func._schema.returns)


def _foreseen(func: Any, args: Any, kwargs: Any) -> int:
    """About how many elements the result of an operation will have, from the shapes of its arguments.

    Right for what makes tensors of a given size, repeats, multiplies matrices, and combines tensors element by element.
    Results of other operations are as large as their arguments, and looked at when they are there.
    """
    names = [argument.name for argument in func._schema.arguments]
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    shapes = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if isinstance(arguments.get("size"), list | tuple):
        return math.prod(arguments["size"])
    if not shapes:
        return _made_of_numbers(arguments)
    if isinstance(arguments.get("repeats"), list | tuple):
        return math.prod(shapes[0]) * math.prod(arguments["repeats"])
    if "mat2" in arguments:
        return math.prod(shapes[-2][:-1]) * shapes[-1][-1]
    return _broadcast(shapes)


def _made_of_numbers(arguments: Mapping[str, Any]) -> int:
    """Elements of arange, eye, linspace and the like."""
    if "end" in arguments and "steps" not in arguments:
        step = arguments.get("step", 1) or 1
        return int(abs((arguments["end"] - arguments.get("start", 0)) / step))
    sides = [arguments[name] for name in ("n", "m", "row", "col", "steps", "window_length") if name in arguments]
    return math.prod(sides)


def _broadcast(shapes: Sequence[Sequence[int]]) -> int:
    """Elements of tensors of these shapes combined element by element."""
    most = max(len(shape) for shape in shapes)
    padded = [(1,) * (most - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(max(sides) for sides in zip(*padded, strict=True))
