"""What the experiments on Hamiltonian systems compare: networks by the structure that they are given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nablanets.dynamics import FieldSystem, HamiltonianSystem, SeparableHamiltonian, SympNet
from nablanets.fitting import FitResult, FitSettings, fit_best_start
from nablanets.fitting.batches import Samples
from nablanets.maps import GradientMap, GradNetC, GradNetM, GradNetTransformed, Pullback, Quadratic, Sum, pair_forces
from nablanets_studies.baselines import MLP, icnn_gradient, match_parameters, mlp_potential
from nablanets_studies.machinery.selection import fit_best_rate, start_from_data
from nablanets_studies.problems.mechanics import Mechanics


@dataclass(frozen=True)
class DynamicsConfig:
    """Settings of a run.

    Attributes:
        orbits, points: trajectories, and states on each at equal times over the span of the problem.
        test_fraction, validation_fraction: of the orbits, whole ones.
        noise: of the initial speeds where the problem has that.
        parameters: budget of plain networks.
        structured_parameters: budget of networks of fewer variables (differences of positions, positions).
        radial_parameters: budget of networks of one distance.
        steps, batch_size, rates: of Adam; the rate is chosen by validation error.
        lm_steps, lm_starts, lm_samples: of Levenberg-Marquardt: iterations, starts (all but one dropped on the way) and
            samples at the beginning.
        followed: test orbits that are followed over the span.
        long_orbits, periods: how many are followed over how many periods.
    """

    orbits: int = 1000
    points: int = 50
    test_fraction: float = 0.2
    validation_fraction: float = 0.08
    noise: float = 5e-2
    parameters: int = 2000
    structured_parameters: int = 130
    radial_parameters: int = 50
    steps: int = 1500
    batch_size: int = 500
    rates: tuple[float, ...] = (1e-2, 3e-2)
    lm_steps: int = 200
    lm_starts: int = 4
    lm_samples: int = 500
    followed: int = 100
    long_orbits: int = 5
    periods: int = 100


class Orbits(NamedTuple):
    """States (t, m, d) of training, validation and test trajectories at equal times."""

    train: Tensor
    validation: Tensor
    test: Tensor
    times: list[float]


def draw_orbits(problem: Mechanics, config: DynamicsConfig, seed: int) -> Orbits:
    """Trajectories of a problem, split by whole orbits."""
    times = torch.linspace(0, problem.span, config.points, dtype=torch.float64).tolist()
    x0 = problem.sample(config.orbits, torch.Generator().manual_seed(1000 + seed))
    x = problem.trajectory(x0, times, rtol=1e-9)
    test, held = (max(1, round(f * config.orbits)) for f in (config.test_fraction, config.validation_fraction))
    return Orbits(x[:, test + held :], x[:, test : test + held], x[:, :test], times)


class Arm(NamedTuple):
    """A network in its structure.

    ``make(features, width)`` builds it, ``structure`` says what it sees ("plain": all of x; "separable": q, beside
    learned masses; "pair": q_1 - q_2; "radial": log |q_1 - q_2|), ``learns`` a "gradient", the "derivative" or the "flow".
    """

    make: Callable[[int, int], nn.Module]
    structure: str = "plain"
    learns: str = "gradient"
    ours: bool = False
    levenberg: bool = False


def _sympnet(features: int, width: int) -> nn.Module:
    return SympNet([GradNetC(features // 2, width, 1, activation="tanh", linear=False) for _ in range(8)])


#: Networks by name: (features, width) -> network.
_NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "gradnet-c": lambda d, h: GradNetC(d, h, 2),
    "gradnet-m": lambda d, h: GradNetM(d, h, 4 if d > 2 else 2),
    "gradnet-t": lambda d, h: GradNetTransformed(d, h, 2, 4),
    "ridge": lambda d, h: GradNetC(d, h, 1),
    "transformed-balls": lambda d, m: GradNetTransformed(d, 2, m, 8, activation="radial"),
    "hnn": mlp_potential,
    "icnn": icnn_gradient,
}

TWO_BODY = {
    "gradnet-c": Arm(_NETS["gradnet-c"], ours=True),
    "gradnet-m": Arm(_NETS["gradnet-m"], ours=True),
    "gradnet-t": Arm(_NETS["transformed-balls"], ours=True),
    "mlp": Arm(MLP, learns="derivative"),
    "hnn": Arm(_NETS["hnn"]),
    "sympnet": Arm(_sympnet, learns="flow"),
    "pair-gradnet-c": Arm(_NETS["gradnet-c"], "pair", ours=True, levenberg=True),
    "pair-gradnet-m": Arm(_NETS["gradnet-m"], "pair", ours=True, levenberg=True),
    "pair-gradnet-t": Arm(_NETS["gradnet-t"], "pair", ours=True, levenberg=True),
    "pair-hnn": Arm(_NETS["hnn"], "pair", levenberg=True),
    "radial-gradnet-c": Arm(_NETS["ridge"], "radial", ours=True, levenberg=True),
    "radial-hnn": Arm(_NETS["hnn"], "radial", levenberg=True),
}

ZOO = {
    "gradnet-c": Arm(_NETS["gradnet-c"], ours=True, levenberg=True),
    "gradnet-t": Arm(_NETS["gradnet-t"], ours=True, levenberg=True),
    "mlp": Arm(MLP, learns="derivative", levenberg=True),
    "hnn": Arm(_NETS["hnn"], levenberg=True),
    "icnn": Arm(_NETS["icnn"], levenberg=True),
    "sympnet": Arm(_sympnet, learns="flow"),
    "separable-gradnet-c": Arm(_NETS["gradnet-c"], "separable", ours=True, levenberg=True),
    "separable-gradnet-t": Arm(_NETS["gradnet-t"], "separable", ours=True, levenberg=True),
    "separable-hnn": Arm(_NETS["hnn"], "separable", levenberg=True),
}


def build(arm: Arm, config: DynamicsConfig, features: int) -> nn.Module:
    """The network to fit: a map of all of x = (q, p)."""
    n = features // 2
    if arm.structure == "plain":
        return match_parameters(lambda width: arm.make(features, width), config.parameters)
    kinetic = Quadratic(n, 0, monotone=True, bias=False)
    seen = {"separable": n, "pair": 2, "radial": 1}[arm.structure]
    budget = config.radial_parameters if seen == 1 else config.structured_parameters
    inner = cast(GradientMap, match_parameters(lambda width: arm.make(seen, width), budget))
    if arm.structure == "pair":
        inner = Pullback(inner, torch.cat([torch.eye(2), -torch.eye(2)], dim=1))
    elif arm.structure == "radial":
        inner = pair_forces(inner, 2, 2, kind="log")
    return SeparableHamiltonian(kinetic, inner).hamiltonian


def as_system(arm: Arm, net: nn.Module) -> nn.Module:
    """The fitted network as a system (or a symplectic map), in float64."""
    net = net.double()
    if arm.learns == "flow":
        return net
    if arm.learns == "derivative":
        return FieldSystem(net, cast(int, net.config()["features"]))  # type: ignore[operator]
    if arm.structure == "plain":
        return HamiltonianSystem(cast(GradientMap, net))
    potential, kinetic = (cast(Pullback, part).inner for part in cast(Sum, net).parts)
    return SeparableHamiltonian(kinetic, potential)


def targets(arm: Arm, problem: Mechanics, x: Tensor) -> Samples:
    """What an arm learns from states (t, m, d): gradients, derivatives, or the next state on the orbit."""
    if arm.learns == "flow":
        return x[:-1].flatten(0, 1), x[1:].flatten(0, 1)
    flat = x.flatten(0, 1)
    return flat, problem.field(flat) if arm.learns == "derivative" else problem.gradient(flat)


class Trained(NamedTuple):
    """A system, the record of its fit, and the processor time of all fits that led to it."""

    system: nn.Module
    result: FitResult
    processor_seconds: float


def train(arm: Arm, problem: Mechanics, config: DynamicsConfig, orbits: Orbits, seed: int) -> Trained:
    """The system of an arm; Adam's rate and the best of several starts are chosen by validation error."""
    begin = time.process_time()
    dtype = torch.float64 if arm.levenberg else torch.float32
    data, held = (_cast(targets(arm, problem, x), dtype) for x in (orbits.train, orbits.validation))

    def fresh() -> nn.Module:
        net = build(arm, config, problem.features).to(dtype)
        start_from_data(net, *data)
        return net

    common = FitSettings(steps=config.steps, batch_size=config.batch_size, seed=seed)
    if arm.levenberg:
        torch.manual_seed(seed)
        settings = common.update(
            optimizer="levenberg", steps=config.lm_steps, batch_size=config.lm_samples, validate_every=5
        )
        halving = max(1, config.lm_steps // 5)
        net, result = fit_best_start(
            fresh,
            *data,
            validation=held,
            starts=config.lm_starts,
            start_steps=halving,
            settings=settings,
            progress=False,
        )
    else:
        net, result, _ = fit_best_rate(fresh, data, held, rates=config.rates, seed=seed, settings=common)
    return Trained(as_system(arm, net), result, time.process_time() - begin)


def _cast(samples: Samples, dtype: torch.dtype) -> Samples:
    x, g = samples
    return x.to(dtype), g.to(dtype)
