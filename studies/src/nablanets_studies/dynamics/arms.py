"""What the experiments on Hamiltonian systems compare: networks by the structure that they are given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

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
        radial_parameters: budget of networks of one variable.
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
    x = problem.trajectory(x0, times, rtol=1e-9)  # (t, orbits, d)
    test = max(1, round(config.test_fraction * config.orbits))
    held_out = max(1, round(config.validation_fraction * config.orbits))
    return Orbits(
        train=x[:, test + held_out :],
        validation=x[:, test : test + held_out],
        test=x[:, :test],
        times=times,
    )


@dataclass(frozen=True)
class Structure:
    """What a network is told of a system beforehand.

    Attributes:
        name: of the structure.
        title: of the group of arms that have it, on the page.
        variables: how many numbers the learned potential is a function of, for n positions; None: the network is the
            gradient of the whole H(q, p).
        embed: turns a gradient map of these variables into one of the n positions.
    """

    name: str
    title: str
    variables: Callable[[int], int] | None = None
    embed: Callable[[GradientMap], GradientMap] = lambda inner: inner

    @property
    def separable(self) -> bool:
        """Whether H = T(p) + V(q), with learned masses and a network for V."""
        return self.variables is not None


def _of_difference(inner: GradientMap) -> GradientMap:
    """grad V(q_1 - q_2) for two bodies in the plane, from grad V."""
    difference = torch.cat([torch.eye(2), -torch.eye(2)], dim=1)  # (2, 4)
    return Pullback(inner, difference)


def _of_log_distance(inner: GradientMap) -> GradientMap:
    """grad V(log |q_1 - q_2|) for two bodies in the plane, from V'."""
    return pair_forces(inner, 2, 2, kind="log")


PLAIN = Structure("plain", "Plain networks on the 8-D state")
SEPARABLE = Structure("separable", "Networks of the positions beside learned masses", variables=lambda n: n)
PAIR = Structure("pair", "Networks of q1 - q2 beside learned masses", variables=lambda n: 2, embed=_of_difference)
RADIAL = Structure(
    "radial", "Networks of log |q1 - q2| beside learned masses", variables=lambda n: 1, embed=_of_log_distance
)


@dataclass(frozen=True)
class Arm:
    """A network in its structure.

    Attributes:
        name: of the arm.
        make: (features, width) -> network.
        structure: what it is told of the system.
        learns: grad H ("gradient"), x' ("derivative"), or the state after one interval ("flow").
        ours: whether it is one of our gradient networks; the others are baselines.
        levenberg: fitted by Levenberg-Marquardt in float64 instead of Adam in float32.
        convex_only: can learn convex energies only.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    structure: Structure = PLAIN
    learns: Literal["gradient", "derivative", "flow"] = "gradient"
    ours: bool = False
    levenberg: bool = False
    convex_only: bool = False

    def applies_to(self, problem: Mechanics) -> bool:
        """Whether the arm can learn the problem at all."""
        if self.convex_only and not problem.convex:
            return False
        return not self.structure.separable or problem.masses is not None


def _two_layers(features: int, width: int) -> nn.Module:
    return GradNetC(features, width, 2)


def _one_layer(features: int, width: int) -> nn.Module:
    return GradNetC(features, width, 1)


def _modules(features: int, width: int) -> nn.Module:
    return GradNetM(features, width, 4 if features > 2 else 2)


def _transformed(features: int, width: int) -> nn.Module:
    return GradNetTransformed(features, width, 2, 4)


def _transformed_balls(features: int, modules: int) -> nn.Module:
    return GradNetTransformed(features, 2, modules, 8, activation="radial")


def _sympnet(features: int, width: int) -> nn.Module:
    shears = [GradNetC(features // 2, width, 1, activation="tanh", linear=False) for _ in range(8)]
    return SympNet(shears)


def _by_name(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


TWO_BODY = _by_name(
    Arm("gradnet-c", _two_layers, ours=True),
    Arm("gradnet-m", _modules, ours=True),
    Arm("gradnet-t", _transformed_balls, ours=True),
    Arm("mlp", MLP, learns="derivative"),
    Arm("hnn", mlp_potential),
    Arm("sympnet", _sympnet, learns="flow"),
    Arm("pair-gradnet-c", _two_layers, PAIR, ours=True, levenberg=True),
    Arm("pair-gradnet-m", _modules, PAIR, ours=True, levenberg=True),
    Arm("pair-gradnet-t", _transformed, PAIR, ours=True, levenberg=True),
    Arm("pair-hnn", mlp_potential, PAIR, levenberg=True),
    Arm("radial-gradnet-c", _one_layer, RADIAL, ours=True, levenberg=True),
    Arm("radial-hnn", mlp_potential, RADIAL, levenberg=True),
)

ZOO = _by_name(
    Arm("gradnet-c", _two_layers, ours=True, levenberg=True),
    Arm("gradnet-t", _transformed, ours=True, levenberg=True),
    Arm("mlp", MLP, learns="derivative", levenberg=True),
    Arm("hnn", mlp_potential, levenberg=True),
    Arm("icnn", icnn_gradient, levenberg=True, convex_only=True),
    Arm("sympnet", _sympnet, learns="flow"),
    Arm("separable-gradnet-c", _two_layers, SEPARABLE, ours=True, levenberg=True),
    Arm("separable-gradnet-t", _transformed, SEPARABLE, ours=True, levenberg=True),
    Arm("separable-hnn", mlp_potential, SEPARABLE, levenberg=True),
)


def build(arm: Arm, config: DynamicsConfig, features: int) -> nn.Module:
    """The network to fit: a map of all of x = (q, p)."""
    if arm.structure.variables is None:
        return match_parameters(lambda width: arm.make(features, width), config.parameters)
    positions = features // 2
    variables = arm.structure.variables(positions)
    budget = config.radial_parameters if variables == 1 else config.structured_parameters
    kinetic = Quadratic(positions, 0, monotone=True, bias=False)
    inner = match_parameters(lambda width: arm.make(variables, width), budget)
    potential = arm.structure.embed(cast(GradientMap, inner))
    return SeparableHamiltonian(kinetic, potential).hamiltonian


def as_system(arm: Arm, net: nn.Module) -> nn.Module:
    """The fitted network as a system (or a symplectic map), in float64."""
    net = net.double()
    if arm.learns == "flow":
        return net
    if arm.learns == "derivative":
        return FieldSystem(net, cast(int, net.config()["features"]))  # type: ignore[operator]
    if not arm.structure.separable:
        return HamiltonianSystem(cast(GradientMap, net))
    potential, kinetic = (cast(Pullback, part).inner for part in cast(Sum, net).parts)
    return SeparableHamiltonian(kinetic, potential)


def targets(arm: Arm, problem: Mechanics, x: Tensor) -> Samples:
    """What an arm learns from states (t, m, d): gradients, derivatives, or the next state on the orbit."""
    if arm.learns == "flow":
        now = x[:-1].flatten(0, 1)
        then = x[1:].flatten(0, 1)
        return now, then
    states = x.flatten(0, 1)  # (t m, d)
    if arm.learns == "derivative":
        return states, problem.field(states)
    return states, problem.gradient(states)


class Trained(NamedTuple):
    """A system, the record of its fit, and the processor time of all fits that led to it."""

    system: nn.Module
    result: FitResult
    processor_seconds: float


def train(arm: Arm, problem: Mechanics, config: DynamicsConfig, orbits: Orbits, seed: int) -> Trained:
    """The system of an arm; Adam's rate and the best of several starts are chosen by validation error."""
    begin = time.process_time()
    dtype = torch.float64 if arm.levenberg else torch.float32
    data = _cast(targets(arm, problem, orbits.train), dtype)
    held_out = _cast(targets(arm, problem, orbits.validation), dtype)

    def fresh() -> nn.Module:
        net = build(arm, config, problem.features).to(dtype)
        start_from_data(net, *data)
        return net

    fit_network = _by_levenberg if arm.levenberg else _by_adam
    net, result = fit_network(fresh, data, held_out, config, seed)
    return Trained(as_system(arm, net), result, time.process_time() - begin)


def _by_adam(
    fresh: Callable[[], nn.Module], data: Samples, held_out: Samples, config: DynamicsConfig, seed: int
) -> tuple[nn.Module, FitResult]:
    """One fit for each learning rate, from the same start; the best is kept."""
    settings = FitSettings(steps=config.steps, batch_size=config.batch_size, seed=seed)
    selected = fit_best_rate(fresh, data, held_out, rates=config.rates, seed=seed, settings=settings)
    return selected.net, selected.result


def _by_levenberg(
    fresh: Callable[[], nn.Module], data: Samples, held_out: Samples, config: DynamicsConfig, seed: int
) -> tuple[nn.Module, FitResult]:
    """Several starts, of which all but the best are dropped after a fifth of the steps."""
    torch.manual_seed(seed)
    settings = FitSettings(
        optimizer="levenberg",
        steps=config.lm_steps,
        batch_size=config.lm_samples,
        validate_every=5,
        seed=seed,
    )
    return fit_best_start(
        fresh,
        *data,
        validation=held_out,
        starts=config.lm_starts,
        start_steps=max(1, config.lm_steps // 5),
        settings=settings,
        progress=False,
    )


def _cast(samples: Samples, dtype: torch.dtype) -> Samples:
    x, g = samples
    return x.to(dtype), g.to(dtype)
