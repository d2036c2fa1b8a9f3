"""What an experiment is: arms times seeds, run one part at a time, and a page about them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from matplotlib.figure import Figure
from torch import nn

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.fitting.loop import Report
from nablanets.fitting.settings import HistoryRow

if TYPE_CHECKING:
    from nablanets_studies.machinery.store import RunFolder


class Column(NamedTuple):
    """A metric as a column of the results table; ``spec`` formats its numbers."""

    metric: str
    title: str
    spec: str = ".2f"


class Picture(NamedTuple):
    """A figure of the report."""

    name: str
    caption: str
    figure: Figure


class Sheet(NamedTuple):
    """A further table of the report, as text; the first column names the line."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class PartResult:
    """The outcome of one arm with one seed; ``model`` is kept as a file unless it is None."""

    model: nn.Module | None
    parameters: int
    seconds: float
    metrics: dict[str, float]


class Config(Protocol):
    """A frozen dataclass whose fields are numbers, strings, or tuples of them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


C = TypeVar("C", bound=Config)
#: Told of each validation, with the seed.
SeedReport = Callable[[int, HistoryRow], None]


class Experiment(ABC, Generic[C]):
    """A study with a name that the command line knows.

    Attributes:
        name: on the command line.
        summary: one line.
        presets: complete configurations by name.
        seeds: default number of seeds by preset.
        columns: the metrics of the results table.
    """

    name: str
    summary: str
    presets: dict[str, C]
    seeds: dict[str, int]
    columns: Sequence[Column]

    @abstractmethod
    def arms(self, config: C) -> list[str]:
        """Names of what is compared."""

    @abstractmethod
    def run_part(self, config: C, arm: str, seed: int, report: Report) -> PartResult:
        """Train and measure one arm with one seed."""

    def run_arm(
        self, config: C, arm: str, seeds: Sequence[int], report: SeedReport
    ) -> Iterator[tuple[int, PartResult]]:
        """Train and measure one arm with several seeds, here one after the other."""
        for seed in seeds:
            yield seed, self.run_part(config, arm, seed, partial(report, seed))

    @abstractmethod
    def pictures(self, config: C, run: RunFolder) -> Iterator[Picture]:
        """The figures of the report, from the models and metrics in the run folder."""

    @abstractmethod
    def notes(self, config: C) -> list[str]:
        """Paragraphs for the report: the protocol, what is the paper's and what is our choice."""

    def sheets(self, config: C, run: RunFolder) -> list[Sheet]:
        """Further tables of the report; none unless an experiment has them."""
        return []

    def conclusions(self, config: C, run: RunFolder) -> list[str]:
        """What follows from the numbers, written from them; nothing unless an experiment draws any."""
        return []

    def preset(self, name: str) -> C:
        if name not in self.presets:
            raise unknown_name("preset", name, self.presets)
        return self.presets[name]


def override(config: C, changes: Sequence[str]) -> C:
    """A configuration with some fields changed by ``key=value`` strings, each read as the type of the field.

    Raises:
        UnknownNameError: no field has that name; the message offers the nearest ones.
        InvalidInputError: a string is not key=value, or the value has the wrong type.
    """
    known = {f.name: getattr(config, f.name) for f in fields(config)}
    values: dict[str, Any] = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise InvalidInputError(f"--set: expected key=value, got {change!r}.")
        if key not in known:
            raise unknown_name("setting", key, known)
        values[key] = _parse(key, text, known[key])
    return replace(config, **values)


def _parse(key: str, text: str, current: Any) -> Any:
    if isinstance(current, str):
        return text
    if isinstance(current, tuple):
        return tuple(_parse(key, part, current[0]) for part in text.split(",") if part)
    try:
        value = json.loads(text.lower())
    except json.JSONDecodeError:
        value = None
    wanted = type(current)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"--set {key}: expected a {wanted.__name__} like {current!r}, got {text!r}.")
    if wanted is int and value != int(value):
        raise InvalidInputError(f"--set {key}: expected a whole number, got {text!r}.")
    return wanted(value)
