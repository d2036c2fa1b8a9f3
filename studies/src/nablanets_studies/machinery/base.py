"""What an experiment is: arms times seeds, run one part at a time, and a page about them."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, get_args, get_type_hints

from matplotlib.figure import Figure
from torch import nn

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.fitting.loop import Report
from nablanets.fitting.settings import HistoryRow
from nablanets_studies.machinery.prose import Prose
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

    Its prose is a template, see :mod:`nablanets_studies.machinery.prose`: the section "Protocol" says what is done and
    what is whose choice; the section "Conclusions", where there is one, says what follows from the numbers of a run.

    Attributes:
        name: on the command line.
        summary: one line.
        template: file name of the template, beside the module of the class.
        presets: complete configurations by name.
        seeds: default number of seeds by preset.
        columns: the metrics of the results table.
    """

    name: str
    summary: str
    template: str
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

    def sheets(self, config: C, run: RunFolder) -> list[Sheet]:
        """Further tables of the report; none unless an experiment has them."""
        return []

    def facts(self, config: C) -> object:
        """What the section "Protocol" needs beside experiment and configuration, as ``facts``; nothing as a rule."""
        return None

    def findings(self, config: C, run: RunFolder) -> object:
        """What follows from the numbers of a run, in types: what the section "Conclusions" knows as ``found``."""
        return None

    def notes(self, config: C) -> list[str]:
        """Paragraphs for the report: the protocol, what is the paper's and what is our choice."""
        return self.prose.paragraphs("protocol", experiment=self, config=config, facts=self.facts(config))

    def conclusions(self, config: C, run: RunFolder) -> list[str]:
        """What follows from the numbers, in words; nothing unless the template has that section."""
        if "conclusions" not in self.prose:
            return []
        found = self.findings(config, run)
        return self.prose.paragraphs("conclusions", experiment=self, config=config, found=found)

    @property
    def prose(self) -> Prose:
        package, _, _ = type(self).__module__.rpartition(".")
        return Prose.of(package, self.template)

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
        example = known[key] if known[key] != () else (_element(config, key),)
        values[key] = _parse(key, text, example)
    return replace(config, **values)


def _element(config: Config, key: str) -> Any:
    """A value of the type of a tuple's elements, from the annotation of the field."""
    kind = get_args(get_type_hints(type(config))[key])[0]
    return kind()


def _parse(key: str, text: str, current: Any) -> Any:
    if isinstance(current, str):
        return text
    if isinstance(current, tuple):
        return tuple(_parse(key, part.strip(), current[0]) for part in text.split(",") if part)
    try:
        value = json.loads(text.lower())
    except ValueError:
        value = None
    wanted = type(current)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"--set {key}: expected a finite number, got {text!r}.")
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"--set {key}: expected a {wanted.__name__} like {current!r}, got {text!r}.")
    if wanted is int and value != int(value):
        raise InvalidInputError(f"--set {key}: expected a whole number, got {text!r}.")
    return wanted(value)
