"""How long programs wait before anything happens, beside `import torch`: processor time of whole processes."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from timing import QUICK, print_table

HELP = "import sys; sys.argv = ['nablanets', '--help']; from nablanets.cli import main; main()"
PROGRAMS = {"import torch": "import torch", "import nablanets": "import nablanets", "nablanets --help": HELP}
TURNS = 3 if QUICK else 15


def processor_seconds(code: str) -> float:
    """Processor time, user and system, of a Python process that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for code in PROGRAMS.values():  # fills the caches of the file system
        processor_seconds(code)
    for _ in range(TURNS):
        for name, code in PROGRAMS.items():
            times[name].append(processor_seconds(code))
    medians = {name: statistics.median(values) for name, values in times.items()}
    torch_alone = medians["import torch"]
    rows = [[name, f"{value:.2f}", f"{value / torch_alone:.2f}"] for name, value in medians.items()]
    print_table(f"start-up, median of {TURNS}", ["program", "seconds", "relative to import torch"], rows)


if __name__ == "__main__":
    main()
