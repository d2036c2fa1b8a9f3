"""The pictures of the two-dimensional fields' pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nablanets.maps import GradientMap
from nablanets_studies.fields.field2d_arms import ARMS, TrainedArm
from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.plots import panels
from nablanets_studies.problems.fields import Field2D, unit_grid


def pictures_of(field: Field2D, models: Mapping[str, nn.Module]) -> Iterator[Picture]:
    """The field as arrows, errors as colours, potentials as contours."""
    yield _fields(field, {arm: net for arm, net in models.items() if _pictured(arm)})
    yield _error_maps(field, models)
    yield _potentials(field, {arm: net for arm, net in models.items() if isinstance(net, GradientMap)})


def _pictured(name: str) -> bool:
    arm = ARMS[name]
    return isinstance(arm, TrainedArm) and arm.pictured


def _fields(field: Field2D, models: Mapping[str, nn.Module]) -> Picture:
    x = unit_grid(15)  # (side, side, 2)
    figure, axes = panels(1, 1 + len(models))
    fields: list[tuple[str, Callable[[Tensor], Tensor]]] = [("truth", field.gradient), *models.items()]
    for ax, (title, f) in zip(axes, fields, strict=True):
        with torch.no_grad():
            g = f(x).numpy()
        ax.quiver(x[..., 0], x[..., 1], g[..., 0], g[..., 1], np.hypot(g[..., 0], g[..., 1]), cmap="viridis")
        ax.set(title=title, xlabel="$x_1$", aspect="equal")
    return Picture("fields", "The field and what was learned of it (seed 0); colour is the length.", figure)


def _error_maps(field: Field2D, models: Mapping[str, nn.Module]) -> Picture:
    x = unit_grid(100)  # (side, side, 2)
    truth = field.gradient(x)
    figure, axes = panels(2, (len(models) + 1) // 2)
    image = None
    for ax, (arm, net) in zip(axes, models.items(), strict=False):
        with torch.no_grad():
            size = (net(x) - truth).norm(dim=-1)
        levels = np.log10(size.clamp(min=1e-9).numpy()).T
        image = ax.imshow(levels, origin="lower", extent=(0, 1, 0, 1), vmin=-4, vmax=0, cmap="magma")
        ax.set(title=arm)
    for ax in axes[len(models) :]:
        ax.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=axes, label=r"$\log_{10}\|f - f^*\|$", shrink=0.8)
    return Picture("errors", "Where the error is (seed 0), on one logarithmic scale.", figure)


def _potentials(field: Field2D, models: Mapping[str, GradientMap]) -> Picture:
    x = unit_grid(60)  # (side, side, 2)
    truth = field.potential(x)
    low = float(truth.min() - truth.mean())
    high = float(truth.max() - truth.mean())
    levels = np.linspace(low, high, 15)
    figure, axes = panels(1, 1 + len(models))
    named = [("truth", field.potential), *((arm, net.potential) for arm, net in models.items())]
    for ax, (title, potential) in zip(axes, named, strict=True):
        with torch.no_grad():
            values = potential(x)
        ax.contour(x[..., 0], x[..., 1], values - values.mean(), levels=levels, cmap="viridis")
        ax.set(title=title, aspect="equal")
    return Picture("potentials", "Potentials that belong to the learned gradients (seed 0, mean removed).", figure)
