r"""Integrals of functions of one variable, one function phi per unit, on panels that are fine where phi bends.

The integral of phi from 0 to u is the sum over whole panels, which all samples share, and one Gauss-Legendre rule on
the rest of the panel that holds u. So a sample costs eight evaluations of phi, however steep phi is.

How the panels are chosen (adaptive quadrature with a global list of intervals, as in QUADPACK; ours treats all units
at once, and all of their intervals that need it):

1. Start with a few panels between the least and the greatest u, evenly spaced in asinh(u / scale): far samples do not
   make the panels of near ones coarse. Split each in two where a layer bends, so that nothing narrow hides in it.
2. Interpolate phi on each panel at 17 Chebyshev points; it is resolved if the last coefficients are small (see
   :func:`nablanets.quadrature.chebyshev`). Eight Gauss nodes then integrate it on the panel, and on each part of it:
   they are exact for degree 15.
3. Split the panels whose error is above rounding, measured by the integral of abs(phi) from 0 to their end: in the
   middle and where a layer bends, if one does, in turn.
4. Repeat 2 and 3 until all errors are small, or there are ``MOST_PANELS``.

Where a graph must be static (compiling, exporting) only the first step is taken, with more panels.

Derivatives in u do not pass through the rule. To the value, where u counts as a constant, we add the integral over
[c, u], where c is the value of u: it is zero, and its derivative is phi(u). So the gradient of a potential is f to
rounding whatever the panels are. It is plain tensor code, so autograd, forward mode, torch.func and torch.compile
need nothing special.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from nablanets.quadrature import chebyshev, gauss_legendre

#: Panels of each unit at most, where their number is not fixed.
MOST_PANELS = 1024
#: Panels of exported rules cover abs(u) up to one of these numbers of scales of a unit; beyond, the last is extended.
EXPORTED_SCALES = (1024.0, 256.0, 64.0, 16.0)

# Panels on each side of zero to start with: enough for most networks at the start of training, in float64...
_START = 8
# ...and in narrower types.
_START_NARROW = 4
# There are more where u is far, so that no panel reaches further than e times as far as the one before; but panels end
# where asinh(u / scale) is this, and the last one is extended.
_FURTHEST = 28.0
# Those on each side of zero where a graph must be static.
_STATIC_START = 64
# Rounds of splitting at most: halving a panel this often reaches rounding.
_ROUNDS = 64
# Gauss nodes on a panel, and on a part of one.
_NODES = 8
# A bend splits a panel only if it is further than this share of the panel from its ends; else the middle does.
_NEAREST = 1e-4
# Gauss nodes on [c, u], which has no length: derivatives of order up to twice as many are right.
_ANCHOR_NODES = 4
# The error of a panel may be this many roundings of the integral of abs(phi) up to its end.
_ROUNDINGS = 32.0
# Or it may be what as many roundings of the argument make.
_ARGUMENT_ROUNDINGS = 32.0


class Profiles(Protocol):
    """h functions phi of one variable each, which act on (*, h)."""

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """phi(u)."""

    @abstractmethod
    def bends(self, u: Tensor) -> list[Tensor]:
        """Functions of the shape of u that change sign where phi bends, those that others depend on first."""

    @abstractmethod
    def scale(self) -> Tensor:
        """About how far from zero the bends are, (h)."""


def integral(profiles: Profiles, u: Tensor, start: Tensor | None = None, *, edges: Tensor | None = None) -> Tensor:
    """The integral of phi from ``start`` (0 if None) to u, both (*, h).

    Its derivatives are phi(u) and -phi(start) to rounding. The error of its value is at rounding level unless
    ``MOST_PANELS`` do not suffice.

    Args:
        profiles: phi.
        u, start: the ends.
        edges: of the panels, (panels + 1, h), if they are known already; see :func:`panels_for_all`.
    """
    ends = [u] if start is None else [u, start]
    if edges is None:
        with torch.no_grad():
            edges = _edges(profiles, [end.detach() for end in ends]).detach()  # (panels + 1, h)
    heights = _heights(profiles, edges)
    value = _from_zero(profiles, u, edges, heights)
    return value if start is None else value - _from_zero(profiles, start, edges, heights)


@torch.no_grad()
def panels_for_all(profiles: Profiles) -> Tensor:
    """Edges (panels + 1, h) that resolve phi for all u, as far out as ``MOST_PANELS`` reach; for static graphs."""
    for scales in EXPORTED_SCALES:
        reach = scales * profiles.scale()
        edges = _edges(profiles, [torch.stack([-reach, reach])])
        if len(edges) <= MOST_PANELS:
            break
    return edges


# Evaluation on given panels.


def _heights(profiles: Profiles, edges: Tensor) -> Tensor:
    """The integrals from zero to all edges, (panels + 1, h), summed outwards: near ones do not see far ones."""
    parts = _rule(profiles, edges[:-1], edges[1:], _NODES)
    sums = _outward(parts, edges[:-1])
    nothing = torch.zeros_like(edges)
    # The far end of a panel is its right end where it lies right of zero, and its left end elsewhere.
    right = torch.where(edges > 0, torch.cat([nothing[:1], sums]), nothing)
    left = torch.where(edges < 0, torch.cat([sums, nothing[:1]]), nothing)
    return right - left


def _outward(parts: Tensor, left: Tensor) -> Tensor:
    """Sums of what panels hold, from zero to the far end of each; all (panels, h), ``left`` are their left ends."""
    positive = left >= 0
    zero = torch.zeros_like(parts)
    right_sums = torch.where(positive, parts, zero).cumsum(dim=0)
    left_sums = torch.where(positive, zero, parts).flip(0).cumsum(dim=0).flip(0)
    return torch.where(positive, right_sums, left_sums)


def _rule(profiles: Profiles, left: Tensor, right: Tensor, count: int) -> Tensor:
    """The integral of phi over [left, right], both (*, h), by as many Gauss nodes."""
    nodes, weights = gauss_legendre(count, left)
    width = right - left
    points = left.unsqueeze(-2) + width.unsqueeze(-2) * nodes.unsqueeze(-1)  # (*, nodes, h)
    return width * torch.einsum("...nh,n->...h", profiles(points), weights)


def _from_zero(profiles: Profiles, u: Tensor, edges: Tensor, heights: Tensor) -> Tensor:
    """The integral from zero to u."""
    exporting = torch.compiler.is_exporting()
    end = u if exporting else u.detach()
    index = _locate(edges, end)
    value = _pick(heights, index) + _rule(profiles, _pick(edges, index), end, _NODES)
    if exporting or not _differentiable(u):
        return value
    return value + _rule(profiles, u.detach(), u, _ANCHOR_NODES)


def _differentiable(u: Tensor) -> bool:
    """Whether somebody may ask for derivatives in u."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    if torch._C._are_functorch_transforms_active():
        return True
    return (u.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(u).tangent is not None


def _locate(edges: Tensor, u: Tensor) -> Tensor:
    """The panel of each u, (*, h), counted from zero; those beyond the edges belong to the first and the last one.

    By bisection: vmap and exporters know its operations, and not searchsorted.
    """
    panels = len(edges) - 1
    index = torch.zeros_like(u).long()
    step = 1 << (panels - 1).bit_length()
    while step > 1:
        step //= 2
        further = (index + step).clamp(max=panels - 1)
        index = torch.where(_pick(edges, further) <= u, further, index)
    return index


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """table[index[..., j], j] for a table (edges, h) and an index (*, h)."""
    units = table.shape[-1]
    place = index * units + torch.arange(units, device=table.device)
    return nn.functional.embedding(place, table.reshape(-1, 1)).squeeze(-1)


# The choice of panels. Nothing below is differentiated.


def _edges(profiles: Profiles, ends: list[Tensor]) -> Tensor:
    """The edges of panels, (panels + 1, h) and rising, on which phi is resolved. Edges may coincide."""
    if torch.compiler.is_compiling():
        return _first_edges(profiles, ends, _STATIC_START)
    edges = _first_edges(profiles, ends, _START if ends[0].dtype == torch.float64 else _START_NARROW)
    left = edges[:-1]
    right = edges[1:]
    error, size = _measure(profiles, left, right)
    allowed = _ROUNDINGS * torch.finfo(size.dtype).eps * _outward(size, left)
    excess = _excess(error, allowed)
    for number in range(_ROUNDS):
        count = min(_needed(excess), MOST_PANELS - len(left))
        if count <= 0:
            break
        worst, chosen = excess.topk(count, dim=0)  # (count, h) each
        a = left.gather(0, chosen)
        b = right.gather(0, chosen)
        # Linear interpolation alone may creep towards a bend from one side for ever; halving in turn does not.
        points = _bends(profiles, a, b) if number % 2 == 1 else (a + b) / 2
        middle = torch.where(worst > 1, points, b)
        error, _ = _measure(profiles, torch.cat([a, middle]), torch.cat([middle, b]))
        inherited = allowed.gather(0, chosen)
        halves = _excess(error, torch.cat([inherited, inherited]))
        # The left halves take the places of the panels, the right halves are appended.
        left = torch.cat([left, middle])
        right = torch.cat([right.scatter(0, chosen, middle), b])
        allowed = torch.cat([allowed, inherited])
        excess = torch.cat([excess.scatter(0, chosen, halves[:count]), halves[count:]])
    return torch.cat([left.sort(dim=0).values, edges[-1:]])


def _first_edges(profiles: Profiles, ends: list[Tensor], count: int) -> Tensor:
    """At least as many panels on each side of zero, evenly spaced in asinh(u / scale), and each split in two."""
    scale = profiles.scale()
    if torch.compiler.is_exporting():
        high = torch.full_like(scale, EXPORTED_SCALES[-1]).asinh()
        low = -high
    else:
        high = torch.asinh(_reach(ends, scale) / scale).clamp(max=_FURTHEST)
        low = torch.asinh(-_reach([-end for end in ends], scale) / scale).clamp(min=-_FURTHEST)
    if not torch.compiler.is_compiling():
        count = max(count, int(_greatest(torch.stack([high, -low]))))
    steps = torch.arange(1, count + 1, dtype=scale.dtype, device=scale.device).unsqueeze(-1) / count
    right = scale * torch.sinh(steps * high)
    left = scale * torch.sinh(steps * low)
    edges = torch.cat([left.flip(0), torch.zeros_like(right[:1]), right])
    return torch.cat([edges, _bends(profiles, edges[:-1], edges[1:])]).sort(dim=0).values


def _reach(ends: list[Tensor], scale: Tensor) -> Tensor:
    """The largest finite number of each unit, at least zero, (h)."""
    reach = torch.zeros_like(scale)
    for end in ends:
        if end.numel() > 0:
            finite = end.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            reach = torch.maximum(reach, _largest(finite))
    return reach


def _measure(profiles: Profiles, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The error of the rule on panels (p, h), and the integral of abs(phi)."""
    rule = chebyshev(left)
    width = right - left
    points = left.unsqueeze(1) + width.unsqueeze(1) * rule.points.unsqueeze(-1)  # (p, points, h)
    values = profiles(points)
    coefficients = torch.einsum("nk,pnh->kph", rule.last_coefficients, values)
    error = width * coefficients.abs().amax(dim=0)
    variation = values.diff(dim=1).abs().sum(dim=1)
    far = torch.maximum(left.abs(), right.abs()) + profiles.scale()
    noise = _ARGUMENT_ROUNDINGS * torch.finfo(left.dtype).eps * far * variation
    error = torch.where(error > noise, error, torch.zeros_like(error))
    return error, width * values.abs().mean(dim=1)


def _needed(excess: Tensor) -> int:
    """How many panels of one unit must be split, at most."""
    return int(_greatest((excess > 1).sum(dim=0, keepdim=True).to(excess.dtype)))


def _excess(error: Tensor, allowed: Tensor) -> Tensor:
    """How many times the error is what is allowed, or zero: where it is small, and where nothing finite is known."""
    told = (error > allowed) & torch.isfinite(error)
    return torch.where(told, error / allowed, torch.zeros_like(error))


def _bends(profiles: Profiles, left: Tensor, right: Tensor) -> Tensor:
    """About where the first layer bends that bends in a panel, by linear interpolation; the middle where none does."""
    share = torch.full_like(left, 0.5)  # of the panel that is left of the point
    for at_ends in reversed(profiles.bends(torch.stack([left, right]))):
        at_left, at_right = at_ends
        found = at_left / (at_left - at_right)
        inside = (at_left * at_right < 0) & (found > _NEAREST) & (found < 1 - _NEAREST)
        share = torch.where(inside, found, share)
    return left + share * (right - left)


def _greatest(values: Tensor) -> float:
    """The greatest of some numbers (*, h), over all samples of vmap too."""
    return float(_largest(values).max())


def _largest(values: Tensor) -> Tensor:
    """The maximum over all dimensions but the last, and over what vmap maps over, so that panels are shared."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return values.reshape(-1, values.shape[-1]).amax(dim=0)
    result: Tensor = _Largest.apply(values.detach())
    return result


class _Largest(torch.autograd.Function):
    """The maximum over all dimensions but the last. Under vmap it is one for all samples, and not one for each."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.reshape(-1, values.shape[-1]).amax(dim=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], values: Tensor) -> tuple[Tensor, None]:
        if in_dims[0] is None:
            return _Largest.apply(values), None
        return _Largest.apply(values.movedim(in_dims[0], 0)), None
