"""What is measured of a learned flux map: errors in per unit and in units, torque, reciprocity, bounds, the inverse."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.maps import Conjugate, GradientMap
from nablanets_studies.fields.motor_arms import DIRECTIONS, METHODS, Predict
from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.metrics import Measured, Metrics, choice
from nablanets_studies.problems.motor import Bases, FluxMap, torque

#: Steps of central differences, in per unit: errors of 1e-8 from rounding and from curvature.
_STEP = 1e-5


@dataclass(frozen=True, kw_only=True)
class MotorMetrics(Metrics):
    """Of one model, on the operating points that were held out.

    Attributes:
        rmse: root mean square error of both components in per unit.
        rmse_in_units: the same in Vs or A.
        largest: the largest error of a component, in per unit.
        torque_rmse: in Nm, with the quantity that is given as it was measured.
        asymmetry: largest |J_dq - J_qd| over the largest |J|, by differences: reciprocity of incremental inductances.
        least_slope, largest_slope: eigenvalues of the Jacobian at the held-out points, in per unit.
        certified_least, certified_largest: bounds of the same for all points, where there are such.
        inverse_error: largest |f^{-1}(f(x)) - x| in per unit, of strongly monotone maps.
        c_nanoseconds: of one evaluation in C; of the gradient networks of seed 0, where there is a compiler.
        validation_rmse: of the cross-validation, in per unit, where something was chosen.
        chosen: what was chosen.
    """

    rmse: float
    rmse_in_units: float
    largest: float
    torque_rmse: float
    asymmetry: float
    least_slope: float
    largest_slope: float
    certified_least: float | None = None
    certified_largest: float | None = None
    inverse_error: float | None = None
    c_nanoseconds: float | None = None
    validation_rmse: float | None = None
    chosen: str | None = field(default=None, metadata=choice("chose "))


class Sides(NamedTuple):
    """Points and values of a direction in per unit, with the base value of the values."""

    x: Tensor
    g: Tensor
    base: float


def sides(points: FluxMap, bases: Bases, direction: str) -> Sides:
    """Currents and flux linkages in per unit, in the order of the direction."""
    currents = points.currents / bases.current
    fluxes = points.fluxes / bases.flux
    if direction == "flux":
        return Sides(currents, fluxes, bases.flux)
    return Sides(fluxes, currents, bases.current)


def measure(
    predict: Predict,
    net: GradientMap | None,
    held_out: FluxMap,
    bases: Bases,
    direction: str,
    pole_pairs: int,
    *,
    chosen: str | None = None,
    validation_rmse: float | None = None,
) -> MotorMetrics:
    """All numbers of a model."""
    x, g, base = sides(held_out, bases, direction)
    values = predict(x)
    error = values - g
    rmse = float(error.square().mean().sqrt())
    jacobian = difference_jacobian(predict, x)
    eigenvalues = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)
    least = largest = inverse_error = None
    if net is not None:
        with torch.no_grad():
            bounds = net.curvature_bounds()
        least, largest = float(bounds[0]), float(bounds[1])
        if net.monotone and least > 0:
            inverse_error = float((Conjugate(net)(values) - x).detach().abs().max())
    return MotorMetrics(
        rmse=rmse,
        rmse_in_units=rmse * base,
        largest=float(error.abs().max()),
        torque_rmse=_torque_error(values * base, held_out, direction, pole_pairs),
        asymmetry=float((jacobian - jacobian.mT).abs().max() / jacobian.abs().max()),
        least_slope=float(eigenvalues.min()),
        largest_slope=float(eigenvalues.max()),
        certified_least=least,
        certified_largest=largest,
        inverse_error=inverse_error,
        validation_rmse=validation_rmse,
        chosen=chosen,
    )


def _torque_error(values: Tensor, held_out: FluxMap, direction: str, pole_pairs: int) -> float:
    """Root mean square, in Nm."""
    measured = torque(held_out.currents, held_out.fluxes, pole_pairs)
    if direction == "flux":
        predicted = torque(held_out.currents, values, pole_pairs)
    else:
        predicted = torque(values, held_out.fluxes, pole_pairs)
    return float((predicted - measured).square().mean().sqrt())


def difference_jacobian(predict: Predict, x: Tensor) -> Tensor:
    """By central differences, since look-up tables have no derivatives, (n, 2, 2)."""
    columns = []
    for k in range(x.shape[1]):
        step = torch.zeros(x.shape[1], dtype=x.dtype)
        step[k] = _STEP
        columns.append((predict(x + step) - predict(x - step)) / (2 * _STEP))
    return torch.stack(columns, dim=-1)


class Errors(NamedTuple):
    """Root mean square errors of a method over seeds, in per unit."""

    method: str
    median: float
    worst: float


@dataclass(frozen=True)
class DirectionFindings:
    """What the results say of one direction.

    Attributes:
        name: "flux" or "current".
        quantity, unit: what is predicted.
        ours: the best of the gradient networks that are told of no symmetry.
        peer: the best of all other methods.
        mirrored: the network that knows of the symmetry; None if it was not run.
        inverse_error: the largest of all gradient networks; None if none is invertible.
    """

    name: str
    quantity: str
    unit: str
    ours: Errors
    peer: Errors
    mirrored: Errors | None
    inverse_error: float | None

    @property
    def ratio(self) -> float:
        """Of the peer's median error to ours."""
        return self.peer.median / self.ours.median


def find(results: Sequence[Measured[MotorMetrics]]) -> list[DirectionFindings]:
    """For each direction in which there are gradient networks and peers."""
    found = []
    words = {"flux": ("flux linkages", "Vs"), "current": ("currents", "A")}
    for direction in DIRECTIONS:
        errors = errors_over_seeds(results, direction, lambda metrics: metrics.rmse)
        mirrored = errors.pop("mirrored-m", None)
        ours = [each for name, each in errors.items() if METHODS[name].gradient]
        peers = [each for name, each in errors.items() if not METHODS[name].gradient]
        if not ours or not peers:
            continue
        own = [result.metrics for result in results if result.arm.startswith(f"{direction}-")]
        inverse = [metrics.inverse_error for metrics in own if metrics.inverse_error is not None]
        quantity, unit = words[direction]
        found.append(
            DirectionFindings(
                name=direction,
                quantity=quantity,
                unit=unit,
                ours=min(ours, key=lambda each: each.median),
                peer=min(peers, key=lambda each: each.median),
                mirrored=mirrored,
                inverse_error=max(inverse) if inverse else None,
            )
        )
    return found


def errors_over_seeds(
    results: Sequence[Measured[MotorMetrics]], direction: str, value: Callable[[MotorMetrics], float]
) -> dict[str, Errors]:
    """Median and worst of some error by method."""
    values: dict[str, list[float]] = {}
    for result in results:
        arm_direction, _, method = result.arm.partition("-")
        if arm_direction == direction:
            values.setdefault(method, []).append(value(result.metrics))
    return {name: Errors(name, statistics.median(each), max(each)) for name, each in values.items()}


def error_sheet(results: Sequence[Measured[MotorMetrics]], direction: str, title: str, unit: str) -> Sheet:
    """Median and worst error over seeds by method, in per unit and in units, and what was chosen most often."""
    per_unit = errors_over_seeds(results, direction, lambda metrics: metrics.rmse)
    in_units = errors_over_seeds(results, direction, lambda metrics: metrics.rmse_in_units)
    torques = errors_over_seeds(results, direction, lambda metrics: metrics.torque_rmse)
    lines = []
    for name, each in per_unit.items():
        chosen = [result.metrics.chosen for result in results if result.arm == f"{direction}-{name}"]
        words = [word for word in chosen if word is not None]
        lines.append(
            (
                name,
                f"{each.median:.4f}",
                f"{each.worst:.4f}",
                f"{in_units[name].median:.4f}",
                f"{in_units[name].worst:.4f}",
                f"{torques[name].median:.3f}",
                statistics.mode(words) if words else "-",
            )
        )
    columns = (
        "method",
        "median [p.u.]",
        "worst [p.u.]",
        f"median [{unit}]",
        f"worst [{unit}]",
        "torque [Nm]",
        "chosen",
    )
    return Sheet(title, columns, lines)


def guarantee_sheet(results: Sequence[Measured[MotorMetrics]], direction: str, title: str) -> Sheet:
    """Slopes that were seen and that are certified, reciprocity and the inverse, of the first seed."""
    lines = []
    for result in results:
        if result.seed != 0 or not result.arm.startswith(f"{direction}-"):
            continue
        metrics = result.metrics
        certified = "none"
        if metrics.certified_least is not None and metrics.certified_largest is not None:
            certified = f"{metrics.certified_least:.3g} to {metrics.certified_largest:.3g}"
        inverse = "-" if metrics.inverse_error is None else f"{metrics.inverse_error:.0e}"
        in_c = "-" if metrics.c_nanoseconds is None else f"{metrics.c_nanoseconds:.0f}"
        lines.append(
            (
                result.arm.removeprefix(f"{direction}-"),
                f"{metrics.least_slope:.3g} to {metrics.largest_slope:.3g}",
                certified,
                f"{metrics.asymmetry:.0e}",
                inverse,
                in_c,
            )
        )
    columns = (
        "method",
        "slopes seen [p.u.]",
        "certified for all points",
        "asymmetry of J",
        "error of the inverse",
        "one call in C [ns]",
    )
    return Sheet(title, columns, lines)
