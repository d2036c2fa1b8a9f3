"""Names and units of columns, as a model keeps them in the notes of its file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nablanets.errors import ModelFileError

#: Name of the note in the header of a model file.
NOTE: Final = "columns"
_WITH_UNIT: Final = re.compile(r"(?P<name>.*\S)\s*[\[(](?P<unit>[^\[\]()]*)[\])]", re.DOTALL)
#: How people write that a quantity has no unit.
_NO_UNIT: Final = frozenset({"", "-", "1"})


def split_unit(name: str) -> tuple[str, str | None]:
    """A column's name without the unit at its end, and the unit.

    >>> split_unit("psi_d [Vs]"), split_unit("x1")
    (('psi_d', 'Vs'), ('x1', None))
    """
    match = _WITH_UNIT.fullmatch(name)
    return (name, None) if match is None else (match["name"], match["unit"].strip())


def _is_numbered(names: Sequence[str], prefix: str) -> bool:
    bases = [split_unit(name)[0] for name in names]
    return bases == [f"{prefix}{i + 1}" for i in range(len(names))]


@dataclass(frozen=True)
class ColumnNames:
    """The columns that a model was fitted to.

    Attributes:
        x: names of the point columns.
        g: names of the gradient columns.
        x_units: a unit for each point column; None where the file told none.
        g_units: a unit for each gradient column.

    >>> names = ColumnNames.of(["id [A]", "iq [A]"], ["psi_d [Vs]", "psi_q [Vs]"])
    >>> names.values, names.potential
    (('psi_d (model) [Vs]', 'psi_q (model) [Vs]'), 'potential [Vs A]')
    >>> ColumnNames.from_notes({"columns": names.note()}, 2) == names
    True
    """

    x: tuple[str, ...]
    g: tuple[str, ...]
    x_units: tuple[str | None, ...]
    g_units: tuple[str | None, ...]

    @classmethod
    def of(cls, x: Sequence[str], g: Sequence[str], units: Mapping[str, str] | None = None) -> ColumnNames:
        """Names with the units that stand in them, or in a table of units by column."""
        units = units or {}
        x_units = tuple(units.get(name, split_unit(name)[1]) for name in x)
        g_units = tuple(units.get(name, split_unit(name)[1]) for name in g)
        return cls(tuple(x), tuple(g), x_units, g_units)

    @classmethod
    def numbered(cls, features: int) -> ColumnNames:
        """x1..xd and g1..gd, without units."""
        x = [f"x{i + 1}" for i in range(features)]
        g = [f"g{i + 1}" for i in range(features)]
        return cls.of(x, g)

    @property
    def x_option(self) -> tuple[str, ...] | None:
        """The point columns, or None where they are x1..xd and found by these names, with units or without."""
        return None if _is_numbered(self.x, "x") else self.x

    @property
    def g_option(self) -> tuple[str, ...] | None:
        """The gradient columns, or None where they are g1..gd."""
        return None if _is_numbered(self.g, "g") else self.g

    @property
    def values(self) -> tuple[str, ...]:
        """Names for the columns of f: f1..fd for g1..gd, else the gradients' names with "(model)" before the unit."""
        names = []
        for i, name in enumerate(self.g):
            base, unit = split_unit(name)
            written = f"f{i + 1}" if self.g_option is None else f"{base} (model)"
            names.append(written if unit is None else f"{written} [{unit}]")
        return tuple(names)

    @property
    def value_units(self) -> dict[str, str]:
        """Units of the columns of f and of the potential, by name, as far as they are known."""
        units = {name: unit for name, unit in zip(self.values, self.g_units, strict=True) if unit is not None}
        if self.potential_unit is not None:
            units[self.potential] = self.potential_unit
        return units

    @property
    def potential(self) -> str:
        """A name for the column of the potential, with its unit where the names of the gradients have theirs."""
        in_names = any(split_unit(name)[1] is not None for name in self.g)
        return f"potential [{self.potential_unit}]" if in_names and self.potential_unit else "potential"

    @property
    def potential_unit(self) -> str | None:
        """The unit of every g_i times that of x_i, for the potential; None if some is unknown or they differ."""
        products = set()
        for g_unit, x_unit in zip(self.g_units, self.x_units, strict=True):
            if g_unit is None or x_unit is None:
                return None
            factors = [unit for unit in (g_unit, x_unit) if unit not in _NO_UNIT]
            products.add(" ".join(factors) or "1")
        return products.pop() if len(products) == 1 else None

    def note(self) -> str:
        """As text for the notes of a model file."""
        return json.dumps({"x": self.x, "g": self.g, "x_units": self.x_units, "g_units": self.g_units})

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], features: int) -> ColumnNames | None:
        """The names in the notes of a model file; None if it has none.

        Raises:
            ModelFileError: the note is damaged.
        """
        if NOTE not in notes:
            return None
        try:
            fields: Any = json.loads(notes[NOTE])
            x, g = _strings(fields["x"], features), _strings(fields["g"], features)
            x_units, g_units = _units(fields["x_units"], features), _units(fields["g_units"], features)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelFileError(
                f"the model file's note on its columns is damaged ({error}). Fit again, or remove the note."
            ) from error
        return cls(x, g, x_units, g_units)


def _strings(values: object, count: int) -> tuple[str, ...]:
    names = _units(values, count)
    present = tuple(name for name in names if name is not None)
    if len(present) != count:
        raise ValueError("a column without a name")
    return present


def _units(values: object, count: int) -> tuple[str | None, ...]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"expected {count} names, got {values!r:.100}")
    if not all(value is None or isinstance(value, str) for value in values):
        raise ValueError(f"expected names, got {values!r:.100}")
    return tuple(values)
