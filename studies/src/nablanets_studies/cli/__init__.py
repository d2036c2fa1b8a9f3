"""The commands that the studies add to `nablanets`. This module is light, since `nablanets --help` imports it."""

from nablanets.cli.commands import Command

COMMANDS = [
    Command("list", "List the experiments.", "nablanets_studies.cli.experiments:list_experiments"),
    Command("show", "Show an experiment: protocol, arms, settings.", "nablanets_studies.cli.experiments:show"),
    Command("run", "Run an experiment with its baselines.", "nablanets_studies.cli.experiments:run"),
    Command("report", "Write the reports of run folders again.", "nablanets_studies.cli.experiments:report"),
    Command("data", "Data sets by name: list, get.", "nablanets_studies.cli.data:data"),
    Command("upscale", "Enlarge photographs.", "nablanets_studies.cli.pictures:upscale"),
    Command("train", "Train networks on pictures.", "nablanets_studies.cli.training:train"),
]

__all__ = ["COMMANDS"]
