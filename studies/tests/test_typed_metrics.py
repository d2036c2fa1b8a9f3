"""Typed results: what is written is what is read, and missing numbers are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import pytest

from nablanets.errors import InvalidInputError
from nablanets_studies.catalog import find_experiment
from nablanets_studies.dynamics.metrics import LongRun, OrbitMetrics
from nablanets_studies.dynamics.molecule_measures import DynamicsMetrics, MoleculeMetrics
from nablanets_studies.dynamics.solar_measures import PositionErrors, SolarMetrics
from nablanets_studies.fields.field2d import Field2DMetrics
from nablanets_studies.fields.high_dimensional import HighDimensionalMetrics
from nablanets_studies.fields.motor_measures import MotorMetrics
from nablanets_studies.fields.terrain import TerrainMetrics
from nablanets_studies.machinery.metrics import Metrics, choice, group, measured, nested, series, summaries_of
from nablanets_studies.machinery.store import Row
from nablanets_studies.pictures.picture_findings import PictureMetrics, Score
from nablanets_studies.pictures.super_resolution_findings import SuperResolutionMetrics
from nablanets_studies.sinusoid.metrics import SinusoidMetrics


@dataclass(frozen=True, kw_only=True)
class Inner(Metrics):
    drift: float | None = None
    windows: tuple[float, ...] = field(default=(), metadata=series("window_", first=1))


@dataclass(frozen=True, kw_only=True)
class Outer(Metrics):
    error: float
    gates: Mapping[str, float] = field(default_factory=dict, metadata=group("gate of "))
    kind: str | None = field(default=None, metadata=choice("function of "))
    inner: Inner = field(metadata=nested(Inner))


def test_what_is_written_is_what_is_read():
    whole = Outer(error=0.5, gates={"a": 1.0, "b": 2.0}, kind="log", inner=Inner(drift=0.1, windows=(3.0, 4.0)))
    written = whole.to_metrics()
    assert written == {
        "error": 0.5, "gate of a": 1.0, "gate of b": 2.0, "function of log": 1.0, "drift": 0.1, "window_1": 3.0,
        "window_2": 4.0,
    }  # fmt: skip
    assert Outer.from_metrics(written) == whole
    bare = Outer(error=1.0, inner=Inner())
    assert bare.to_metrics() == {"error": 1.0}
    assert Outer.from_metrics({"error": 1.0}) == bare


def test_a_number_that_every_part_has_must_be_there():
    with pytest.raises(InvalidInputError, match="Outer: expected a number 'error'"):
        Outer.from_metrics({"drift": 0.1})


def test_summaries_are_over_the_seeds_that_have_the_value():
    rows = [
        Row("a", 0, 1, 1.0, {"error": 1.0, "drift": 5.0}),
        Row("a", 1, 1, 1.0, {"error": 3.0}),
        Row("b", 0, 1, 1.0, {"error": 4.0}),
    ]
    results = measured(rows, Outer)
    assert {arm: s.mean for arm, s in summaries_of(results, lambda m: m.error).items()} == {"a": 2.0, "b": 4.0}
    drift = summaries_of(results, lambda m: m.inner.drift)
    assert {arm: (s.mean, s.seeds) for arm, s in drift.items()} == {"a": (5.0, 1)}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("field2d-convex", (Field2DMetrics,)),
        ("terrain", (TerrainMetrics,)),
        ("motor-map", (MotorMetrics,)),
        ("sinusoid", (SinusoidMetrics,)),
        ("piecewise-quadratic", (HighDimensionalMetrics,)),
        ("two-body", (OrbitMetrics, LongRun)),
        ("hamiltonian-zoo", (OrbitMetrics, LongRun)),
        ("solar-system", (SolarMetrics, PositionErrors)),
        ("molecule", (MoleculeMetrics, DynamicsMetrics)),
        ("classification", (PictureMetrics, Score)),
        ("segmentation", (PictureMetrics, Score)),
        ("super-resolution", (SuperResolutionMetrics,)),
    ],
)
def test_columns_of_the_results_table_are_measured(name, kinds):
    """A misspelt column would be a column of dashes."""
    measured_names = {each.name for kind in kinds for each in fields(kind)}
    columns = {column.metric for column in find_experiment(name).columns}
    assert columns <= measured_names
