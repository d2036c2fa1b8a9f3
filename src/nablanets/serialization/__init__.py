"""Model files: one safetensors file with the weights and, as JSON in its header, the architecture.

Nothing in a file is executed. A module can be saved if its class is registered here and has ``config()``, which
returns the constructor arguments: JSON values, tensors (only their shape and dtype go into the header, the values
are part of the weights), other registered modules, or lists of these. A module that appears twice is described once,
and stays one module.

What a file claims is bounded by what it holds: building an architecture may not allocate more than the size of the
file allows, so that a damaged file is refused within seconds.
"""

from nablanets.serialization.description import decode, encode
from nablanets.serialization.model_file import load, read_notes, save
from nablanets.serialization.paths import atomic_path, check_writable, is_file
from nablanets.serialization.registry import ENTRY_POINTS, Configurable, savable

__all__ = [
    "ENTRY_POINTS",
    "Configurable",
    "atomic_path",
    "check_writable",
    "decode",
    "encode",
    "is_file",
    "load",
    "read_notes",
    "savable",
    "save",
]
