"""The linear gradient map A x + b with symmetric A: the linear term of the other maps, or a map of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from nablanets.activations.base import ParameterColumns
from nablanets.errors import InvalidInputError, ShapeError, check_positive_int
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import FactoredTerm, OuterTerm, ParameterJacobian
from nablanets.operators import GramTerm, StructuredOperator, SymmetricOperator
from nablanets.parameters import constrained, inverse_softplus, through_constraint
from nablanets.serialization import savable
from nablanets.tensors import kept

#: How a linear term is asked for: True (full rank), a rank, "diagonal", or False (none).
LinearSpec: TypeAlias = "bool | int | Literal['diagonal']"


@savable
class Quadratic(GradientMap):
    r"""f(x) = (diag(m) + V^T diag(c) V) x + b, the gradient of a quadratic form.

    Monotone: m > 0 (softplus) and c = 1, so f is strongly monotone. Otherwise m and c are free.

    Args:
        features: d.
        rank: rows of V; None means d, so that every positive definite (symmetric) matrix can be reached; 0 keeps
            only the diagonal.
        monotone: require a positive definite matrix.
        bias: with the constant b.

    >>> q = Quadratic(3, monotone=True)
    >>> bool((q.jacobian(torch.zeros(3)).eigvalsh() > 0).all())
    True
    """

    def __init__(self, features: int, rank: int | None = None, *, monotone: bool = False, bias: bool = True) -> None:
        check_positive_int(features, owner="Quadratic", name="features")
        super().__init__(features, monotone=monotone)
        self.rank = features if rank is None else rank
        start = inverse_softplus(0.1) if monotone else 0.1
        self.diagonal_raw = nn.Parameter(torch.full((features,), start))
        self.factor = self.weights = None
        if self.rank > 0:
            self.factor = nn.Parameter(torch.randn(self.rank, features) * (0.1 / self.rank) ** 0.5)
        if self.rank > 0 and not monotone:
            self.weights = nn.Parameter(torch.tensor([1.0, -1.0] * self.rank)[: self.rank])
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None

    @classmethod
    @torch.no_grad()
    def from_matrix(
        cls, matrix: Tensor, bias: Tensor | None = None, *, rank: int | None = None, monotone: bool = False
    ) -> Quadratic:
        """The map A x + b, to rounding if the rank is d and, where monotone, A is positive definite.

        Of lower rank, the outermost eigenvalues are kept (the largest, where monotone) and the others replaced by their
        mean; where monotone, eigenvalues are raised to at least 1e-12 of the largest.

        Args:
            matrix: A, symmetric, (d, d).
            bias: b, (d,); zero if None.
            rank, monotone: as in the constructor.

        Raises:
            ShapeError: the matrix is not square, or the bias does not match.

        >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> torch.allclose(Quadratic.from_matrix(a, monotone=True).jacobian(torch.zeros(2)).dense(), a)
        True
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ShapeError(f"Quadratic.from_matrix: expected a matrix of shape (d, d), got {tuple(matrix.shape)}.")
        features = len(matrix)
        if bias is not None and bias.shape != (features,):
            raise ShapeError(f"Quadratic.from_matrix: expected a bias of shape ({features},), got {tuple(bias.shape)}.")
        result = cls(features, rank, monotone=monotone).to(matrix)
        diagonal, weights, vectors = _split_spectrum(matrix, result.rank, monotone=monotone)
        result.diagonal_raw.fill_(inverse_softplus(diagonal) if monotone else diagonal)
        if result.factor is not None:
            result.factor.copy_((vectors * weights.sqrt() if monotone else vectors).mT)
        if result.weights is not None:
            result.weights.copy_(weights)
        if result.bias is not None and bias is not None:
            result.bias.copy_(bias)
        return result

    @classmethod
    @torch.no_grad()
    def from_diagonal(cls, diagonal: Tensor, bias: Tensor, *, monotone: bool = False) -> Quadratic:
        """The map diag(m) x + b; m > 0 where monotone.

        >>> Quadratic.from_diagonal(torch.tensor([1.0, 4.0]), torch.zeros(2))(torch.ones(2)).tolist()
        [1.0, 4.0]
        """
        result = cls(len(diagonal), 0, monotone=monotone).to(diagonal)
        result.diagonal_raw.copy_(inverse_softplus(diagonal) if monotone else diagonal)
        cast(Tensor, result.bias).copy_(bias)
        return result

    def config(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "rank": self.rank,
            "monotone": self.monotone,
            "bias": self.bias is not None,
        }

    def _diagonal(self) -> Tensor:
        return constrained(self.diagonal_raw, nonnegative=self.monotone)

    def _linear(self, x: Tensor) -> Tensor:
        y = self._diagonal() * x
        if self.factor is None:
            return y
        inner = x @ self.factor.mT
        return y + (inner if self.weights is None else inner * self.weights) @ self.factor

    def _forward(self, x: Tensor) -> Tensor:
        y = self._linear(x)
        return y if self.bias is None else y + self.bias

    def _potential(self, x: Tensor) -> Tensor:
        value = (self._linear(x) * x).sum(dim=-1) / 2
        return value if self.bias is None else value + x @ self.bias

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        """A straight line in t, known after two products."""
        start, slope = (self._forward(x) * p).sum(dim=-1), (self._linear(p) * p).sum(dim=-1)
        return lambda t: start + t * slope

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        matrix = self.matrix()
        return matrix, matrix

    def matrix(self) -> Tensor:
        """A, (d, d)."""
        diagonal = torch.diag_embed(self._diagonal())
        if self.factor is None:
            return diagonal
        weighted = self.factor if self.weights is None else self.weights.unsqueeze(-1) * self.factor
        return diagonal + self.factor.mT @ weighted

    def outer_terms(self) -> list[OuterTerm]:
        """m, c where it is free, and b."""
        identity = torch.eye(self.features).to(self.diagonal_raw)
        terms: list[OuterTerm] = [FactoredTerm.of(self.diagonal_raw, lambda x: x, identity, positive=self.monotone)]
        factor = self.factor
        if factor is not None and self.weights is not None:
            terms.append(FactoredTerm.of(self.weights, lambda x: x @ factor.mT, factor))
        if self.bias is not None:
            terms.append(FactoredTerm.of(self.bias, torch.ones_like, identity))
        return terms

    def outer_rest(self, x: Tensor) -> Tensor:
        """V^T V x of a monotone map, whose c is one."""
        if self.factor is None or self.weights is not None:
            return torch.zeros_like(x)
        return x @ self.factor.mT @ self.factor

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        """Of f = m * x + V^T (c * V x) + b, by the product rule; see :class:`~.protocols.HasParameterJacobian`.

        Of m_j: x_j e_j. Of V_rj: c_r ((V x)_r e_j + x_j V_r). Of c_r: (V x)_r V_r. Of b_j: e_j.
        """
        points = x.mT  # (d, n)
        axes = left.mT.unsqueeze(-1)  # B e_j, (d, k, 1)
        value = left @ (self._diagonal().unsqueeze(-1) * points)
        in_diagonal = axes * points.unsqueeze(-2)  # (d, k, n)
        in_diagonal = through_constraint(in_diagonal, self.diagonal_raw[..., None, None], nonnegative=self.monotone)
        in_diagonal = in_diagonal.expand(*self.diagonal_raw.shape, *in_diagonal.shape[-2:])
        found = [ParameterColumns(self.diagonal_raw, in_diagonal)]
        if self.factor is not None:
            products = self.factor @ points  # V x, (*, r, n)
            vectors = self.factor @ left.mT  # B V_r, (*, r, k)
            in_factor = products[..., None, None, :] * axes  # (*, r, d, k, n)
            in_factor = torch.addcmul(in_factor, vectors[..., None, :, None], points.unsqueeze(-2))
            weighted = products
            if self.weights is not None:
                weighted = self.weights.unsqueeze(-1) * products
                in_factor = self.weights[..., None, None, None] * in_factor
                found.append(ParameterColumns(self.weights, products.unsqueeze(-2) * vectors.unsqueeze(-1)))
            value = value + vectors.mT @ weighted
            found.append(ParameterColumns(self.factor, in_factor))
        if self.bias is not None:
            value = value + left @ self.bias.unsqueeze(-1)
            found.append(constant_columns(self.bias, x, left))
        return value, found

    def has_linear_term(self) -> bool:
        return True

    @torch.no_grad()
    def set_linear_term(self, matrix: Tensor) -> None:
        """Let A be a symmetric matrix (d, d), as :meth:`from_matrix` does; b stays."""
        other = Quadratic.from_matrix(matrix, rank=self.rank, monotone=self.monotone).to(self.diagonal_raw)
        state = {name: value for name, value in other.state_dict().items() if name != "bias"}
        self.load_state_dict(state, strict=False)

    @torch.no_grad()
    def add_constant(self, vector: Tensor) -> None:
        """b <- b + vector."""
        if self.bias is None:
            raise InvalidInputError("Quadratic.add_constant: there is no constant. Build it with bias=True.")
        self.bias.add_(vector)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        terms: tuple[GramTerm, ...] = ()
        if self.factor is not None:
            weights = torch.ones_like(self.factor[:, 0]) if self.weights is None else self.weights
            terms = (GramTerm(self.factor, weights),)
        return StructuredOperator(
            self.features,
            terms,
            self._diagonal(),
            positive_semidefinite=self.monotone,
            batch_shape=x.shape[:-1],
        )


def _split_spectrum(matrix: Tensor, rank: int, *, monotone: bool) -> tuple[float, Tensor, Tensor]:
    """m, weights c and vectors U with m I + U diag(c) U^T near the matrix; c >= 0 and m > 0 where monotone."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    if monotone:
        values = values.clamp(min=max(1e-12 * float(values[-1]), 1e-30))
    order = (values if monotone else values.abs()).argsort(descending=True)
    kept, rest = order[:rank], order[rank:]
    full = float(values[0]) / 2 if monotone else 0.0
    middle = float(values[rest].mean()) if len(rest) else full
    return middle, values[kept] - middle, vectors[:, kept]


@savable
class Constant(GradientMap):
    """f(x) = b, the gradient of b . x; b is a buffer, not trained, and kept as it is if it carries derivatives.

    >>> Constant(torch.tensor([1.0, 2.0]))(torch.zeros(3, 2)).shape
    torch.Size([3, 2])
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        if value.ndim != 1:
            raise ShapeError(f"Constant: expected a vector of shape (d,), got {tuple(value.shape)}.")
        super().__init__(value.shape[0], monotone=True)
        self.register_buffer("value", kept(value))

    def config(self) -> dict[str, Any]:
        return {"value": self.value}

    def _forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        """There is nothing to train."""
        return (left @ self.value.unsqueeze(-1)).expand(*left.shape[:-1], len(x)), []

    def constant_value(self) -> Tensor:
        """b."""
        return self.value

    def _potential(self, x: Tensor) -> Tensor:
        return x @ self.value

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(torch.diag(self.value))
        return zero, zero

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        term = GramTerm(torch.zeros_like(self.value).unsqueeze(0), torch.zeros_like(x[..., :1]))
        return StructuredOperator(self.features, (term,), positive_semidefinite=True)


def constant_columns(bias: Tensor, x: Tensor, left: Tensor) -> ParameterColumns:
    """The derivatives of B b in b (*, d), for points x (n, d) and B (k, d): B e_j at every point, (*, d, k, n)."""
    columns = left.mT.unsqueeze(-1)
    return ParameterColumns(bias, columns.expand(*bias.shape, len(left), len(x)))


def make_linear_term(linear: LinearSpec, features: int, *, monotone: bool) -> Quadratic | None:
    """The linear term that a map's ``linear`` argument asks for."""
    if linear is False:
        return None
    if linear is True or linear == "diagonal":
        return Quadratic(features, None if linear is True else 0, monotone=monotone, bias=False)
    if isinstance(linear, int) and linear >= 1:
        return Quadratic(features, linear, monotone=monotone, bias=False)
    raise InvalidInputError(f"expected linear to be True, False, 'diagonal' or a rank >= 1, got {linear!r}.")
