"""Classes by name. A model file says a name; which module is imported for it is decided by what is installed here."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from torch import nn

from nablanets.errors import ModelFileError

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
    """Class decorator: instances can be saved and loaded under the class's name.

    A class may be registered again where it is defined, as in a notebook whose cell runs twice.

    Raises:
        ModelFileError: another class has that name, so that one of the two would be loaded as the other.
    """
    name = cls.__name__
    holder = _registry.get(name)
    if holder is not None and _origin(holder) != _origin(cls):
        raise ModelFileError(
            f"savable: the name {name!r} is taken by {_origin(holder)}; a file that says {name!r} could mean either. "
            f"Give {_origin(cls)} another name."
        )
    _registry[name] = cls
    return cls


def _origin(cls: type[nn.Module]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_registered(cls: type[nn.Module]) -> bool:
    """Whether a class is the one that its name stands for, and tells its arguments."""
    return _registry.get(cls.__name__) is cls and hasattr(cls, "config")


def find(name: str) -> type[nn.Module]:
    """The class registered under a name; its module is imported if a table or an entry point tells where it is.

    Raises:
        ModelFileError: no class of that name is registered, by the library or by a distribution beside it; or what
            its module needs is not installed.
    """
    if name not in _registry and name in _HOMES:
        importlib.import_module(_HOMES[name])
    if name not in _registry:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            try:
                entry.load()
            except ImportError as error:
                raise ModelFileError(f"the architecture {name!r} needs a package that is missing: {error}") from error
    if name not in _registry:
        known = sorted({*_registry, *_HOMES, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})
        raise ModelFileError(
            f"unknown architecture {name!r:.100}. Known: {', '.join(known)}. Import the module that defines it first; "
            "networks of the studies need nablanets-studies: pip install 'nablanets[studies]'."
        )
    return _registry[name]
