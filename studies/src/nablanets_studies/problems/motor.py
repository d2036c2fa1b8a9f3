"""Flux maps of synchronous machines: flux linkages against currents, measured on a grid or computed from a model.

In rotor coordinates (d, q) the flux linkages psi are the gradient of the co-energy in the currents i, and the currents
are the gradient of the energy in psi. Both are convex, so both maps are monotone gradient maps and each other's inverse.
All quantities are peak-valued.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import DataFileError, InvalidInputError
from nablanets.tables import read_table

#: What a table's columns are called: currents in A, flux linkages in Vs.
COLUMNS = ("id", "iq", "psi_d", "psi_q")
#: What an .npz file has instead, complex: d + j q.
_COMPLEX = ("i_s_dq", "psi_s_dq")
#: Nodes of the model machine in the d and the q axis.
_NODES = (21, 27)


@dataclass(frozen=True)
class FluxMap:
    """Operating points of a machine, float64.

    Attributes:
        currents: id, iq in A, (n, 2).
        fluxes: psi_d, psi_q in Vs, (n, 2).
        name: of the machine, for pages.
    """

    currents: Tensor
    fluxes: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.currents)

    def split(self, stride: int) -> tuple[FluxMap, FluxMap]:
        """Every stride-th point, and all others."""
        if not 2 <= stride <= len(self) // 3:
            raise InvalidInputError(
                f"motor-map: expected a stride between 2 and {len(self) // 3} for {len(self)} points, got {stride}."
            )
        is_first = torch.zeros(len(self), dtype=torch.bool)
        is_first[::stride] = True
        return self._rows(is_first), self._rows(~is_first)

    def _rows(self, mask: Tensor) -> FluxMap:
        return FluxMap(self.currents[mask], self.fluxes[mask], self.name)


@dataclass(frozen=True)
class Bases:
    """Base values of the per-unit system, peak-valued.

    Attributes:
        current: in A.
        flux: in Vs.
    """

    current: float
    flux: float

    @classmethod
    def of_ratings(cls, current: float, voltage: float, frequency: float) -> Bases:
        """From the ratings on a name plate: phase current (A, rms), line-to-line voltage (V, rms), frequency (Hz).

        >>> bases = Bases.of_ratings(8.8, 460.0, 60.0)
        >>> round(bases.current, 2), round(bases.flux, 3)
        (12.45, 0.996)
        """
        return cls(math.sqrt(2) * current, math.sqrt(2 / 3) * voltage / (2 * math.pi * frequency))


def torque(currents: Tensor, fluxes: Tensor, pole_pairs: int) -> Tensor:
    """1.5 p (psi_d iq - psi_q id) in Nm, (n,).

    >>> torque(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), 2).tolist()
    [6.0]
    """
    return 1.5 * pole_pairs * (fluxes[:, 0] * currents[:, 1] - fluxes[:, 1] * currents[:, 0])


def load_flux_map(path: str | Path = "") -> FluxMap:
    """The operating points in a file; those of :func:`model_machine` if no path is given.

    An .npz file has the complex arrays i_s_dq and psi_s_dq. Any other file is a table that nablanets reads (.csv,
    .parquet, ...) with the columns id, iq, psi_d and psi_q. Rows that are not finite are left out.

    Raises:
        DataFileError: there is no such file, or it has no such arrays or columns.
    """
    if not path:
        return model_machine()
    path = Path(path)
    if not path.exists():
        raise DataFileError(f"{path}: there is no such file. Give the path of a flux map with --set data=PATH.")
    currents, fluxes = _read_complex(path) if path.suffix == ".npz" else _read_columns(path)
    is_finite = np.isfinite(currents).all(axis=1) & np.isfinite(fluxes).all(axis=1)
    points = torch.from_numpy(currents[is_finite]), torch.from_numpy(fluxes[is_finite])
    return FluxMap(*points, path.stem)


def _read_complex(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        data = np.load(path)
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read as .npz: {error}") from error
    with data:
        missing = [name for name in _COMPLEX if name not in data]
        if missing:
            raise DataFileError(
                f"{path}: expected the complex arrays {' and '.join(_COMPLEX)}, got {', '.join(data.files) or 'none'}."
            )
        parts = [np.asarray(data[name], dtype=np.complex128).ravel() for name in _COMPLEX]
    currents, fluxes = (np.stack([part.real, part.imag], axis=1) for part in parts)
    return currents, fluxes


def _read_columns(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = read_table(path)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataFileError(
            f"{path}: expected the columns {', '.join(COLUMNS)}; {', '.join(missing)} are not among "
            f"{', '.join(str(name) for name in table.columns)}."
        )
    values = np.stack([np.asarray(table[name], dtype=np.float64) for name in COLUMNS], axis=1)
    return values[:, :2], values[:, 2:]


def model_machine() -> FluxMap:
    r"""A synchronous reluctance machine of 6.7 kW by an algebraic model, on a grid of 21 x 27 flux linkages.

    .. math::
        i_d = (a_{d0} + a_{dd} |\psi_d|^5 + \tfrac{a_{dq}}{2} |\psi_d| \psi_q^2)\,\psi_d, \qquad
        i_q = (a_{q0} + a_{qq} |\psi_q| + \tfrac{a_{dq}}{3} |\psi_d|^3)\,\psi_q.

    Reference:
        Hinkkanen, Pescetto, Molsa, Saarakkala, Pellegrino, Bojoi, "Sensorless self-commissioning of synchronous
        reluctance motors at standstill without rotor locking", IEEE Trans. Ind. Appl. 53 (2017).

    >>> machine = model_machine()
    >>> machine.currents.shape, round(float(machine.currents.abs().max()))
    (torch.Size([567, 2]), 35)
    """
    psi_d = torch.linspace(0.0, 0.6, _NODES[0], dtype=torch.float64)
    psi_q = torch.linspace(-0.15, 0.15, _NODES[1], dtype=torch.float64)
    fluxes = torch.cartesian_prod(psi_d, psi_q)
    d, q = fluxes.unbind(dim=1)
    current_d = (17.4 + 373 * d.abs() ** 5 + 1120 / 2 * d.abs() * q**2) * d
    current_q = (52.1 + 658 * q.abs() + 1120 / 3 * d.abs() ** 3) * q
    return FluxMap(torch.stack([current_d, current_q], dim=1), fluxes, "model machine")
