"""What starts, closed forms and exporters may ask of a map: small protocols that any class can fulfil.

A map takes part by having the methods; it need not derive from a class here. :func:`require` checks and explains,
:func:`supports` asks. A map around other maps (:class:`Composition`) takes part if those do.

===================== ================================================= =========================================
protocol              what it says                                      who asks
===================== ================================================= =========================================
HasOuterTerms         which coefficients f is linear in                 solve_outer, solve_ridge
HasAffinePart         A and b of f(x) = ... + A x + b can be set        initialise_affine, initialise_ridges
HasBends              hidden units can be put where the data are        initialise_from_data
HasUnits              hidden units see W x, and W can be chosen         initialise_affine, initialise_ridges
HasProfiles           one function of one variable per row of W         initialise_ridges
HasUnitForm           f = V phi(A x + a) + v + Q x with a known phi     fit and fit_many, for gradients by hand
HasUnitPoints         the same, of other points h(x) in place of x      fit and fit_many
HasConstantValue      f does not depend on x                            sums of maps
HasParameterJacobian  the derivatives of f(x) in the parameters         Levenberg-Marquardt
===================== ================================================= =========================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from nablanets.activations import ElementwiseActivation
from nablanets.activations.base import ParameterColumns
from nablanets.errors import InvalidInputError
from nablanets.parameters import constrained, inverse_softplus


class OuterTerm:
    r"""Coefficients theta that a map is linear in: :math:`f(x) = \sum_j \theta_j\,c_j(x) + \text{what else it has}`.

    Args:
        values: theta at present, (p).
        write: puts other values (p) into the map; called without gradients.
        columns: x -> all c_j(x), from (*, d) to (*, d, p).
        positive: whether theta must stay positive, because the map is monotone by it.
    """

    def __init__(
        self,
        values: Tensor,
        write: Callable[[Tensor], None],
        columns: Callable[[Tensor], Tensor],
        *,
        positive: bool = False,
    ) -> None:
        self.values = values
        self.write = write
        self.columns = columns
        self.positive = positive

    @property
    def count(self) -> int:
        """p."""
        return self.values.numel()

    def value(self, x: Tensor, theta: Tensor) -> Tensor:
        """The sum of theta_j c_j(x), (*, d)."""
        return self.columns(x) @ theta

    def through(self, seen: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor]) -> OuterTerm:
        """The term of x -> back(x, g(seen(x))), where this one is g's and back(x, .) is linear in columns."""
        return OuterTerm(self.values, self.write, lambda x: back(x, self.columns(seen(x))), positive=self.positive)


class FactoredTerm(OuterTerm):
    r"""An :class:`OuterTerm` with columns :math:`c_j(x) = \sum_{k \in j} z_k(x)\,v_k` of scalars and fixed vectors.

    Args:
        values, write, positive: see :class:`OuterTerm`.
        z: x -> the scalars, from (*, d) to (*, q).
        vectors: the v_k, (q, d).
        width: how many k belong to each j, one after the other: q = width p.
    """

    def __init__(
        self,
        values: Tensor,
        write: Callable[[Tensor], None],
        z: Callable[[Tensor], Tensor],
        vectors: Tensor,
        *,
        positive: bool = False,
        width: int = 1,
    ) -> None:
        super().__init__(values, write, self._columns, positive=positive)
        self.z = z
        self.vectors = vectors
        self.width = width

    @classmethod
    def of(
        cls,
        raw: Tensor,
        z: Callable[[Tensor], Tensor],
        vectors: Tensor,
        *,
        positive: bool = False,
        width: int = 1,
    ) -> FactoredTerm:
        """With coefficients that are parameters: ``raw`` itself, or softplus of it where they must be positive."""
        values = constrained(raw.detach(), nonnegative=positive).flatten()

        def write(theta: Tensor) -> None:
            new = inverse_softplus(theta) if positive else theta
            raw.copy_(new.view_as(raw))

        return cls(values, write, z, vectors, positive=positive, width=width)

    def _columns(self, x: Tensor) -> Tensor:
        z = self.z(x).unsqueeze(-2)  # (*, 1, q)
        columns = z * self.vectors.mT  # (*, d, q)
        return columns.unflatten(-1, (-1, self.width)).sum(dim=-1)

    def value(self, x: Tensor, theta: Tensor) -> Tensor:
        weighted = self.z(x) * theta.repeat_interleave(self.width)  # (*, q)
        return weighted @ self.vectors

    def with_vectors(self, seen: Callable[[Tensor], Tensor], vectors: Tensor) -> FactoredTerm:
        """The same coefficients with the scalars z(seen(x)) and other vectors."""
        return FactoredTerm(
            self.values,
            self.write,
            lambda x: self.z(seen(x)),
            vectors,
            positive=self.positive,
            width=self.width,
        )


class HasOuterTerms(Protocol):
    """f(x) = sum over terms, and over their coefficients, of theta_j c_j(x), plus a rest."""

    def outer_terms(self) -> list[OuterTerm]:
        """All coefficients that f is linear in together, with the inner weights as they are."""

    def outer_rest(self, x: Tensor) -> Tensor:
        """f(x) if all of them were zero, (*, d)."""


class HasAffinePart(Protocol):
    """f(x) = ... + A x + b."""

    def has_linear_term(self) -> bool:
        """Whether there is an A; if so, it holds any symmetric matrix (positive definite, in monotone maps)."""

    def set_linear_term(self, matrix: Tensor) -> None:
        """Let A be a symmetric matrix (d, d), or the nearest that it can be."""

    def add_constant(self, vector: Tensor) -> None:
        """Add a vector (d) to b."""


class HasBends(Protocol):
    """Hidden units that bend somewhere, which can be put where the data are."""

    def spread_units(self, x: Tensor) -> None:
        """Put the bends of the units where the points (n, d) are, without changing their directions."""


class HasUnits(Protocol):
    """f(x) = W^T r(W x) + affine, with hidden units r that belong to rows of W."""

    def unit_groups(self) -> int:
        """Into how many groups of equal size the rows fall; 1 if a row stands for itself.

        The units of a group (a softmax) cannot tell weights that have a vector in common, so theirs should sum to zero.
        """

    def directions(self) -> Tensor:
        """W, (units, d)."""

    def unit_terms(self) -> list[OuterTerm]:
        """The coefficients that the sum over units, W^T r(W x), is linear in."""

    def place_units(self, weight: Tensor, x: Tensor, *, largest_spread: float | None = None) -> None:
        """Let W be ``weight``, with bends where the points x are, and units whose mean slope over x is one.

        So the mean Jacobian of the sum over units is about W^T W, and ``directions`` are ``weight`` afterwards.
        ``largest_spread`` is the standard deviation of the units' arguments that vary most, where there is a choice.
        """


class HasProfiles(Protocol):
    """The units of f(x) = W^T phi(W x) + affine are functions of one variable that can be fitted one by one."""

    def profiles(self, u: Tensor) -> Tensor:
        """phi(u), (*, units), for u in place of W x, with W = ``directions()``."""

    def profile_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters of phi."""


class AffineParts(NamedTuple):
    """What surrounds the hidden units of f(x) = V phi(A x + a) + v + Q x.

    Parameters with leading dimensions, one entry per network, give parts with the same.

    Attributes:
        inner, shift: A, (units, d), and a, (units).
        outer: V, (d, units), with the coefficients of the units.
        constant: v, (d).
        linear: Q, (d, d), or None.
    """

    inner: Tensor
    shift: Tensor
    outer: Tensor
    constant: Tensor
    linear: Tensor | None = None


@dataclass(frozen=True)
class ElementwiseForm:
    """phi is an activation without parameters, unit by unit."""

    activation: ElementwiseActivation


@dataclass(frozen=True)
class SoftmaxForm:
    """phi is softmax over each of so many groups of units.

    If ``weighted``, it is a softmax(u) - b softmax(-u), with parameters a and b, each (groups).
    """

    groups: int
    weighted: bool = False


@dataclass(frozen=True)
class CascadeForm:
    """phi(u) = s(z_{L-1}) with z_l = beta_l (u + b_l) + alpha_{l-1} s(z_{l-1}), z_0 = beta_0 (u + b_0).

    The parameters are alpha, beta and b, each (L, units); the last alpha belongs to V. If ``weighted``, each layer has
    c tanh z + e (z - tanh z) in place of s(z), with more parameters c and e, each (L, units).
    """

    activation: ElementwiseActivation
    num_layers: int
    weighted: bool = False


#: The phi for which there are gradients by hand.
UnitForm = ElementwiseForm | SoftmaxForm | CascadeForm


class HasUnitForm(Protocol):
    """f(x) = V phi(A x + a) + v + Q x for a phi that is known by name."""

    def unit_form(self) -> UnitForm | None:
        """Which phi; None if it is none of those known. It must not depend on the values of parameters."""

    def affine_parts(self) -> AffineParts:
        """All but phi, as differentiable functions of the parameters."""

    def unit_parameters(self) -> tuple[Tensor, ...]:
        """The parameters of phi that :data:`UnitForm` asks for, effective values."""


class HasUnitPoints(Protocol):
    """What :class:`HasUnitForm` says is true of points h(x) in place of x, which depend on no trained parameter."""

    def unit_points(self, x: Tensor) -> Tensor:
        """h(x), (*, features of h)."""


def unit_points(net: object, x: Tensor) -> Tensor:
    """The points that the form of a map's units is about: h(x), or x itself."""
    if not hasattr(type(net), "unit_points"):
        return x
    return cast(HasUnitPoints, net).unit_points(x)


class HasConstantValue(Protocol):
    """f(x) is the same for all x, and not trained."""

    def constant_value(self) -> Tensor:
        """It, (d)."""


#: The values B f(x) of a matrix B (k, d) at n points, (k, n), and their derivatives in each parameter, of shape
#: (*parameter.shape, k, n). The samples are the fast axis, since they are many where units and features may be a few.
#: Derivatives may be given as products of numbers (*parameter.shape, n) and vectors (*parameter.shape, k).
ParameterJacobian: TypeAlias = tuple[Tensor, list[ParameterColumns]]


class HasParameterJacobian(Protocol):
    """The derivatives of f(x) in all trained parameters are known in closed form."""

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        """B f(x) and its derivatives, for a matrix B (k, d) and points (n, d); None if they are not known.

        What is around a map multiplies its values by a matrix, as a pullback does; it gives that matrix to the map
        inside, which multiplies its few weights by it instead of its many derivatives. Parameters with leading
        dimensions, one entry per network, give values and derivatives with the same. Parameters that are shared may
        be listed more than once; their derivatives then add. Whether it is None does not depend on values.
        """


class Composition(ABC):
    """A map around other maps: it has the methods of all protocols that they may have."""

    @abstractmethod
    def lacking(self, protocol: type) -> str:
        """What keeps the maps inside from fulfilling a protocol, "" if nothing does."""


def lacking(net: object, protocol: type) -> str:
    """What keeps a map from fulfilling a protocol, "" if nothing does."""
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    missing = [name for name in methods if not hasattr(type(net), name)]
    if missing:
        return f"{type(net).__name__} lacks {', '.join(missing)}"
    return net.lacking(protocol) if isinstance(net, Composition) else ""


def supports(net: object, protocol: type) -> bool:
    """Whether a map fulfils a protocol, and the maps inside it as far as needed.

    >>> from nablanets import GradNetC, from_potential
    >>> supports(2 * GradNetC(2, 8), HasOuterTerms), supports(torch.nn.Linear(2, 2), HasOuterTerms)
    (True, False)
    """
    return not lacking(net, protocol)


def require(net: object, protocol: type, *, owner: str) -> Any:
    """The map, which must fulfil a protocol.

    Raises:
        InvalidInputError: it does not; the message names the methods that are missing.
    """
    reason = lacking(net, protocol)
    if reason:
        raise InvalidInputError(
            f"{owner}: expected a map with the methods of nablanets.maps.protocols.{protocol.__name__}, got "
            f"{type(net).__name__}: {reason}. Take a map that has them, or add them to your class."
        )
    return net


@torch.no_grad()
def write_terms(terms: Iterable[OuterTerm], theta: Tensor) -> None:
    """Put coefficients (of all terms, one after the other) into their maps."""
    position = 0
    for term in terms:
        term.write(theta[position : position + term.count])
        position += term.count
