"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

#: Names of files that are open already, as /dev/stdout: what has them open would not see them replaced.
_OPEN_FILES: Final = ("/dev/", "/proc/")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path that replaces ``path`` when the block ends without an error.

    A symbolic link is written through: what it points to is replaced, and the link stays. A file that was there keeps
    its mode and, where that is allowed, its owner. A pipe or a device is not replaced; what was written is copied into
    it at the end.

    Raises:
        OSError: the path is a folder, or its folder cannot be written to.
    """
    place = _placed(path)
    place.folder.mkdir(parents=True, exist_ok=True)
    temporary = place.new_file(place.folder)
    try:
        yield temporary
        if place.is_special:
            with temporary.open("rb") as source, Path(path).open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            _keep_status(temporary, place.before)
            temporary.replace(place.target)
    finally:
        temporary.unlink(missing_ok=True)


def is_file(path: Path) -> bool:
    """Whether there is a file: not an error for names that are too long for one.

    >>> is_file(Path("m" * 1000))
    False
    """
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def check_writable(path: str | Path) -> None:
    """Raise what :func:`atomic_path` would raise for a path, before there is anything to write.

    A file is made and removed again beside it. Folders that are missing are not made: the nearest one that is there
    must let them be made.

    Raises:
        OSError: the path is a folder, or its folder cannot be written to.
    """
    place = _placed(path)
    if place.is_special:
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    folder = place.folder
    while not os.path.lexists(folder):
        folder = folder.parent
    place.new_file(folder).unlink()


class _Place(NamedTuple):
    """Where the bytes of a path go."""

    target: Path  # behind symbolic links
    folder: Path  # of the temporary file
    before: os.stat_result | None  # the status of what is there
    is_special: bool  # a pipe, a device or a file that is open already: written into, not replaced

    def new_file(self, folder: Path) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{self.target.name}.", suffix=".tmp", dir=folder)
        os.close(handle)
        return Path(name)


def _placed(path: str | Path) -> _Place:
    # Path.resolve raises RuntimeError for links in a circle; here the status raises OSError.
    target = Path(os.path.realpath(path))
    before = _status(Path(path))
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(f"{path} is a folder")
    is_special = before is not None and (not stat.S_ISREG(before.st_mode) or str(path).startswith(_OPEN_FILES))
    folder = Path(tempfile.gettempdir()) if is_special else target.parent
    return _Place(target, folder, before, is_special)


def _status(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _keep_status(temporary: Path, before: os.stat_result | None) -> None:
    """Give a file the mode and the owner of the one that it is to replace, or those of any new file."""
    if before is None:
        temporary.chmod(0o666 & ~_umask())
        return
    if hasattr(os, "chown"):
        # Only the superuser may give files away.
        with contextlib.suppress(OSError):
            os.chown(temporary, before.st_uid, before.st_gid)
    temporary.chmod(stat.S_IMODE(before.st_mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
