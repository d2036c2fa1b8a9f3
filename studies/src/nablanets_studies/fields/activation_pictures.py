"""The pictures of the activation study's page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from nablanets_studies.fields.activation_arms import IDENTIFIED
from nablanets_studies.fields.activation_results import ActivationResults
from nablanets_studies.machinery.base import Picture
from nablanets_studies.problems.fields import Field

#: The arms whose values on a line are shown.
_CUTS = ("m-tanh", "c-tanh", "c-relu", "m-softmax", "mlp-relu", IDENTIFIED.name)


def heat_map(results: ActivationResults) -> Picture:
    """Mean test errors as colours."""
    targets = results.targets
    errors = [results.errors(target) for target in targets]
    arms = list(errors[0])
    values = np.array([[column[arm].mean for column in errors] for arm in arms])  # (arms, targets)
    figure = Figure(figsize=(2 + 1.3 * len(targets), 1 + 0.26 * len(arms)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis_r", vmin=-50, vmax=0)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    figure.colorbar(image, ax=axes, label="test error [dB]")
    return Picture("errors", "Mean test error by network and target (colours end at -50 and 0 dB).", figure)


def cuts(target: Field, models: Mapping[str, nn.Module]) -> Picture:
    """The first component of a target and of some networks on a line through the square."""
    t = torch.linspace(0, 1, 400)
    x = torch.stack([t, 0.3 + 0.4 * t], dim=-1)  # (points, 2)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(t, target.gradient(x)[:, 0], color="black", label="truth")
    for arm in _CUTS:
        if arm in models:
            with torch.no_grad():
                axes.plot(t, models[arm](x)[:, 0], label=arm, linewidth=1)
    axes.set(xlabel="$x_1$", ylabel="$f_1$")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return Picture("cut", f"{target.name}: the first component along a line (seed 0).", figure)
