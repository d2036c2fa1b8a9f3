"""Saving and loading of models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nablanets.errors import ModelFileError
from nablanets.serialization.checksum import checksum
from nablanets.serialization.description import decode, encode, has_shared
from nablanets.serialization.guard import AllocationGuard
from nablanets.serialization.paths import atomic_path, is_file

_HEADER: Final = "nablanets"
#: Part of the description since 0.2; files without it are read unchecked.
_CHECKSUM: Final = "checksum"
#: Without and with shared parts; versions that know only the first refuse the second.
_PLAIN: Final = "1"
_WITH_SHARED: Final = "2"
#: Integers of any file may be as large as this; sizes beyond it need a file with as many bytes.
_LARGE_INTEGER: Final = 2**20
#: Modules of more elements are not built twice in memory. (Building without memory makes torch import its compiler.)
_LARGE_MODULE: Final = 2**25


def save(module: nn.Module, path: str | Path, *, notes: dict[str, str] | None = None) -> None:
    """Write architecture and weights of a module to ``path``, atomically.

    Parts and parameters that appear twice are written once, and are one part again when loaded.

    A model that :func:`nablanets.add_gradient_residuals` converted is refused, since its class does not tell what was
    changed in it. Save its weights by ``safetensors.torch.save_model``; to load them, build and convert the model as
    before and call ``safetensors.torch.load_model``.

    Args:
        module: an instance of a registered class.
        path: the file; a file that is there is replaced only once the new one is complete.
        notes: further text to keep in the header.

    Raises:
        ModelFileError: the module cannot be described, or would not be the same when loaded, or the file cannot be
            written.
    """
    _refuse_changed(module)
    architecture = encode(module)
    tensors, ties = _stored(module)
    _check_rebuilt(module, architecture, tensors, ties)
    description: dict[str, Any] = {"format": _PLAIN, "architecture": architecture}
    if ties or has_shared(architecture):
        description |= {"format": _WITH_SHARED, "ties": ties}
    description[_CHECKSUM] = checksum(description, tensors)
    header = {**(notes or {}), _HEADER: json.dumps(description)}
    try:
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=header)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error}. Choose a folder that you may write to.") from error


def _refuse_changed(module: nn.Module) -> None:
    """Refuse modules in which a part says, by ``cannot_be_saved``, that its class does not tell what it is.

    Parts of a module whose constructor changed them itself are told by its config(): it says so by ``tells_parts``.
    """
    told = tuple(name for name, part in module.named_modules() if getattr(part, "tells_parts", False) is True)
    for name, part in module.named_modules():
        reason = getattr(part, "cannot_be_saved", None)
        if isinstance(reason, str) and not any(_is_inside(name, owner) for owner in told):
            raise ModelFileError(f"cannot save this {type(module).__name__}: {name or 'the module itself'} {reason}")


def _is_inside(name: str, owner: str) -> bool:
    """Whether a part is inside another, by their names in a module; the name of the module itself is empty."""
    return name != owner and (owner == "" or name.startswith(f"{owner}."))


def _stored(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to write by name, and for other names of the same tensors the name that is written."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    memory: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ModelFileError(f"cannot save a {type(module).__name__}: its state {name!r} is no tensor.")
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        content = tensor.detach().contiguous().cpu()
        storage = content.untyped_storage().data_ptr()
        # Views of one memory that are no ties are written each by itself.
        tensors[name] = content.clone() if storage in memory else content
        memory.add(storage)
    return tensors, ties


def _check_rebuilt(
    module: nn.Module, architecture: dict[str, Any], tensors: dict[str, Tensor], ties: dict[str, str]
) -> None:
    """Refuse to write what would not load: the class, built again, has other parts."""
    elements = sum(tensor.numel() for tensor in tensors.values())
    names = {*tensors, *ties}
    rebuilt = set(_skeleton(architecture, elements).state_dict())
    if rebuilt != names:
        difference = ", ".join(sorted(rebuilt ^ names)[:5])
        raise ModelFileError(
            f"cannot save this {type(module).__name__}: built again from its config() it has other tensors "
            f"({difference}). It was changed after it was built; tell the change in config(), or save its "
            "state_dict() yourself."
        )


def _skeleton(architecture: dict[str, Any], elements: int) -> nn.Module:
    """A module as loading builds it; a large one without memory, if its constructor looks at no values."""
    with torch.random.fork_rng(devices=[]):
        if elements > _LARGE_MODULE:
            with torch.device("meta"), contextlib.suppress(Exception):
                return decode(architecture)
        return decode(architecture)


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """Read a module that :func:`save` (or ``net.save``) wrote.

    Files of strangers are safe to load: no code in them is run, only registered classes are built, and building takes
    no more memory and operations than the size of the file allows.

    Raises:
        ModelFileError: the file is missing, truncated, damaged (its checksum is another), not one of ours, or does not
            fit its own description.
    """
    path = Path(path)
    content = _read(path)
    _check_sum(content, path)
    try:
        module = _built(content, path.stat().st_size)
        _fill(module, content)
    except (Exception, MemoryError) as error:
        # Constructors meet arguments that no one has checked.
        reason = str(error) or type(error).__name__
        raise ModelFileError(f"{path} does not describe a model that this version can build: {reason:.1000}") from error
    return module.to(device)


def read_notes(path: str | Path) -> dict[str, str]:
    """The header of a model file: the notes given to :func:`save`, and under "nablanets" the architecture."""
    return _read(Path(path), with_tensors=False).header


class _Content(NamedTuple):
    """What a file holds: header, tensors, and the description from the header."""

    header: dict[str, str]
    tensors: dict[str, Tensor]
    description: dict[str, Any]

    @property
    def ties(self) -> dict[str, str]:
        return self.description.get("ties", {})


def _check_sum(content: _Content, path: Path) -> None:
    """Refuse a file that is not as it was written; older ones have no checksum."""
    description = dict(content.description)
    written = description.pop(_CHECKSUM, None)
    if written is not None and written != checksum(description, content.tensors):
        raise ModelFileError(
            f"{path} is damaged: its tensors or its architecture are not those that were written, by their checksum. "
            f"Take another copy, or save the model again. (If it was changed on purpose, remove {_CHECKSUM!r} from "
            f"{_HEADER!r} in its header.)"
        )


def _read(path: Path, *, with_tensors: bool = True) -> _Content:
    if not is_file(path):
        raise ModelFileError(f"there is no model file {path}. Give the path of a file written by net.save().")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            names: Iterable[str] = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError, MemoryError) as error:
        raise ModelFileError(
            f"{path} is not a readable safetensors file ({error}). It may be truncated: save it again."
        ) from error
    if _HEADER not in header:
        raise ModelFileError(f"{path} holds tensors but no nablanets architecture. Write models with net.save().")
    return _Content(header, tensors, _description(header[_HEADER], path))


def _description(text: str, path: Path) -> dict[str, Any]:
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} does not describe a model: its header is damaged ({error}).") from error
    if not isinstance(description, dict) or "architecture" not in description:
        raise ModelFileError(f"{path} does not describe a model: its header has no architecture.")
    written = description.get("format")
    if written not in (_PLAIN, _WITH_SHARED):
        raise ModelFileError(
            f"{path} does not describe a model that this version can build: its format is {written!r:.40}, and formats "
            f"{_PLAIN} and {_WITH_SHARED} are known. A newer nablanets may read it."
        )
    ties = description.get("ties", {})
    if not isinstance(ties, dict) or not all(isinstance(name, str) for name in ties.values()):
        raise ModelFileError(f"{path} does not describe a model: its ties are no names of tensors.")
    return description


def _built(content: _Content, size: int) -> nn.Module:
    """The module that a file describes, with arbitrary weights."""
    limit = max(_LARGE_INTEGER, size)
    with AllocationGuard(size, len(content.tensors)):
        return decode(content.description["architecture"], largest_integer=limit)


def _fill(module: nn.Module, content: _Content) -> None:
    """Put the weights into a module, in the types that the file has."""
    for alias, name in content.ties.items():
        if alias in content.tensors or name not in content.tensors:
            raise ModelFileError(f"{alias!r:.100} cannot be {name!r:.100}: expected the second alone in the file")
        _tie(module, alias, name)
    state = module.state_dict(keep_vars=True)
    for name, tensor in content.tensors.items():
        if name in state and state[name].dtype != tensor.dtype:
            # Tensors that are not stored follow the first one that is.
            module.to(_floating(tensor, name))
            break
    state = module.state_dict(keep_vars=True)
    for name, tensor in content.tensors.items():
        if name not in state or state[name].dtype == tensor.dtype:
            continue
        if not state[name].is_floating_point():
            raise ModelFileError(f"expected {name} of type {state[name].dtype}, got {tensor.dtype}")
        state[name].data = state[name].data.to(_floating(tensor, name))
    aliases = {alias: content.tensors[name] for alias, name in content.ties.items()}
    module.load_state_dict({**content.tensors, **aliases})


def _floating(tensor: Tensor, name: str) -> torch.dtype:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelFileError(f"expected {name} to hold floating-point numbers, got {tensor.dtype}")
    return tensor.dtype


def _tie(module: nn.Module, alias: str, name: str) -> None:
    """Let a parameter or buffer be the one of another name."""
    owner_path, _, own = alias.rpartition(".")
    source_path, _, other = name.rpartition(".")
    owner, source = module.get_submodule(owner_path), module.get_submodule(source_path)
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (owner._parameters, source._parameters),
        (owner._buffers, source._buffers),
    ]
    for mine, theirs in kinds:
        old, new = mine.get(own), theirs.get(other)
        if old is not None and new is not None and old.shape == new.shape:
            mine[own] = new
            return
    raise ModelFileError(f"{alias!r:.100} cannot be {name!r:.100}: expected two parameters or buffers of one shape")
