"""Typed results: what was measured of a part is a dataclass, and the flat numbers of results.json are its written form.

A study declares one subclass of :class:`Metrics`. Its experiment writes the object by ``to_metrics``, its page reads it
back by :func:`measured`; nobody else composes or takes apart the keys of results.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

from nablanets.errors import InvalidInputError
from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.findings import Summary, lowest
from nablanets_studies.machinery.store import Row

_FORM = "form"


class Form(Protocol):
    """How the value of a field becomes numbers with names, and what these numbers become again."""

    def write(self, name: str, value: Any) -> dict[str, float]: ...

    def read(self, name: str, metrics: Mapping[str, float]) -> Any: ...


class _Number:
    """One number under the field's own name; None is left out."""

    def write(self, name: str, value: float | None) -> dict[str, float]:
        return {} if value is None else {name: float(value)}

    def read(self, name: str, metrics: Mapping[str, float]) -> float | None:
        return metrics.get(name)


@dataclass(frozen=True)
class _Series:
    """Numbers in an order, counted from ``first``: prefix0, prefix1, ..."""

    prefix: str
    first: int

    def write(self, name: str, value: tuple[float, ...]) -> dict[str, float]:
        return {f"{self.prefix}{index}": float(number) for index, number in enumerate(value, start=self.first)}

    def read(self, name: str, metrics: Mapping[str, float]) -> tuple[float, ...]:
        found = []
        index = self.first
        while f"{self.prefix}{index}" in metrics:
            found.append(metrics[f"{self.prefix}{index}"])
            index += 1
        return tuple(found)


@dataclass(frozen=True)
class _Group:
    """Numbers by name, each under prefix + name."""

    prefix: str

    def write(self, name: str, value: Mapping[str, float]) -> dict[str, float]:
        return {self.prefix + each: float(number) for each, number in value.items()}

    def read(self, name: str, metrics: Mapping[str, float]) -> dict[str, float]:
        return {key.removeprefix(self.prefix): metrics[key] for key in metrics if key.startswith(self.prefix)}


@dataclass(frozen=True)
class _Choice:
    """A word, as the number 1 under prefix + word."""

    prefix: str

    def write(self, name: str, value: str | None) -> dict[str, float]:
        return {} if value is None else {self.prefix + value: 1.0}

    def read(self, name: str, metrics: Mapping[str, float]) -> str | None:
        words = [key.removeprefix(self.prefix) for key in metrics if key.startswith(self.prefix)]
        return words[0] if words else None


@dataclass(frozen=True)
class _Nested:
    """Metrics inside metrics; their numbers stand beside the others."""

    kind: type[Metrics]

    def write(self, name: str, value: Metrics) -> dict[str, float]:
        return value.to_metrics()

    def read(self, name: str, metrics: Mapping[str, float]) -> Metrics:
        return self.kind.from_metrics(metrics)


@dataclass(frozen=True)
class _Keyed:
    """Metrics by key, each of their numbers under key_ + its name."""

    kind: type[Metrics]
    keys: tuple[str, ...]

    def write(self, name: str, value: Mapping[str, Metrics]) -> dict[str, float]:
        written: dict[str, float] = {}
        for key, metrics in value.items():
            written |= {f"{key}_{each}": number for each, number in metrics.to_metrics().items()}
        return written

    def read(self, name: str, metrics: Mapping[str, float]) -> dict[str, Metrics]:
        found: dict[str, Metrics] = {}
        for key in self.keys:
            prefix = f"{key}_"
            own = {each.removeprefix(prefix): metrics[each] for each in metrics if each.startswith(prefix)}
            if own:
                found[key] = self.kind.from_metrics(own)
        return found


def series(prefix: str, *, first: int = 0) -> dict[str, Form]:
    """Metadata of a field of type ``tuple[float, ...]``."""
    return {_FORM: _Series(prefix, first)}


def group(prefix: str) -> dict[str, Form]:
    """Metadata of a field of type ``Mapping[str, float]``."""
    return {_FORM: _Group(prefix)}


def choice(prefix: str) -> dict[str, Form]:
    """Metadata of a field of type ``str | None``."""
    return {_FORM: _Choice(prefix)}


def nested(kind: type[Metrics]) -> dict[str, Form]:
    """Metadata of a field that is itself of a class of metrics."""
    return {_FORM: _Nested(kind)}


def keyed(kind: type[Metrics], keys: tuple[str, ...]) -> dict[str, Form]:
    """Metadata of a field of type ``Mapping[str, kind]``, with all keys that there can be."""
    return {_FORM: _Keyed(kind, keys)}


M = TypeVar("M", bound="Metrics")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What was measured of one part.

    A field of type ``float`` is a number that every part has, ``float | None`` one that some parts do not have. Further
    forms are the metadata :func:`series`, :func:`group`, :func:`choice`, :func:`nested` and :func:`keyed`.

    >>> from dataclasses import field
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Example(Metrics):
    ...     error: float
    ...     trend: float | None = None
    ...     windows: tuple[float, ...] = field(default=(), metadata=series("window_"))
    >>> Example(error=0.5, windows=(0.1, 0.2)).to_metrics()
    {'error': 0.5, 'window_0': 0.1, 'window_1': 0.2}
    >>> Example.from_metrics({"error": 0.5, "window_0": 0.1})
    Example(error=0.5, trend=None, windows=(0.1,))
    """

    def to_metrics(self) -> dict[str, float]:
        """The numbers by name, as results.json keeps them."""
        metrics: dict[str, float] = {}
        for each in fields(self):
            metrics |= _form(each).write(each.name, getattr(self, each.name))
        return metrics

    @classmethod
    def from_metrics(cls: type[M], metrics: Mapping[str, float]) -> M:
        """The object that was written.

        Raises:
            InvalidInputError: a number is missing that every part has.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            value = _form(each).read(each.name, metrics)
            if value is None and each.default is MISSING:
                raise InvalidInputError(
                    f"{cls.__name__}: expected a number {each.name!r} among the metrics, got {sorted(metrics)[:8]}. "
                    "The results are of another version; run the experiment again."
                )
            values[each.name] = value
        return cls(**values)


def _form(each: Field[Any]) -> Form:
    form: Form = each.metadata.get(_FORM, _Number())
    return form


@dataclass(frozen=True)
class Measured(Generic[M]):
    """A line of results.json, read: an arm, a seed, and what was measured."""

    arm: str
    seed: int
    metrics: M


def measured(rows: Iterable[Row], kind: type[M]) -> list[Measured[M]]:
    """The lines of results.json with their metrics as objects of a class."""
    return [Measured(row.arm, row.seed, kind.from_metrics(row.metrics)) for row in rows]


def summaries_of(results: Iterable[Measured[M]], value: Callable[[M], float | None]) -> dict[str, Summary]:
    """Mean and spread over seeds by arm, for the arms that have the value, in the order of the results."""
    found: dict[str, list[float]] = {}
    for result in results:
        number = value(result.metrics)
        if number is not None:
            found.setdefault(result.arm, []).append(number)
    return {arm: Summary.of(numbers) for arm, numbers in found.items()}


@dataclass(frozen=True)
class Best:
    """The arm of the least mean of some value (or of the highest), and that value."""

    arm: str
    value: Summary

    @classmethod
    def of(cls, values: Mapping[str, Summary]) -> Best:
        arm = lowest(values)
        return cls(arm, values[arm])

    @classmethod
    def highest(cls, values: Mapping[str, Summary]) -> Best:
        arm = max(values, key=lambda each: values[each].mean)
        return cls(arm, values[arm])


@dataclass(frozen=True)
class ValueColumn(Generic[M]):
    """A value of the metrics as a column of a sheet; ``spec`` formats its numbers."""

    title: str
    value: Callable[[M], float | None]
    spec: str = ".2f"


def sheet_of(title: str, columns: Sequence[ValueColumn[M]], results: Sequence[Measured[M]]) -> Sheet:
    """A table of values by arm: mean and standard deviation over seeds, a dash where an arm has none."""
    found = [summaries_of(results, column.value) for column in columns]
    lines = []
    for arm in dict.fromkeys(result.arm for result in results):
        line = [arm]
        for column, values in zip(columns, found, strict=True):
            line.append(values[arm].text(column.spec) if arm in values else "-")
        lines.append(line)
    return Sheet(title, ("arm", *(column.title for column in columns)), lines)
