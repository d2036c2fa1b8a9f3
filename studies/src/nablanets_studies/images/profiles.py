"""Colour profiles: pictures of inks and of CIE Lab become sRGB, and a profile stays only where it fits."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, NamedTuple

from nablanets_studies.images.extras import needed

#: The length of the header that each ICC profile begins with, and where in it what lies.
_HEADER = 128
_SPACE = slice(16, 20)
_DATE = slice(24, 36)
_SIGNATURE = slice(36, 40)
#: 1 January 2000 as six big-endian numbers of 16 bits: files written twice shall be the same.
_FIXED_DATE = b"\x07\xd0\0\1\0\1\0\0\0\0\0\0"
#: Colour spaces of profiles that fit a picture, by its number of colour channels.
_FITTING = {1: "GRAY", 3: "RGB"}


class Converted(NamedTuple):
    """A Pillow picture in sRGB, the profile of sRGB, and what to tell about it."""

    image: Any
    profile: bytes
    remarks: tuple[str, ...]


def space_of(profile: bytes) -> str | None:
    """The colour space of an ICC profile, such as "RGB", "GRAY", "CMYK" or "Lab"; None if it is no profile.

    >>> space_of(srgb_profile())
    'RGB'
    """
    if len(profile) < _HEADER or profile[_SIGNATURE] != b"acsp":
        return None
    return profile[_SPACE].decode("latin-1").strip()


def fits(profile: bytes, channels: int) -> bool:
    """Whether a profile describes pictures of so many colour channels, 1 or 3."""
    return space_of(profile) == _FITTING.get(channels)


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """An ICC profile of sRGB."""
    cms = needed("PIL.ImageCms")
    content = bytearray(cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes())
    content[_DATE] = _FIXED_DATE
    return bytes(content)


def to_srgb(image: Any, profile: bytes | None) -> Converted:
    """A picture of mode CMYK or LAB in sRGB.

    CMYK is converted by its profile, relative to the white of the paper. Without one that can be used, RGB is what
    the inks leave of white, and a remark says so. Lab needs none: its numbers are colours by themselves.
    """
    cms = needed("PIL.ImageCms")
    is_lab = image.mode == "LAB"
    if not is_lab and (profile is None or space_of(profile) != "CMYK"):
        return Converted(image.convert("RGB"), srgb_profile(), ("CMYK without a profile: colours are approximate",))
    target = cms.createProfile("sRGB")
    try:
        source = cms.createProfile("LAB") if is_lab else cms.ImageCmsProfile(io.BytesIO(profile or b""))
        converted = cms.profileToProfile(
            image,
            source,
            target,
            renderingIntent=cms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=cms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (cms.PyCMSError, OSError):
        if is_lab:
            raise ValueError("its Lab colours cannot be converted") from None
        remark = "its CMYK profile cannot be used: colours are approximate"
        return Converted(image.convert("RGB"), srgb_profile(), (remark,))
    return Converted(converted, srgb_profile(), ())
