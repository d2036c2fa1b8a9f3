"""Elementwise gradient activations with closed-form potentials, stable for large arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nablanets.activations.base import ElementwiseActivation, ParameterColumns, TwoWeights
from nablanets.errors import InvalidInputError
from nablanets.parameters import softplus

# The Bernoulli numbers B_2, B_4, ..., B_16.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
# Coefficients B_2k / (2k + 1)! of the Debye-type series of Li2(1 - e^-u), k = 1..8.
_DEBYE = tuple(b / math.factorial(2 * k + 1) for k, b in enumerate(_BERNOULLI, start=1))


def log_cosh(z: Tensor) -> Tensor:
    """log cosh z without overflow, smooth at 0 under automatic differentiation."""
    return softplus(2 * z) - z - math.log(2)


class Identity(ElementwiseActivation):
    r"""s(z) = z, :math:`\psi = z^2/2`."""

    slopes = (1.0, 1.0)

    def bends(self) -> tuple[float, ...]:
        return ()

    def forward(self, z: Tensor) -> Tensor:
        return z

    def potential(self, z: Tensor) -> Tensor:
        return z.square() / 2

    def derivative(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)


class Tanh(ElementwiseActivation):
    r"""s(z) = tanh z, :math:`\psi = \log\cosh z`."""

    slopes = (0.0, 1.0)
    bound = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def potential(self, z: Tensor) -> Tensor:
        return log_cosh(z)

    def derivative(self, z: Tensor) -> Tensor:
        return 1 - torch.tanh(z).square()

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(z)
        return t, 1 - t.square()


class WTanh(ElementwiseActivation):
    r"""Learnable weighted tanh: s(z) = a tanh z + b (z - tanh z), slope in [min(a, b), max(a, b)].

    a and b are one number per unit; positive (softplus) if monotone, else free. The authors' code writes -b in
    the free case; a free b covers both signs. Initial values a = 1, b = 0.1 are our choice.
    """

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False) -> None:
        super().__init__(units, monotone=monotone)
        self.weights = TwoWeights(self.units, 1.0, 0.1, monotone=monotone)

    @property
    def increasing(self) -> bool:
        return self.monotone

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        a, b = self.weights()
        return torch.minimum(a, b), torch.maximum(a, b)

    def forward(self, z: Tensor) -> Tensor:
        a, b = self.weights()
        return torch.addcmul(b * z, a - b, torch.tanh(z))

    def potential(self, z: Tensor) -> Tensor:
        a, b = self.weights()
        return (a - b) * log_cosh(z) + b * z.square() / 2

    def derivative(self, z: Tensor) -> Tensor:
        return self.value_and_derivative(z)[1]

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.weights()
        t = torch.tanh(z)
        return torch.addcmul(b * z, a - b, t), torch.addcmul(a, b - a, t.square())

    def parameter_columns(self, z: Tensor) -> list[ParameterColumns]:
        """tanh z and z - tanh z."""
        t = torch.tanh(z)
        return self.weights.columns(t, z - t)

    def all_derivatives(self, z: Tensor) -> tuple[Tensor, Tensor, list[ParameterColumns]]:
        a, b = self.weights()
        t = torch.tanh(z)
        rest = z - t
        value = torch.addcmul(a * t, b, rest)
        return value, torch.addcmul(a, b - a, t.square()), self.weights.columns(t, rest)

    def potential_columns(self, z: Tensor) -> list[ParameterColumns]:
        """log cosh z and z^2 / 2 - log cosh z."""
        value = log_cosh(z)
        return self.weights.columns(value, z.square() / 2 - value)


class Sigmoid(ElementwiseActivation):
    r"""s(z) = 1 / (1 + e^-z), :math:`\psi = \log(1 + e^z)`."""

    slopes = (0.0, 0.25)
    bound = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def potential(self, z: Tensor) -> Tensor:
        return softplus(z)

    def derivative(self, z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1 - s)


class Softplus(ElementwiseActivation):
    r"""s(z) = log(1 + e^z), :math:`\psi = -\mathrm{Li}_2(-e^z)`.

    The dilogarithm is evaluated through u = softplus(-|z|) <= log 2, where
    -Li2(-e^-|z|) = u + u^2/4 + sum_k B_2k u^(2k+1) / (2k+1)! converges to rounding in eight terms, and its
    reflection psi(z) + psi(-z) = pi^2/6 + z^2/2.
    """

    slopes = (0.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return softplus(z)

    def potential(self, z: Tensor) -> Tensor:
        negative, positive = z.clamp(max=0), z.clamp(min=0)
        reflected = math.pi**2 / 6 + positive.square() / 2 - _minus_dilog(-positive)
        return torch.where(z > 0, reflected, _minus_dilog(negative))

    def derivative(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)


def _minus_dilog(z: Tensor) -> Tensor:
    """-Li2(-e^z) for z <= 0."""
    u = softplus(z)
    u2 = u.square()
    series = torch.full_like(u, _DEBYE[-1])
    for c in _DEBYE[-2::-1]:
        series = series * u2 + c
    return u + u2 / 4 + u * u2 * series


class Squareplus(ElementwiseActivation):
    r"""s(z) = (z + sqrt(z^2 + 4)) / 2, :math:`\psi = z s(z)/2 + \mathrm{asinh}(z/2)`: softplus without exponentials."""

    slopes = (0.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return self._value(z, self._root(z))

    @staticmethod
    def _value(z: Tensor, root: Tensor) -> Tensor:
        return torch.where(z >= 0, (z + root) / 2, 2 / (root - z.clamp(max=0)))

    @staticmethod
    def _root(z: Tensor) -> Tensor:
        """sqrt(z^2 + 4), also where the square overflows: there it is |z| + 3 to rounding, and nowhere as large."""
        return torch.minimum(torch.sqrt(z.square() + 4), z.abs() + 3)

    def potential(self, z: Tensor) -> Tensor:
        return z * self(z) / 2 + torch.asinh(z / 2)

    def derivative(self, z: Tensor) -> Tensor:
        root = self._root(z)
        return self._value(z, root) / root


class LeakyReLU(ElementwiseActivation):
    r"""s(z) = max(z, slope z), a subgradient of :math:`\psi = s(z) z / 2`; ``negative_slope`` in [0, 1]."""

    kinks = (0.0,)

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False, negative_slope: float = 0.01) -> None:
        super().__init__(units, monotone=monotone)
        if not 0 <= negative_slope <= 1:
            raise InvalidInputError(f"LeakyReLU: expected negative_slope in [0, 1], got {negative_slope}.")
        self.negative_slope = negative_slope

    @property
    def increasing(self) -> bool:
        return True

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.negative_slope), torch.tensor(1.0)

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, z, self.negative_slope * z)

    def potential(self, z: Tensor) -> Tensor:
        return self(z) * z / 2

    def derivative(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, self.negative_slope))


class ReLU(LeakyReLU):
    r"""s(z) = max(z, 0), a subgradient of :math:`\psi = \max(z, 0)^2/2`."""

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False) -> None:
        super().__init__(units, monotone=monotone, negative_slope=0.0)


class Abs(ElementwiseActivation):
    r"""s(z) = abs(z), :math:`\psi = z\,|z| / 2`; not increasing, with one kink."""

    slopes = (-1.0, 1.0)
    kinks = (0.0,)

    def forward(self, z: Tensor) -> Tensor:
        return z.abs()

    def potential(self, z: Tensor) -> Tensor:
        return z * z.abs() / 2

    def derivative(self, z: Tensor) -> Tensor:
        return torch.sign(z)


class Sine(ElementwiseActivation):
    r"""s(z) = sin z, :math:`\psi = -\cos z`; not increasing, for oscillating fields."""

    slopes = (-1.0, 1.0)
    bound = 1.0

    def bends(self) -> tuple[float, ...]:
        return ()

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z)

    def potential(self, z: Tensor) -> Tensor:
        return -torch.cos(z)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.cos(z)


class Gaussian(ElementwiseActivation):
    r"""s(z) = e^{-z^2/2}, :math:`\psi = \sqrt{\pi/2}\,\mathrm{erf}(z/\sqrt2)`; not increasing, for local features."""

    slopes = (-math.exp(-0.5), math.exp(-0.5))
    bound = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return torch.exp(-z.square() / 2)

    def potential(self, z: Tensor) -> Tensor:
        return math.sqrt(math.pi / 2) * torch.erf(z / math.sqrt(2))

    def derivative(self, z: Tensor) -> Tensor:
        return -z * torch.exp(-z.square() / 2)


class Polynomial(ElementwiseActivation):
    r"""A learnable polynomial per unit of odd ``degree`` n.

    Free: s(z) = sum_k c_k z^k. Monotone: s'(z) = q(z)^2 with q of degree (n - 1)/2, so s is increasing for any q.
    Starts at s(z) = z + small higher terms (our choice). Its slope has no upper bound.
    """

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False, degree: int = 3) -> None:
        super().__init__(units, monotone=monotone)
        if degree < 1 or degree % 2 == 0:
            raise InvalidInputError(f"Polynomial: expected an odd degree >= 1, got {degree}.")
        self.degree = degree
        count = (degree + 1) // 2 if monotone else degree + 1
        raw = 0.1 * torch.randn(*self.units, count)
        raw[..., 0 if monotone else 1] = 1.0
        self.raw = nn.Parameter(raw)

    @property
    def increasing(self) -> bool:
        return self.monotone

    def bends(self) -> tuple[float, ...]:
        return ()

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.0 if self.monotone else -math.inf), torch.tensor(math.inf)

    def coefficients(self) -> list[Tensor]:
        """c_0 .. c_n of s, one tensor of shape ``units`` each."""
        if not self.monotone:
            return list(self.raw.unbind(-1))
        q = self.raw.unbind(-1)
        square = [torch.zeros_like(q[0]) for _ in range(2 * len(q) - 1)]  # coefficients of q(z)^2
        for i, first in enumerate(q):
            for j, second in enumerate(q):
                square[i + j] = square[i + j] + first * second
        integral = [c / (k + 1) for k, c in enumerate(square)]
        return [torch.zeros_like(q[0]), *integral]

    def parameter_columns(self, z: Tensor) -> list[ParameterColumns]:
        """z^k; where s' = q^2, 2 sum_j q_j z^(i+j+1) / (i+j+1)."""
        return [ParameterColumns(self.raw, self._columns(z, integrals=0))]

    def potential_columns(self, z: Tensor) -> list[ParameterColumns]:
        """The integrals of :meth:`parameter_columns` from zero."""
        return [ParameterColumns(self.raw, self._columns(z, integrals=1))]

    def _columns(self, z: Tensor, *, integrals: int) -> Tensor:
        """The derivatives of s in ``raw``, or of its integral, (*, *units, count)."""
        powers = [torch.ones_like(z)]
        for _ in range(self.degree + integrals):
            powers.append(powers[-1] * z)
        if not self.monotone:
            columns = [powers[k + integrals] / (k + 1) ** integrals for k in range(self.degree + 1)]
            return torch.stack(columns, dim=-1)
        columns = []
        for i in range(self.raw.shape[-1]):
            column = torch.zeros_like(z)
            for j in range(self.raw.shape[-1]):
                power = i + j + 1
                weight = 2 * self.raw[..., j] / (power * (power + 1) ** integrals)
                column = column + weight * powers[power + integrals]
            columns.append(column)
        return torch.stack(columns, dim=-1)

    def forward(self, z: Tensor) -> Tensor:
        return _horner(self.coefficients(), z)

    def potential(self, z: Tensor) -> Tensor:
        return z * _horner([c / (k + 1) for k, c in enumerate(self.coefficients())], z)

    def derivative(self, z: Tensor) -> Tensor:
        return _horner([k * c for k, c in enumerate(self.coefficients())][1:], z)


def _horner(coefficients: list[Tensor], z: Tensor) -> Tensor:
    value = coefficients[-1].expand_as(z)
    for c in coefficients[-2::-1]:
        value = value * z + c
    return value
