"""Pictures of learned flux maps: saturation, incremental inductances, errors over the plane of currents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from nablanets.maps import GradientMap
from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.plots import panels
from nablanets_studies.problems.motor import FluxMap

#: Points of a curve, and of a side of a picture.
_POINTS = 120
#: Curves of saturation; each is at a constant value of the other axis.
_CURVES = 5
_AXES = ("d", "q")


def saturation_picture(name: str, net: GradientMap, machine: FluxMap, known: FluxMap) -> Picture:
    """Flux linkages of each axis against its own current, at several currents of the other axis."""
    figure, axes = panels(1, 2, width=4.6, height=3.6)
    low, high = machine.currents.amin(dim=0), machine.currents.amax(dim=0)
    for axis, ax in enumerate(axes):
        other = 1 - axis
        for level in torch.linspace(float(low[other]), float(high[other]), _CURVES, dtype=torch.float64):
            points = torch.empty(_POINTS, 2, dtype=torch.float64)
            points[:, axis] = torch.linspace(float(low[axis]), float(high[axis]), _POINTS, dtype=torch.float64)
            points[:, other] = level
            with torch.no_grad():
                ax.plot(points[:, axis], net(points)[:, axis], label=f"$i_{_AXES[other]}$ = {float(level):.0f} A")
        ax.plot(known.currents[:, axis], known.fluxes[:, axis], "k.", markersize=3, label="learned from")
        ax.set(xlabel=f"$i_{_AXES[axis]}$ [A]", ylabel=rf"$\psi_{_AXES[axis]}$ [Vs]")
        ax.legend(fontsize="x-small")
        ax.grid(alpha=0.3)
    return Picture("saturation", f"Saturation and cross-saturation by {name} (seed 0).", figure)


def inductance_picture(name: str, net: GradientMap, machine: FluxMap) -> Picture:
    """Incremental inductances over the plane of currents, the entries of the Jacobian."""
    figure, axes = panels(1, 3)
    points, extent = _plane(machine)
    with torch.no_grad():
        jacobian = 1e3 * net.jacobian(points).dense().reshape(_POINTS, _POINTS, 2, 2)  # mH
    for ax, (row, column) in zip(axes, ((0, 0), (0, 1), (1, 1)), strict=True):
        image = ax.imshow(jacobian[..., row, column].numpy(), origin="lower", extent=extent, aspect="auto")
        figure.colorbar(image, ax=ax, shrink=0.8)
        _label(ax, f"$L_{{{_AXES[row]}{_AXES[column]}}}$ [mH]")
    return Picture("inductances", f"Incremental inductances by {name} (seed 0); L_dq and L_qd are equal.", figure)


def error_picture(models: Mapping[str, GradientMap], machine: FluxMap, known: FluxMap) -> Picture:
    """The length of the error of flux linkages at the operating points, one panel for each map."""
    figure, axes = panels(1, len(models))
    errors = {}
    for name, net in models.items():
        with torch.no_grad():
            errors[name] = 1e3 * (net(machine.currents) - machine.fluxes).norm(dim=1)  # mVs
    largest = max(float(error.max()) for error in errors.values())
    image = None
    for ax, (name, error) in zip(axes, errors.items(), strict=True):
        first, second = machine.currents.T.numpy()
        image = ax.scatter(first, second, c=error.numpy(), s=12, vmin=0, vmax=largest, cmap="magma_r")
        ax.plot(known.currents[:, 0], known.currents[:, 1], "c+", markersize=4)
        _label(ax, name)
    if image is not None:
        figure.colorbar(image, ax=axes, label="error [mVs]", shrink=0.8)
    return Picture("errors", "Errors of flux linkages (seed 0); crosses are the points learned from.", figure)


def _plane(machine: FluxMap) -> tuple[Tensor, tuple[float, float, float, float]]:
    low, high = machine.currents.amin(dim=0).numpy(), machine.currents.amax(dim=0).numpy()
    first, second = (np.linspace(low[k], high[k], _POINTS) for k in range(2))
    d, q = np.meshgrid(first, second)
    points = torch.from_numpy(np.stack([d.ravel(), q.ravel()], axis=1))
    return points, (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def _label(ax: Axes, title: str) -> None:
    ax.set(title=title, xlabel="$i_d$ [A]", ylabel="$i_q$ [A]")
