"""The results table and the self-contained HTML page of a run."""

from __future__ import annotations

import base64
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.table import Table

from nablanets.serialization import atomic_path
from nablanets_studies.machinery.base import Experiment, Picture
from nablanets_studies.machinery.store import Row, RunFolder


class Line(NamedTuple):
    """One arm of the table, as text."""

    arm: str
    parameters: str
    cells: list[str]
    seconds: str
    seeds: int


def summarise(experiment: Experiment[Any], rows: list[Row]) -> list[Line]:
    """One line per arm: mean and standard deviation over seeds of each metric."""
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows):
        group = [row for row in rows if row.arm == arm]
        cells = [_spread([row.metrics.get(c.metric) for row in group], c.spec) for c in experiment.columns]
        parameters = f"{max(row.parameters for row in group):,}"
        lines.append(Line(arm, parameters, cells, _spread([row.seconds for row in group], ".1f"), len(group)))
    return lines


def _spread(values: list[float | None], spec: str) -> str:
    """Mean +- standard deviation, or a dash where an arm has no such metric."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):{spec}}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):{spec}}"


def results_table(experiment: Experiment[Any], run: RunFolder) -> Table:
    """The table for the terminal."""
    lines = summarise(experiment, run.rows())
    seeds = max((line.seeds for line in lines), default=0)
    table = Table(title=f"{experiment.name}: mean ± standard deviation over {seeds} seeds")
    for title in ("arm", "parameters", *(c.title for c in experiment.columns), "seconds"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for line in lines:
        table.add_row(line.arm, line.parameters, *line.cells, line.seconds)
    return table


def write_report(experiment: Experiment[Any], config: Any, run: RunFolder) -> Path:
    """Draw the figures and write report.html, which needs no other file."""
    results = run.results()
    pictures = [_embed(run, picture) for picture in experiment.pictures(config, run)]
    page = _template().render(
        experiment=experiment,
        description=run.description(),
        environment=results["environment"],
        lines=summarise(experiment, run.rows()),
        sheets=experiment.sheets(config, run),
        conclusions=experiment.conclusions(config, run),
        notes=experiment.notes(config),
        pictures=pictures,
    )
    target = run.path / "report.html"
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("nablanets_studies.machinery", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "report.html.j2"
    )


def _embed(run: RunFolder, picture: Picture) -> dict[str, str]:
    path = run.figure_path(picture.name)
    FigureCanvasAgg(picture.figure)
    with atomic_path(path) as temporary:
        picture.figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    return {"caption": picture.caption, "data": base64.b64encode(path.read_bytes()).decode("ascii")}
