"""Time per evaluation of exported maps: one point at a time in C, NumPy and torch, on one thread."""

from __future__ import annotations

import ctypes
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from nablanets import GradientMap, GradNetC, GradNetM, export
from timing import QUICK, median_time, one_thread, print_table

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
CALLS = 2_000 if QUICK else 20_000
REPEATS = 3 if QUICK else 9
#: Calls a function of an exported file again and again, at points that change.
LOOP = """
#include "field.c"
double run(int calls, int part, {type} *x);
double run(int calls, int part, {type} *x)
{{
    {type} out[{d} * {d}];
    double total = 0;
    for (int n = 0; n < calls; n++) {{
        x[n % {d}] = ({type})(n % 97) / 97;
        if (part == 0) {{
            field_gradient(x, out);
        }} else if (part == 1) {{
            out[0] = field_potential(x);
        }} else {{
            field_jacobian(x, out);
        }}
        total += (double)out[0];
    }}
    return total;
}}
"""
NETWORKS: dict[str, Callable[[], GradientMap]] = {
    "M, softmax, d = 2, 12 units x 4": lambda: GradNetM(2, 12, 4, activation="softmax", monotone=True),
    "C, tanh, d = 2, 24 units x 4": lambda: GradNetC(2, 24, 4, activation="tanh", monotone=True),
    "M, softplus, d = 8, 64 units x 1": lambda: GradNetM(8, 64, 1, activation="softplus", monotone=True),
    "M, softmax, d = 64, 128 units x 2": lambda: GradNetM(64, 128, 2, activation="softmax", monotone=True),
}
PARTS = ("gradient", "potential", "jacobian")


def in_c(net: GradientMap, precision: str, folder: Path) -> list[float]:
    """Seconds per call of each function."""
    export(net, folder / "field.c", "c", precision=precision)
    kind = "double" if precision == "double" else "float"
    (folder / "loop.c").write_text(LOOP.format(type=kind, d=net.features))
    library = folder / f"{precision}.so"
    options = ["-std=c99", "-O2", "-fPIC", "-shared"]
    subprocess.run([str(COMPILER), *options, str(folder / "loop.c"), "-o", str(library), "-lm"], check=True)
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_double
    x = torch.zeros(net.features, dtype=torch.float64 if precision == "double" else torch.float32)
    pointer = ctypes.c_void_p(x.data_ptr())
    calls = max(10, CALLS // net.features)
    return [
        median_time(lambda part=part: run(calls, part, pointer), REPEATS) / calls  # type: ignore[misc]
        for part in range(len(PARTS))
    ]


@torch.no_grad()
def in_python(net: GradientMap, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds per call of each function by the NumPy module, and by torch."""
    export(net, folder / "field.py", "numpy")
    module = runpy.run_path(str(folder / "field.py"))
    x = torch.rand(1, net.features, dtype=torch.float64)
    point = x.numpy()
    calls = 20 if QUICK else 200
    numpy_calls = [lambda: module["gradient"](point), lambda: module["potential"](point)]
    torch_calls = [lambda: net(x), lambda: net.potential(x), lambda: net.jacobian(x).dense()]
    return [median_time(c, calls) for c in numpy_calls], [median_time(c, calls) for c in torch_calls]


def main() -> None:
    if COMPILER is None:
        print("There is no C compiler (cc, gcc, clang): nothing to compare.")
        return
    one_thread()
    rows = []
    for name, build in NETWORKS.items():
        net = build().double()
        with tempfile.TemporaryDirectory() as folder:
            double = in_c(net, "double", Path(folder))
            single = in_c(net, "float", Path(folder))
            numpy_times, torch_times = in_python(net, Path(folder))
        for part, label in enumerate(PARTS):
            numpy_time = f"{1e6 * numpy_times[part]:.0f}" if part < len(numpy_times) else "-"
            times = [f"{1e6 * double[part]:.2f}", f"{1e6 * single[part]:.2f}"]
            rows.append([name if part == 0 else "", label, *times, numpy_time, f"{1e6 * torch_times[part]:.0f}"])
    columns = ["network", "function", "C double", "C float", "NumPy", "torch"]
    print_table(f"microseconds per evaluation of one point, {COMPILER} -O2, one thread", columns, rows)


if __name__ == "__main__":
    main()
