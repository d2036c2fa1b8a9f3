"""Samples that come as arrays, lists or tables of numbers, and the one rule by which they become tensors.

**The rule.** What takes *samples* (``fit`` and its variants, the starts, ``identify_pieces``, ``verify``) takes
tensors, NumPy arrays, anything that makes an array of itself (a DataFrame, an array of another library) and lists of
numbers; they end in the dtype and on the device of the network. Integers count as numbers in arrays and lists; a tensor
of integers is refused, since it is more often an index than a coordinate. What *evaluates* a network (a call,
``potential``, ``jacobian``, ...) takes tensors of the network's own dtype and device, and says how to convert others.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nablanets.errors import InvalidInputError

# Kinds of NumPy's dtypes that hold real numbers: signed and unsigned integers, and floating point.
_NUMBERS = "iuf"


def as_tensor(values: Any, *, owner: str, name: str) -> Tensor:
    """Numbers as a tensor in their own precision: floating-point arrays in theirs, integers and lists in float64.

    Tensors are returned as they are. Arrays are copied, so that a later change of the array changes nothing.

    Args:
        values: a tensor, an array, a table, or a list of numbers or of lists of them.
        owner, name: who asks, and what for: for messages.

    Raises:
        InvalidInputError: what came is no array of real numbers, with what to convert.

    >>> as_tensor([[1, 2], [3, 4]], owner="fit", name="x").dtype
    torch.float64
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, DataLoader | Dataset):
        raise InvalidInputError(
            f"{owner}: expected {name} to hold all samples, got a {type(values).__name__}. Batches are drawn by the "
            "fit itself: give the tensors of the data set (x, g = dataset.tensors, for a TensorDataset), or a function "
            "(count, generator) that returns that many fresh samples (x, g)."
        )
    if _is_list_of_tensors(values):
        return torch.stack(list(values))
    array = _as_array(values, owner, name)
    if array.dtype.kind == "O":
        array = _unpacked(array, owner, name)
    if array.dtype.kind not in _NUMBERS:
        raise InvalidInputError(
            f"{owner}: expected {name} to hold real numbers, got {type(values).__name__} of {array.dtype}. Convert it "
            "to numbers first, or leave out the columns that hold something else."
        )
    known = array.dtype in (np.float16, np.float32, np.float64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=") if known else np.float64))


def _is_list_of_tensors(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0 and all(isinstance(each, Tensor) for each in values)


def _as_array(values: Any, owner: str, name: str) -> np.ndarray:
    if not (hasattr(values, "__array__") or isinstance(values, list | tuple)):
        raise InvalidInputError(
            f"{owner}: expected {name} to be a tensor, an array or a list of numbers, got {type(values).__name__}."
        )
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidInputError(
            f"{owner}: expected {name} to be an array of numbers, with rows of one length, got "
            f"{type(values).__name__}: {error}"
        ) from error


def _unpacked(array: np.ndarray, owner: str, name: str) -> np.ndarray:
    """Numbers out of an array of objects, which tables with columns of several types become."""
    for index, value in np.ndenumerate(array):
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            place = "".join(f"[{k}]" for k in index)
            raise InvalidInputError(
                f"{owner}: expected {name} to hold real numbers, got {type(value).__name__} {value!r:.40} at "
                f"{name}{place}. Leave out columns that hold something else, and rows where a number is missing."
            )
    return array.astype(np.float64)
