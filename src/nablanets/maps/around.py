"""How maps around other maps (sums, scalings, changes of coordinates) pass on what starts ask of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from nablanets.activations.base import ParameterColumns
from nablanets.errors import InvalidInputError
from nablanets.maps.protocols import (
    AffineParts,
    Composition,
    FactoredTerm,
    HasAffinePart,
    HasBends,
    HasConstantValue,
    HasOuterTerms,
    HasParameterJacobian,
    HasProfiles,
    HasUnitForm,
    HasUnits,
    OuterTerm,
    ParameterJacobian,
    UnitForm,
    lacking,
    supports,
    unit_points,
)


class AroundOne(Composition):
    """f(x) = B(x) g(h(x)) around one map g, ``inner``, with B linear: what g is linear in, f is too."""

    inner: Any
    features: int

    @abstractmethod
    def _seen(self, x: Tensor) -> Tensor:
        """h(x), the points that g is evaluated at."""

    @abstractmethod
    def _back(self, x: Tensor, columns: Tensor) -> Tensor:
        """B(x) applied to columns (*, features of g, p), (*, d, p)."""

    def lacking(self, protocol: type) -> str:
        return lacking(self.inner, protocol)

    def outer_terms(self) -> list[OuterTerm]:
        return [self._passed_on(term) for term in self.inner.outer_terms()]

    def outer_rest(self, x: Tensor) -> Tensor:
        rest = self.inner.outer_rest(self._seen(x)).unsqueeze(-1)  # one column
        return self._back(x, rest).squeeze(-1)

    def _passed_on(self, term: OuterTerm) -> OuterTerm:
        return term.through(self._seen, self._back)

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        """Those of g at h(x), times B(x); None if B or h are trained themselves."""
        seen = self._seen(x)  # (*, n, features of g)
        identity = torch.eye(seen.shape[-1], dtype=left.dtype, device=left.device)
        inside = None if self._is_trained() else self.inner.parameter_jacobian(seen.flatten(0, -2), identity)
        if inside is None:
            return None

        def outside(columns: Tensor) -> Tensor:
            """From derivatives of g (p, features of g, points) to those of B f, (p, k, n)."""
            spread = columns.unflatten(-1, seen.shape[:-1])  # (p, features of g, *, n)
            back = self._back(x, spread.movedim((0, 1), (-1, -2)))  # (n, d, p)
            return (left @ back).movedim((0, 1, 2), (2, 1, 0))

        value, found = inside
        passed_on = []
        for each in found:
            parameter, columns = each.parameter, each.full()
            own = outside(columns.reshape(-1, *columns.shape[-2:]))
            passed_on.append(ParameterColumns(parameter, own.reshape(*parameter.shape, *own.shape[-2:])))
        outer_value = outside(value.reshape(-1, *value.shape[-2:]))
        return outer_value.reshape(*value.shape[:-2], *outer_value.shape[-2:]), passed_on

    def _is_trained(self) -> bool:
        """Whether the change of coordinates has parameters of its own."""
        module = cast(nn.Module, self)
        own = list(module.parameters(recurse=False))
        for name, part in module.named_children():
            if name != "inner":
                own += part.parameters()
        return bool(own)

    def unit_groups(self) -> int:
        return self.inner.unit_groups()

    def unit_terms(self) -> list[OuterTerm]:
        return [self._passed_on(term) for term in self.inner.unit_terms()]

    def spread_units(self, x: Tensor) -> None:
        self.inner.spread_units(self._seen(x).flatten(0, -2))


class LinearChange(AroundOne):
    r"""f(x) = c A^T g(A x + b) with fixed A (m, d), b (m) and a number c.

    With g(y) = N y + ... the matrix of f is c A^T N A, and with ridge functions :math:`g(y) = V^T \phi(V y)` those of f
    are :math:`W^T \psi(W x)` with :math:`W = \sqrt c\,V A` and :math:`\psi(u) = \sqrt c\,\phi(u / \sqrt c + V b)`.
    """

    @abstractmethod
    def _change(self) -> tuple[Tensor | None, Tensor | None, float]:
        """A, b (None for the identity and zero) and c."""

    def _seen(self, x: Tensor) -> Tensor:
        matrix, offset, _ = self._change()
        image = x if matrix is None else x @ matrix.mT
        return image if offset is None else image + offset

    def _back(self, x: Tensor, columns: Tensor) -> Tensor:
        matrix, _, factor = self._change()
        scaled = factor * columns
        return scaled if matrix is None else matrix.mT @ scaled

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        """Those of B f = (c B A^T) g at A x + b: the map inside multiplies its own weights by c B A^T."""
        if self._is_trained():
            return None
        matrix, _, factor = self._change()
        scaled = left if factor == 1.0 else factor * left
        own = scaled if matrix is None else scaled @ matrix.mT
        return cast("ParameterJacobian | None", self.inner.parameter_jacobian(self._seen(x), own))

    def unit_form(self) -> UnitForm | None:
        """That of g, unless A or b are trained."""
        return None if self._is_trained() else cast("UnitForm | None", self.inner.unit_form())

    def unit_points(self, x: Tensor) -> Tensor:
        """The points of g at A x + b."""
        return unit_points(self.inner, self._seen(x))

    def affine_parts(self) -> AffineParts:
        """Those of g, times c A^T on the left."""
        matrix, _, factor = self._change()
        inside = self.inner.affine_parts()

        def times_left(columns: Tensor) -> Tensor:
            scaled = factor * columns
            return scaled if matrix is None else matrix.mT @ scaled

        return cast(AffineParts, inside)._replace(
            outer=times_left(inside.outer),
            constant=times_left(inside.constant.unsqueeze(-1)).squeeze(-1),
            linear=None if inside.linear is None else times_left(inside.linear),
        )

    def unit_parameters(self) -> tuple[Tensor, ...]:
        """Those of g."""
        return cast("tuple[Tensor, ...]", self.inner.unit_parameters())

    def _passed_on(self, term: OuterTerm) -> OuterTerm:
        if not isinstance(term, FactoredTerm):
            return super()._passed_on(term)
        matrix, _, factor = self._change()
        scaled = factor * term.vectors  # (q, m)
        return term.with_vectors(self._seen, scaled if matrix is None else scaled @ matrix)

    def _undone(self, rows: Tensor) -> Tensor:
        """Rows (k, d) times the left inverse A^+ (d, m): y with y A = rows.

        Raises:
            InvalidInputError: A maps some x to zero, or c is zero, so that g cannot give f any affine part.
        """
        matrix, _, factor = self._change()
        rank = self.features if matrix is None else int(torch.linalg.matrix_rank(matrix))
        if factor == 0 or rank < self.features:
            raise InvalidInputError(
                f"{type(self).__name__}: expected a change of coordinates that can be undone, to pass an affine part "
                f"on to the map inside; got rank {rank} for {self.features} features, and the factor {factor}. "
                "Start the map inside, or add a Quadratic."
            )
        return rows if matrix is None else rows @ torch.linalg.pinv(matrix).to(rows)

    def has_linear_term(self) -> bool:
        return self.inner.has_linear_term()

    def set_linear_term(self, matrix: Tensor) -> None:
        half = self._undone(matrix)  # (d, m)
        own = self._undone(half.mT) / self._change()[2]  # (m, m)
        self.inner.set_linear_term(own)

    def add_constant(self, vector: Tensor) -> None:
        own = self._undone(vector.unsqueeze(0)).squeeze(0) / self._change()[2]
        self.inner.add_constant(own)

    def directions(self) -> Tensor:
        matrix, _, factor = self._change()
        scaled = self._root(factor) * self.inner.directions()
        return scaled if matrix is None else scaled @ matrix

    def place_units(self, weight: Tensor, x: Tensor, *, largest_spread: float | None = None) -> None:
        own = self._undone(weight) / self._root(self._change()[2])
        self.inner.place_units(own, self._seen(x), largest_spread=largest_spread)

    def profiles(self, u: Tensor) -> Tensor:
        _, offset, factor = self._change()
        root = self._root(factor)
        scaled = u / root
        own = scaled if offset is None else scaled + self.inner.directions() @ offset
        return root * self.inner.profiles(own)

    def profile_parameters(self) -> Iterable[nn.Parameter]:
        return self.inner.profile_parameters()

    def _root(self, factor: float) -> float:
        if not factor > 0:
            raise InvalidInputError(
                f"{type(self).__name__}: expected a positive factor, so that ridge functions inside are ones outside, "
                f"got {factor}. Start the map inside instead."
            )
        return factor**0.5


class SumOfMaps(Composition):
    """f = sum_k f_k: coefficients are those of all parts, and the affine part is shared among those that have one."""

    parts: Any

    def lacking(self, protocol: type) -> str:
        reasons = [lacking(part, protocol) for part in self.parts]
        return "" if "" in reasons else "; ".join(reasons)

    def outer_terms(self) -> list[OuterTerm]:
        parts = self._that_support(HasOuterTerms)
        return [term for part in parts for term in part.outer_terms()]

    def outer_rest(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for part in self.parts:
            total = total + (part.outer_rest(x) if supports(part, HasOuterTerms) else part(x))
        return total

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        """Those of all parts; None if one of them does not know its own."""
        total = x.new_zeros(())
        found: list[ParameterColumns] = []
        for part in self.parts:
            own = part.parameter_jacobian(x, left) if supports(part, HasParameterJacobian) else None
            if own is None:
                return None
            total = total + own[0]
            found += own[1]
        return total, found

    def unit_form(self) -> UnitForm | None:
        """That of the one part with units, if all others are constants."""
        others = [part for part in self.parts if not supports(part, HasConstantValue)]
        if len(others) != 1 or not supports(others[0], HasUnitForm):
            return None
        return cast("UnitForm | None", others[0].unit_form())

    def unit_points(self, x: Tensor) -> Tensor:
        """Those of the part with units."""
        return unit_points(self._only(HasUnitForm), x)

    def affine_parts(self) -> AffineParts:
        """Those of the part with units, and all constants."""
        inside = cast(AffineParts, self._only(HasUnitForm).affine_parts())
        constant = inside.constant
        for part in self._that_support(HasConstantValue):
            constant = constant + part.constant_value()
        return inside._replace(constant=constant)

    def unit_parameters(self) -> tuple[Tensor, ...]:
        """Those of the part with units."""
        return cast("tuple[Tensor, ...]", self._only(HasUnitForm).unit_parameters())

    def unit_terms(self) -> list[OuterTerm]:
        parts = self._that_support(HasUnits)
        return [term for part in parts for term in part.unit_terms()]

    def spread_units(self, x: Tensor) -> None:
        for part in self._that_support(HasBends):
            part.spread_units(x)

    def has_linear_term(self) -> bool:
        return any(part.has_linear_term() for part in self._that_support(HasAffinePart))

    def set_linear_term(self, matrix: Tensor) -> None:
        """Every part with a linear term takes the same share of what the parts that are affine themselves leave."""
        carriers = [part for part in self._that_support(HasAffinePart) if part.has_linear_term()]
        matrix = matrix - self._fixed_matrix(carriers, matrix)
        for part in carriers:
            part.set_linear_term(matrix / len(carriers))

    def add_constant(self, vector: Tensor) -> None:
        self._that_support(HasAffinePart)[0].add_constant(vector)

    def unit_groups(self) -> int:
        return self._only(HasUnits).unit_groups()

    def directions(self) -> Tensor:
        return self._only(HasUnits).directions()

    def place_units(self, weight: Tensor, x: Tensor, *, largest_spread: float | None = None) -> None:
        self._only(HasUnits).place_units(weight, x, largest_spread=largest_spread)

    def profiles(self, u: Tensor) -> Tensor:
        return self._only(HasProfiles).profiles(u)

    def profile_parameters(self) -> Iterable[nn.Parameter]:
        return self._only(HasProfiles).profile_parameters()

    def _that_support(self, protocol: type) -> list[Any]:
        return [part for part in self.parts if supports(part, protocol)]

    def _fixed_matrix(self, carriers: list[Any], like: Tensor) -> Tensor:
        """The matrix (d, d) of the parts beside some; those with units, which a start makes small, count as zero."""
        total = torch.zeros_like(like)
        for part in self.parts:
            if any(part is carrier for carrier in carriers) or supports(part, HasUnits):
                continue
            lower, upper = part.curvature_envelope()
            if not torch.equal(lower, upper):
                raise InvalidInputError(
                    f"{type(self).__name__}: expected parts that are affine or have the methods of "
                    f"nablanets.maps.protocols, got {type(part).__name__}, so the sum cannot start as an affine map. "
                    "Start the other parts on what this one leaves of the data."
                )
            total = total + lower.to(like)
        return total

    def _only(self, protocol: type) -> Any:
        """The one part that fulfils a protocol."""
        found = self._that_support(protocol)
        if len(found) != 1:
            raise InvalidInputError(
                f"{type(self).__name__}: expected one part with {protocol.__name__} to place units in, got "
                f"{len(found)}. Give a part a linear term (linear=True), or start the parts one by one."
            )
        return found[0]
