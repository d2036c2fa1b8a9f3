"""Picture files of any kind, read to tensors and written back atomically."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets.serialization import atomic_path
from nablanets_studies.images.extras import needed

#: Endings of the files that a folder is searched for.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_WITHOUT_ALPHA = ("JPEG", "BMP", "PPM")
_DEEP = ("PNG", "TIFF")


@dataclass(frozen=True)
class Picture:
    """A picture upright, as numbers.

    Attributes:
        colors: bytes of shape (3, H, W), or grey (1, H, W); ``torch.int32`` from 0 to 65535 for 16 bits per channel.
        alpha: bytes (1, H, W), None if the picture is opaque.
        profile: its ICC profile.
        remarks: what of the file is not in here.
    """

    colors: Tensor
    alpha: Tensor | None = None
    profile: bytes | None = None
    remarks: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The value of white."""
        return 255 if self.colors.dtype == torch.uint8 else 65535


def read_picture(path: str | Path, *, megapixels: float = 200) -> Picture:
    """Read a picture file, turned as its EXIF orientation says; palettes and CMYK become RGB.

    Args:
        path: the file.
        megapixels: larger pictures are refused before they are decoded.

    Raises:
        DataFileError: the file is missing, damaged, truncated, too large, or no picture.

    >>> from nablanets_studies.datasets import path
    >>> read_picture(path("scikit-learn-pictures") / "flower.jpg").colors.shape
    torch.Size([3, 427, 640])
    """
    pil = needed("PIL.Image")
    turn = needed("PIL.ImageOps").exif_transpose
    damage = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error, zlib.error)
    try:
        with _limit(pil, megapixels), pil.open(path) as image:
            _refuse_large(path, image.size, megapixels)
            remarks = _remarks(image)
            profile = image.info.get("icc_profile")
            image.load()
            turn(image, in_place=True)
            return replace(_numbers(image), profile=profile, remarks=remarks)
    except pil.DecompressionBombError as error:
        raise DataFileError(f"{path} was not decoded: {error} Raise --megapixels if you trust it.") from error
    except FileNotFoundError as error:
        raise DataFileError(f"there is no picture {path}.") from error
    except damage as error:
        reason = "it is no picture of a known format" if isinstance(error, pil.UnidentifiedImageError) else str(error)
        raise DataFileError(f"{path} cannot be read: {reason}. The file may be damaged or truncated.") from error


def rgb_bytes(path: str | Path) -> Tensor:
    """The colours of a picture file as bytes (3, H, W), without alpha; grey is repeated."""
    colors = read_picture(path).colors
    colors = colors if colors.dtype == torch.uint8 else (colors / 257).round().to(torch.uint8)
    return colors.expand(3, -1, -1).contiguous()


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture in the format that the ending of the path names; the file appears when it is complete.

    Raises:
        DataFileError: the format is unknown or cannot hold the picture, or the file cannot be written.
    """
    kind = format_of(path)
    if picture.alpha is not None and kind in _WITHOUT_ALPHA:
        raise DataFileError(f"{path}: {kind} files have no transparency, and the picture has. Write a .png.")
    image = needed("PIL.Image").fromarray(_array(picture, deep=kind in _DEEP))
    options: dict[str, Any] = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    if kind == "PNG":
        options["compress_level"] = 3
    if picture.profile is not None and kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        options["icc_profile"] = picture.profile
    try:
        with atomic_path(path) as temporary:
            image.save(temporary, format=kind, **options)
    except (OSError, ValueError) as error:
        raise DataFileError(f"cannot write {path}: {error}. Nothing was left there.") from error


def format_of(path: str | Path) -> str:
    """Pillow's name of the format of a file to write.

    Raises:
        DataFileError: no format that can be written has this ending.
    """
    pil = needed("PIL.Image")
    known: dict[str, str] = pil.registered_extensions()
    kind = known.get(Path(path).suffix.lower())
    if kind is None or kind not in pil.SAVE:
        raise DataFileError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")
    return kind


def pictures_in(folder: str | Path) -> list[Path]:
    """The picture files of a folder by their endings, in the order of their names.

    Raises:
        DataFileError: there is no such folder, or it holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataFileError(f"there is no folder {folder}.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise DataFileError(f"the folder {folder} holds no pictures: expected files that end in {', '.join(SUFFIXES)}.")
    return found


@contextlib.contextmanager
def _limit(pil: Any, megapixels: float) -> Iterator[None]:
    """Pillow's own limit, which also guards what is hidden inside files, at ours for a while."""
    before = pil.MAX_IMAGE_PIXELS
    pil.MAX_IMAGE_PIXELS = int(1e6 * megapixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pil.DecompressionBombWarning)
            yield
    finally:
        pil.MAX_IMAGE_PIXELS = before


def _refuse_large(path: str | Path, size: Sequence[int], megapixels: float) -> None:
    if size[0] * size[1] > 1e6 * megapixels:
        raise DataFileError(
            f"{path} says that it has {size[0]} x {size[1]} pixels, more than the limit of {megapixels:g} megapixels. "
            "It was not decoded. Raise --megapixels if you trust the file."
        )


def _remarks(image: Any) -> tuple[str, ...]:
    found = []
    if getattr(image, "n_frames", 1) > 1:
        found.append(f"only the first of {image.n_frames} frames")
    if image.format == "PNG" and any(";16" in str(tile[3]) for tile in image.tile) and image.mode in ("RGB", "RGBA"):
        found.append("16-bit colours read with 8 bits")
    return tuple(found)


def _numbers(image: Any) -> Picture:
    mode = image.mode
    if mode.startswith("I"):
        return Picture(torch.from_numpy(np.array(image).astype(np.int32)).clamp_(0, 65535).unsqueeze(0))
    if mode == "F":
        raise ValueError("it holds floating-point numbers, of which black and white are not known")
    if "transparency" in image.info or mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        image = image.convert("LA" if mode in ("L", "LA", "La") else "RGBA")
        values = _planes(image)
        opaque = bool((values[-1] == 255).all())
        return Picture(values[:-1].contiguous(), None if opaque else values[-1:].contiguous())
    return Picture(_planes(image.convert("L" if mode in ("1", "L") else "RGB")))


def _planes(image: Any) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def _array(picture: Picture, *, deep: bool) -> np.ndarray:
    colors = picture.colors
    if picture.peak == 65535:
        if deep and len(colors) == 1 and picture.alpha is None:
            return colors[0].numpy().astype(np.uint16)
        colors = (colors / 257).round().to(torch.uint8)
    planes = colors if picture.alpha is None else torch.cat([colors, picture.alpha])
    return (planes[0] if len(planes) == 1 else planes.permute(1, 2, 0)).contiguous().numpy()
