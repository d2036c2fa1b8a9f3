"""The unit of targets, so that a fit takes the same steps whatever they are measured in.

A loss in the data's own units overflows for large ones, and for small ones its gradient falls below the constants that
optimisers compare it with (Adam's epsilon, clipping, weight decay, the first step of L-BFGS). So the loss that is
differentiated is in multiples of the square of a unit: a power of two near the root mean square of the targets, which
makes every division exact. Errors that are recorded are in the data's units.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor, nn

from nablanets.errors import DataWarning
from nablanets.maps.around import LinearChange

# Adam and its like keep the data's own unit from here on: their epsilon of 1e-8 is far below gradients there,
_NEAR_ONE_FROM = 0.125
# up to there, where squares do not overflow.
_NEAR_ONE_TO = 1e3
_SIZE_FOR_ADAM = 256.0
# Networks whose weights begin near one learn samples between these sizes well.
_LEARNABLE = (1e-3, 1e3)
# Points may be as many times their spread away from zero.
_LARGEST_OFFSET = 1e4


def root_mean_square(values: Tensor) -> float:
    """Of all entries, in float64, without overflow.

    >>> round(root_mean_square(torch.tensor([3e30, 4e30])) / 1e30, 6)
    3.535534
    """
    wide = values.detach().double()
    largest = float(wide.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float((wide / largest).square().mean().sqrt())


def power_of_two(size: float) -> float:
    """The power of two at or below a size; one for zero and for what is no number.

    >>> power_of_two(1.0), power_of_two(9.0), power_of_two(0.3), power_of_two(0.0)
    (1.0, 8.0, 0.25, 1.0)
    """
    if size == 0 or not math.isfinite(size):
        return 1.0
    exponent = math.frexp(size)[1] - 1
    return math.ldexp(1.0, exponent)


def unit_of_targets(g: Tensor) -> float:
    """A power of two near the root mean square of targets (n, k) about their mean, or of constant ones themselves."""
    wide = g.detach().double()
    deviation = root_mean_square(wide - wide.mean(dim=0))
    return power_of_two(deviation or root_mean_square(wide))


def unit_for_adam(unit: float) -> float:
    """One, if the unit is near it: fits of such data are those of earlier versions to the last bit.

    Else as if the targets had the size 256: the components of a gradient may differ much in size, and Adam's epsilon is
    to be below the least of them.
    """
    return 1.0 if _NEAR_ONE_FROM <= unit <= _NEAR_ONE_TO else unit / _SIZE_FOR_ADAM


def warn_of_units(net: nn.Module, x: Tensor, g: Tensor | None) -> None:
    """Warn of samples far from the size of one, unless the network changes coordinates itself."""
    if any(isinstance(part, LinearChange) for part in net.modules()):
        return
    lowest, highest = _LEARNABLE
    centre = x.detach().double().mean(dim=0)
    spread = root_mean_square(x.detach().double() - centre)
    size = 1.0 if g is None else root_mean_square(g)
    sizes_are_fine = all(lowest <= value <= highest for value in (spread, size) if value > 0)
    is_near = spread == 0 or root_mean_square(centre) <= _LARGEST_OFFSET * spread
    if sizes_are_fine and is_near:
        return
    warnings.warn(
        f"fit: the points spread by {spread:.3g} around {root_mean_square(centre):.3g}, and the gradients have size "
        f"{size:.3g}. Networks learn numbers near one. Fit nablanets.starts.standardised(net, x, g) instead, which has "
        "the data's units outside and those inside.",
        DataWarning,
        stacklevel=3,
    )
