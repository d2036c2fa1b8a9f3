"""A checksum of what a model file holds, so that bits that change on a disk or on the way do not go unnoticed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of a description and of tensors: their names, types, shapes and bytes, whatever their order.

    Notes of users are left out, so that they may be edited. It finds damage, and is no signature: who changes a file
    on purpose can change the checksum, too. It reads some GB a second, so that loading takes hardly longer.

    Args:
        description: JSON values.
        tensors: by name, on the CPU.

    >>> checksum({}, {"a": torch.zeros(3)}) == checksum({}, {"a": torch.zeros(3, 1)})
    False
    """
    # As it is read again: names that were numbers are text then, and in another order.
    text = json.dumps(json.loads(json.dumps(description)), sort_keys=True)
    state = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        label = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        state = zlib.crc32(label.encode(), state)
        content = tensor.reshape(-1).view(torch.uint8).numpy()
        state = zlib.crc32(content.data, state)
    return f"crc32:{state:08x}"
