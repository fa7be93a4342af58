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
    field_mm: tuple[float, float, float]  # as asked for; shape times spacing is near it

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
    return Grid(shape, spacing, origin, field_mm)  # type: ignore[arg-type]


def smooth_noise(grid: Grid, knot_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth field with mean 0 and standard deviation 1 whose knots are knot_mm apart.

    Returns:
        (X, Y, Z) float32. Blobs are about twice the knot distance wide.
    """
    splines = [_spline(grid, axis, knot_mm) for axis in range(3)]
    shape = [spline.num_knots for spline in splines]
    field = rng.standard_normal(shape, dtype=np.float32) / np.float32(_SPLINE_SD)
    # Axis by axis, four knots a voxel. No matrix product: its bits depend on the BLAS library.
    for axis in (2, 1, 0):
        field = _interpolated(field, splines[axis], axis)
    return field


def random_displacement(
    grid: Grid, amplitude_mm: float, knot_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw a displacement field, (3, X, Y, Z) float32, in mm, of the given standard deviation.

    With an amplitude below a third of the knot distance the map stays free of folds in practice.
    """
    return np.stack([amplitude_mm * smooth_noise(grid, knot_mm, rng) for _ in range(3)])


class _Spline(NamedTuple):
    first: np.ndarray  # (n,) first of the four knots that reach a voxel
    weights: np.ndarray  # (4, n) float32
    num_knots: int


def _spline(grid: Grid, axis: int, knot_mm: float) -> _Spline:
    """Cubic B-spline basis along an axis."""
    n, spacing = grid.shape[axis], grid.spacing[axis]
    num_knots = int(np.ceil(grid.field_mm[axis] / knot_mm)) + 5 + int(spacing // knot_mm)
    # Centered on the field of view, so that the spacing does not move the knots.
    position = (np.arange(n) - (n - 1) / 2) * spacing / knot_mm + (num_knots - 1) / 2
    first = np.floor(position).astype(np.intp) - 1
    distance = np.abs(position - (first + np.arange(4)[:, None]))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return _Spline(first, np.where(distance < 1, near, far).astype(np.float32), num_knots)


def _interpolated(field: np.ndarray, spline: _Spline, axis: int) -> np.ndarray:
    shape = [1, 1, 1]
    shape[axis] = -1
    total = np.float32(0)
    for knot in range(4):
        weight = spline.weights[knot].reshape(shape)
        total = total + weight * np.take(field, spline.first + knot, axis=axis)
    return np.asarray(total)
