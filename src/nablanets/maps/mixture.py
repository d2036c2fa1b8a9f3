"""Mixtures: the smooth maximum of expert potentials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, ShapeError
from nablanets.keywords import explain_keywords
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import HasBends, supports
from nablanets.operators import GramTerm, StructuredOperator, SymmetricOperator
from nablanets.parameters import inverse_softplus, softplus
from nablanets.serialization import savable


@savable
@explain_keywords
class GradNetMixture(GradientMap):
    r"""f = sum_k p_k(x) f_k(x), the gradient of :math:`F = \frac1t \mathrm{LSE}_k\, t (F_k(x) + c_k)`, t > 0.

    With p = softmax(t (F_k + c_k)) the Jacobian is sum_k p_k J_k + t sum_k p_k (f_k - f)(f_k - f)^T: convex if all
    experts are, and for large t the maximum of the expert potentials, so piecewise fields have sharp edges.

    An edge between experts i and j is as wide as 1 / (t |f_i - f_j|). Far out, where that is less than the distance of
    neighbouring numbers, f jumps from one to the next: ``inverse`` of a y in between does not converge, and says so.
    The potentials must not overflow either, so |x| is to stay below about 1e19 in float32.

    Args:
        experts: gradient maps with one number of features; their potentials are compared, so each needs one.
        sharpness: start of t, which is trained (softplus), as are the offsets c.

    Raises:
        ShapeError: experts of different dimensions. InvalidInputError: no experts, or sharpness <= 0.

    >>> from nablanets import Quadratic
    >>> f = GradNetMixture([Quadratic(2, monotone=True) for _ in range(3)])
    >>> f.monotone, f(torch.zeros(5, 2)).shape
    (True, torch.Size([5, 2]))

    Reference: max-type potentials are "transformed" in the sense of Chaudhari, Pranav, Moura; this form is ours.
    """

    def __init__(self, experts: Sequence[GradientMap], sharpness: float = 1.0) -> None:
        if not experts or not sharpness > 0:
            raise InvalidInputError(
                f"GradNetMixture: expected at least one expert and sharpness > 0, got {len(experts)} and {sharpness}."
            )
        dimensions = [expert.features for expert in experts]
        if len(set(dimensions)) != 1:
            raise ShapeError(f"GradNetMixture: expected experts with one number of features, got {dimensions}.")
        super().__init__(dimensions[0], monotone=all(expert.monotone for expert in experts))
        self.experts = nn.ModuleList(experts)
        self.offset = nn.Parameter(torch.zeros(len(experts)))
        self.sharpness_raw = nn.Parameter(torch.tensor(inverse_softplus(sharpness)))
        self._start = sharpness

    def config(self) -> dict[str, Any]:
        return {"experts": list(self.experts), "sharpness": self._start}

    def _each(self) -> Iterator[GradientMap]:
        return cast(Iterator[GradientMap], iter(self.experts))

    def spread_units(self, x: Tensor) -> None:
        """Put the bends of all experts that have some where the points (n, d) are."""
        for expert in self._each():
            if supports(expert, HasBends):
                cast(HasBends, expert).spread_units(x)

    def _scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """t (F_k + c_k), (*, K), and t."""
        t = softplus(self.sharpness_raw)
        return t * (torch.stack([expert.potential(x) for expert in self._each()], dim=-1) + self.offset), t

    def _forward(self, x: Tensor) -> Tensor:
        p = torch.softmax(self._scores(x)[0], dim=-1)
        return torch.einsum("...k,...kd->...d", p, torch.stack([expert(x) for expert in self._each()], dim=-2))

    def _potential(self, x: Tensor) -> Tensor:
        scores, t = self._scores(x)
        return torch.logsumexp(scores, dim=-1) / t

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        """Below, the least curvature of any expert; above, none is known: the experts may drift apart."""
        least = torch.stack([expert.curvature_bounds()[0] for expert in self._each()]).min()
        identity = torch.eye(self.features, dtype=least.dtype, device=least.device)
        return least * identity, torch.full_like(identity, torch.inf)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        scores, t = self._scores(x)
        p = torch.softmax(scores, dim=-1)
        values = torch.stack([expert(x) for expert in self._each()], dim=-2)
        spread = values - torch.einsum("...k,...kd->...d", p, values).unsqueeze(-2)
        operator: SymmetricOperator = StructuredOperator(self.features, (GramTerm(spread, t * p),))
        for k, expert in enumerate(self._each()):
            operator = operator + expert.jacobian(x).scale(p[..., k])
        operator.positive_semidefinite = self.monotone
        return operator
