"""What a scan is here: a 3D array and the affine that says where it lies in the world."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import aff2axcodes

from universal_model_hub.errors import GeometryError, VolumeError

LARGEST_MM = 1e6  # a kilometer: no scan is larger or farther from its scanner's center
SMALLEST_SPACING_MM = 1e-6
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class VolumeWarning(UserWarning):
    """A scan was read, but something about it had to be guessed or repaired."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: voxels in the file's own order, and where they lie.

    Attributes:
        array: (X, Y, Z), real numbers or bool; its unit is the scan's own (HU for CT).
        affine: (4, 4) float64, maps (x, y, z, 1) voxel indices to RAS+ mm. Copied.

    Raises:
        VolumeError: If the array is not 3D, is empty, or does not hold real numbers.
        GeometryError: If the affine is not finite, not invertible, or out of all proportion.
    """

    array: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.array, np.ndarray):
            raise VolumeError(
                f"Expected a NumPy array of voxels, got {type(self.array).__name__}. "
                f"Convert it first, for instance with tensor.cpu().numpy()."
            )
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise VolumeError(
                f"Expected a 3D scan with at least one voxel, got shape {self.array.shape}. "
                f"Pass an array of shape (X, Y, Z)."
            )
        if self.array.dtype.kind not in "biuf":
            raise VolumeError(
                f"Expected real numbers as voxels, got {self.array.dtype}. "
                f"Convert the array to an integer or a float type first."
            )
        object.__setattr__(self, "affine", checked_affine(self.affine))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        X, Y, Z = self.array.shape
        return X, Y, Z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (x, y, z) in mm: the lengths of the affine's columns."""
        x, y, z = spacing_of(self.affine)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Where each axis points to, nearest direction: ``"RAS"``, ``"LPS"``, ..."""
        return "".join(aff2axcodes(self.affine))


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Return (3,): the voxel size in mm of a (4, 4) affine."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def checked_affine(affine: np.ndarray) -> np.ndarray:
    """Return a float64 copy of ``affine`` if a scan can lie there.

    Raises:
        GeometryError: If it is not (4, 4), not finite, not invertible, or has a spacing or an
            origin beyond ``LARGEST_MM``.
    """
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(
            f"Expected a (4, 4) affine of numbers, got {type(affine).__name__}. "
            f"Pass a NumPy array that maps voxel indices to RAS+ mm."
        ) from error
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise GeometryError(
            f"Expected a (4, 4) affine with the last row 0 0 0 1, got shape {matrix.shape}. "
            f"Pass the matrix that maps voxel indices to RAS+ mm."
        )
    if not np.isfinite(matrix).all():
        raise GeometryError("Expected a finite affine, got NaN or Inf in it. Repair the header.")
    spacing = np.abs(matrix[:3, :3]).max(axis=0)  # not the norm yet: its squares may overflow
    if spacing.min() < SMALLEST_SPACING_MM or np.abs(matrix[:3]).max() > LARGEST_MM:
        raise GeometryError(
            f"Expected voxels of {SMALLEST_SPACING_MM:g} to {LARGEST_MM:g} mm within "
            f"{LARGEST_MM:g} mm of the origin, got spacing {_numbers(spacing)} mm and origin "
            f"{_numbers(matrix[:3, 3])} mm. Repair the header."
        )
    volume_share = abs(np.linalg.det(matrix[:3, :3] / spacing_of(matrix)))
    if volume_share < 1e-3:
        raise GeometryError(
            "Expected three independent voxel axes, got an affine that is not invertible. "
            "Repair the header."
        )
    return matrix


def geometry_notes(affine: np.ndarray) -> list[str]:
    """Return what is odd, though usable, about a scan's affine."""
    notes = []
    spacing = spacing_of(affine)
    cosines = np.abs(np.triu((affine[:3, :3] / spacing).T @ (affine[:3, :3] / spacing), 1))
    if cosines.max() > 0.01:
        degrees = np.degrees(np.arcsin(min(1.0, cosines.max())))
        notes.append(
            f"the voxel axes are {degrees:.1f} degrees off perpendicular (a tilted gantry?); "
            f"spacing is taken along the axes as they are"
        )
    if spacing.min() < 0.01 or spacing.max() > 100:
        notes.append(f"the spacing {_numbers(spacing)} mm is unusual; check the header's units")
    return notes


def largest_shift(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far apart, in voxels, two affines put a corner of the same (X, Y, Z) grid."""
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape])).reshape(3, -1)
    shift = (affine - other)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(shift, axis=0).max() / spacing_of(affine).min())


def require_same_grid(scan: Volume, labels: Volume, where: str, tolerance: float) -> None:
    """Refuse labels that do not lie on their scan's voxels.

    Args:
        scan: (X, Y, Z).
        labels: Of the same examination.
        where: What the message names, such as the labels' file.
        tolerance: Voxels that a corner of the labels may lie off.

    Raises:
        GeometryError: If so.
    """
    if scan.shape != labels.shape:
        raise GeometryError(
            f"Expected labels of the scan's shape {scan.shape}, got {labels.shape} for {where}. "
            "Resample them onto the scan."
        )
    shift = largest_shift(scan.affine, labels.affine, scan.shape)
    if shift > tolerance:
        raise GeometryError(
            f"Expected labels at the scan's place, they lie up to {shift:.3g} voxels off in "
            f"{where}. Correct the header, or resample them onto the scan."
        )


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
