"""A run folder: config.json, metrics.jsonl, results.json, models and figures."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nablanets import serialization
from nablanets.errors import RunFolderError
from nablanets.fitting.settings import HistoryRow


@dataclass(frozen=True)
class Row:
    """One line of results.json."""

    arm: str
    seed: int
    parameters: int
    seconds: float
    metrics: dict[str, float]


def environment() -> dict[str, str]:
    """What the run ran on."""
    packages = {name: version(name) for name in ("torch", "numpy", "scipy")}
    return {
        "nablanets": version("nablanets"),
        "python": platform.python_version(),
        **packages,
        "machine": platform.machine(),
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


class RunFolder:
    """Everything about one run, on disk. Each file is written atomically; results grow one part at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def begin(cls, path: str | Path, description: dict[str, Any], *, resume: bool) -> RunFolder:
        """Create a run folder, or continue one.

        Args:
            path: the folder.
            description: experiment, preset, seeds and configuration, kept in config.json.
            resume: continue what is there; it must have the same description.

        Raises:
            RunFolderError: the folder holds a run and resume is not asked for, or it holds a different run, or it
                cannot be written.
        """
        run = cls(path)
        there = (run.path / "config.json").exists()
        if there and not resume:
            raise RunFolderError(
                f"{run.path} already holds a run. Continue it with --resume, or choose another folder with --out."
            )
        if there and run.description() != json.loads(json.dumps(description)):
            raise RunFolderError(
                f"{run.path} holds a run with another configuration, so it cannot be resumed with this one.\n"
                f"  there: {json.dumps(run.description())}\n  here:  {json.dumps(description)}"
            )
        try:
            for sub in ("models", "figures"):
                (run.path / sub).mkdir(parents=True, exist_ok=True)
            run._write_json("config.json", description)
        except OSError as error:
            raise RunFolderError(f"cannot write to {run.path}: {error}. Choose another folder with --out.") from error
        if not (run.path / "results.json").exists():
            run._write_results([])
        run._drop_unfinished_metrics()
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder.

        Raises:
            RunFolderError: it is not one.
        """
        run = cls(path)
        for name in ("config.json", "results.json"):
            if not (run.path / name).is_file():
                raise RunFolderError(
                    f"{run.path} is not a run folder: it has no {name}. Make one with `nablanets run`."
                )
        run.description()
        run.results()
        return run

    def description(self) -> dict[str, Any]:
        return self._read_json("config.json")

    def results(self) -> dict[str, Any]:
        return self._read_json("results.json")

    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.results()["rows"]]

    def finished(self) -> set[tuple[str, int]]:
        """Parts whose results are there."""
        return {(row.arm, row.seed) for row in self.rows()}

    def add(self, row: Row, model: nn.Module | None) -> None:
        """Keep the outcome of a part; the row comes last, so that a part is either whole or absent."""
        if model is not None:
            self.save_model(model, row.arm, row.seed)
        self._write_results([*self.rows(), row])

    def model_path(self, arm: str, seed: int) -> Path:
        return self.path / "models" / f"{arm}-{seed}.safetensors"

    def save_model(self, model: nn.Module, arm: str, seed: int) -> None:
        serialization.save(model, self.model_path(arm, seed))

    def load_model(self, arm: str, seed: int) -> Any:
        return serialization.load(self.model_path(arm, seed))

    def log(self, arm: str, seed: int, row: HistoryRow) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"arm": arm, "seed": seed, **row._asdict()}) + "\n")

    def history(self, arm: str, seed: int) -> list[HistoryRow]:
        """The learning curve of a part."""
        return self.histories().get((arm, seed), [])

    def histories(self) -> dict[tuple[str, int], list[HistoryRow]]:
        """All learning curves, by arm and seed."""
        curves: dict[tuple[str, int], list[HistoryRow]] = {}
        for line in self._metrics():
            row = HistoryRow(**{name: line[name] for name in HistoryRow._fields if name in line})
            curves.setdefault((line["arm"], line["seed"]), []).append(row)
        return curves

    def figure_path(self, name: str) -> Path:
        return self.path / "figures" / f"{name}.png"

    def _metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [line for text in lines if (line := _parse_line(text)) is not None]

    def _drop_unfinished_metrics(self) -> None:
        finished = self.finished()
        kept = [line for line in self._metrics() if (line["arm"], line["seed"]) in finished]
        self._write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _write_results(self, rows: Iterable[Row]) -> None:
        description = self.description()
        content = {
            "experiment": description["experiment"],
            "preset": description["preset"],
            "environment": environment(),
            "rows": [asdict(row) for row in rows],
        }
        self._write_json("results.json", content)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self._write_text(name, json.dumps(content, indent=2) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with serialization.atomic_path(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{path} cannot be read: {error}. The run folder is damaged; start a new one."
            ) from error
        return content


def _parse_line(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None for the half-written last line of a killed run."""
    try:
        line: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return line
