"""Export of gradient maps to torch programs, ONNX, plain NumPy and plain C."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nablanets.errors import ExportError, InvalidInputError, unknown_name
from nablanets.interop import numpy_module, onnx_model, torch_program
from nablanets.interop.c import module as c_module
from nablanets.maps import GradientMap
from nablanets.maps.ridge import fix_panels
from nablanets.parameters import fixed_copy
from nablanets.verify import TOLERANCE

if TYPE_CHECKING:
    from nablanets.tables import ColumnNames


class Exported(NamedTuple):
    """What :func:`export` wrote: the files, which belong together, and how they were compared with the map."""

    files: tuple[Path, ...]
    check: str


class Format(NamedTuple):
    """A way to write a map: ``evaluate`` runs what was written, or says why it cannot.

    It gives f(x) and F(x), and J(x) where that was written. ``has_columns`` says whether ``write`` takes names and
    units of columns.
    """

    suffix: str
    write: Callable[..., tuple[Path, ...]]
    evaluate: Callable[[tuple[Path, ...], Tensor], tuple[Tensor, ...] | str]
    has_columns: bool = False


FORMATS = {
    "c": Format(".c", c_module.write, c_module.evaluate, has_columns=True),
    "numpy": Format(".py", numpy_module.write, numpy_module.evaluate),
    "onnx": Format(".onnx", onnx_model.write, onnx_model.evaluate),
    "torch": Format(".pt2", torch_program.write, torch_program.evaluate),
}
#: What the numbers of a file may be, by the name of C's type for them.
PRECISIONS = {"double": torch.float64, "float": torch.float32}


def export(
    net: GradientMap,
    path: str | Path,
    format: str,
    *,
    precision: str | None = None,
    columns: ColumnNames | None = None,
) -> Exported:
    r"""Write f and F for programs that do not know this package, run what was written, and compare it with the map.

    - ``"numpy"``: a readable module ``NAME.py`` with functions ``gradient(x)`` and ``potential(x)`` for x of shape
      (*, d), which needs NumPy only, and its weights in ``NAME.weights.npz`` beside it.
    - ``"onnx"``: one file with the input ``x`` (n, d) and the outputs ``gradient`` (n, d) and ``potential`` (n).
    - ``"torch"``: two programs for :func:`torch.export.load`, ``NAME.pt2`` for f and ``NAME-potential.pt2`` for F, with
      x of shape (n, d). They keep the map's parameters.
    - ``"c"``: one C99 file ``NAME.c`` with the functions ``NAME_gradient(x, f)``, ``NAME_potential(x)`` and
      ``NAME_jacobian(x, J)`` of one point, without allocation and with math.h only, and ``NAME.h`` with their
      prototypes. Compiled with ``-DNABLANETS_SELFTEST`` the file is a program that tests itself.

    Args:
        net: a gradient map in float64 or float32.
        path: the file, with the ending that belongs to the format. Files that are there are replaced.
        format: "numpy", "onnx", "torch" or "c".
        precision: "double" or "float", what the files compute in; what the map computes in if None.
        columns: names and units of x and f, for a comment in C; others do not have them.

    Raises:
        UnknownNameError: no such format or precision.
        InvalidInputError: another ending, another dtype, or columns of another number of features.
        ExportError: torch cannot trace the map, NumPy has no word for one of its operations, a package is missing, the
            files cannot be written, or what they compute is not what the map computes.

    >>> import runpy, tempfile
    >>> from nablanets import GradNetM
    >>> net, path = GradNetM(2, 5), Path(tempfile.mkdtemp(), "field.py")
    >>> [file.name for file in export(net, path, "numpy").files]
    ['field.py', 'field.weights.npz']
    >>> runpy.run_path(str(path))["gradient"]([[0.0, 1.0], [2.0, 3.0]]).shape
    (2, 2)
    """
    path = Path(path)
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    chosen = FORMATS[format]
    if path.suffix != chosen.suffix:
        raise InvalidInputError(f"{path}: expected a file that ends in {chosen.suffix} for format {format!r}.")
    if precision is not None and precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if columns is not None and len(columns.x) != net.features:
        raise InvalidInputError(f"export: expected the names of {net.features} columns, got {len(columns.x)}.")
    net = fixed_copy(net).cpu().eval()
    x = _points(net)
    if precision is not None:
        net = net.to(PRECISIONS[precision])
        x = x.to(PRECISIONS[precision])
    fix_panels(net)
    write = functools.partial(chosen.write, columns=columns) if chosen.has_columns else chosen.write
    try:
        files = write(net, x, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}. Choose a folder that you may write to.") from error
    return Exported(files, _compare(net, x, chosen.evaluate(files, x)))


def _points(net: GradientMap) -> Tensor:
    dtype = next((tensor.dtype for tensor in itertools.chain(net.parameters(), net.buffers())), torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(
            f"export: expected a map in float32 or float64, got {dtype}. Convert it with net.float() or net.double()."
        )
    return torch.randn(11, net.features, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def _compare(net: GradientMap, x: Tensor, outputs: tuple[Tensor, ...] | str) -> str:
    if isinstance(outputs, str):
        return f"not compared with the map: {outputs}"
    with torch.no_grad():
        expected = [net(x), net.potential(x)]
        if len(outputs) > len(expected):
            expected.append(net.jacobian(x).dense())
    difference = max(_difference(value, reference) for value, reference in zip(outputs, expected, strict=True))
    if not difference <= TOLERANCE[x.dtype]:
        raise ExportError(
            f"the exported {type(net).__name__} differs from the map by {difference:.1e} of the largest value (allowed "
            f"{TOLERANCE[x.dtype]:.0e}) at {len(x)} random points: do not use it. Check that the map gives finite "
            "values, and the same ones whenever it is called."
        )
    return f"differs from the map by {difference:.1e} of the largest value, at {len(x)} random points"


def _difference(value: Tensor, reference: Tensor) -> float:
    """The largest difference in units of the reference's largest value; NaN if there is one."""
    largest = float(reference.abs().max())
    difference = float((value - reference).abs().max())
    return difference / largest if largest > 0 else difference
