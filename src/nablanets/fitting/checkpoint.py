"""Checkpoints of a training: one safetensors file, the tensors by name, everything else as JSON in its header.

A state is a nest of dictionaries, lists, tuples, tensors, numbers, strings and None. To write it, each tensor is taken
out and replaced by its path in the nest, as in ``{"tensor": "/optimizer/0/exp_avg"}``; dictionaries become lists of
pairs, since JSON knows keys of one type only; tuples are marked, so that they come back as tuples. Floats survive
exactly: JSON holds the shortest decimal that reads back as the same float (and NaN and infinities by name, as Python
writes them).

Reading runs no code that a file could bring: safetensors holds numbers, JSON holds values. Beside the state are

- the fingerprint: what the training was told (settings, shapes, data). A training goes on only from a checkpoint whose
  fingerprint is its own;
- a checksum of all bytes, since a flipped bit in the weights would otherwise be trained on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nablanets.errors import ModelFileError
from nablanets.serialization import atomic_path

#: Changes when a file of today could not be continued tomorrow.
FORMAT = "1"
_HEADER = "nablanets-checkpoint"
_CHECKSUM = "crc32"
# What the reading of a damaged or foreign file raises, from the file system to the last entry of the nest.
_UNREADABLE = (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)


def write_checkpoint(path: Path, fingerprint: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the state of a training, atomically.

    Args:
        path: the file; what is there is replaced only once the new file is complete.
        fingerprint: JSON values that tell this training from others.
        state: nested dictionaries, lists and tuples of tensors, numbers, strings and None.

    Raises:
        ModelFileError: the file cannot be written; what was there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    nest = _without_tensors(state, "", tensors)
    text = json.dumps({"format": FORMAT, "fingerprint": fingerprint, "state": nest})
    header = {_HEADER: text, _CHECKSUM: _checksum(text, tensors)}
    try:
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"cannot write the checkpoint {path}: {error}. Is the disk full, or the folder not yours?"
        ) from error


def read_checkpoint(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote; tensors are on the CPU.

    Raises:
        ModelFileError: the file is damaged, of another kind or an older version, or belongs to a training with other
            settings, data or network.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            # Copies, since torch aligns what it allocates, a file does not, and sums are rounded by alignment.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        if _checksum(header[_HEADER], tensors) != header[_CHECKSUM]:
            raise ValueError("its checksum is not that of its content")
        content = json.loads(header[_HEADER])
        if content["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {content['format']}")
        found = content["fingerprint"]
        state: dict[str, Any] = _with_tensors(content["state"], tensors)
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelFileError(
            f"the checkpoint {path} cannot be read ({reason}). It is damaged, or not a checkpoint of this version of "
            "nablanets. Delete it to start afresh, or give another path."
        ) from error
    wanted = json.loads(json.dumps(fingerprint))  # tuples become lists, as in the file
    if found != wanted:
        differences = "\n".join(_differences("", found, wanted))
        raise ModelFileError(
            f"the checkpoint {path} belongs to a training with other settings, data or network:\n{differences}\n"
            "Delete it to start afresh, or give another path."
        )
    return state


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[Any, Any]) -> None:
    """Put the ``optimizer.state_dict()["state"]`` of a checkpoint into an optimiser of the same settings.

    Tensors like the parameters get their memory layout, on which the last bit of a sum may depend.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The nest as JSON values; its tensors are put into ``tensors``, by their path."""
    if isinstance(value, Tensor):
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[key, _without_tensors(entry, f"{name}/{key}", tensors)] for key, entry in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        entries = [_without_tensors(entry, f"{name}/{i}", tensors) for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else {"tuple": entries}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The nest that :func:`_without_tensors` took apart."""
    if isinstance(value, list):
        return [_with_tensors(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_with_tensors(entry, tensors) for entry in value["tuple"])
    return {key: _with_tensors(entry, tensors) for key, entry in value["dict"]}


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        content = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        total = zlib.crc32(content, total)
    return f"{total:08x}"


def _differences(name: str, found: Any, wanted: Any) -> Iterator[str]:
    """One line for each value of two fingerprints that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**found, **wanted}:
            yield from _differences(f"{name}.{key}" if name else key, found.get(key), wanted.get(key))
    elif found != wanted:
        yield f"  {name}: {found} there, {wanted} here"
