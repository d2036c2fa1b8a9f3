"""Make the three pictures of README.md from real runs: terrain from slopes, the flux of a motor, the forces of ethanol.

    python studies/scripts/readme_pictures.py                              # terrain and ethanol, about two minutes
    python studies/scripts/readme_pictures.py --motor baldor_400rpm_map.npz

The motor's file holds complex arrays ``i_s_dq`` [A] and ``psi_s_dq`` [Vs] on a grid of currents (rows along d, columns
along q), d + j q. It is not part of this repository. Each part prints the numbers that README.md quotes.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LightSource
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nablanets import CoordinatePullback, GradNetC, GradNetM, Symmetrized, fit
from nablanets.maps import GradientMap, pair_distances, pair_permutations
from nablanets.parameters import count_parameters
from nablanets.starts import standardised, standardised_inside
from nablanets_studies.fields.terrain import Frame, reconstruct
from nablanets_studies.fields.terrain_arms import ridge_network
from nablanets_studies.problems.molecules import ALIKE, load_ethanol
from nablanets_studies.problems.terrain import Grid, elevation_error, load_terrain

TARGET = Path(__file__).parents[2] / "docs" / "pictures"
DPI = 110
# Pictures are stored with a palette, which keeps shaded relief below 60 kB.
COLOURS = 32
TRUTH = "#222222"
LEARNED = "#c8412b"
CUTS = ("#1b6ca8", "#c8412b", "#3a7d44")


def figure_of(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one row of axes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes.ravel())


def save(figure: Figure, name: str) -> None:
    """Write the picture with a palette."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    TARGET.mkdir(parents=True, exist_ok=True)
    path = TARGET / f"{name}.png"
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


# Terrain


def draw_terrain(seconds: float) -> None:
    """Elevation of the Jacksboro fault from slopes at a fifth of its cells."""
    torch.manual_seed(0)
    terrain = load_terrain()
    x, slopes, measured = terrain.sample(fraction=0.2, noise=0.0, seed=0)
    frame = Frame.of(x, slopes)
    net = ridge_network(directions=256, knots=256)
    fit(
        net,
        frame.points(x),
        slopes / frame.size,
        validation=0.05,
        steps=1_000_000,
        max_seconds=seconds,
        batch_size=512,
        learning_rate=1e-2,
        weight_decay=2e-4,
        validate_every=100,
        progress=False,
    )
    _, elevation = reconstruct(net, frame, terrain)
    elevation = elevation - elevation.mean() + terrain.elevation.mean()
    error = elevation_error(elevation, terrain.elevation)
    print(f"terrain: {error:.1f} m after {seconds:.0f} s, heights {np.ptp(terrain.elevation):.0f} m apart")

    rows, columns = terrain.elevation.shape
    extent = (0.0, columns * terrain.spacing[0] / 1e3, 0.0, rows * terrain.spacing[1] / 1e3)
    steepness = np.linalg.norm(terrain.slopes, axis=-1)
    steepness[~measured] = np.nan
    figure, (left, middle, right) = figure_of(3, 9.0, 2.7)
    image = left.imshow(
        steepness, cmap="Greys", origin="lower", extent=extent, vmin=0, vmax=0.5, interpolation="nearest"
    )
    figure.colorbar(image, ax=left, label="slope [m/m]", shrink=0.9)
    left.set_title("given: slopes at 20 % of cells")
    middle.imshow(shaded(elevation, terrain.spacing), origin="lower", extent=extent)
    middle.set_title(f"learned elevation, {error:.0f} m off")
    right.imshow(shaded(terrain.elevation, terrain.spacing), origin="lower", extent=extent)
    right.set_title("true elevation")
    for axes in (left, middle, right):
        axes.set(xlabel="east [km]")
    left.set(ylabel="north [km]")
    save(figure, "terrain")


def shaded(elevation: Grid, spacing: tuple[float, float]) -> NDArray[np.float64]:
    """Colours of a relief lit from the north-west, (rows, columns, 3)."""
    light = LightSource(azdeg=315, altdeg=45)
    colours = light.shade(
        elevation,
        cmap=colormaps["gist_earth"],
        blend_mode="soft",
        vert_exag=2,
        dx=spacing[0],
        dy=spacing[1],
        vmin=-500,
        vmax=1200,
    )
    return colours[..., :3]


# A motor


class FluxMap(NamedTuple):
    """Currents [A] and flux linkages [Vs] of a motor, (n, 2) each, and the shape (rows, columns) of the grid."""

    currents: Tensor
    flux: Tensor
    shape: tuple[int, int]


def load_flux_map(path: Path) -> FluxMap:
    """Read complex arrays d + j q."""
    with np.load(path) as data:
        currents = data["i_s_dq"]
        flux = data["psi_s_dq"]
    rows, columns = currents.shape
    return FluxMap(_pairs(currents), _pairs(flux), (rows, columns))


def _pairs(values: NDArray[np.complex128]) -> Tensor:
    flat = values.ravel()
    return torch.from_numpy(np.stack([flat.real, flat.imag], axis=-1))


def draw_motor(path: Path) -> None:
    """Flux linkage as the gradient of a convex co-energy, from every second current in each direction."""
    motor = load_flux_map(path)
    # Every second current of each axis is for training, a part of the others decides when to stop.
    used = _every(motor.shape, first=0, step=2)
    held_out = _every(motor.shape, first=1, step=4)
    unseen = ~(used | held_out)

    torch.manual_seed(0)
    core = GradNetM(2, 12, 4, monotone=True).double()
    net = standardised(core, motor.currents[used], motor.flux[used])
    validation = (motor.currents[held_out], motor.flux[held_out])
    result = fit(
        net,
        motor.currents[used],
        motor.flux[used],
        validation=validation,
        optimizer="levenberg",
        steps=150,
        progress=False,
    )
    with torch.no_grad():
        distance = (net(motor.currents) - motor.flux)[unseen].norm(dim=-1)
        size = motor.flux.norm(dim=-1).square().mean().sqrt()
        smallest = net.jacobian(motor.currents).eigvalsh().min()
    error = distance.square().mean().sqrt()
    fitted = f"motor: {count_parameters(net)} parameters on {int(used.sum())} of {len(used)} currents"
    print(f"{fitted} in {result.seconds:.1f} s; error at {int(unseen.sum())} others {1e3 * float(error):.2f} mVs")
    print(f"  (worst {1e3 * float(distance.max()):.1f}) of {float(size):.2f} Vs; ", end="")
    print(f"smallest incremental inductance {1e3 * float(smallest):.1f} mH")

    figure, (left, right) = figure_of(2, 7.5, 2.9)
    _cuts(left, motor, net, axis=0, fixed=(0.0, 8.0, 20.0))
    _cuts(right, motor, net, axis=1, fixed=(-18.0, 2.0, 18.0))
    save(figure, "motor")


def _every(shape: tuple[int, int], *, first: int, step: int) -> Tensor:
    """A mask of the grid's points, (n,), with every ``step``-th row and column from the ``first`` on."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[first::step, first::step] = True
    return mask.flatten()


def _cuts(axes: Axes, motor: FluxMap, net: GradientMap, *, axis: int, fixed: tuple[float, ...]) -> None:
    """Flux of one axis against its current, at fixed currents of the other axis that no training sample has."""
    name, other = ("d", "q") if axis == 0 else ("q", "d")
    along = motor.currents[:, axis]
    current = torch.linspace(float(along.min()), float(along.max()), 200, dtype=torch.float64)
    for value, colour in zip(fixed, CUTS, strict=True):
        row = (motor.currents[:, 1 - axis] - value).abs() < 1e-6
        points = torch.full((200, 2), value, dtype=torch.float64)
        points[:, axis] = current
        with torch.no_grad():
            flux = net(points)[:, axis]
        axes.plot(current, flux, color=colour, lw=1.2, label=f"$i_{other}$ = {value:.0f} A")
        axes.plot(along[row], motor.flux[row, axis], ".", ms=5, color=colour)
    axes.set(
        xlabel=f"current $i_{name}$ [A]",
        ylabel=f"flux linkage $\\psi_{name}$ [Vs]",
        title="lines learned, dots measured",
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


# Ethanol


def draw_ethanol(steps: int) -> None:
    """Energies of ethanol by a network that saw forces only."""
    torch.manual_seed(0)
    ethanol = load_ethanol()
    x = ethanol.training.positions[:1000]
    forces = ethanol.training.forces[:1000]
    phi = pair_distances(9)
    inner = standardised_inside(GradNetC(36, 256, 1, activation="softplus"), phi, x, forces)
    net = CoordinatePullback(Symmetrized(inner, pair_permutations(9, ALIKE)), phi)
    held_out = (ethanol.validation.positions, ethanol.validation.forces)
    result = fit(net, x, forces, validation=held_out, steps=steps, batch_size=50, learning_rate=1e-2, progress=False)
    test = ethanol.test
    scan = ethanol.scans["hydroxyl"]
    with torch.no_grad():
        force_error = float((net(test.positions) - test.forces).abs().mean())
        energies = -net.double().potential(test.positions.double())
        turned = -net.potential(scan.positions.double())
    constant = (test.energies - energies).mean()
    energies = energies + constant
    energy_error = float((energies - test.energies).abs().mean())
    turned = turned - turned.mean() + scan.energies.mean()
    turn_error = float((turned - scan.energies).abs().mean())
    print(
        f"ethanol: forces {1e3 * force_error:.1f} meV/A, energies {1e3 * energy_error:.1f} meV, "
        f"OH turned {1e3 * turn_error:.1f} meV, {result.seconds:.0f} s"
    )

    figure, (left, right) = figure_of(2, 7.5, 2.9)
    left.plot(test.energies, energies, ".", ms=3, color=LEARNED)
    ends = [float(test.energies.min()), float(test.energies.max())]
    left.plot(ends, ends, color=TRUTH, lw=0.8)
    left.set(xlabel="true energy [eV]", ylabel="learned energy [eV]", title="1,000 frames never seen")
    angle = np.linspace(0, 360, len(scan.energies))
    lowest = float(scan.energies.min())
    right.plot(angle, 1e3 * (scan.energies - lowest), "o", ms=3, color=TRUTH, label="true")
    right.plot(angle, 1e3 * (turned - lowest), color=LEARNED, lw=1.2, label="learned from forces")
    right.set(
        xlabel="OH group turned by [degrees]",
        ylabel="energy [meV]",
        title="a turn never seen",
        xticks=range(0, 361, 90),
    )
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save(figure, "ethanol")


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--motor", type=Path, help="flux map (.npz); the motor is left out without it")
    parser.add_argument("--only", choices=("terrain", "motor", "ethanol"), help="draw one picture")
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of the terrain")
    parser.add_argument("--steps", type=int, default=1000, help="of Adam, for ethanol")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only in (None, "terrain"):
        draw_terrain(options.seconds)
    if options.motor is not None and options.only in (None, "motor"):
        draw_motor(options.motor)
    if options.only in (None, "ethanol"):
        draw_ethanol(options.steps)


if __name__ == "__main__":
    main()
