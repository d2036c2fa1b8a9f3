"""Picture files made byte by byte: what other programs write, and ours does not."""

from __future__ import annotations

import struct
import zlib

import numpy as np

ORIENTATION = 0x0112
#: Channels of the colour types of PNG: grey, RGB, palette, grey and opacity, RGB and opacity.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: First row, first column, step of rows and step of columns of the seven passes of Adam7.
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif(orientation: int) -> bytes:
    """A block of EXIF that holds an orientation alone."""
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", ORIENTATION, 3, 1, orientation, 0) + b"\0\0\0\0"


def packed(samples: np.ndarray, depth: int) -> bytes:
    """Rows of numbers of some bits, with the filter of no filter in front."""
    rows = samples.reshape(len(samples), -1)
    bits = (rows[..., None].astype(np.int64) >> np.arange(depth - 1, -1, -1)) & 1
    return b"".join(b"\0" + np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits)


def png(samples: np.ndarray, depth: int, color_type: int, *, before=(), after=(), interlaced: bool = False) -> bytes:
    """A PNG file of numbers (H, W, channels), with more chunks before and after the pixels."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    passes = [samples[r::dr, c::dc] for r, c, dr, dc in ADAM7] if interlaced else [samples]
    content = b"".join(packed(part, depth) for part in passes if part.size)
    parts = [chunk(b"IHDR", header), *(chunk(k, v) for k, v in before), chunk(b"IDAT", zlib.compress(content))]
    parts += [*(chunk(k, v) for k, v in after), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cmyk_profile() -> bytes:
    """An ICC profile of a press whose cyan, magenta and yellow are clear water: black alone prints."""
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T  # (16, 4), black varies fastest
    lab = np.array([[255 * (1 - k), 128, 128] for *_, k in corners], dtype=np.uint8)
    identity = np.eye(3, dtype=np.int64) * 65536
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity.astype(">i4").tobytes()
    ramp = bytes(range(256))
    table += ramp * 4 + lab.tobytes() + ramp * 3
    table += bytes(-len(table) % 4)
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    tags = [(b"A2B0", table), (b"wtpt", white)]
    start = 128 + 4 + 12 * len(tags)
    entries = b""
    content = b""
    for name, data in tags:
        entries += name + struct.pack(">II", start + len(content), len(data))
        content += data
    body = struct.pack(">I", len(tags)) + entries + content
    header = bytearray(128)
    header[0:4] = struct.pack(">I", 128 + len(body))
    header[8:12] = b"\x02\x20\0\0"
    header[12:24] = b"prtrCMYKLab "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">iii", 63190, 65536, 54061)
    return bytes(header) + body
