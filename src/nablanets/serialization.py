"""Model files: one safetensors file with the weights and, as JSON in its header, the architecture.

Nothing in a file is executed. A module can be saved if its class is registered here and has ``config()``, which
returns the constructor arguments: JSON values, tensors (only their shape and dtype go into the header, the values
are part of the weights), other registered modules, or lists of these.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nablanets.errors import ModelFileError, NablaError

FORMAT = "1"
_HEADER = "nablanets"
#: Entry points by which another distribution tells where its registered classes are: name = "module:class".
ENTRY_POINTS = "nablanets.architectures"
_registry: dict[str, type[nn.Module]] = {}
#: Where the library's registered classes are that ``import nablanets`` does not import.
_HOMES = {
    "ConditionalHamiltonian": "nablanets.dynamics.systems",
    "FieldSystem": "nablanets.dynamics.systems",
    "HamiltonianSystem": "nablanets.dynamics.systems",
    "Kinetic": "nablanets.dynamics.kinetic",
    "PortHamiltonian": "nablanets.dynamics.port",
    "SecondOrder": "nablanets.dynamics.second_order",
    "SeparableHamiltonian": "nablanets.dynamics.systems",
    "SympNet": "nablanets.dynamics.sympnet",
}

M = TypeVar("M", bound=nn.Module)


class Configurable(Protocol):
    """A module that knows its constructor arguments."""

    def config(self) -> dict[str, Any]: ...


def savable(cls: type[M]) -> type[M]:
    """Class decorator: instances can be saved and loaded under the class's name."""
    _registry[cls.__name__] = cls
    return cls


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def encode(module: nn.Module) -> dict[str, Any]:
    """The architecture of a module as JSON values.

    Raises:
        ModelFileError: a part of it has no registered name.
    """
    name = type(module).__name__
    if _registry.get(name) is not type(module) or not hasattr(module, "config"):
        raise ModelFileError(
            f"cannot save a {name}: its architecture is not known by name, so it could not be rebuilt without running "
            "code from the file. Decorate the class with nablanets.savable and give it config(), or save its "
            "state_dict() yourself."
        )
    arguments = cast(Configurable, module).config()
    return {"type": name, "arguments": {k: _encode_value(v, name) for k, v in arguments.items()}}


def _encode_value(value: Any, owner: str) -> Any:
    if isinstance(value, nn.Module):
        return {"module": encode(value)}
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [_encode_value(v, owner) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _encode_value(v, owner) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ModelFileError(
        f"cannot save a {owner} with the argument {value!r}. An activation class of your own needs a name: call "
        "nablanets.register_activation('my_name', MyActivation) before saving and before loading."
    )


def decode(description: dict[str, Any]) -> nn.Module:
    """Rebuild a module (with arbitrary weights) from what :func:`encode` returned.

    Raises:
        ModelFileError: no class of that name is registered, by the library or by a distribution beside it.
    """
    cls = _find(description["type"])
    return cls(**{k: _decode_value(v) for k, v in description["arguments"].items()})


def _find(name: str) -> type[nn.Module]:
    """The class registered under a name; its module is imported if a table or an entry point tells where it is.

    The file says only the name. Which module is imported for it is decided by what is installed here.
    """
    if name not in _registry and name in _HOMES:
        importlib.import_module(_HOMES[name])
    if name not in _registry:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            entry.load()
    if name not in _registry:
        known = sorted({*_registry, *_HOMES, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})
        raise ModelFileError(
            f"unknown architecture {name!r}. Known: {', '.join(known)}. Import the module that defines it first; "
            "networks of the studies need nablanets-studies: pip install 'nablanets[studies]'."
        )
    return _registry[name]


def _decode_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_value(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "module" in value:
        return decode(value["module"])
    if "tensor" in value:
        return torch.zeros(value["tensor"], dtype=getattr(torch, value["dtype"]))
    return {k: _decode_value(v) for k, v in value["dict"].items()}


def save(module: nn.Module, path: str | Path, *, notes: dict[str, str] | None = None) -> None:
    """Write architecture and weights of a module to ``path``, atomically.

    Args:
        module: an instance of a registered class.
        path: the file; a file that is there is replaced only once the new one is complete.
        notes: further text to keep in the header.

    Raises:
        ModelFileError: the module cannot be described, or the file cannot be written.
    """
    header = {**(notes or {}), _HEADER: json.dumps({"format": FORMAT, "architecture": encode(module)})}
    tensors = {k: v.detach().contiguous().cpu() for k, v in module.state_dict().items()}
    try:
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error}. Choose a folder that you may write to.") from error


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """Read a module that :func:`save` (or ``net.save``) wrote.

    Raises:
        ModelFileError: the file is missing, truncated, not one of ours, or does not fit its own description.
    """
    header, tensors = _read(Path(path), device)
    build: Callable[[], nn.Module] = lambda: decode(json.loads(header[_HEADER])["architecture"])  # noqa: E731
    try:
        module = build()
        for name, parameter in module.state_dict().items():
            if name in tensors and tensors[name].dtype != parameter.dtype:
                module = module.to(tensors[name].dtype)
                break
        module.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, NablaError) as error:
        raise ModelFileError(f"{path} does not describe a model that this version can build: {error}") from error
    return module.to(device)


def read_notes(path: str | Path) -> dict[str, str]:
    """The header of a model file."""
    return _read(Path(path), "cpu")[0]


def _read(path: Path, device: str | torch.device) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}. Give the path of a file written by net.save().")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not a readable safetensors file ({error}). It may be truncated: save it again."
        ) from error
    if _HEADER not in header:
        raise ModelFileError(f"{path} holds tensors but no nablanets architecture. Write models with net.save().")
    return header, tensors
