"""Training steps and Levenberg-Marquardt iterations against autograd, torch.func and an MLP, on one thread.

    python benchmarks/training.py [--quick]

Each row is measured in turns within this one run: processor time, the lower quartile of the repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nablanets import GradNetC, GradNetM
from nablanets.fitting import FitSettings
from nablanets.fitting.levenberg import Levenberg
from nablanets.fitting.objective import squared_error
from nablanets.fitting.optimizers import make_stepper
from nablanets.fitting.problem import make_problem
from nablanets.fitting.stack import Stack
from nablanets.parameters import count_parameters
from nablanets_studies.baselines import MLP, match_parameters
from timing import QUICK, one_thread, print_table

REPEATS = 7 if QUICK else 31
DIMENSIONS = (2, 64) if QUICK else (2, 8, 64, 256, 1024)
# Damping of the iterations that are timed; its value does not matter.
DAMPING = 1e-3


def quartiles(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Processor time of each call in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 2):
        for call, own in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            if repeat >= 2:  # the first ones fill caches
                own.append(1e3 * (time.process_time() - begin))
    return [sorted(own)[len(own) // 4] for own in times]


def samples(count: int, d: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, d)
    direction = torch.ones(d) / d**0.5
    return x, torch.sin(2 * x @ direction).unsqueeze(1) * direction


def plain_iteration(stack: Stack, x: Tensor, g: Tensor) -> None:
    """What an iteration takes if torch.func is left to find the derivatives, and torch to do the linear algebra."""
    jacobian, value = stack._jacobians_by_autograd(stack.theta, x, slice(None))
    rows = jacobian.flatten(2)  # (starts, p, d n)
    residual = (value - g.mT).flatten(1)
    normal = rows @ rows.mT
    gradient = (rows @ residual.unsqueeze(-1)).squeeze(-1)
    system = normal + torch.diag_embed(DAMPING * normal.diagonal(dim1=-2, dim2=-1) + 1e-9)
    factor, _ = torch.linalg.cholesky_ex(system)
    step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
    (stack.values(stack.theta + 1e-9 * step, x) - g).square().sum(dim=(1, 2))


def own_iteration(optimizer: Levenberg) -> None:
    """The same by the library: a step that is tried, and the normal equations at its end."""
    everyone = torch.arange(len(optimizer.theta))
    optimizer.theta = optimizer.theta.clone()
    optimizer.dampings.fill_(DAMPING)
    optimizer.error.fill_(0.0)  # no step is good enough, so that all repeats are about the same point
    optimizer._iterate()
    optimizer._set_normal_equations(everyone)


@torch.no_grad()
def levenberg_rows() -> list[tuple[str, ...]]:
    nets: dict[str, Callable[[], nn.Module]] = {
        "GradNetC(2, 7)": lambda: GradNetC(2, 7),
        "GradNetC(2, 7, tanh)": lambda: GradNetC(2, 7, activation="tanh"),
        "GradNetM(2, 7)": lambda: GradNetM(2, 7),
        "GradNetM(2, 7, softmax)": lambda: GradNetM(2, 7, activation="softmax"),
        "GradNetC(8, 7, tanh)": lambda: GradNetC(8, 7, activation="tanh"),
    }
    rows = []
    for name, build in nets.items():
        for starts, count in ((1, 57), (16, 128), (1, 1000)):
            members = [build() for _ in range(starts)]
            features = int(getattr(members[0], "features"))  # noqa: B009
            x, g = samples(count, features)
            optimizer = Levenberg(members, (x, g), (x, g), rows=count, halve_every=None)
            stack = Stack(members, torch.float64)
            wide = (x.double(), g.double())
            calls: Sequence[Callable[[], None]] = (
                lambda optimizer=optimizer: own_iteration(optimizer),
                lambda stack=stack, wide=wide: plain_iteration(stack, *wide),
            )
            own, plain = quartiles(calls)
            size = str(optimizer.theta.shape[1])
            rows.append((name, size, f"{starts} x {count}", f"{own:.2f}", f"{plain:.2f}", f"{plain / own:.2f}"))
    return rows


def stepper(net: nn.Module, batch: int, features: int) -> Callable[[], object]:
    """One step of Adam, as fit takes it."""
    x, g = samples(2 * batch, features)
    settings = FitSettings(batch_size=batch)
    problem = make_problem(net, x, g, (x[:8], g[:8]), settings)
    optimizer = make_stepper(net, problem, settings)
    return lambda: optimizer.advance(1e-3)


def by_autograd(net: nn.Module, batch: int, features: int) -> Callable[[], object]:
    x, g = samples(batch, features)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        squared_error(net, x, g).backward()
        optimizer.step()

    return step


def step_rows() -> list[tuple[str, ...]]:
    rows = []
    for d in DIMENSIONS:
        batch = 1000 if d <= 64 else 200
        nets: dict[str, Callable[[], nn.Module]] = {
            "GradNetM, 4 modules of 7": lambda d=d: GradNetM(d, 7),
            "GradNetM, 4 modules of 64": lambda d=d: GradNetM(d, 64),
            "GradNetC, 64 units": lambda d=d: GradNetC(d, 64),
            "GradNetC, 64 units, tanh": lambda d=d: GradNetC(d, 64, activation="tanh"),
        }
        for name, build in nets.items():
            net = build()
            peer = match_parameters(lambda h, d=d: MLP(d, h), count_parameters(net))
            calls = [stepper(net, batch, d), by_autograd(build(), batch, d), by_autograd(peer, batch, d)]
            own, autograd, mlp = quartiles(calls)
            times = (f"{own:.2f}", f"{autograd:.2f}", f"{autograd / own:.2f}", f"{mlp:.2f}")
            rows.append((str(d), name, str(batch), *times, f"{mlp / own:.2f}"))
    return rows


def main() -> None:
    one_thread()
    print_table(
        "One iteration of Levenberg-Marquardt, one thread, float64",
        ("network", "parameters", "starts x samples", "own [ms]", "torch.func [ms]", "ratio"),
        levenberg_rows(),
    )
    print_table(
        "One step of Adam, one thread, float32 (MLP: as many parameters)",
        ("d", "network", "batch", "own [ms]", "autograd [ms]", "ratio", "MLP [ms]", "MLP / own"),
        step_rows(),
    )


if __name__ == "__main__":
    main()
