"""What gradient residuals do inside a model: gates, sizes of g, angles between gradients of neighbours, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.printing import as_text, make_table
from nablanets.residual.layer import GradientResidual
from nablanets.residual.skip import GradientSkip


class LayerStatistics(NamedTuple):
    """One gradient residual at one time.

    Attributes:
        name: of the layer in the model.
        gate: the mean of s(alpha).
        ratio: the mean over samples of |g| / |x|, with g before it is normalised.
        alignment: the mean cosine between g and x.
        neighbours: the mean cosine between g at x and g at x + d, where |d| = distance |x| in a random direction.
    """

    name: str
    gate: float
    ratio: float
    alignment: float
    neighbours: float


def residual_statistics(model: nn.Module, *inputs: Any, distance: float = 0.01, seed: int = 0) -> list[LayerStatistics]:
    """Statistics of every gradient residual in a model on one batch, in evaluation mode.

    Args:
        model: a model with :class:`GradientResidual` layers, or a converted one.
        inputs: what to call it with.
        distance: how far the neighbours are, relative to |x|.
        seed: of their directions.

    Raises:
        InvalidInputError: the model has no gradient residual.

    >>> layer = GradientResidual(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)))
    >>> round(residual_statistics(layer, torch.randn(10, 4))[0].gate, 3)
    0.5
    """
    seen: list[tuple[str, GradientSkip, Callable[[Tensor], Tensor], Tensor]] = []

    def watch(name: str, skip: GradientSkip) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            # A layer is called with x, a skip inside a converted model with the root and x.
            root, x = (skip.block, arguments[0]) if isinstance(skip, GradientResidual) else arguments[:2]
            layer = name.removesuffix(".gradient_residual")
            seen.append((layer, skip, lambda t: GradientSkip.gradient(skip, root, t), x))

        return hook

    skips = [(name, m) for name, m in model.named_modules() if isinstance(m, GradientSkip) and hasattr(m, "alpha")]
    if not skips:
        raise InvalidInputError(
            f"residual_statistics: expected a model with gradient residuals, got a {type(model).__name__} without. "
            "Use GradientResidual, or add_gradient_residuals(model)."
        )
    handles = [skip.register_forward_hook(watch(name, skip)) for name, skip in skips]
    try:
        with torch.no_grad(), _evaluating(model):
            model(*inputs)
            for handle in handles:
                handle.remove()
            generator = torch.Generator().manual_seed(seed)
            return [_statistics(*item, distance, generator) for item in seen]
    finally:
        for handle in handles:
            handle.remove()


def neighbour_cosines(gradient: Callable[[Tensor], Tensor], x: Tensor, offset: Tensor) -> Tensor:
    """The cosine between g(x) and g(x + offset) of each sample, over all but the first dimension.

    >>> neighbour_cosines(torch.cos, torch.zeros(2, 3), torch.full((2, 3), torch.pi)).round(decimals=4)
    tensor([-1., -1.])
    """
    return F.cosine_similarity(gradient(x).flatten(1), gradient(x + offset).flatten(1), dim=1)


@dataclass
class ResidualHistory:
    """Statistics over training: call ``record`` every now and then, look at ``rows`` or print it.

    >>> layer = GradientResidual(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)))
    >>> history = ResidualHistory(layer)
    >>> history.record(0, torch.randn(10, 4))
    >>> sorted(history.rows[0])
    ['alignment', 'gate', 'name', 'neighbours', 'ratio', 'step']
    """

    model: nn.Module
    rows: list[dict[str, Any]] = field(default_factory=list)

    def record(self, step: int, *inputs: Any) -> None:
        """Add one row per gradient residual."""
        self.rows += [{"step": step, **s._asdict()} for s in residual_statistics(self.model, *inputs)]

    def __str__(self) -> str:
        columns = ("step", "layer", "s(alpha)", "|g| / |x|", "cos(g, x)", "cos(g, g of neighbour)")
        cells = []
        for row in self.rows:
            numbers = [f"{row[key]:.3g}" for key in ("gate", "ratio", "alignment", "neighbours")]
            cells.append([str(row["step"]), row["name"], *numbers])
        return as_text(make_table(columns, cells), width=110)


def _statistics(
    name: str,
    skip: GradientSkip,
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    distance: float,
    generator: torch.Generator,
) -> LayerStatistics:
    flat = x.flatten(1)  # (samples, all else)
    g = gradient(x).flatten(1)
    direction = torch.randn(flat.shape, generator=generator).to(flat)
    direction = direction / direction.norm(dim=1, keepdim=True)
    offset = distance * flat.norm(dim=1, keepdim=True) * direction
    ratio = g.norm(dim=1) / flat.norm(dim=1).clamp_min(torch.finfo(flat.dtype).tiny)
    return LayerStatistics(
        name=name,
        gate=float(skip.gate().mean()),
        ratio=float(ratio.mean()),
        alignment=float(F.cosine_similarity(g, flat, dim=1).mean()),
        neighbours=float(neighbour_cosines(gradient, x, offset.view_as(x)).mean()),
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
