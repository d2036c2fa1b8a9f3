"""Interval arithmetic on tensors: bounds of what is computed, from bounds of what it is computed from."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

#: Lower and upper ends, of one shape.
Interval: TypeAlias = tuple[Tensor, Tensor]


def interval_product(first: Interval, second: Interval) -> Interval:
    """The least interval that holds a b for every a of the first and b of the second; 0 times infinity is 0.

    >>> low, high = interval_product((torch.tensor(-1.0), torch.tensor(2.0)), (torch.tensor(0.0), torch.tensor(3.0)))
    >>> float(low), float(high)
    (-3.0, 6.0)
    """
    products = torch.stack([a * b.to(a) for a in first for b in second])
    finite = torch.nan_to_num(products, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return finite.amin(dim=0), finite.amax(dim=0)
