"""How long one evaluation of a map takes in plain C, as a drive's controller would run it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

from nablanets.errors import ExportError
from nablanets.interop import export
from nablanets.maps import GradientMap

_COMPILERS = ("cc", "gcc", "clang")
#: Measurements, of which the least counts.
_REPEATS = 7
#: Points that are evaluated in turn, so that nothing can be computed once for all calls.
_POINTS = 64

_DRIVER = """
#include <stdio.h>
#include <time.h>
#include "map.h"

static const double points[{count}][2] = {{{points}}};

int main(void)
{{
    double sum = 0.0;
    double least = 1e30;
    for (int repeat = 0; repeat < {repeats}; repeat++) {{
        const clock_t begin = clock();
        for (long call = 0; call < {calls}L; call++) {{
            double f[2];
            map_gradient(points[call % {count}], f);
            sum += f[0] + f[1];
        }}
        const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
        least = seconds < least ? seconds : least;
    }}
    printf("%.17g %.17g\\n", 1e9 * least / {calls}, sum);
    return 0;
}}
"""


def nanoseconds_in_c(net: GradientMap, x: Tensor, calls: int) -> float | None:
    """Processor time of one evaluation of a map of two features, compiled with -O2.

    Args:
        net: the map, in float64.
        x: points (n, 2) to evaluate it at.
        calls: in one measurement; 200,000 take about 0.1 s.

    Returns:
        Nanoseconds; None without a C compiler, or for a map that cannot be written in C.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    points = x[:: max(1, len(x) // _POINTS)][:_POINTS]
    rows = ", ".join(f"{{{first!r}, {second!r}}}" for first, second in points.tolist())
    driver = _DRIVER.format(count=len(points), points=rows, repeats=_REPEATS, calls=calls)
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "driver.c"), Path(folder, "driver")
        try:
            export(net, Path(folder, "map.c"), "c")
        except ExportError:
            return None
        source.write_text(driver, encoding="utf-8")
        command = [
            compiler,
            "-std=c99",
            "-O2",
            "-Wall",
            str(source),
            str(Path(folder, "map.c")),
            "-o",
            str(program),
            "-lm",
        ]
        subprocess.run(command, check=True, capture_output=True)
        done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    nanoseconds, _ = done.stdout.split()
    return float(nanoseconds)
