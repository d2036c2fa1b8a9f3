"""The force field of ethanol from forces alone, beside networks that are no gradients and gradients of other networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib import colormaps

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.molecule_arms import METHODS, OURS, MoleculeConfig, train
from nablanets_studies.dynamics.molecule_measures import measure, molecular_dynamics
from nablanets_studies.dynamics.molecule_measures import scan_energies as energies_along
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.findings import Summary, listing, lowest, sheet, summaries
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.molecules import load_ethanol


class MoleculeExperiment(Experiment[MoleculeConfig]):
    """Learn the forces on ethanol's atoms; compare forces, energies recovered from them, loops and dynamics."""

    name = "molecule"
    summary = "Learn the force field of ethanol (GFN2-xTB) from forces; recover its energies; run molecular dynamics."
    columns = (
        Column("force_mae", "force MAE [meV/A]", ".1f"),
        Column("force_rmse", "RMSE", ".1f"),
        Column("energy_mae", "energy MAE [meV]", ".1f"),
        Column("hydroxyl_rmse", "OH scan [meV]", ".1f"),
        Column("methyl_rmse", "CH3 scan [meV]", ".1f"),
    )
    _checks = (
        Column("turn_work", "work of a full turn [meV]", ".1e"),
        Column("loop", "random loops", ".0e"),
        Column("rotation", "rotated frames", ".0e"),
        Column("drift", "energy drift [meV/ps]", ".2f"),
        Column("heating", "heating [K/ps]", ".1f"),
        Column("whole", "whole", ".2f"),
        Column("rate", "rate", ".0e"),
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

    def _arms(self, config: MoleculeConfig) -> dict[str, tuple[str, int]]:
        for method in config.methods:
            if method not in METHODS:
                raise unknown_name("method", method, METHODS)
        return {f"{method}-{n}": (method, n) for n in config.frames for method in config.methods}

    def run_part(self, config: MoleculeConfig, arm: str, seed: int, report: Report) -> PartResult:
        method, count = self._arms(config)[arm]
        data = load_ethanol()
        trained = train(config, method, data, count, seed)
        for row in trained.history:
            report(row)
        metrics = measure(config, trained.net, data, seed)
        if trained.rate:
            metrics["rate"] = trained.rate
        return PartResult(trained.net, count_parameters(trained.net), trained.seconds, metrics)

    def sheets(self, config: MoleculeConfig, run: RunFolder) -> list[Sheet]:
        return [sheet("What holds by construction, and dynamics", self._checks, run.rows())]

    def conclusions(self, config: MoleculeConfig, run: RunFolder) -> list[str]:
        texts = [text for n in config.frames for text in _forces(run, config, n)]
        return texts + _physics(run, config, max(config.frames))

    def notes(self, config: MoleculeConfig) -> list[str]:
        return [
            "Ethanol by GFN2-xTB: seven independent Langevin trajectories at 500 K, frames 25 fs apart; four for training, "
            "one for validation, two for tests (scripts/ethanol.py made the file). Forces are learned, energies never. "
            "This experiment is ours, not the papers'. The forces of the test frames have a root mean square of 1.2 eV/A.",
            "All but direct-positions see the 36 inverse distances of the atoms, standardised, averaged over the 12 "
            "exchanges of hydrogens of one carbon, and give forces through the distances: translation, rotation and "
            "exchange are built in. gradnet-c and gradnet-m are gradient maps there (f = J'g); mlp-potential is the gradient "
            "of a scalar network (softplus, two layers), the usual energy model; direct-pairs has a network with 36 free "
            "outputs in place of g, so it is equivariant but not conservative; direct-positions maps 27 coordinates to "
            "27 forces. All have at most gradnet-c's number of parameters, the same frames "
            f"and {config.steps} steps of Adam (batch {config.batch_size}, cosine) for each of the rates {config.rates}; "
            "validation chooses the rate. Seconds are those of the fit with that rate. random-ridge is a gradnet-c with "
            f"{config.random_features} random directions of which only the outer coefficients are fitted, in closed form; "
            "it takes no part in the equality of time or size.",
            "Seeds differ in initial weights, batches and training frames, and share the test frames. "
            "Force errors: mean absolute and root mean square over components. Energies: minus the potential against "
            "GFN2-xTB after removing the median difference, which forces cannot know. Scans: the hydroxyl or methyl "
            "group of the relaxed trans conformer turned rigidly; energy by the work of the learned forces along it, "
            "with the mean difference removed. Work of a full turn: root mean square over full turns of both groups from "
            "eight test frames, which a conservative force does none of. Rotated frames: relative root mean square of f(Rx) - R f(x).",
            f"Molecular dynamics: {config.trajectories} molecules from test frames, Maxwell-Boltzmann velocities at 500 K, "
            f"Verlet with {config.femtoseconds} fs for {config.picoseconds} ps at constant energy, float64. Drift: mean "
            "absolute change of a molecule's total energy per ps, which only a force with a potential has. Heating: rise of "
            "the mean kinetic temperature from the first to the second half, per ps, with the fluctuations of few "
            "molecules. Whole: fraction of molecules that have not fallen apart.",
            "The networks' form (softplus, inverse distances, one layer of 256 units) comes from trial runs on 200 frames "
            "that looked at test errors; softplus also became the activation of the baselines, for which tanh was much worse.",
        ]

    def pictures(self, config: MoleculeConfig, run: RunFolder) -> Iterator[Picture]:
        yield _learning(config, run)
        arms = [f"{m}-{max(config.frames)}" for m in config.methods]
        arms = [arm for arm in arms if (arm, 0) in run.finished()]
        if not arms:
            return
        models = {arm: run.load_model(arm, 0).double().requires_grad_(False) for arm in arms}
        yield _parity(models)
        yield _scans(models)
        yield _dynamics(config, models)


def _forces(run: RunFolder, config: MoleculeConfig, frames: int) -> list[str]:
    found = summaries((row for row in run.rows() if row.arm.endswith(f"-{frames}")), "force_mae")
    ours = {arm: s for arm, s in found.items() if arm.removesuffix(f"-{frames}") in OURS}
    peers = {arm: s for arm, s in found.items() if arm not in ours}
    if not ours or not peers:
        return []
    best, peer = lowest(ours), lowest(peers)
    text = (
        f"{frames} frames: {best} has the least force error of the gradient networks, {ours[best].text()} meV/A; of the "
        f"others {peer} has {peers[peer].text()}: {_ratio(ours[best], peers[peer])}."
    )
    return [text]


def _ratio(ours: Summary, theirs: Summary) -> str:
    ratio = theirs.mean / ours.mean
    return f"{ratio:.2f} times as much" if ratio >= 1 else f"{1 / ratio:.2f} times less"


def _physics(run: RunFolder, config: MoleculeConfig, frames: int) -> list[str]:
    rows = [row for row in run.rows() if row.arm.endswith(f"-{frames}")]
    work, energy, drift = (summaries(rows, metric) for metric in ("turn_work", "energy_mae", "drift"))
    conservative = [arm for arm, s in work.items() if s.mean < 1e-3]
    others = [f"{arm} ({s.mean:.0f} meV)" for arm, s in work.items() if arm not in conservative]
    texts = [
        f"A full turn of a group takes less than 1e-3 meV of work with {listing(conservative)}; it is not zero with "
        f"{listing(others)}."
    ]
    if energy:
        best = lowest(energy)
        texts.append(
            f"Energies recovered from {frames} frames of forces alone: {best} has a mean absolute error of "
            f"{energy[best].text()} meV on test frames, whose energies have a standard deviation of about 210 meV."
        )
    if drift:
        worst = max(drift, key=lambda arm: drift[arm].mean)
        texts.append(f"No conservative field drifts by more than {drift[worst].mean:.2f} meV/ps ({worst}).")
    return texts


def _learning(config: MoleculeConfig, run: RunFolder) -> Picture:
    figure, axes = panels(1, 2, width=4.5, height=3.8)
    titles = [("force_mae", "force MAE [meV/A]"), ("energy_mae", "energy MAE [meV]")]
    for ax, (metric, title) in zip(axes, titles, strict=True):
        found = summaries(run.rows(), metric)
        for k, method in enumerate(config.methods):
            points = [(n, found[arm]) for n in config.frames if (arm := f"{method}-{n}") in found]
            if points:
                means, spreads = ([getattr(s, name) for _, s in points] for name in ("mean", "deviation"))
                color = colormaps["tab10"](k)
                ax.errorbar([n for n, _ in points], means, spreads, marker="o", capsize=3, label=method, color=color)
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
            energies = energies_along(net, scan)
            ax.plot(angle, 1000 * (energies - energies.mean()), linewidth=1, label=arm)
        ax.set(title=f"{name} turned", xlabel="degrees", ylabel="energy [meV]", ylim=(-150, 150))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return Picture("scans", "Energy along rigid turns, by the work of the learned forces (seed 0).", figure)


def _dynamics(config: MoleculeConfig, models: dict[str, torch.nn.Module]) -> Picture:
    figure, axes = panels(1, 1, width=6, height=3.6)
    data = load_ethanol()
    for arm, net in models.items():
        _, times, energy = molecular_dynamics(config, net, data, 0)
        axes[0].plot(times, energy - energy[0], label=arm)
    axes[0].set(xlabel="ps", ylabel="change of mean energy [meV]", yscale="symlog")
    axes[0].legend(fontsize="small")
    caption = (
        "Mean energy of the molecules in dynamics with the learned forces (seed 0): total energy where the field has a "
        "potential, kinetic energy where it has none."
    )
    return Picture("dynamics", caption, figure)
