"""The weights of B-spline interpolation along one axis."""

import math

import numpy as np

ORDERS = (0, 1, 3)
# Voxels each side that count in the cubic prefilter: 0.268**13 is below float32's resolution.
REACH = 12
POLE = math.sqrt(3.0) - 2.0  # of the cubic B-spline prefilter


def axis_weights(
    side: int, size: int, scale: float, offset: float, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tell which input voxels each output voxel of an axis is made of, and their shares.

    Args:
        side: Input voxels along the axis.
        size: Output voxels along the axis.
        scale: Step between two output voxels, in input voxels.
        offset: Position of output voxel 0, in input voxels.
        order: 0, 1 or 3.

    Returns:
        Input indices (size, taps), int64, and weights (size, taps), float64, rows summing to 1.
    """
    position = positions(side, size, scale, offset)
    if order == 0:
        index = np.floor(position + 0.5).astype(np.int64)
        return index[:, None], np.ones((size, 1))
    reach = REACH if order == 3 else 0
    index = np.floor(position).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)
    distance = np.abs(position[:, None] - index)  # (size, taps)
    weights = _cardinal_spline(distance) if order == 3 else np.clip(1 - distance, 0, None)
    return _mirrored(index, side), weights / weights.sum(axis=1, keepdims=True)


def positions(side: int, size: int, scale: float, offset: float) -> np.ndarray:
    """Return (size,) float64: where output voxels lie along an axis, in input voxels, clamped."""
    return np.clip(scale * np.arange(size) + offset, 0, side - 1)


def _cardinal_spline(distance: np.ndarray) -> np.ndarray:
    """Weight of a voxel at a distance: prefilter and cubic B-spline in one.

    Source: Unser, "Splines: a perfect fit", IEEE SPM 1999, Eqs. 6 and 14: the inverse of the
    sampled cubic B-spline is sqrt(3) * POLE**abs(k).
    """
    nearest = np.floor(distance)
    weight = np.zeros_like(distance)
    for step in (-1, 0, 1, 2):
        knot = nearest + step
        weight += math.sqrt(3.0) * POLE ** np.abs(knot) * _cubic_b_spline(distance - knot)
    return weight


def _cubic_b_spline(t: np.ndarray) -> np.ndarray:
    t = np.abs(t)
    inner = 2 / 3 - t**2 + t**3 / 2
    outer = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, inner, outer)


def _mirrored(index: np.ndarray, side: int) -> np.ndarray:
    """Fold indices back into [0, side) about the first and the last voxel center."""
    if side == 1:
        return np.zeros_like(index)
    period = 2 * (side - 1)
    index = index % period
    return np.where(index < side, index, period - index)
