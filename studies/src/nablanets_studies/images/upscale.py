"""Enlarging pictures of any size with a super-resolution network, by overlapping tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.resources import files
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.serialization import load
from nablanets_studies.images.files import Picture
from nablanets_studies.images.resize import bicubic

_PACKAGED = "upscaler-x2.safetensors"
#: Told of each finished tile: how many, and of how many.
TileReport = Callable[[int, int], None]


class Tile(NamedTuple):
    """A part of a picture: what the network sees, and what of it is kept, as (top, left, bottom, right)."""

    seen: tuple[int, int, int, int]
    kept: tuple[int, int, int, int]


def packaged_upscaler() -> Any:
    """The network that comes with the package: EDSR for x2, trained on photographs; see docs/images.md."""
    return load(str(files("nablanets_studies.images") / "weights" / _PACKAGED))


def times_applied(network_scale: int, scale: int) -> int:
    """How often a network has to be applied to enlarge by ``scale``.

    Raises:
        InvalidInputError: the scale is no power of the network's.

    >>> times_applied(2, 4)
    2
    """
    times = round(math.log(scale, network_scale)) if scale > 1 else 0
    if times < 1 or network_scale**times != scale:
        raise InvalidInputError(
            f"--scale: expected {network_scale}, {network_scale**2} or another power of the network's scale "
            f"{network_scale}, got {scale}. Give a network for that scale with --model."
        )
    return times


def tiles(height: int, width: int, side: int, reach: int) -> list[Tile]:
    """Squares of ``side`` pixels that cover a picture, each seen with ``reach`` more pixels around it.

    >>> [tile.seen for tile in tiles(4, 10, 6, 2)]
    [(0, 0, 4, 8), (0, 4, 4, 10)]
    """
    found = []
    for top, left in product(range(0, height, side), range(0, width, side)):
        bottom = min(top + side, height)
        right = min(left + side, width)
        seen = (max(0, top - reach), max(0, left - reach), min(height, bottom + reach), min(width, right + reach))
        found.append(Tile(seen, kept=(top, left, bottom, right)))
    return found


def side_within(net: nn.Module, memory: float) -> int:
    """The side of tiles with which a network needs about ``memory`` MiB beside the pictures.

    Estimated as six times the largest input and output of a layer, which holds for the networks of this package.

    Raises:
        InvalidInputError: the memory is no finite number, or not enough for the smallest tile.
    """
    if not (memory > 0 and math.isfinite(memory)):
        raise InvalidInputError(f"--memory: expected a positive finite number of MiB, got {memory}.")
    largest = 0

    def record(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.nbytes for t in (*inputs, output) if isinstance(t, Tensor)))

    hooks = [m.register_forward_hook(record) for m in net.modules() if not list(m.children())]
    first = next(net.parameters())
    with torch.inference_mode():
        net(torch.zeros(1, 3, 32, 32, device=first.device, dtype=first.dtype))
    for hook in hooks:
        hook.remove()
    side = math.isqrt(int(memory * 2**20 / (6 * largest / 32**2))) - 2 * reach_of(net)
    if side < 16:
        raise InvalidInputError(f"--memory: {memory:g} MiB are not enough for tiles of this network. Give more.")
    return side


def reach_of(net: nn.Module) -> int:
    """How far tiles of a network have to overlap.

    Raises:
        InvalidInputError: the network does not tell, or looks at whole pictures.
    """
    reach = getattr(net, "reach", None)
    if not isinstance(reach, int) or not isinstance(getattr(net, "scale", None), int):
        raise InvalidInputError(
            f"expected a super-resolution network with a scale and a finite reach, got a {type(net).__name__}. "
            "Networks whose skips are normalised over whole pictures cannot work on tiles."
        )
    return reach


@torch.inference_mode()
def upscale(
    net: Any,
    picture: Picture,
    scale: int = 2,
    *,
    side: int | None = None,
    memory: float = 512,
    bf16: bool = False,
    report: TileReport = lambda *_: None,
) -> Picture:
    """A picture enlarged by a network, tile by tile; the result does not depend on the tiles up to rounding.

    Grey pictures go through the network as colours and are averaged. Transparency is enlarged by bicubic interpolation,
    and colours are weighted with it, so that invisible ones do not shine through.

    Args:
        net: with a ``scale`` and a ``reach``, from (B, 3, H, W) in [0, 1] to (B, 3, scale H, scale W).
        picture: to enlarge.
        scale: a power of the network's.
        side: of tiles, in pixels of the small picture; chosen by ``memory`` if None.
        memory: MiB that the network may use beside the pictures.
        bf16: compute in bfloat16.
        report: told of each tile.

    >>> from nablanets_studies.images.models.edsr import EDSR
    >>> upscale(EDSR(2, blocks=1, width=4), Picture(torch.zeros(1, 6, 5, dtype=torch.uint8))).colors.shape
    torch.Size([1, 12, 10])
    """
    net = net.eval().to(memory_format=torch.channels_last)
    repeats = times_applied(net.scale, scale)
    side = side_within(net, memory) if side is None else side
    for _ in range(repeats):
        picture = _once(net, picture, side, bf16, report)
    return picture


def _once(net: Any, picture: Picture, side: int, bf16: bool, report: TileReport) -> Picture:
    """A picture enlarged by the network's own scale."""
    factor = net.scale
    peak = picture.peak
    height, width = picture.colors.shape[-2:]
    colors = picture.colors.new_empty(len(picture.colors), factor * height, factor * width)
    alpha = None if picture.alpha is None else picture.alpha.new_empty(1, factor * height, factor * width)
    every = tiles(height, width, side, reach_of(net))
    for done, tile in enumerate(every, start=1):
        part = _part(picture, tile.seen)
        values = _enlarged(net, part, bf16)
        top, left, bottom, right = (factor * edge for edge in tile.kept)
        within = (slice(None), *_within(tile, factor))
        if alpha is not None and part.alpha is not None:
            opacity = _enlarged_opacity(part.alpha, factor, peak)
            values = values / (opacity / peak).clamp_min(1 / peak)
            alpha[:, top:bottom, left:right] = opacity[within]
        colors[:, top:bottom, left:right] = (values[within] * peak).round_().clamp_(0, peak).to(colors.dtype)
        report(done, len(every))
    return replace(picture, colors=colors, alpha=alpha)


def _enlarged_opacity(alpha: Tensor, factor: int, peak: int) -> Tensor:
    """Opacity by bicubic interpolation, of the type that it had."""
    if alpha.dtype == torch.uint8:
        return bicubic(alpha, factor)
    return bicubic(alpha.double(), factor).round_().clamp_(0, peak).to(alpha.dtype)


def _part(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    part = (slice(None), slice(box[0], box[2]), slice(box[1], box[3]))
    return replace(picture, colors=picture.colors[part], alpha=None if picture.alpha is None else picture.alpha[part])


def _within(tile: Tile, factor: int) -> tuple[slice, slice]:
    """Rows and columns of what is kept in the enlargement of what is seen."""
    seen_top, seen_left, _, _ = tile.seen
    top, left, bottom, right = tile.kept
    rows = slice(factor * (top - seen_top), factor * (bottom - seen_top))
    columns = slice(factor * (left - seen_left), factor * (right - seen_left))
    return rows, columns


def _enlarged(net: Any, picture: Picture, bf16: bool) -> Tensor:
    """Colours through the network, (1 or 3, h, w) in [0, 1], weighted with the transparency."""
    first = next(net.parameters())
    x = picture.colors.to(first.device, first.dtype) / picture.peak
    if picture.alpha is not None:
        x = x * (picture.alpha.to(x) / picture.peak)
    batch = x.expand(3, -1, -1).unsqueeze(0).contiguous(memory_format=torch.channels_last)
    with _precision(first, bf16):
        y: Tensor = net(batch)[0].float().cpu()
    return y.mean(dim=0, keepdim=True) if len(x) == 1 else y


def _precision(like: Tensor, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(like.device.type, torch.bfloat16) if bf16 else nullcontext()


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return bool(ask is not None and ask().get("avx512_bf16"))
