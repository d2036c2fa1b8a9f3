"""The photographs that come inside packages, in three parts: to train on, to choose settings with, and to test on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nablanets.errors import DataFileError, unknown_name
from nablanets_studies.datasets import find, find_dataset
from nablanets_studies.images.extras import needed
from nablanets_studies.images.files import pictures_in, rgb_bytes

#: Photographs to train on and to choose with have at most so many pixels on the longer side.
_LONGEST = 1200
#: Files by data set; what drawings the packages hold besides is left out.
_TRAIN = {
    "lomiri-wallpapers": (
        "Dragonfly_by_Bolly.jpg", "Picture_0B_by_freespace.jpg", "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg", "aitzgorri_by_Aitzol_Berasategi.jpg", "free_by_Peter_Nerlich.jpg",
        "greentock_by_Peter_Nerlich.jpg", "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "seeding_by_Clements_Engelhardt.jpg", "sunset_by_Aitzol_Berasategi.jpg",
    ),
    "mate-wallpapers": (
        "Aqua.jpg", "Blinds.jpg", "Dune.jpg", "FreshFlower.jpg", "Garden.jpg", "GreenMeadow.jpg", "RainDrops.jpg",
        "Storm.jpg", "TwoWings.jpg", "Wood.jpg", "YellowFlower.jpg",
    ),
    "lxqt-wallpapers": (
        "Butterfly-Kenneth-Wimer.jpg", "Valendas.png", "after-the-rain.jpg", "appleflower.png", "beam.png",
        "butterfly.png", "cloud.png", "drop.png", "flowers.png", "fog.jpg", "this-is-not-windows.jpg",
    ),
    "plasma-wallpapers": tuple(
        f"{name}/contents/images/2560x1600.jpg"
        for name in (
            "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Kite",
            "OneStandsOut", "Path", "summer_1am",
        )
    ),
    "libjxl-testdata": (
        "jxl/flower/flower.png", "external/wesaturate/500px/cvo9xd_keong_macan_srgb8.png",
        "external/wesaturate/500px/u76c0g_bliznaca_srgb8.png",
    ),
}  # fmt: skip
_VALIDATION = {
    "lomiri-wallpapers": (
        "Bridge_by_Sander_Klootwijk.jpg", "friends_by_Aitzol_Berasategi.jpg", "life_by_Aitzol_Berasategi.jpg",
    ),
    "mate-wallpapers": ("LadyBird.jpg",),
    "plasma-wallpapers": ("Grey/contents/images/2560x1600.jpg",),
    "libjxl-testdata": ("external/wesaturate/500px/tmshre_riaphotographs_srgb8.png",),
}  # fmt: skip
_TEST = {
    "opencv-examples": ("dnn_superres/butterfly.png",),
    "test-pictures": ("barbara.png", "kodim23.png", "monarch.png", "sail.png", "tulips.png"),
    "scikit-image-pictures": ("astronaut.png", "chelsea.png", "coffee.png"),
    "scikit-learn-pictures": ("flower.jpg",),
}
#: What there is without fetching anything.
_EMBEDDED: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "scikit-image-pictures": (
            "brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png",
            "rocket.jpg",
        ),
        "scikit-learn-pictures": ("china.jpg",),
    },
    "validation": {"scikit-image-pictures": ("camera.png", "coins.png")},
    "test": {k: _TEST[k] for k in ("scikit-image-pictures", "scikit-learn-pictures")},
}  # fmt: skip
_PACKAGED = {"train": _TRAIN, "validation": _VALIDATION, "test": _TEST}


@dataclass(frozen=True)
class Photographs:
    """Pictures as bytes (3, H, W), and their names."""

    names: tuple[str, ...]
    pictures: tuple[Tensor, ...]


class Part(NamedTuple):
    """Where pictures come from: files, and data sets that are not on this machine."""

    files: tuple[Path, ...]
    missing: tuple[str, ...]


def packaged_files(part: str) -> Part:
    """The files of a part, "train", "validation" or "test", of the photographs inside packages."""
    return _files(_PACKAGED, part)


def packaged_photographs(part: str) -> Photographs:
    """A part of the photographs inside packages: 45 to train on, 6 to choose with, ten to test on.

    The first two are reduced to at most 1200 pixels, which removes the traces of JPEG.

    Raises:
        DataFileError: some have not been fetched; the message says how to get them.
    """
    files, missing = packaged_files(part)
    if missing:
        raise DataFileError(
            f"{len(missing)} data sets of photographs are not on this machine. Get them with: nablanets data get "
            f"{' '.join(missing)}"
        )
    return _loaded(files, None if part == "test" else _LONGEST)


def embedded_photographs(part: str) -> Photographs:
    """A part of the few photographs inside scikit-image and scikit-learn, which need no fetching.

    >>> len(embedded_photographs("test").pictures)
    4
    """
    return _loaded(_files(_EMBEDDED, part).files, None)


def photographs_of(folder: str | Path) -> Photographs:
    """All pictures of a folder, as they are.

    Raises:
        DataFileError: there is no such folder, it is empty, or a file is damaged.
    """
    return _loaded(tuple(pictures_in(folder)), None)


def are_packaged() -> bool:
    """Whether all photographs of all three parts are on this machine."""
    return not any(packaged_files(part).missing for part in _PACKAGED)


def to_fetch() -> list[str]:
    """Data sets whose photographs are missing here."""
    return sorted({name for part in _PACKAGED for name in packaged_files(part).missing})


def licences() -> dict[str, str]:
    """The licence of each data set that networks are trained on."""
    return {name: find_dataset(name).licence for name in _TRAIN}


def _files(table: dict[str, dict[str, tuple[str, ...]]], part: str) -> Part:
    if part not in table:
        raise unknown_name("part", part, table)
    found = []
    missing = []
    for name, files in table[part].items():
        folder = find(find_dataset(name))
        if folder is None or not all((folder / file).is_file() for file in files):
            missing.append(name)
        else:
            found += [folder / file for file in files]
    return Part(tuple(found), tuple(missing))


@lru_cache(maxsize=8)
def _loaded(files: Sequence[Path], longest: int | None) -> Photographs:
    pictures = tuple(rgb_bytes(file) if longest is None else _reduced(file, longest) for file in files)
    return Photographs(tuple(file.stem for file in files), pictures)


def _reduced(file: Path, longest: int) -> Tensor:
    image: Any = needed("PIL.Image").open(file)
    factor = longest / max(image.size)
    if factor < 1:
        size = tuple(round(side * factor) for side in image.size)
        image.draft("RGB", tuple(3 * side for side in size))
        image = image.convert("RGB").resize(size, needed("PIL.Image").Resampling.LANCZOS, reducing_gap=3)
    numbers = needed("numpy").array(image.convert("RGB"))
    return torch.from_numpy(numbers).permute(2, 0, 1).contiguous()
