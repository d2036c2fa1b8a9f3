"""Picture files of any kind, read to tensors and written back atomically."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets.serialization import atomic_path
from nablanets_studies.images.deep import deep_samples, has_deep_colors, write_deep
from nablanets_studies.images.extras import needed
from nablanets_studies.images.opening import is_white_zero, load_upright, opened, rawmode_of
from nablanets_studies.images.profiles import fits, space_of, to_srgb

#: Endings of the files that a folder is searched for.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
#: Formats that are written. GIF is not: it has 256 colours.
_WRITTEN = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_WITHOUT_ALPHA = ("JPEG", "BMP", "PPM")
_DEEP = ("PNG", "TIFF")
_WITH_PROFILE = ("JPEG", "PNG", "TIFF", "WEBP")
_BYTE = 255
_WORD = 65535
_TWELVE_BITS = 4095
#: The gAMA of sRGB, and how far others may be off and still count as it.
_GAMMA_OF_SRGB = 1 / 2.2
_GAMMA_TOLERANCE = 0.05


@dataclass(frozen=True)
class Picture:
    """A picture upright, as numbers.

    Attributes:
        colors: bytes of shape (3, H, W), or grey (1, H, W); ``torch.int32`` from 0 to 65535 for 16 bits per channel.
        alpha: opacity (1, H, W) of the type of the colours, None if the picture is opaque.
        profile: its ICC profile, of the colour space of ``colors``.
        remarks: what of the file is not in here, and what was done to it.
        orientation: the EXIF orientation of the file, from 1 to 8; the picture was turned by it already.
    """

    colors: Tensor
    alpha: Tensor | None = None
    profile: bytes | None = None
    remarks: tuple[str, ...] = ()
    orientation: int = 1

    @property
    def peak(self) -> int:
        """The value of white."""
        return _BYTE if self.colors.dtype == torch.uint8 else _WORD


class _Planes(NamedTuple):
    """Colours (1 or 3, H, W), opacity (1, H, W) or None, and what belongs to them in a :class:`Picture`."""

    colors: Tensor
    alpha: Tensor | None
    profile: bytes | None
    orientation: int
    remarks: tuple[str, ...] = ()


def read_picture(path: str | Path, *, megapixels: float = 200) -> Picture:
    """Read a picture file, turned as its EXIF orientation says.

    - Palettes become RGB. CMYK and Lab become sRGB, with the profile of sRGB.
    - 16 bits per channel stay, of grey and of colours, in PNG and TIFF. Grey of 12 bits is scaled to 16.
    - White is the largest number, also of a file in which it is zero. The gamma of a PNG is applied.
    - Of several frames or pages the first is read.

    What is lost is told in the remarks.

    Args:
        path: the file.
        megapixels: larger pictures are refused before they are decoded.

    Raises:
        DataFileError: the file is missing, damaged, truncated, too large, empty, no picture of a known format, or its
            numbers are signed, of 32 bits or floating-point.

    >>> from nablanets_studies.datasets import path
    >>> read_picture(path("scikit-learn-pictures") / "flower.jpg").colors.shape
    torch.Size([3, 427, 640])
    """
    with opened(path, megapixels=megapixels) as image:
        remarks = _remarks(image)
        gamma = _gamma_of(image)
        planes = _deep_planes(image, path, megapixels) if has_deep_colors(image) else _planes(image)
        colors = planes.colors
        if gamma is not None:
            colors = _with_gamma_of_srgb(colors, gamma)
            remarks += (f"its gamma of {gamma:.3g} was applied",)
        profile = planes.profile
        if profile is not None and not fits(profile, len(colors)):
            remarks += (f"without its profile, which is {space_of(profile) or 'damaged'}",)
            profile = None
        alpha = planes.alpha
        if alpha is not None and bool((alpha == (_BYTE if alpha.dtype == torch.uint8 else _WORD)).all()):
            alpha = None
        return Picture(colors.contiguous(), alpha, profile, remarks + planes.remarks, planes.orientation)


def rgb_bytes(path: str | Path) -> Tensor:
    """The colours of a picture file as bytes (3, H, W), without alpha; grey is repeated."""
    return as_rgb_bytes(read_picture(path))


def as_rgb_bytes(picture: Picture) -> Tensor:
    """The colours of a picture as bytes (3, H, W), without alpha; grey is repeated.

    >>> as_rgb_bytes(Picture(torch.full((1, 2, 2), 65535, dtype=torch.int32)))[:, 0, 0]
    tensor([255, 255, 255], dtype=torch.uint8)
    """
    return _as_bytes(picture.colors).expand(3, -1, -1).contiguous()


def write_picture(picture: Picture, path: str | Path) -> tuple[str, ...]:
    """Write a picture in the format that the ending of the path names; the file appears when it is complete.

    16 bits per channel are kept in PNG and TIFF.

    Returns:
        Remarks about what was lost.

    Raises:
        DataFileError: the format is unknown or cannot hold the picture, its profile is of other colours, or the file
            cannot be written.
    """
    kind = format_of(path)
    _refuse_unwritable(picture, kind, path)
    deep = picture.peak == _WORD and kind in _DEEP
    profile = picture.profile if kind in _WITH_PROFILE else None
    try:
        with atomic_path(path) as temporary:
            if deep:
                write_deep(_interleaved(picture).numpy().astype(np.uint16), kind, temporary, profile)
            else:
                _write_shallow(picture, kind, temporary, profile)
    except (OSError, ValueError) as error:
        raise DataFileError(f"cannot write {path}: {error}. Nothing was left there.") from error
    remarks = []
    if picture.peak == _WORD and not deep:
        remarks.append(f"{kind} has 8 of the 16 bits")
    if picture.profile is not None and profile is None:
        remarks.append(f"{kind} has no place for its profile")
    return tuple(remarks)


def format_of(path: str | Path) -> str:
    """Pillow's name of the format of a file to write.

    Raises:
        DataFileError: no format that can be written has this ending.
    """
    pil = needed("PIL.Image")
    known: dict[str, str] = pil.registered_extensions()
    suffix = Path(path).suffix.lower()
    kind = known.get(suffix)
    if suffix not in SUFFIXES or kind not in _WRITTEN or kind not in pil.SAVE:
        endings = ", ".join(suffix for suffix in SUFFIXES if known.get(suffix) in _WRITTEN)
        raise DataFileError(f"{path}: expected a file that ends in {endings}.")
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


def by_stem(paths: list[Path]) -> dict[str, Path]:
    """Files by their names without endings.

    Raises:
        DataFileError: two have one name, such as a.png and a.jpg.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise DataFileError(
                f"{other} and {path.name} have one name up to the ending, and only one of them can be meant. "
                "Remove one, or rename it."
            )
    return found


def _remarks(image: Any) -> tuple[str, ...]:
    found = []
    if getattr(image, "n_frames", 1) > 1:
        found.append(f"only the first of {image.n_frames} frames")
    is_deep_ppm = image.format == "PPM" and image.mode == "RGB" and _largest_of_ppm(image) > _BYTE
    if is_deep_ppm or "CMYK;16" in rawmode_of(image):
        found.append("16-bit colours read with 8 bits")
    return tuple(found)


def _largest_of_ppm(image: Any) -> int:
    """The number of white in a PPM file, where Pillow tells."""
    arguments = image.tile[0][3]
    return arguments[1] if isinstance(arguments, tuple) and isinstance(arguments[1], int) else _BYTE


def _gamma_of(image: Any) -> float | None:
    """The gAMA of a PNG file where it counts: not beside a profile or the word sRGB, and not that of sRGB."""
    if image.format != "PNG" or "icc_profile" in image.info or "srgb" in image.info:
        return None
    gamma = float(image.info.get("gamma", _GAMMA_OF_SRGB))
    is_usual = gamma <= 0 or abs(gamma / _GAMMA_OF_SRGB - 1) < _GAMMA_TOLERANCE
    return None if is_usual else gamma


def _with_gamma_of_srgb(colors: Tensor, gamma: float) -> Tensor:
    """Samples s = light^gamma as light^(1/2.2), by a table."""
    peak = _BYTE if colors.dtype == torch.uint8 else _WORD
    samples = torch.linspace(0, 1, peak + 1, dtype=torch.float64)
    table = (samples ** (_GAMMA_OF_SRGB / gamma) * peak).round().to(colors.dtype)
    return table[colors.long()]


def _deep_planes(image: Any, path: str | Path, megapixels: float) -> _Planes:
    """Colours of 16 bits."""
    key = image.info.get("transparency")
    profile = image.info.get("icc_profile")
    samples, orientation = deep_samples(image, path, megapixels=megapixels)
    planes = torch.from_numpy(samples.astype(np.int32)).permute(2, 0, 1)
    has_alpha = len(planes) in (2, 4)
    if has_alpha:
        return _Planes(planes[:-1], planes[-1:].contiguous(), profile, orientation)
    return _Planes(planes, None if key is None else _opacity(planes, key), profile, orientation)


def _planes(image: Any) -> _Planes:
    """All other pictures, by Pillow's modes."""
    rawmode = rawmode_of(image)
    white_zero = is_white_zero(image)
    is_key = image.format == "PNG" and image.mode != "P"
    key = image.info.get("transparency") if is_key else None
    profile = image.info.get("icc_profile")
    orientation = load_upright(image)
    if image.mode.startswith("I"):
        colors = _grey_words(image, rawmode, white_zero=white_zero)
        return _Planes(colors, None if key is None else _opacity(colors, key), profile, orientation)
    remarks: tuple[str, ...] = ()
    if image.mode in ("CMYK", "LAB"):
        image, profile, remarks = to_srgb(image, profile)
    if key is not None and image.mode in ("1", "L", "RGB"):
        colors = _numbers(image.convert("L") if image.mode == "1" else image)
        return _Planes(colors, _opacity(colors, _scaled_key(key, rawmode)), profile, orientation, remarks)
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        values = _numbers(image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA"))
        return _Planes(values[:-1], values[-1:].contiguous(), profile, orientation, remarks)
    colors = _numbers(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return _Planes(colors, None, profile, orientation, remarks)


def _grey_words(image: Any, rawmode: str, *, white_zero: bool) -> Tensor:
    """Grey of 12 or 16 bits as ``torch.int32`` from 0 to 65535."""
    numbers = np.array(image).astype(np.int64)
    if rawmode.startswith("I;12"):
        numbers = (numbers * _WORD + _TWELVE_BITS // 2) // _TWELVE_BITS
    if numbers.min() < 0 or numbers.max() > _WORD:
        raise ValueError(f"it has numbers from {numbers.min()} to {numbers.max()}, of which white is not known")
    if white_zero:
        numbers = _WORD - numbers
    return torch.from_numpy(numbers.astype(np.int32)).unsqueeze(0)


def _opacity(colors: Tensor, key: int | tuple[int, ...]) -> Tensor:
    """Opacity (1, H, W) of a picture in which one colour is transparent."""
    wanted = torch.tensor(key, dtype=colors.dtype if colors.dtype != torch.uint8 else torch.int32)
    is_key = (colors.to(wanted.dtype) == wanted.reshape(-1, 1, 1)).all(dim=0, keepdim=True)
    peak = _BYTE if colors.dtype == torch.uint8 else _WORD
    return torch.where(is_key, 0, peak).to(colors.dtype)


def _scaled_key(key: int | tuple[int, ...], rawmode: str) -> int | tuple[int, ...]:
    """The transparent colour of a PNG of 1, 2 or 4 bits, which Pillow leaves as it is, on the scale of bytes."""
    largest = {"1": 1, "L;2": 3, "L;4": 15}.get(rawmode)
    if largest is None or isinstance(key, tuple):
        return key
    return min(key * (_BYTE // largest), _BYTE)  # of 1 bit some versions of Pillow give 255 already


def _numbers(image: Any) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def _refuse_unwritable(picture: Picture, kind: str, path: str | Path) -> None:
    if picture.alpha is not None and kind in _WITHOUT_ALPHA:
        raise DataFileError(f"{path}: {kind} files have no transparency, and the picture has. Write a .png.")
    if kind == "TIFF" and picture.alpha is not None and picture.peak == _WORD and len(picture.colors) == 1:
        raise DataFileError(f"{path}: grey of 16 bits with transparency is not written to TIFF. Write a .png.")
    if picture.colors.numel() == 0:
        raise DataFileError(f"{path}: the picture has no pixels, {tuple(picture.colors.shape)}.")
    profile = picture.profile
    if profile is not None and not fits(profile, len(picture.colors)):
        raise DataFileError(
            f"{path}: expected a profile for {len(picture.colors)} colour channels, got one that is "
            f"{space_of(profile) or 'damaged'}. Write the picture without: dataclasses.replace(picture, profile=None)."
        )


def _write_shallow(picture: Picture, kind: str, path: Path, profile: bytes | None) -> None:
    """Write bytes by Pillow."""
    planes = _as_bytes(_interleaved(picture))
    array = planes[..., 0] if planes.shape[-1] == 1 else planes
    image = needed("PIL.Image").fromarray(array.contiguous().numpy())
    options: dict[str, Any] = {}
    if kind in ("JPEG", "WEBP"):
        options["quality"] = 95
    if kind == "PNG":
        options["compress_level"] = 3
    if profile is not None:
        options["icc_profile"] = profile
    image.save(path, format=kind, **options)


def _interleaved(picture: Picture) -> Tensor:
    """Colours and opacity, (H, W, channels)."""
    planes = picture.colors if picture.alpha is None else torch.cat([picture.colors, picture.alpha])
    return planes.permute(1, 2, 0).contiguous()


def _as_bytes(values: Tensor) -> Tensor:
    return values if values.dtype == torch.uint8 else (values / 257).round().to(torch.uint8)
