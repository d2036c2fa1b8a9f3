"""The commands that the documentation gives can be given: studies, presets, settings and arms have these names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nablanets_studies.catalog import find_experiment
from nablanets_studies.machinery.base import override

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: In text a command may go over the end of a line, up to the closing backtick; in a block it is one line.
INLINE = re.compile(r"`(nablanets run [^`]*)`")
BLOCK = re.compile(r"^ {4}(nablanets run .*)$", flags=re.MULTILINE)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += INLINE.findall(text)
        found += BLOCK.findall(text)
    # Names in capitals and dots stand for the reader's own.
    return sorted({" ".join(command.split()) for command in found if "NAME" not in command and "..." not in command})


def options(command: str) -> dict[str, list[str]]:
    """Values by option; the name of the study stands under ``"name"``."""
    words = shlex.split(command, comments=True)[2:]
    given: dict[str, list[str]] = {"name": [words.pop(0)]}
    while words:
        option = words.pop(0)
        given.setdefault(option, [])
        if words and not words[0].startswith("--"):
            given[option].append(words.pop(0))
    return given


def test_there_are_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize("command", commands())
def test_command_can_be_given(command):
    given = options(command)
    assert set(given) <= {"name", "--preset", "--set", "--arms", "--seeds", "--jobs", "--resume", "--out"}
    experiment = find_experiment(given["name"][0])
    preset = given.get("--preset", ["quick"])[0]
    config = override(experiment.preset(preset), given.get("--set", []))
    known = experiment.arms(config)
    for arms in given.get("--arms", []):
        assert set(arms.split(",")) <= set(known)
