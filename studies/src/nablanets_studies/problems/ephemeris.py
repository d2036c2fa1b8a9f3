"""The planets' motion: JPL's ephemeris DE421, in astronomical units and days of barycentric dynamical time.

Positions are those of the solar system's bodies, planets together with their moons, in the inertial frame of the
barycentre. Velocities and accelerations are derivatives of the ephemeris' own Chebyshev polynomials.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets.extras import needed

#: Names, in the order of all arrays.
BODIES = ("sun", "mercury", "venus", "earth", "mars", "jupiter", "saturn", "uranus", "neptune")
INNER = ("mercury", "venus", "earth", "mars")
_NAIF = (10, 1, 2, 3, 4, 5, 6, 7, 8)
#: Kilometres in an astronomical unit (IAU 2012).
KILOMETRES = 149_597_870.7
#: GM of the Sun in km^3 / s^2 that DE421 was made with, and in AU^3 / day^2.
SUN_GM_KM = 132_712_440_040.944
SUN_GM = SUN_GM_KM * 86_400.0**2 / KILOMETRES**3
#: Mass of the Sun over that of each planet with its moons (IAU 2009 best estimates), in the order of BODIES.
INVERSE_MASSES = (1.0, 6.0236e6, 4.08523719e5, 328_900.5596, 3.09870359e6, 1047.348644, 3497.9018, 22_902.98, 19_412.26)
_SAMPLE = "data/planets.npz"


def julian_date(year: float) -> float:
    """The Julian date of a Julian year, such as 1990.0.

    >>> julian_date(2000.0)
    2451545.0
    """
    return 2_451_545.0 + 365.25 * (year - 2000.0)


@dataclass(frozen=True)
class Ephemeris:
    """Where the bodies are, how they move and accelerate: (times, bodies, 3), in AU and days."""

    times: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    accelerations: NDArray[np.float64]

    def between(self, first: float, last: float) -> Ephemeris:
        """The times from one Julian year on and before another."""
        return self.select((self.times >= julian_date(first)) & (self.times < julian_date(last)))

    def select(self, rows: NDArray[np.bool_]) -> Ephemeris:
        """Some of the times."""
        return Ephemeris(self.times[rows], self.positions[rows], self.velocities[rows], self.accelerations[rows])

    def heliocentric(self, names: tuple[str, ...] = INNER) -> tuple[Tensor, Tensor]:
        """Positions of planets relative to the Sun, and their relative accelerations: (times, planets, 3) each.

        >>> position, acceleration = load_ephemeris().heliocentric(("earth",))
        >>> bool(((position.norm(dim=-1) - 1).abs() < 0.02).all())
        True
        """
        bodies = [BODIES.index(name) for name in names]
        position, acceleration = (a[:, bodies] - a[:, :1] for a in (self.positions, self.accelerations))
        return torch.from_numpy(position), torch.from_numpy(acceleration)

    def save(self, path: str | Path) -> None:
        """Write an .npz file that :func:`load_ephemeris` reads."""
        np.savez_compressed(
            path,
            times=self.times,
            positions=self.positions,
            velocities=self.velocities,
            accelerations=self.accelerations,
        )


def load_ephemeris(path: str | Path | None = None) -> Ephemeris:
    """An ephemeris from an .npz file; the sample that comes with the package if None.

    The sample has 260 times between 1900 and 2050, about 210 days apart, among them 1990.0. It was made from DE421 by
    ``scripts/planets.py``.

    >>> ephemeris = load_ephemeris()
    >>> ephemeris.positions.shape
    (260, 9, 3)
    """
    source = files("nablanets_studies.problems").joinpath(_SAMPLE) if path is None else Path(path)
    with source.open("rb") as file, np.load(file) as data:
        return Ephemeris(*(data[name] for name in ("times", "positions", "velocities", "accelerations")))


def read_spk(path: str | Path, times: NDArray[np.float64]) -> Ephemeris:
    """Evaluate an SPK file such as DE421 (PyPI skyfield-data: skyfield_data/data/de421.bsp) at Julian dates.

    Needs ``jplephem`` (``pip install 'nablanets-studies[ephemeris]'``).

    Raises:
        DataFileError: the file is missing or no SPK file, or a time lies outside it.
        MissingPackageError: jplephem is not installed.
    """
    spk = needed("jplephem.spk", extra="ephemeris", purpose="SPK files", distribution="nablanets-studies")
    try:
        kernel = spk.SPK.open(str(path))
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} is not a readable SPK file: {error}.") from error
    with kernel:
        bodies = [_evaluate(kernel[0, body].load_array(), times) for body in _NAIF]
    position, velocity, acceleration = (np.stack(parts, axis=1) for parts in zip(*bodies, strict=True))
    return Ephemeris(times, position, velocity, acceleration)


def _evaluate(
    segment: tuple[float, float, NDArray[np.float64]], times: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Chebyshev series and two derivatives, in AU and days, of (first date, days per interval, coefficients in km)."""
    first, length, coefficients = segment
    offset = (times - first) / length
    interval = np.floor(offset).astype(int)
    if interval.min() < 0 or interval.max() >= coefficients.shape[1]:
        raise DataFileError(
            f"expected Julian dates from {first} to {first + length * coefficients.shape[1]}, got {times.min()} to "
            f"{times.max()}."
        )
    argument = 2 * (offset - interval) - 1  # each interval is [-1, 1]
    results = []
    for order in range(3):
        derivative = chebyshev.chebder(coefficients, order, axis=2) if order else coefficients
        series = np.moveaxis(derivative[:, interval], 2, 0)  # (degree, 3, times)
        value = chebyshev.chebval(argument, series, tensor=False)  # (3, times)
        chain_rule = (2 / length) ** order
        results.append(value.T * chain_rule / KILOMETRES)
    return results
