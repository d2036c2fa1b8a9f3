"""The force field of ethanol from forces alone, beside networks that are no gradients and gradients of other networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.molecule_arms import METHODS, MoleculeArm, MoleculeConfig, train
from nablanets_studies.dynamics.molecule_measures import MoleculeMetrics, measure, molecular_dynamics, scan_energies
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.metrics import Best, Measured, ValueColumn, measured, sheet_of, summaries_of
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.molecules import load_ethanol

MoleculeResults = list[Measured[MoleculeMetrics]]

#: A full turn that takes less work than this, in meV, is that of a conservative field.
_NO_WORK = 1e-3


@dataclass(frozen=True)
class ForceComparison:
    """The least force error of our gradient networks and of the others, from so many frames."""

    frames: int
    ours: Best
    peer: Best

    @property
    def ratio(self) -> float:
        """How many times larger that of the others is."""
        return self.peer.value.mean / self.ours.value.mean


@dataclass(frozen=True)
class MoleculeFindings:
    """What follows from the numbers of a run.

    Attributes:
        forces: for each number of frames for which there are both sides.
        frames: the largest number of frames, which the rest is about.
        conservative: arms with which a full turn takes no work.
        others: the other arms, and the work in meV.
        best_energy: the arm of the least error of energies.
        worst_drift: the arm whose energy drifts most.
    """

    forces: list[ForceComparison]
    frames: int
    conservative: list[str]
    others: list[Best]
    best_energy: Best | None
    worst_drift: Best | None


_CHECKS: list[ValueColumn[MoleculeMetrics]] = [
    ValueColumn("work of a full turn [meV]", lambda metrics: metrics.turn_work, ".1e"),
    ValueColumn("random loops", lambda metrics: metrics.loop, ".0e"),
    ValueColumn("rotated frames", lambda metrics: metrics.rotation, ".0e"),
    ValueColumn("energy drift [meV/ps]", lambda metrics: metrics.dynamics.drift, ".2f"),
    ValueColumn("heating [K/ps]", lambda metrics: metrics.dynamics.heating, ".1f"),
    ValueColumn("whole", lambda metrics: metrics.dynamics.whole, ".2f"),
    ValueColumn("rate", lambda metrics: metrics.rate, ".0e"),
]


class MoleculeExperiment(Experiment[MoleculeConfig]):
    """Learn the forces on ethanol's atoms; compare forces, energies recovered from them, loops and dynamics."""

    name = "molecule"
    summary = "Learn the force field of ethanol (GFN2-xTB) from forces; recover its energies; run molecular dynamics."
    template = "molecule.md.j2"
    columns = (
        Column("force_mae", "force MAE [meV/A]", ".1f"),
        Column("force_rmse", "RMSE", ".1f"),
        Column("energy_mae", "energy MAE [meV]", ".1f"),
        Column("hydroxyl_rmse", "OH scan [meV]", ".1f"),
        Column("methyl_rmse", "CH3 scan [meV]", ".1f"),
    )
    presets = {  # noqa: RUF012
        "quick": MoleculeConfig(
            methods=("gradnet-c", "mlp-potential", "direct-pairs", "random-ridge"),
            frames=(100,),
            hidden_features=64,
            random_features=300,
            steps=300,
            rates=(1e-2,),
            test_frames=200,
            trajectories=4,
            picoseconds=0.1,
        ),
        "paper": MoleculeConfig(),
    }
    seeds = {"quick": 1, "paper": 5}  # noqa: RUF012

    def arms(self, config: MoleculeConfig) -> list[str]:
        return list(self._arms(config))

    def _arms(self, config: MoleculeConfig) -> dict[str, MoleculeArm]:
        for method in config.methods:
            if method not in METHODS:
                raise unknown_name("method", method, METHODS)
        arms = [MoleculeArm(METHODS[method], frames) for frames in config.frames for method in config.methods]
        return {arm.name: arm for arm in arms}

    def run_part(self, config: MoleculeConfig, arm: str, seed: int, report: Report) -> PartResult:
        data = load_ethanol()
        trained = train(config, self._arms(config)[arm], data, seed)
        for row in trained.history:
            report(row)
        metrics = measure(config, trained, data, seed)
        return PartResult(trained.net, count_parameters(trained.net), trained.seconds, metrics.to_metrics())

    def sheets(self, config: MoleculeConfig, run: RunFolder) -> list[Sheet]:
        results = measured(run.rows(), MoleculeMetrics)
        return [sheet_of("What holds by construction, and dynamics", _CHECKS, results)]

    def findings(self, config: MoleculeConfig, run: RunFolder) -> MoleculeFindings:
        arms = self._arms(config)
        results = measured(run.rows(), MoleculeMetrics)
        compared = [_compare_forces(arms, results, frames) for frames in config.frames]
        most = max(config.frames)
        largest = [result for result in results if arms[result.arm].frames == most]
        work = summaries_of(largest, lambda metrics: metrics.turn_work)
        energy = summaries_of(largest, lambda metrics: metrics.energy_mae)
        drift = summaries_of(largest, lambda metrics: metrics.dynamics.drift)
        return MoleculeFindings(
            forces=[comparison for comparison in compared if comparison is not None],
            frames=most,
            conservative=[arm for arm, value in work.items() if value.mean < _NO_WORK],
            others=[Best(arm, value) for arm, value in work.items() if not value.mean < _NO_WORK],
            best_energy=Best.of(energy) if energy else None,
            worst_drift=Best.highest(drift) if drift else None,
        )

    def pictures(self, config: MoleculeConfig, run: RunFolder) -> Iterator[Picture]:
        yield _learning(self._arms(config), measured(run.rows(), MoleculeMetrics))
        most = max(config.frames)
        finished = run.finished()
        arms = [name for name, arm in self._arms(config).items() if arm.frames == most and (name, 0) in finished]
        if not arms:
            return
        models = {arm: run.load_model(arm, 0).double().requires_grad_(False) for arm in arms}
        yield _parity(models)
        yield _scans(models)
        yield _dynamics(config, models)


def _compare_forces(arms: Mapping[str, MoleculeArm], results: MoleculeResults, frames: int) -> ForceComparison | None:
    """The best of ours and the best of the others; None if either is missing."""
    same = [result for result in results if arms[result.arm].frames == frames]
    errors = summaries_of(same, lambda metrics: metrics.force_mae)
    ours = {arm: value for arm, value in errors.items() if arms[arm].method.ours}
    peers = {arm: value for arm, value in errors.items() if not arms[arm].method.ours}
    if not ours or not peers:
        return None
    return ForceComparison(frames, Best.of(ours), Best.of(peers))


def _learning(arms: Mapping[str, MoleculeArm], results: MoleculeResults) -> Picture:
    """Errors against the number of training frames, one line for each method."""
    force = summaries_of(results, lambda metrics: metrics.force_mae)
    energy = summaries_of(results, lambda metrics: metrics.energy_mae)
    figure, axes = panels(1, 2, width=4.5, height=3.8)
    methods = list(dict.fromkeys(arm.method.name for arm in arms.values()))
    for ax, found, title in ((axes[0], force, "force MAE [meV/A]"), (axes[1], energy, "energy MAE [meV]")):
        for k, method in enumerate(methods):
            points = [
                (arm.frames, found[name]) for name, arm in arms.items() if arm.method.name == method and name in found
            ]
            if points:
                frames = [count for count, _ in points]
                means = [value.mean for _, value in points]
                spreads = [value.deviation for _, value in points]
                color = colormaps["tab10"](k)
                ax.errorbar(frames, means, spreads, marker="o", capsize=3, label=method, color=color)
        ax.set(xscale="log", yscale="log", xlabel="frames", ylabel=title)
        ax.grid(alpha=0.3, which="both")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return Picture("learning", "Errors on test frames against the number of training frames.", figure)


def _parity(models: dict[str, torch.nn.Module]) -> Picture:
    test = load_ethanol().test
    figure, axes = panels(1, len(models))
    for ax, (arm, net) in zip(axes, models.items(), strict=True):
        ax.plot(test.forces[:100].flatten(), net(test.positions[:100].double()).flatten(), ".", markersize=1)
        ax.plot([-6, 6], [-6, 6], color="0.5", linewidth=0.5)
        ax.set(title=arm, xlabel="GFN2-xTB [eV/A]", xlim=(-6, 6), ylim=(-6, 6))
    return Picture(
        "parity", "Components of the forces on 100 test frames: learned against calculated (seed 0).", figure
    )


def _scans(models: dict[str, torch.nn.Module]) -> Picture:
    figure, axes = panels(1, 2, width=4.5, height=3.6)
    for ax, (name, scan) in zip(axes, load_ethanol().scans.items(), strict=True):
        angle = np.linspace(0, 360, len(scan.energies))
        ax.plot(angle, 1000 * (scan.energies - scan.energies.mean()), color="0.6", linewidth=3, label="GFN2-xTB")
        for arm, net in models.items():
            energies = scan_energies(net, scan)
            ax.plot(angle, 1000 * (energies - energies.mean()), linewidth=1, label=arm)
        ax.set(title=f"{name} turned", xlabel="degrees", ylabel="energy [meV]", ylim=(-150, 150))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return Picture("scans", "Energy along rigid turns, by the work of the learned forces (seed 0).", figure)


def _dynamics(config: MoleculeConfig, models: dict[str, torch.nn.Module]) -> Picture:
    figure, axes = panels(1, 1, width=6, height=3.6)
    data = load_ethanol()
    for arm, net in models.items():
        found = molecular_dynamics(config, net, data, 0)
        axes[0].plot(found.times, found.energy - found.energy[0], label=arm)
    axes[0].set(xlabel="ps", ylabel="change of mean energy [meV]", yscale="symlog")
    axes[0].legend(fontsize="small")
    caption = (
        "Mean energy of the molecules in dynamics with the learned forces (seed 0): total energy where the field has a "
        "potential, kinetic energy where it has none."
    )
    return Picture("dynamics", caption, figure)
