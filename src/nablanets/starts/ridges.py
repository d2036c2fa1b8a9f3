"""Networks that start as the best affine map and the ridge functions that projection pursuit finds."""

from __future__ import annotations

from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import check_samples
from nablanets.fitting.objective import error
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import HasAffinePart, HasProfiles, HasUnits, require, supports
from nablanets.starts.affine import centre_error, framed_root, initialise_affine
from nablanets.starts.pursuit import Ridges, pursue_ridges

# Share of the affine rest that units without a ridge take where a linear term could take all, so that they can learn.
_UNITS_SHARE = 0.1
# Largest standard deviation of a module's arguments: enough for sinh to bend where softmax is still nearly linear.
_MODULE_SPREAD = 0.5
# Profiles go into the units by so many steps of Adam on their tables, at a rate that falls linearly from this one.
_STEPS = 600
_LEARNING_RATE = 0.02
# The weight of a node of a table falls by exp(-3 t^2) to its ends, t = -1 and 1: few samples are there.
_FALL = 3
# Random units of a free network start this much smaller than they would.
_SHRINK = 0.01
# At most so many directions are looked for by default, d / 4 where there are enough units.
_MOST_DIRECTIONS = 64


class _Network(HasAffinePart, HasUnits, Protocol):
    """What this start needs of a network."""


class _ProfileNetwork(_Network, HasProfiles, Protocol):
    """And of one whose units are functions of one variable."""


@torch.no_grad()
def initialise_ridges(
    net: GradientMap, x: Tensor, g: Tensor, *, directions: int | None = None, rounds: int | None = None
) -> None:
    """Start a network as the best affine gradient map and the ridge functions that explain most of what it leaves.

    1. :func:`pursue_ridges` finds directions w, profiles phi along them, and the affine rest.
    2. A network whose units are functions of one variable (GradNet-C) takes each ridge function into a unit, which is
       fitted to the profile. In a modular network each direction goes to a pair of units +w and -w, whose share of the
       module (softmax) is a hyperbolic sine in w . x and bends as the tails of a maximum do.
    3. The affine rest goes to the linear term, or, in monotone networks without one, to the other units.
    4. Where all that is no better than the affine map alone (profiles that the units cannot have, too few units), the
       network starts as that, see :func:`initialise_affine`.

    Args:
        net: a fresh map with the methods of :class:`~nablanets.maps.protocols.HasAffinePart` and
            :class:`~nablanets.maps.protocols.HasUnits`, changed in place: monotone, or with a linear term and the
            methods of :class:`~nablanets.maps.protocols.HasProfiles`.
        x, g: samples, (n, d). Random choices are drawn from torch's random state.
        directions: looked for at once; d / 4 if not given, but at most 64. In a modular network without a linear term
            each takes a unit that the affine rest may need, so there are fewer by default where units are scarce.
        rounds: how often (networks with profiles); 4 if not given, or 1 where all units are needed for the affine rest.

    Raises:
        InvalidInputError: a map without these methods or that cannot hold the affine rest, or more ridges than units.

    On the paper's convex field in 256 dimensions this start has -12.1 dB where the best affine map has -11.7.

    >>> from nablanets import GradNetC
    >>> _ = torch.manual_seed(0)
    >>> net, x = GradNetC(4, 20, monotone=True, linear=False), torch.randn(4000, 4)
    >>> field = lambda x: x + torch.tanh(2 * x.sum(dim=1, keepdim=True))
    >>> initialise_ridges(net, x, field(x), directions=1, rounds=2)
    >>> bool((net(x) - field(x)).square().sum(dim=1).mean() < 0.4)  # the best affine map has 0.8
    True
    """
    x, g = check_samples(net, x, g, owner="initialise_ridges")
    require(net, HasAffinePart, owner="initialise_ridges")
    network: _Network = require(net, HasUnits, owner="initialise_ridges")
    has_profiles = supports(net, HasProfiles)
    if not (net.monotone or (has_profiles and network.has_linear_term())):
        raise InvalidInputError(
            "initialise_ridges: expected a monotone network, or one with a linear term whose units have profiles "
            f"(GradNetC), which can hold the affine part of a field; got {type(net).__name__} with "
            f"monotone={net.monotone} and linear={network.has_linear_term()}. Build it with linear=True, or use "
            "initialise_affine."
        )
    if directions is None:
        directions = _default_directions(network, net.features, has_profiles=has_profiles)
    fresh = deepcopy(net.state_dict())
    if has_profiles:
        profiled: _ProfileNetwork = require(net, HasProfiles, owner="initialise_ridges")
        _start_profiles(profiled, x, g, directions, rounds, monotone=net.monotone)
    else:
        _start_pairs(network, x, g, directions)
    centre_error(net, x, g)
    with_ridges = deepcopy(net.state_dict())
    reached = error(net, x, g)
    net.load_state_dict(fresh)
    initialise_affine(net, x, g)
    if reached < error(net, x, g):
        net.load_state_dict(with_ridges)


def _default_directions(net: _Network, features: int, *, has_profiles: bool) -> int:
    most = min(features, _MOST_DIRECTIONS, max(2, features // 4))
    if has_profiles or net.has_linear_term():
        return most
    modules = net.unit_groups()
    units = len(net.directions()) // modules
    spare = modules * (units - 1) - features  # softmax passes on one dimension less than it has units
    return max(modules, min(most, spare))


def _start_profiles(
    net: _ProfileNetwork, x: Tensor, g: Tensor, directions: int, rounds: int | None, *, monotone: bool
) -> None:
    """One unit for each ridge function."""
    units, features = net.directions().shape
    needed = 0 if net.has_linear_term() else features
    if rounds is None:
        rounds = max(1, min(4, (units - needed) // directions))
    count = directions * rounds
    if count > units:
        raise _too_many(count, units)
    scarce = units - count < needed
    ridges = pursue_ridges(x, g, directions, rounds=rounds, monotone=monotone, scarce=scarce)
    others = _other_weights(net, ridges, units - count, monotone=monotone)
    weight = torch.cat([ridges.weight, others])  # (units, d)
    net.place_units(weight, x)
    if not monotone:
        _shrink_after(net, count)
    shift = ridges.weight @ ridges.centre  # (count): w . c, tables are in w . (x - c)
    _fit_profiles(net, ridges.arguments + shift, ridges.values, units)


def _shrink_after(net: HasUnits, count: int) -> None:
    """Make all units but the first ``count`` small."""
    position = 0
    for term in net.unit_terms():
        factors = torch.ones_like(term.values)
        factors[max(0, count - position) :] = _SHRINK
        term.write(factors * term.values)
        position += term.count


def _start_pairs(net: _Network, x: Tensor, g: Tensor, directions: int) -> None:
    """Two units of a module for each ridge function."""
    modules = net.unit_groups()
    units = len(net.directions()) // modules  # of each module
    pairs = directions // modules
    if not 0 < 2 * pairs <= units:
        raise _too_many(2 * directions, modules * units)
    ridges = pursue_ridges(x, g, pairs * modules, monotone=True, scarce=True)
    half = ridges.weight.unflatten(0, (modules, pairs)) / 2**0.5  # (M, pairs, d)
    others = _other_weights(net, ridges, modules * (units - 2 * pairs), modules, monotone=True)
    weight = torch.cat([half, -half, others.unflatten(0, (modules, -1))], dim=1)  # (M, units, d)
    net.place_units(weight.flatten(0, 1), x, largest_spread=_MODULE_SPREAD)


def _other_weights(net: _Network, ridges: Ridges, count: int, groups: int = 1, *, monotone: bool) -> Tensor:
    """Weights of the units without a ridge, (count, d); the linear term gets what they leave of the affine rest."""
    linear = net.has_linear_term()
    if count == 0 or not monotone:
        if linear:
            net.set_linear_term(ridges.rest)
        return net.directions()[:count]
    share = _UNITS_SHARE if linear else 1.0
    if linear:
        net.set_linear_term((1 - share) * ridges.rest)
    return framed_root(share * ridges.rest, count, groups)


@torch.enable_grad()
def _fit_profiles(net: HasProfiles, arguments: Tensor, values: Tensor, units: int) -> None:
    """Fit the first units to tables (nodes, K), each relative to its own size, with more weight in the middle."""
    count = values.shape[1]
    padding = (0, units - count)  # the other units have a target of zero and no weight
    u = torch.nn.functional.pad(arguments, padding)
    target = torch.nn.functional.pad(values, padding)
    weight = torch.nn.functional.pad(1 / values.var(dim=0).clamp(min=1e-20), padding)
    position = torch.linspace(-1, 1, len(u)).to(u)
    middle = torch.exp(-_FALL * position.square()).unsqueeze(1)  # (nodes, 1)
    optimizer = torch.optim.Adam(net.profile_parameters(), lr=_LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
    for _ in range(_STEPS):
        residual = net.profiles(u) - target
        loss = (middle * weight * residual.square()).sum() / (len(u) * count)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


def _too_many(ridges: int, units: int) -> InvalidInputError:
    return InvalidInputError(
        f"initialise_ridges: expected at most as many ridge functions as units ({units}), and one for each module at "
        f"least, got {ridges}. Lower directions or rounds, or build a wider network."
    )
