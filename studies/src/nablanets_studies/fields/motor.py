"""Flux maps of an electric machine from a few operating points, in both directions, beside tables and MLPs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from nablanets.fitting.loop import Report
from nablanets.maps import GradientMap, Pullback, Scale
from nablanets_studies.fields.motor_arms import ARMS, DIRECTIONS, METHODS, Arm, MotorConfig, learn
from nablanets_studies.fields.motor_measures import (
    DirectionFindings,
    MotorMetrics,
    error_sheet,
    find,
    guarantee_sheet,
    measure,
    sides,
)
from nablanets_studies.fields.motor_pictures import error_picture, inductance_picture, saturation_picture
from nablanets_studies.fields.motor_timing import nanoseconds_in_c
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.metrics import measured
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.motor import Bases, FluxMap, load_flux_map

__all__ = ["MotorExperiment", "bases_of"]


class MotorExperiment(Experiment[MotorConfig]):
    """Currents to flux linkages and back, from every tenth operating point."""

    name = "motor-map"
    summary = "Learn the flux map of an electric machine and its inverse from a few operating points."
    template = "motor_map.md.j2"
    presets = {  # noqa: RUF012
        "quick": MotorConfig(iterations=100, starts=2, halving=50, mlp_steps=500, budget=5.0),
        "paper": MotorConfig(),
    }
    seeds = {"quick": 2, "paper": 10}  # noqa: RUF012
    columns = (
        Column("rmse", "RMSE [p.u.]", ".4f"),
        Column("largest", "largest [p.u.]", ".4f"),
        Column("torque_rmse", "torque [Nm]", ".3f"),
        Column("asymmetry", "asymmetry of J", ".0e"),
        Column("inverse_error", "inverse [p.u.]", ".0e"),
    )

    def arms(self, config: MotorConfig) -> list[str]:
        return [arm for arm in ARMS if config.mirrored or Arm.of(arm).method.name != "mirrored-m"]

    def run_part(self, config: MotorConfig, arm: str, seed: int, report: Report) -> PartResult:
        direction, method = Arm.of(arm)
        known, held_out = load_flux_map(config.data).split(config.stride)
        x, g, _ = sides(known, bases_of(config), direction)
        begin = time.perf_counter()
        trained, chosen, validation_rmse = learn(method, config, x, g, seed)
        seconds = time.perf_counter() - begin
        metrics = measure(
            trained.predict,
            trained.net,
            held_out,
            bases_of(config),
            direction,
            config.pole_pairs,
            chosen=chosen,
            validation_rmse=validation_rmse,
        )
        if trained.net is None:
            return PartResult(None, trained.parameters, seconds, metrics.to_metrics())
        model = in_units(trained.net, bases_of(config), direction)
        if seed == 0 and config.calls_in_c and method.explicit:
            given = held_out.currents if direction == "flux" else held_out.fluxes
            metrics = replace(metrics, c_nanoseconds=nanoseconds_in_c(model, given, config.calls_in_c))
        return PartResult(model, trained.parameters, seconds, metrics.to_metrics())

    def facts(self, config: MotorConfig) -> FluxMap:
        return load_flux_map(config.data)

    def sheets(self, config: MotorConfig, run: RunFolder) -> list[Sheet]:
        results = measured(run.rows(), MotorMetrics)
        titles = {"flux": "Currents to flux linkages", "current": "Flux linkages to currents"}
        units = {"flux": "Vs", "current": "A"}
        sheets = []
        for direction in DIRECTIONS:
            title = titles[direction]
            sheets.append(error_sheet(results, direction, f"{title}: errors over seeds", units[direction]))
            sheets.append(guarantee_sheet(results, direction, f"{title}: slopes and the inverse, seed 0"))
        return sheets

    def findings(self, config: MotorConfig, run: RunFolder) -> list[DirectionFindings]:
        return find(measured(run.rows(), MotorMetrics))

    def pictures(self, config: MotorConfig, run: RunFolder) -> Iterator[Picture]:
        machine = load_flux_map(config.data)
        known, _ = machine.split(config.stride)
        models: dict[str, GradientMap] = {}
        for name, method in METHODS.items():
            if method.gradient and (f"flux-{name}", 0) in run.finished():
                models[name] = run.load_model(f"flux-{name}", 0)
        if not models:
            return
        name, model = next(iter(models.items()))
        yield saturation_picture(name, model, machine, known)
        yield inductance_picture(name, model, machine)
        yield error_picture(models, machine, known)


def bases_of(config: MotorConfig) -> Bases:
    """The base values of per unit."""
    return Bases.of_ratings(config.rated_current, config.rated_voltage, config.rated_frequency)


def in_units(net: GradientMap, bases: Bases, direction: str) -> GradientMap:
    """A map of per unit as one of A to Vs, or of Vs to A: still a gradient, since both axes are scaled alike."""
    inner, outer = (bases.current, bases.flux) if direction == "flux" else (bases.flux, bases.current)
    reference = next(net.parameters())
    # Pullback multiplies by 1 / inner before and after.
    return Scale(Pullback(net, reference.new_full((net.features,), 1 / inner)), inner * outer)
