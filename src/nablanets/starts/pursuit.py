"""Projection pursuit for gradient fields: the directions along which a field bends most, and how."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.pieces.identify import symmetric_regression

# Profiles are polynomials of this degree in the standardised argument, tabulated out to _REACH deviations.
_DEGREE, _REACH, _NODES = 5, 3.3, 67
# Directions are found by so many steps of Adam on batches of so many samples.
_STEPS, _RATE, _BATCH = 40, 0.05, 4096
_RIDGE = 1e-6
# A monotone profile takes this much more of the slope than it needs where it is least, and no less than the second.
_MARGIN, _LEAST_SHARE = 1.05, 0.02


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

    Along a direction v of length one, the best profile of a ridge function v h(v . x) is the regression of v . r on
    v . x, r the residual. Each round looks for K directions at once, :math:`v_k = R^{1/2} q_k` with orthonormal q_k,
    that maximise what their profiles (polynomials of degree five) explain together, and fits the profiles jointly.

    A monotone pursuit gives to each profile the share :math:`\theta_k` of the slope of the affine map along v_k that
    makes it increasing, :math:`R \leftarrow R^{1/2}(I - \sum_k \theta_k q_k q_k^\top) R^{1/2}`, and damps those for
    which all of it is not enough. So the sum stays the gradient of a convex function on the range of the samples.

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
    rest, centre = matrix.to(x), x.mean(dim=0)
    x = x - centre
    residual = g - g.mean(dim=0) - x @ rest
    found = []
    for _ in range(rounds):
        root = _root(rest) if monotone else torch.eye(len(rest)).to(rest)
        frame = _search(x, residual, root, directions)
        bundle = _Bundle.fit(x, residual, frame @ root)
        shares = torch.zeros(directions).to(x)
        if monotone:
            bundle, shares = bundle.increasing(scarce)
            rest = root @ (torch.eye(len(rest)).to(rest) - frame.mT @ (shares.unsqueeze(1) * frame)) @ root
        residual = residual - bundle(x)
        found.append(bundle.tables(shares))
    weight, arguments, values = zip(*found, strict=True)
    return Ridges(torch.cat(weight), torch.cat(arguments, 1), torch.cat(values, 1), rest, centre)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def _powers(t: Tensor) -> Tensor:
    """1, t, ..., t^5 along a new last axis."""
    return t.unsqueeze(-1) ** torch.arange(_DEGREE + 1).to(t)


@torch.enable_grad()
def _search(x: Tensor, residual: Tensor, root: Tensor, count: int) -> Tensor:
    """Orthonormal q_k, (K, d), for which ridge functions along root q_k explain most."""
    frame = torch.linalg.qr(torch.randn(len(root), count).to(x)).Q.mT.contiguous().requires_grad_()
    optimizer = torch.optim.Adam([frame], lr=_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
    scale = residual.square().sum(dim=-1).mean()
    for _ in range(_STEPS):
        rows = torch.randint(len(x), (min(_BATCH, len(x)),), device=x.device)
        loss = -_explained(x[rows], residual[rows], frame @ root).sum() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            frame.copy_(torch.linalg.qr(frame.mT).Q.mT)
    return frame.detach()


def _explained(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Mean square that the best profile along each direction explains, (K)."""
    v = weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
    u = x @ v.mT
    powers = _powers((u - u.mean(dim=0)) / u.std(dim=0).clamp(min=1e-12)).movedim(1, 0)
    gram = powers.mT @ powers / len(x) + _RIDGE * torch.eye(_DEGREE + 1).to(x)
    right = (powers.mT @ (residual @ v.mT).mT.unsqueeze(-1)).squeeze(-1) / len(x)
    return (torch.linalg.solve(gram, right) * right).sum(dim=-1)


class _Bundle(NamedTuple):
    """sum_k w_k h_k((w_k . x - mean_k) / spread_k) with polynomials h_k, (K, degree + 1)."""

    weight: Tensor
    mean: Tensor
    spread: Tensor
    coefficients: Tensor

    @staticmethod
    def fit(x: Tensor, residual: Tensor, weight: Tensor) -> _Bundle:
        """Least squares for all profiles together."""
        u = x @ weight.mT
        mean, spread = u.mean(dim=0), u.std(dim=0).clamp(min=1e-12)
        z = _powers((u - mean) / spread).flatten(1)
        rows = weight.repeat_interleave(_DEGREE + 1, dim=0)
        gram = ((z.mT @ z) * (rows @ rows.mT)).double()
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
        right = (z.mT @ residual * rows).sum(dim=1).double()
        return _Bundle(weight, mean, spread, torch.linalg.solve(gram, right).to(x).unflatten(0, (len(weight), -1)))

    def __call__(self, x: Tensor) -> Tensor:
        powers = _powers((x @ self.weight.mT - self.mean) / self.spread)
        return (powers * self.coefficients).sum(dim=-1) @ self.weight

    def increasing(self, scarce: bool) -> tuple[_Bundle, Tensor]:
        """The profiles, damped where theta = 1 would not make theta u + h increasing, and each theta."""
        t = _grid(self.mean)
        slopes = _powers(t)[:, :-1] @ (self.coefficients[:, 1:] * torch.arange(1, _DEGREE + 1).to(t)).mT / self.spread
        needed = _MARGIN * (-slopes.amin(dim=0)).clamp(min=0)
        damped = self._replace(coefficients=self.coefficients / needed.clamp(min=1).unsqueeze(1))
        return damped, torch.ones_like(needed) if scarce else needed.clamp(_LEAST_SHARE, 1)

    def tables(self, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """w, u and phi(u) of sum_k w_k (h_k + theta_k u), rows scaled by the root of theta where there is a share."""
        t = _grid(self.mean)
        u = t.unsqueeze(1) * self.spread + self.mean
        size = torch.where(shares > 0, shares, 1.0).sqrt()
        values = (_powers(t) @ self.coefficients.mT + shares * u) / size
        return self.weight * size.unsqueeze(1), u * size, values


def _grid(like: Tensor) -> Tensor:
    return torch.linspace(-_REACH, _REACH, _NODES).to(like)
