"""Colours of 16 bits per channel, which Pillow has no mode for: read by its decoders in two halves, written by ours.

Pillow unpacks 16-bit colours to their upper bytes. Told that the bytes of a number are the other way round, the same
decoder unpacks the lower bytes. So a file is decoded twice, at the speed of C, with all of Pillow's checks.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nablanets_studies.images.extras import needed
from nablanets_studies.images.opening import load_upright, opened, rawmode_of

_LAYOUTS = ("RGB", "RGBX", "RGBA", "RGBa")
_NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER = {"L": "B", "B": "L"}
#: Grey and opacity, 16 bits each: the four bytes of a pixel, read as if they were four channels.
_GREY_ALPHA = "LA;16B"
_FOUR_BYTES = "RGBA"

#: Colour types of PNG by the number of channels.
_PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Names of two of the five filters of PNG: differences from the left pixel, and from the one above.
_SUB = 1
_UP = 2
#: Rows are filtered and compressed in blocks of about so many bytes.
_BLOCK = 2**22
_COMPRESSION_LEVEL = 3


def has_deep_colors(image: Any) -> bool:
    """Whether a picture, not yet decoded, has 16-bit colours that can be read with all their bits."""
    rawmode = rawmode_of(image)
    return rawmode == _GREY_ALPHA or _halves(rawmode) is not None


def deep_samples(image: Any, path: str | Path, *, megapixels: float) -> tuple[np.ndarray, int]:
    """The numbers of a picture with 16-bit colours, upright, of shape (H, W, channels) and type uint16.

    With them comes the orientation of the file.

    Opacity that colours were multiplied with is divided out.

    Args:
        image: the file, opened and not yet decoded.
        path: the same file, which is decoded a second time.
        megapixels: the limit for that.
    """
    rawmode = rawmode_of(image)
    if rawmode == _GREY_ALPHA:
        four, orientation = _decoded(image, _FOUR_BYTES)
        return _joined(four[..., 0::2], four[..., 1::2]), orientation
    halves = _halves(rawmode)
    if halves is None:
        raise ValueError(f"its samples of kind {rawmode} are not known")
    upper, orientation = _decoded(image, halves[0])
    with opened(path, megapixels=megapixels) as again:
        lower, _ = _decoded(again, halves[1])
    samples = _joined(upper, lower)
    if rawmode.startswith("RGBa"):
        samples = _divided_by_opacity(samples)
    return samples, orientation


def _halves(rawmode: str) -> tuple[str, str] | None:
    """The names under which Pillow unpacks the upper and the lower bytes of 16-bit colours."""
    layout, _, order = rawmode.partition(";16")
    if layout not in _LAYOUTS or order not in ("L", "B", "N"):
        return None
    if layout == "RGBa":
        layout = "RGBA"  # as they are: Pillow divides by the opacity after it has lost the lower bytes
    if order == "N":
        order = _NATIVE
    return f"{layout};16{order}", f"{layout};16{_OTHER[order]}"


def _decoded(image: Any, rawmode: str) -> tuple[np.ndarray, int]:
    """The bytes of a picture, unpacked as a raw mode says, upright, (H, W, channels); its orientation."""
    image.tile = [_with_rawmode(tile, rawmode) for tile in image.tile]
    orientation = load_upright(image)
    return np.array(image), orientation


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    """A part of a file as Pillow describes it, a tuple or named tuple that ends in its arguments."""
    arguments = tile[3]
    changed = (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode
    return tile._replace(args=changed) if hasattr(tile, "_replace") else (*tile[:3], changed)


def _joined(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    samples = upper.astype(np.uint16)
    samples <<= 8
    samples |= lower
    return samples


def _divided_by_opacity(samples: np.ndarray) -> np.ndarray:
    alpha = samples[..., 3:]
    colors = samples[..., :3].astype(np.float64) * 65535 / np.maximum(alpha, 1)
    divided = np.rint(np.minimum(colors, 65535)).astype(np.uint16)
    return np.concatenate([divided, alpha], axis=-1)


def write_deep(samples: np.ndarray, kind: str, path: Path, profile: bytes | None) -> None:
    """Write numbers of 16 bits, shape (H, W, channels), as "PNG" or "TIFF".

    The channels are grey, RGB, or RGB and opacity; in PNG also grey and opacity.
    """
    if kind == "PNG":
        with path.open("wb") as file:
            _write_png(samples, file, profile)
        return
    channels = samples.shape[-1]
    needed("tifffile").imwrite(
        path,
        samples[..., 0] if channels == 1 else samples,
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
        planarconfig=None if channels == 1 else "contig",
        compression="zlib",
        predictor=False,
        iccprofile=profile,
        metadata=None,
    )


def _write_png(samples: np.ndarray, file: BinaryIO, profile: bytes | None) -> None:
    """PNG after ISO/IEC 15948: each row is filtered by its left or its upper neighbours, whichever is smaller."""
    height, width, channels = samples.shape
    file.write(_PNG_SIGNATURE)
    bit_depth = 16
    header = struct.pack(">IIBBBBB", width, height, bit_depth, _PNG_COLOR_TYPES[channels], 0, 0, 0)
    _write_chunk(file, b"IHDR", header)
    if profile is not None:
        name_and_method = b"ICC profile\0\0"
        _write_chunk(file, b"iCCP", name_and_method + zlib.compress(profile))
    compressor = zlib.compressobj(_COMPRESSION_LEVEL)
    pixel = 2 * channels  # bytes
    above = np.zeros(width * pixel, dtype=np.uint8)
    rows_per_block = max(1, _BLOCK // (width * pixel))
    for top in range(0, height, rows_per_block):
        block = samples[top : top + rows_per_block].astype(">u2")
        rows = block.reshape(len(block), -1).view(np.uint8)  # (rows, bytes)
        compressed = compressor.compress(_filtered(rows, above, pixel).tobytes())
        if compressed:
            _write_chunk(file, b"IDAT", compressed)
        above = rows[-1]
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(rows: np.ndarray, above: np.ndarray, pixel: int) -> np.ndarray:
    """Rows with the name of their filter in front, shape (rows, 1 + bytes)."""
    sub = rows.copy()
    sub[:, pixel:] -= rows[:, :-pixel]
    up = rows.copy()
    up[0] -= above
    up[1:] -= rows[:-1]
    is_up = _total(up) < _total(sub)
    found = np.empty((rows.shape[0], 1 + rows.shape[1]), dtype=np.uint8)
    found[:, 0] = np.where(is_up, _UP, _SUB)
    found[:, 1:] = np.where(is_up[:, None], up, sub)
    return found


def _total(differences: np.ndarray) -> np.ndarray:
    """The sum over each row of the sizes of differences, which are signed numbers modulo 256."""
    size = np.minimum(differences, np.negative(differences))
    return size.sum(axis=1, dtype=np.int64)


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)))
    file.write(kind)
    file.write(content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
