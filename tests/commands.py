"""Calling the command line in tests."""

from __future__ import annotations

from collections.abc import Sequence

from nablanets.cli import main
from nablanets.cli.commands import Command


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, " ".join(out.split()), " ".join(err.split())


def flags_of(commands: Sequence[Command]) -> dict[str, set[str]]:
    """The options of commands and of the commands inside groups, by name."""
    flat = {}
    for command in commands:
        loaded = command.load()
        inner = getattr(loaded, "commands", None)
        named = {command.name: loaded} if inner is None else {f"{command.name} {n}": c for n, c in inner.items()}
        flat.update(named)
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        - {"--help", "--install-completion", "--show-completion"}
        for name, command in flat.items()
    }
