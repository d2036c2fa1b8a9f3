"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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
    # Path.resolve raises RuntimeError for links in a circle; here the status raises OSError.
    target = Path(os.path.realpath(path))
    before = _status(Path(path))
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(f"{path} is a folder")
    is_special = before is not None and (not stat.S_ISREG(before.st_mode) or str(path).startswith(_OPEN_FILES))
    folder = Path(tempfile.gettempdir()) if is_special else target.parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if is_special:
            with temporary.open("rb") as source, Path(path).open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            _keep_status(temporary, before)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


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
