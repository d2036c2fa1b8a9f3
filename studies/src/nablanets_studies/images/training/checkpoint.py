"""Checkpoints of training: one safetensors file, the tensors named, all else as JSON in its header. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from nablanets.errors import ModelFileError
from nablanets.serialization import atomic_path

_HEADER = "nablanets-training"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers, strings and None, atomically.

    Raises:
        ModelFileError: the file cannot be written; what was there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    header = {_HEADER: json.dumps(_described(state, "", tensors))}
    try:
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"cannot write the checkpoint {path}: {error}. Is the disk full?") from error


def read_state(path: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote.

    Raises:
        ModelFileError: the file is damaged or something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = _rebuilt(json.loads(header[_HEADER]), tensors)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelFileError(f"the checkpoint {path} cannot be read ({error}). Delete it to start afresh.") from error
    return state


def _described(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        keys = [[key, _described(v, f"{name}/{key}", tensors)] for key, v in value.items()]
        return {"items": keys}
    if isinstance(value, list | tuple):
        return [_described(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _rebuilt(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_rebuilt(v, tensors) for v in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _rebuilt(v, tensors) for key, v in value["items"]}
    return value
