"""Commands by name, imported when they are called, so that `nablanets --help` does not wait for what it will not run.

The library's commands stand in a table. Other distributions add theirs by an entry point of the group
``nablanets.commands`` that names a list of :class:`Command`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from nablanets.errors import MissingPackageError, unknown_name

GROUP = "nablanets.commands"

#: Commands of the studies, so that their absence can be explained.
STUDIES = ("data", "list", "report", "run", "show", "train", "upscale")


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        name: what the user types.
        help: one line for the list of commands.
        target: ``"module:attribute"``, a typed function or a :class:`typer.Typer` with commands of its own.
    """

    name: str
    help: str
    target: str

    def load(self) -> Any:
        """Import the target and make it a command."""
        module, attribute = self.target.split(":")
        target = getattr(importlib.import_module(module), attribute)
        # get_command would make a plain command of a group with one command in it.
        is_group = isinstance(target, typer.Typer)
        command: Any = typer.main.get_group(target) if is_group else typer.main.get_command(_application(target))
        command.name = self.name
        return command


def _application(function: Any) -> typer.Typer:
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    application.command()(function)
    return application


LIBRARY = (
    Command("fit", "Fit a gradient network to samples of a field in a file.", "nablanets.cli.fit:fit"),
    Command("apply", "Evaluate a model at the points of a file.", "nablanets.cli.models:apply_model"),
    Command("verify", "Check that a model is a gradient, and monotone if it says so.", "nablanets.cli.models:verify"),
    Command("export", "Write a model for programs that do not know this package.", "nablanets.cli.models:export"),
)


def all_commands() -> dict[str, Command]:
    """The commands of the library and of the distributions that are installed beside it.

    A distribution whose commands cannot be imported is named on standard error and left out: it must not take the
    others with it.
    """
    commands = list(LIBRARY)
    for entry in entry_points(group=GROUP):
        try:
            commands.extend(entry.load())
        except ImportError as error:
            print(f"nablanets: the commands of {entry.value} cannot be imported: {error}", file=sys.stderr)
    return {command.name: command for command in commands}


class Commands(TyperGroup):
    """A group whose commands are imported when they are called.

    Contexts and formatters are those of click, which newer versions of typer carry inside; hence ``Any``.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(all_commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        commands: Mapping[str, Command] = all_commands()
        if cmd_name in commands:
            return commands[cmd_name].load()
        if cmd_name in STUDIES:
            raise MissingPackageError(
                f"`nablanets {cmd_name}` belongs to the studies, which are not installed: "
                "pip install 'nablanets[studies]'."
            )
        raise unknown_name("command", cmd_name, commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(command.name, command.help) for command in all_commands().values()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
