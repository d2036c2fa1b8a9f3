"""Build both wheels and use them as a stranger would, in a fresh virtual environment.

    python scripts/check_wheels.py [PIP OPTIONS ...]

First the library alone: what it installs, the examples of the README, a fit from a table to NumPy code, and a message
for each package that is not there. Then the studies beside it: their commands, and a small run with its page.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the library must not bring. (jinja2 comes with torch.)
UNWANTED = ("matplotlib", "platformdirs", "scikit-learn", "scikit-image", "pillow", "pyarrow", "onnx")
SAMPLES = 200
TINY_RUN = ("samples=400", "validation_samples=100", "steps=15", "test_side=10", "starts=1")


class CheckFailedError(Exception):
    """Something that the wheels promise does not hold."""


class Environment:
    """A virtual environment and the folder in which its programs run, away from the sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        venv.create(folder / "venv", with_pip=True)
        self.programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def call(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a program of the environment."""
        program = str(self.programs / arguments[0])
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [program, *arguments[1:]],
            cwd=self.work,
            env={**variables, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, " ".join(done.stdout.split())

    def works(self, *arguments: str, says: str = "") -> None:
        self._expect(0, arguments, says)

    def refuses(self, *arguments: str, says: str) -> None:
        self._expect(2, arguments, says)

    def _expect(self, code: int, arguments: Sequence[str], says: str) -> None:
        found, output = self.call(*arguments)
        shown = " ".join(arguments)
        if found != code or says not in output or "Traceback" in output:
            raise CheckFailedError(f"{shown}\nexpected exit code {code} and {says!r}, got {found} and:\n{output}")
        print(f"ok: {shown[:100]}", flush=True)


def build(folder: Path) -> tuple[Path, Path]:
    """The wheels of the library and of the studies."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(ROOT), str(ROOT / "studies")], check=True)
    return next(folder.glob("nablanets-*.whl")), next(folder.glob("nablanets_studies-*.whl"))


def check_the_library(environment: Environment) -> None:
    """What a user of the library alone has."""
    _, packages = environment.call("python", "-m", "pip", "list", "--format=freeze")
    brought = [name for name in UNWANTED if f" {name}==" in f" {packages.lower()}"]
    if brought:
        raise CheckFailedError(f"the library's wheel installed {', '.join(brought)}")
    examples = "import doctest, sys; sys.exit(bool(doctest.testfile(sys.argv[1], module_relative=False).failed))"
    environment.works("python", "-c", examples, str(ROOT / "README.md"))
    write_samples(environment.work / "samples.csv")
    environment.works("nablanets", "--help", says="fit")
    environment.works(
        "nablanets", "fit", "samples.csv", "--out", "m.safetensors", "--steps", "500", "--monotone", "increasing"
    )
    environment.works("nablanets", "apply", "m.safetensors", "samples.csv")
    environment.works("nablanets", "verify", "m.safetensors", "samples.csv", says="passed")
    environment.works("nablanets", "export", "m.safetensors", "--format", "numpy", "--out", "field.py")
    environment.works("nablanets", "export", "m.safetensors", "--format", "c", "--out", "field.c", says="field.h")
    missing = "import nablanets\ntry: import nablanets.estimators\nexcept nablanets.NablaError as error: print(error)"
    environment.works("python", "-c", missing, says="nablanets[sklearn]")
    onnx = ("--format", "onnx", "--out", "field.onnx")
    environment.refuses("nablanets", "export", "m.safetensors", *onnx, says="nablanets[onnx]")
    parquet = ("--out", "applied.parquet")
    environment.refuses("nablanets", "apply", "m.safetensors", "samples.csv", *parquet, says="nablanets[parquet]")
    environment.refuses("nablanets", "run", "terrain", says="nablanets[studies]")
    environment.refuses("nablanets", "upscale", "photo.png", says="nablanets[studies]")


def check_the_studies(environment: Environment) -> None:
    """What the studies add."""
    environment.works("nablanets", "list", says="field2d-convex")
    settings = [word for setting in TINY_RUN for word in ("--set", setting)]
    arms = ("--arms", "gradnet-m,affine", "--seeds", "1", "--out", "run")
    environment.works("nablanets", "run", "field2d-convex", *arms, *settings, says="Report:")
    packaged = "from nablanets_studies.images.upscale import packaged_upscaler; packaged_upscaler()"
    environment.works("python", "-c", packaged)
    missing = "pip install 'nablanets-studies[images]'"
    environment.refuses("nablanets", "run", "classification", "--seeds", "1", "--out", "digits", says=missing)


def write_samples(path: Path) -> None:
    """A table of the gradient of exp(2 x1) + x1 x2 + x2^4, which is convex and not affine."""
    lines = ["x1,x2,g1,g2"]
    for k in range(SAMPLES):
        first = (k * 0.618) % 1
        second = (k * 0.414) % 1
        g1 = 2 * math.exp(2 * first) + second
        g2 = first + 4 * second**3
        lines.append(f"{first},{second},{g1},{g2}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(pip_options: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library, studies = build(folder)
        environment = Environment(folder)
        install = ("python", "-m", "pip", "install", "--quiet", *pip_options, "-c", str(ROOT / "constraints.txt"))
        environment.works(*install, str(library))
        check_the_library(environment)
        environment.works(*install, str(studies))
        check_the_studies(environment)
    print("Both wheels do what they promise.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CheckFailedError as error:
        sys.exit(f"FAILED: {error}")
