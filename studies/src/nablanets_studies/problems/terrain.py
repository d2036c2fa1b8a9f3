"""Real terrain: the elevation model of the Jacksboro fault that ships with matplotlib.

Axes of all grids: first index y (rows, from south to north), second x (columns, from west to east). Points and slopes
are (x, y) pairs: points in metres from the south-west corner, slopes in metres of rise per metre.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.cbook
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.interpolate import griddata
from torch import Tensor

Grid = NDArray[np.float64]
#: Metres per degree of latitude, on a sphere of radius 6371.0088 km.
_METRES_PER_DEGREE = 111_195.08


@dataclass(frozen=True)
class Terrain:
    """An elevation model on a regular grid.

    Attributes:
        elevation: metres, (rows, columns).
        spacing: metres between neighbours in x and in y.
        slopes: central differences of the elevations, (rows, columns, 2).
    """

    elevation: Grid
    spacing: tuple[float, float]
    slopes: Grid

    @property
    def points(self) -> Grid:
        """The cells' positions, (rows, columns, 2)."""
        rows, columns = self.elevation.shape
        x, y = np.meshgrid(np.arange(columns) * self.spacing[0], np.arange(rows) * self.spacing[1])
        return np.stack([x, y], axis=-1)

    def sample(self, fraction: float, noise: float, seed: int) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
        """Slopes at a random fraction of the cells.

        Args:
            fraction: of the cells that are measured.
            noise: standard deviation of Gaussian noise, relative to the root mean square of the slopes' components.
            seed: of the choice and the noise.

        Returns:
            points (n, 2), slopes (n, 2), and the mask of measured cells (rows, columns).
        """
        generator = np.random.default_rng(seed)
        order = generator.permutation(self.elevation.size)
        mask = np.zeros(self.elevation.shape, dtype=bool)
        mask.ravel()[order[: round(fraction * mask.size)]] = True
        scale = float(np.sqrt(np.mean(self.slopes**2)))
        measured = self.slopes[mask] + noise * scale * generator.standard_normal((int(mask.sum()), 2))
        return torch.from_numpy(self.points[mask]).float(), torch.from_numpy(measured).float(), mask


def load_terrain(stride: int = 1) -> Terrain:
    """The Jacksboro elevation model, 344 x 403 cells; every ``stride``-th cell in each direction.

    Degrees become metres with the cosine of the central latitude.

    >>> load_terrain().elevation.shape
    (344, 403)
    """
    path = matplotlib.cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)
    with np.load(str(path)) as data:
        elevation = np.asarray(data["elevation"], dtype=np.float64)[::-1]
        # The file calls the northern edge ymin.
        latitude = (float(data["ymin"]) + float(data["ymax"])) / 2
        step_x = float(data["dx"]) * _METRES_PER_DEGREE * np.cos(np.deg2rad(latitude))
        step_y = float(data["dy"]) * _METRES_PER_DEGREE
    elevation = np.ascontiguousarray(elevation[::stride, ::stride])
    spacing = (step_x * stride, step_y * stride)
    return Terrain(elevation, spacing, central_differences(elevation, spacing))


def central_differences(elevation: Grid, spacing: tuple[float, float]) -> Grid:
    """Slopes by central differences (one-sided at the edges), (rows, columns, 2).

    >>> central_differences(np.outer(np.ones(3), 2.0 * np.arange(4)), (1.0, 1.0))[1, 1].tolist()
    [2.0, 0.0]
    """
    y, x = np.gradient(elevation, spacing[1], spacing[0])
    return np.stack([x, y], axis=-1)


def integrate_slopes(slopes: Grid, spacing: tuple[float, float]) -> Grid:
    """The elevation, up to a constant, whose differences fit gridded slopes best (Poisson integration).

    Minimises the sum of (z_j - z_i - mean slope * distance)^2 over neighbouring cells, weighted by 1 / distance^2. The
    minimum solves Poisson's equation, Laplacian of z = divergence of the slopes, with nothing flowing through the edges.
    The cosines of the discrete cosine transform are the eigenvectors of that Laplacian, so the solution is a division by
    its eigenvalues there; that of the constant is zero, and the constant is set to zero.

    Args:
        slopes: (rows, columns, 2).
        spacing: metres in x and y.
    """
    hx, hy = spacing
    gx = (slopes[:, 1:, 0] + slopes[:, :-1, 0]) / 2  # between neighbours in x, (rows, columns - 1)
    gy = (slopes[1:, :, 1] + slopes[:-1, :, 1]) / 2  # between neighbours in y, (rows - 1, columns)
    out_x = np.diff(np.pad(gx, ((0, 0), (1, 1))), axis=1) / hx
    out_y = np.diff(np.pad(gy, ((1, 1), (0, 0))), axis=0) / hy
    divergence = out_x + out_y
    rows, columns = slopes.shape[:2]
    ky = (2 * np.cos(np.pi * np.arange(rows) / rows) - 2) / hy**2
    kx = (2 * np.cos(np.pi * np.arange(columns) / columns) - 2) / hx**2
    eigenvalues = ky[:, None] + kx[None, :]
    eigenvalues[0, 0] = 1.0
    spectrum = dctn(divergence, norm="ortho") / eigenvalues
    spectrum[0, 0] = 0.0
    return np.asarray(idctn(spectrum, norm="ortho"))


def interpolate_slopes(terrain: Terrain, points: Tensor, slopes: Tensor) -> Grid:
    """Slopes at all cells by piecewise cubic interpolation of scattered ones (nearest outside their hull)."""
    grid = terrain.points
    cubic = griddata(points.numpy(), slopes.double().numpy(), grid, method="cubic")
    nearest = griddata(points.numpy(), slopes.double().numpy(), grid, method="nearest")
    return np.where(np.isnan(cubic), nearest, cubic)


def elevation_error(reconstructed: Grid, truth: Grid) -> float:
    """Root mean square error in metres after removing the constant that gradients cannot know."""
    difference = reconstructed - truth
    return float(np.sqrt(np.mean((difference - difference.mean()) ** 2)))
