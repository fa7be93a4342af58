"""Smooth random fields on a grid: cubic B-splines with random coefficients.

Knots lie at fixed distances in mm, so the same generator draws the same field at any spacing.
"""

from typing import NamedTuple

import numpy as np

# Standard deviation of a 3D cubic B-spline with unit normal coefficients, averaged over positions.
_SPLINE_SD = 0.479**1.5


class Grid(NamedTuple):
    """Where the voxels of a phantom lie, in RAS+ mm of the body."""

    shape: tuple[int, int, int]  # (X, Y, Z)
    spacing: tuple[float, float, float]  # mm
    origin: tuple[float, float, float]  # mm, center of voxel (0, 0, 0)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxel indices to RAS+ mm."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine

    def axis_mm(self, axis: int) -> np.ndarray:
        """Positions of the voxel centers along one axis, (n,) float32, in mm."""
        n = self.shape[axis]
        return (self.origin[axis] + self.spacing[axis] * np.arange(n)).astype(np.float32)


def grid_of(
    center: tuple[float, float, float],
    field_mm: tuple[float, float, float],
    spacing: tuple[float, float, float],
) -> Grid:
    """Return the grid that covers a field of view around a center, both in mm."""
    shape = tuple(max(1, round(f / s)) for f, s in zip(field_mm, spacing, strict=True))
    origin = tuple(c - s * (n - 1) / 2 for c, s, n in zip(center, spacing, shape, strict=True))
    return Grid(shape, spacing, origin)  # type: ignore[arg-type]


def smooth_noise(grid: Grid, knot_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth field with mean 0 and standard deviation 1 whose knots are knot_mm apart.

    Returns:
        (X, Y, Z) float32. Blobs are about twice the knot distance wide.
    """
    matrices = [_spline_matrix(grid, axis, knot_mm) for axis in range(3)]
    shape = [matrix.shape[1] for matrix in matrices]
    field = rng.standard_normal(shape, dtype=np.float32) / np.float32(_SPLINE_SD)
    for matrix in matrices:
        # Contracts the leading axis and appends the new one: after three rounds X, Y, Z again.
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field


def random_displacement(
    grid: Grid, amplitude_mm: float, knot_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw a displacement field, (3, X, Y, Z) float32, in mm, of the given standard deviation.

    With an amplitude below a third of the knot distance the map stays free of folds in practice.
    """
    return np.stack([amplitude_mm * smooth_noise(grid, knot_mm, rng) for _ in range(3)])


def _spline_matrix(grid: Grid, axis: int, knot_mm: float) -> np.ndarray:
    """Cubic B-spline basis, (n, knots) float32: row i weighs the knots around voxel i."""
    n, spacing = grid.shape[axis], grid.spacing[axis]
    num_knots = int(np.ceil(n * spacing / knot_mm)) + 4
    # Centered on the field of view, so that the spacing does not move the knots.
    position = (np.arange(n) - (n - 1) / 2) * spacing / knot_mm + (num_knots - 1) / 2
    distance = np.abs(position[:, None] - np.arange(num_knots)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)
