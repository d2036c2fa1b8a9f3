"""Projection pursuit for gradient fields: the directions along which a field bends most, and how.

Projection pursuit regression (Friedman and Stuetzle, "Projection pursuit regression", JASA 76, 1981) explains data by a
sum of ridge functions, found one after the other: look for the direction along which a function of one variable
explains most of the residual, subtract it, repeat. For a gradient field the ridge functions are gradients themselves,

    v h(v . x),   |v| = 1,   the gradient of H(v . x) with H' = h,

and the best profile h along v is the regression of v . residual on v . x. Our version differs in three ways: the best
affine gradient map comes first and ridge functions explain what it leaves; each round looks for K orthogonal directions
at once and fits their profiles jointly; and it can keep the sum monotone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.pieces.regression import symmetric_regression

# Profiles are polynomials of this degree: enough for an S or a valley, few enough coefficients for noisy samples.
_DEGREE = 5
# Profiles are tabulated out to this many standard deviations of their argument.
_REACH = 3.3
# Points of the table: ten for each standard deviation.
_NUM_NODES = 67
# Steps of Adam in the search for directions.
_NUM_STEPS = 40
# Its learning rate, which falls linearly to zero; entries of the directions are of order one.
_LEARNING_RATE = 0.05
# Samples in each step.
_BATCH_SIZE = 4096
# Ridge of the regressions for profiles, relative.
_RIDGE = 1e-6
# A monotone profile takes this much more of the slope than it needs where it is least, since it is checked on a table.
_SLOPE_MARGIN = 1.05
# It takes at least this share of the slope, so that its unit is not without weight.
_LEAST_SHARE = 0.02
# Lengths and deviations below this count as this.
_LEAST_LENGTH = 1e-12


class Ridges(NamedTuple):
    r"""A field as :math:`\sum_k w_k\,\phi_k(w_k \cdot (x - c)) + R\,(x - c) + b`: ridge functions and an affine rest.

    Attributes:
        weight: the w_k, (K, d).
        arguments, values: each phi_k as a table, (nodes, K).
        rest: R, (d, d), symmetric; positive semidefinite if the pursuit was monotone and the affine fit is.
        centre: c, the mean of the samples, (d).
    """

    weight: Tensor
    arguments: Tensor
    values: Tensor
    rest: Tensor
    centre: Tensor


@torch.no_grad()
def pursue_ridges(
    x: Tensor, g: Tensor, directions: int, *, rounds: int = 1, monotone: bool = False, scarce: bool = False
) -> Ridges:
    r"""Find ridge functions whose sum explains what the best affine gradient map leaves of a field.

    Each round looks for K directions :math:`v_k = R^{1/2} q_k` with orthonormal q_k that maximise what their profiles
    (polynomials of degree five) explain together, and fits the profiles jointly. R is the identity, unless the pursuit
    is monotone.

    A monotone pursuit keeps the sum the gradient of a convex function on the range of the samples. R is then the slope
    of the affine map. Each profile gets the share :math:`\theta_k` of it along v_k that makes the profile increasing,
    which leaves :math:`R \leftarrow R^{1/2}(I - \sum_k \theta_k q_k q_k^\top) R^{1/2}`; profiles for which all of it is
    not enough are damped.

    Args:
        x, g: samples, (n, d); the directions start from torch's random state.
        directions: K, of each round, at most d.
        rounds: how often, each on the residual of the last.
        monotone: keep every phi_k increasing and R positive semidefinite.
        scarce: give each profile the whole slope (theta = 1), so that each unit lowers the rank of R by one.

    Our choice, after projection pursuit regression (Friedman and Stuetzle, 1981).

    >>> _ = torch.manual_seed(0)
    >>> x, v = torch.randn(4000, 8), torch.nn.functional.normalize(torch.ones(1, 8))
    >>> ridges = pursue_ridges(x, x + torch.tanh(x @ v.mT) @ v, 1)
    >>> bool((torch.nn.functional.normalize(ridges.weight) @ v.mT).abs() > 0.99)
    True
    """
    matrix, _ = symmetric_regression(x.double(), g.double())
    rest = matrix.to(x)  # R, (d, d)
    centre = x.mean(dim=0)
    x = x - centre
    residual = g - g.mean(dim=0) - x @ rest  # (n, d)
    identity = torch.eye(len(rest)).to(rest)
    tables = []
    for _ in range(rounds):
        root = _square_root(rest) if monotone else identity
        frame = _search_directions(x, residual, root, directions)  # the q_k, (K, d)
        bundle = _Bundle.fit(x, residual, frame @ root)
        shares = torch.zeros(directions).to(x)  # the theta_k, (K,)
        if monotone:
            bundle, shares = bundle.made_increasing(scarce)
            taken = frame.mT @ (shares.unsqueeze(1) * frame)  # (d, d)
            rest = root @ (identity - taken) @ root
        residual = residual - bundle(x)
        tables.append(bundle.tabulate(shares))
    weights, arguments, values = zip(*tables, strict=True)
    return Ridges(torch.cat(weights), torch.cat(arguments, dim=1), torch.cat(values, dim=1), rest, centre)


def _square_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a matrix, negative eigenvalues taken as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def _powers(t: Tensor) -> Tensor:
    """1, t, ..., t^5 along a new last axis."""
    exponents = torch.arange(_DEGREE + 1).to(t)
    return t.unsqueeze(-1) ** exponents


@torch.enable_grad()
def _search_directions(x: Tensor, residual: Tensor, root: Tensor, count: int) -> Tensor:
    """Orthonormal q_k, (K, d), for which ridge functions along root q_k explain most of the residual.

    Stochastic gradient ascent by Adam, with the q_k made orthonormal again after each step.
    """
    start = torch.randn(len(root), count).to(x)
    frame = torch.linalg.qr(start).Q.mT.contiguous().requires_grad_()  # (K, d)
    optimizer = torch.optim.Adam([frame], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _NUM_STEPS)
    variance = residual.square().sum(dim=-1).mean()
    batch_size = min(_BATCH_SIZE, len(x))
    for _ in range(_NUM_STEPS):
        rows = torch.randint(len(x), (batch_size,), device=x.device)
        explained = _explained(x[rows], residual[rows], frame @ root)
        loss = -explained.sum() / variance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            frame.copy_(torch.linalg.qr(frame.mT).Q.mT)
    return frame.detach()


def _explained(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Mean square of the residual that the best profile along each direction explains by itself, (K,).

    With the Gram matrix G of the powers and their products b with the residual, the regression explains b^T G^{-1} b.
    """
    lengths = weight.norm(dim=1, keepdim=True).clamp(min=_LEAST_LENGTH)
    v = weight / lengths  # (K, d)
    u = x @ v.mT  # (n, K)
    standardised = (u - u.mean(dim=0)) / u.std(dim=0).clamp(min=_LEAST_LENGTH)
    powers = _powers(standardised).movedim(1, 0)  # (K, n, degree + 1)
    along = (residual @ v.mT).mT.unsqueeze(-1)  # (K, n, 1)
    gram = powers.mT @ powers / len(x) + _RIDGE * torch.eye(_DEGREE + 1).to(x)
    right = (powers.mT @ along).squeeze(-1) / len(x)
    return (torch.linalg.solve(gram, right) * right).sum(dim=-1)


class _Bundle(NamedTuple):
    """The field sum_k w_k h_k((w_k . x - mean_k) / spread_k) with polynomials h_k.

    Attributes:
        weight: the w_k, (K, d).
        mean, spread: of the arguments w_k . x over the samples, (K,).
        coefficients: of the h_k, lowest power first, (K, degree + 1).
    """

    weight: Tensor
    mean: Tensor
    spread: Tensor
    coefficients: Tensor

    @staticmethod
    def fit(x: Tensor, residual: Tensor, weight: Tensor) -> _Bundle:
        """Least squares for all profiles together.

        The unknowns are the coefficients c of the features z_a(x) w_a, where a runs over all powers of all profiles and
        w_a is the direction of the profile. The normal matrix has entries (sum_i z_a z_b) (w_a . w_b).
        """
        u = x @ weight.mT  # (n, K)
        mean = u.mean(dim=0)
        spread = u.std(dim=0).clamp(min=_LEAST_LENGTH)
        z = _powers((u - mean) / spread).flatten(1)  # (n, K (degree + 1))
        rows = weight.repeat_interleave(_DEGREE + 1, dim=0)  # (K (degree + 1), d)
        normal = ((z.mT @ z) * (rows @ rows.mT)).double()
        normal.diagonal().add_(_RIDGE * normal.diagonal().mean())
        right = (z.mT @ residual * rows).sum(dim=1).double()
        solution = torch.linalg.solve(normal, right).to(x)
        return _Bundle(weight, mean, spread, solution.unflatten(0, (len(weight), -1)))

    def __call__(self, x: Tensor) -> Tensor:
        powers = _powers((x @ self.weight.mT - self.mean) / self.spread)  # (n, K, degree + 1)
        heights = (powers * self.coefficients).sum(dim=-1)
        return heights @ self.weight

    def made_increasing(self, scarce: bool) -> tuple[_Bundle, Tensor]:
        """The bundle, and the share theta of the slope that makes each u -> theta u + h(u) increasing, (K,).

        Profiles that fall faster than the whole slope rises are damped until theta = 1 is enough.
        """
        t = _nodes(self.mean)
        exponents = torch.arange(1, _DEGREE + 1).to(t)
        derivative = self.coefficients[:, 1:] * exponents  # (K, degree)
        slopes = _powers(t)[:, :-1] @ derivative.mT / self.spread  # (nodes, K)
        steepest_fall = (-slopes.amin(dim=0)).clamp(min=0)
        needed = _SLOPE_MARGIN * steepest_fall
        damped = self.coefficients / needed.clamp(min=1).unsqueeze(1)
        shares = torch.ones_like(needed) if scarce else needed.clamp(_LEAST_SHARE, 1)
        return self._replace(coefficients=damped), shares

    def tabulate(self, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ridge functions w_k (h_k(u) + theta_k u) as w (K, d), u (nodes, K) and phi(u) (nodes, K).

        Where there is a share, w and u are scaled by its square root, so that the share alone gives phi(u) = u.
        """
        t = _nodes(self.mean)
        u = t.unsqueeze(1) * self.spread + self.mean  # (nodes, K)
        size = torch.where(shares > 0, shares, 1.0).sqrt()
        heights = _powers(t) @ self.coefficients.mT + shares * u
        return self.weight * size.unsqueeze(1), u * size, heights / size


def _nodes(like: Tensor) -> Tensor:
    """Standardised arguments at which profiles are tabulated, (nodes,)."""
    return torch.linspace(-_REACH, _REACH, _NUM_NODES).to(like)
