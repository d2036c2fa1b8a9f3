"""Which way imports go, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path


def rooms_of(source: Path) -> set[str]:
    """The rooms of a package: its modules and packages, but for private files."""
    found = [path for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in found if not path.name.startswith("__")}


def imports_against_the_order(source: Path, package: str, order: Sequence[str]) -> list[str]:
    """Imports of a room from rooms that stand behind it, as "file: room"."""
    rank = {room: place for place, room in enumerate(order)}
    wrong = []
    for path in sorted(source.rglob("*.py")):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        if room not in rank:
            continue
        for name in _imported_rooms(path, package):
            if rank[name] > rank[room]:
                wrong.append(f"{path.relative_to(source)}: {name}")
    return wrong


def _imported_rooms(path: Path, package: str) -> list[str]:
    rooms = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            parts = node.module.split(".")
            if parts[0] == package:
                rooms += [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            rooms += [part[1] for part in parts if part[0] == package and len(part) > 1]
    return rooms
