"""Ctrl-C while the command line still imports what it needs: no traceback, and exit code 130.

``import nablanets`` takes seconds, before any code of the command could catch the interruption. So the package, when
it is the program that runs, first sets the hook that Python calls for exceptions that nobody catches. Programs that
import the package as a library are not touched.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

#: What shells report for a program that Ctrl-C ended.
INTERRUPTED: Final = 130


def is_the_program() -> bool:
    """Whether ``nablanets`` or ``python -m nablanets`` runs."""
    started = sys.orig_argv
    is_module = any(pair == ("-m", "nablanets") for pair in itertools.pairwise(started))
    return is_module or Path(sys.argv[0] if sys.argv else "").stem == "nablanets"


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(INTERRUPTED)


if is_the_program():
    sys.excepthook = _hook
