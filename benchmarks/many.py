"""fit_many with 30 seeds against fit with one, on the convex field of the paper's 2-D problem.

    python benchmarks/many.py

CPU time on one thread, the least of two runs of 1000 steps, with the time to set up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nablanets import GradNetC, GradNetM, fit
from nablanets.fitting import FitSettings, fit_many
from nablanets_studies.problems.fields import ConvexField

BUILD = {
    "GradNetC(100)": lambda: GradNetC(2, 7, 4, activation="tanh", monotone=True, linear=False),
    "GradNetM(94)": lambda: GradNetM(2, 7, 4, activation="softmax", monotone=True, linear=False),
}


def seconds(call: Callable[[], object], repeats: int = 2) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def compare(name: str, batch_size: int) -> str:
    generator = torch.Generator().manual_seed(0)
    (x, g), validation = (ConvexField().sample(count, generator) for count in (100_000, 2000))
    build, settings = BUILD[name], FitSettings(steps=1000, batch_size=batch_size, validate_every=200)
    one = seconds(lambda: fit(build(), x, g, validation=validation, settings=settings, progress=False))
    many = seconds(lambda: fit_many(build, x, g, seeds=30, validation=validation, settings=settings))
    return f"{name} batch {batch_size}: fit {one:.2f} s, fit_many {many:.2f} s, {many / one:.1f} times as long"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for batch_size in (32, 100, 1000):
        for name in BUILD:
            print(compare(name, batch_size), flush=True)
