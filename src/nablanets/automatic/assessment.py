"""Whether data can be fitted as asked, and whether a fit is of any use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nablanets.errors import FitError, InvalidInputError
from nablanets.fitting.batches import Samples
from nablanets.fitting.settings import FitResult, decibels
from nablanets.pieces.regression import symmetric_regression

# A fit is worse than the affine map if its error is larger by this factor; held-out errors of equals differ by less,
_CLEARLY_WORSE = 1.1
# and if it is above this fraction of the mean square gradient: affine data are fitted by the affine map to rounding.
_GOOD_ANYWAY = 1e-3
# Pairs of samples that are looked at.
_PAIRS = 10_000
# A pair counts as falling if <g - g', x - x'> is below minus this fraction of the root mean square over pairs.
_NOISE = 0.05
# From this share of falling pairs on a monotone fit is worth a remark, and from that one on it makes no sense.
_SOME_FALL = 0.05
_MOST_FALL = 0.5


@torch.no_grad()
def affine_error(train: Samples, held_out: Samples) -> float:
    """Mean ||A x + b - g||^2 on held-out samples, with symmetric A and b from the training samples.

    Everything is centred and divided by its size before, so that units do not matter.

    >>> x = torch.randn(50, 2, dtype=torch.double)
    >>> affine_error((x, 3 * x + 1), (x, 3 * x + 1)) < 1e-20
    True
    """
    x, g = (part.double() for part in train)
    points, targets = (part.double() for part in held_out)
    mean_x = x.mean(dim=0)
    mean_g = g.mean(dim=0)
    size_x = float((x - mean_x).abs().max()) or 1.0
    size_g = float((g - mean_g).abs().max()) or 1.0
    matrix, constant = symmetric_regression((x - mean_x) / size_x, (g - mean_g) / size_g)
    predicted = (points - mean_x) / size_x @ matrix + constant
    residual = predicted - (targets - mean_g) / size_g
    return float(residual.square().sum(dim=-1).mean()) * size_g * size_g


def check_worth_fitting(g: Tensor) -> None:
    """Refuse gradients that are all zero.

    Raises:
        InvalidInputError: all are zero.
    """
    if not bool(g.any()):
        raise InvalidInputError(
            "all gradients are zero, so there is nothing to fit: the potential is constant. Check the gradient columns."
        )


@torch.no_grad()
def falling_share(x: Tensor, g: Tensor) -> float:
    """The share of pairs of samples with <g - g', x - x'> < 0 by more than noise: none, for a monotone map.

    >>> x = torch.randn(50, 2)
    >>> falling_share(x, 2 * x), falling_share(x, -2 * x) > 0.8
    (0.0, True)
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(len(x), (2, _PAIRS), generator=generator)
    dx = (x[first] - x[second]).double()
    dg = (g[first] - g[second]).double()
    # Each column of x times that of g has the unit of the potential, so the sum is one in any units.
    products = (dx / (float(dx.abs().max()) or 1.0) * (dg / (float(dg.abs().max()) or 1.0))).sum(dim=-1)
    noise = _NOISE * products.square().mean().sqrt()
    return float((products < -noise).double().mean())


def monotone_remark(x: Tensor, g: Tensor) -> str:
    """What there is to say about a monotone fit of these samples; the empty string if they increase.

    Raises:
        FitError: most pairs of samples fall.
    """
    share = falling_share(x, g)
    if share <= _SOME_FALL:
        return ""
    found = f"{share:.0%} of the pairs of samples have <g - g', x - x'> < 0, which no monotone map has"
    if share > _MOST_FALL:
        raise FitError(
            f"the gradients decrease: {found}. Leave --monotone out, or change the sign of the gradients and use "
            "minus the model."
        )
    return f"{found}. Where that is not noise, leave --monotone out."


def complaint(result: FitResult, mean_square: float, affine: float) -> str:
    """Why a fit is of no use; the empty string if it is.

    Args:
        result: of the fit.
        mean_square: of the held-out gradients.
        affine: the error of the affine map there, see :func:`affine_error`.
    """
    error = result.best_validation_error
    if result.stop_reason == "diverged" or not math.isfinite(error):
        return (
            f"the fit diverged after {result.steps} steps: its numbers are no longer finite. Take a lower learning rate"
        )
    if error > _CLEARLY_WORSE * affine and error > _GOOD_ANYWAY * mean_square:
        return (
            f"the fit is worse than the best affine map A x + b on the samples held out: "
            f"{decibels(error / mean_square):.2f} dB against {decibels(affine / mean_square):.2f} dB. Take more steps, "
            "another learning rate, fewer hidden units, or an affine map (nablanets.Quadratic)"
        )
    return ""
