"""One page about an automatic fit: a single HTML file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from nablanets.automatic.result import AutofitResult, ComponentError
from nablanets.errors import MissingPackageError
from nablanets.printing import html_table
from nablanets.serialization import atomic_path
from nablanets.verify import Certificate

_STYLE = (
    "body { font-family: sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; } "
    "table { border-collapse: collapse; margin: 1em 0; } "
    "td, th { padding: 0.2em 0.8em; border-bottom: 1px solid #ccc; } "
    "img { max-width: 100%; }"
)
_COMPONENT_COLUMNS = ("component", "RMSE", "R^2")


def write_report(
    path: Path,
    result: AutofitResult,
    certificate: Certificate,
    *,
    title: str,
    x: Tensor,
    tests: Sequence[ComponentError] = (),
) -> None:
    """Write the page: errors in the data's units, pictures, what was tried, and the certificate.

    Args:
        path: of the HTML file; it is written whole or not at all.
        result: of :func:`~nablanets.automatic.autofit`.
        certificate: of the map.
        title: such as the name of the data's file.
        x: the points that were fitted, (n, d).
        tests: errors on a test file, if there was one.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", result._repr_html_()]
    if tests:
        rows = [[each.name, f"{each.rmse:.4g} {each.unit}".strip(), f"{each.r2:.6f}"] for each in tests]
        parts.append(html_table(_COMPONENT_COLUMNS, rows, title="Errors on the test file", numbers={"RMSE", "R^2"}))
    parts += [f"<p>{html.escape(remark)}</p>" for remark in result.remarks]
    parts += [_pictures(result, x), certificate._repr_html_()]
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page = f"{head}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def write_history(path: Path, result: AutofitResult) -> None:
    """Write the history of the chosen recipe's training on the first fold as CSV; closed forms have none."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["step", "seconds", "training_error", "validation_error"])
    for row in result.history:
        writer.writerow([row.step, row.seconds, row.training_error, row.validation_error])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _pictures(result: AutofitResult, x: Tensor) -> str:
    """The figure inside the page; a sentence where there is none."""
    if result.out_of_fold is None:
        return ""
    try:
        figure = result.plot(x)
    except MissingPackageError as reason:
        return f"<p>{html.escape(str(reason))}</p>"
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    encoded = base64.b64encode(picture.getvalue()).decode()
    return f'<img alt="predictions against data, errors over the inputs" src="data:image/png;base64,{encoded}">'
