"""Opening picture files of strangers: known formats only, no more pixels than asked for, damage told as one error."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nablanets.errors import DataFileError
from nablanets_studies.images.extras import needed

#: Pillow's names of the formats that are opened. Others are left out on purpose: EPS, for one, starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: What Pillow raises for damaged files, as seen on truncated and altered ones.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    SystemError,
    MemoryError,
    struct.error,
    zlib.error,
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Tags of TIFF files.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_PLANAR_CONFIGURATION = 284
_SAMPLE_FORMAT = 339
_ORIENTATION = 274

_UNSIGNED = 1
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 4: "undefined", 5: "complex integer", 6: "complex"}
_SEPARATE_PLANES = 2


@contextlib.contextmanager
def opened(path: str | Path, *, megapixels: float) -> Iterator[Any]:
    """A picture file, opened by Pillow and not yet decoded; what goes wrong inside is an error of the library.

    Args:
        path: the file.
        megapixels: larger pictures are refused before they are decoded.

    Raises:
        DataFileError: the file is missing, damaged, truncated, too large, empty, of no known format, or holds numbers
            of which black and white are not known (signed, 32-bit or floating-point samples).
    """
    pil = needed("PIL.Image")
    try:
        # Given a name, Pillow maps plain TIFF files into memory, and gets those that lie on their side wrong.
        with Path(path).open("rb") as file, _limit(pil, megapixels), pil.open(file, formats=FORMATS) as image:
            _refuse_size(path, image.size, megapixels)
            _refuse_samples(path, image)
            yield image
    except pil.DecompressionBombError as error:
        raise DataFileError(
            f"{path} was not decoded: {error} Reduce it, or raise --megapixels if you trust it."
        ) from error
    except FileNotFoundError as error:
        raise DataFileError(f"there is no picture {path}.") from error
    except pil.UnidentifiedImageError as error:
        raise DataFileError(f"{path} cannot be read: {_unidentified(path)}") from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataFileError(f"{path} cannot be read: {reason}. The file may be damaged or truncated.") from error


def load_upright(image: Any) -> int:
    """Decode a picture and turn it as its EXIF orientation says; that orientation, from 1 (upright) to 8."""
    # Pillow turns TIFF files itself, and forgets; in a PNG file the orientation may come after the pixels.
    orientation = image.tag_v2.get(_ORIENTATION, 1) if image.format == "TIFF" else None
    image.load()
    if orientation is None:
        orientation = image.getexif().get(_ORIENTATION, 1)
        needed("PIL.ImageOps").exif_transpose(image, in_place=True)
    return orientation if orientation in range(1, 9) else 1


def rawmode_of(image: Any) -> str:
    """Pillow's name of how samples lie in the file, such as "RGB;16B", before the picture is decoded."""
    if not image.tile:
        return ""
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def is_white_zero(image: Any) -> bool:
    """Whether a TIFF file says that its zeros are white."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0


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


def _refuse_size(path: str | Path, size: tuple[int, int], megapixels: float) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DataFileError(f"{path} has no pixels: it says that it has {width} x {height}.")
    if width * height > 1e6 * megapixels:
        raise DataFileError(
            f"{path} says that it has {width} x {height} pixels, more than the limit of {megapixels:g} megapixels. "
            "It was not decoded. Reduce it, or raise --megapixels if you trust the file."
        )


def _refuse_samples(path: str | Path, image: Any) -> None:
    """Refuse numbers that Pillow would cut off, or take for others."""
    remedy = "Save it with 8 or 16 unsigned bits per channel."
    if image.format == "TIFF":
        tags = image.tag_v2
        kinds = set(_as_tuple(tags.get(_SAMPLE_FORMAT, _UNSIGNED))) - {_UNSIGNED}
        if kinds:
            kind = _SAMPLE_FORMATS.get(min(kinds), "unknown")
            raise DataFileError(f"{path} holds {kind} numbers, of which black and white are not known. {remedy}")
        bits = max(_as_tuple(tags.get(_BITS_PER_SAMPLE, 1)))
        if bits > 16:
            raise DataFileError(
                f"{path} holds numbers of {bits} bits, of which black and white are not known. {remedy}"
            )
        is_separate = tags.get(_PLANAR_CONFIGURATION, 1) == _SEPARATE_PLANES and len(image.getbands()) > 1
        if is_separate and bits > 8:
            raise DataFileError(
                f"{path} holds 16-bit colours in separate planes, which cannot be read. Save it with the channels of a "
                "pixel side by side (planar configuration 1), or as PNG."
            )
    if image.mode == "F":
        raise DataFileError(f"{path} holds floating-point numbers, of which black and white are not known. {remedy}")


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _unidentified(path: str | Path) -> str:
    """Why Pillow opened nothing, and what to do."""
    with Path(path).open("rb") as file:
        magic = file.read(4)
    if magic in _TIFF_MAGIC:
        return (
            "it is a TIFF file that is damaged, or whose bits, channels or compression are not known. "
            "If other programs show it, save it there as PNG."
        )
    return f"it is no picture of a known format ({', '.join(FORMATS)}). The file may be damaged or truncated."
