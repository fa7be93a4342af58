"""Where the slices of a DICOM series lie: sorted, checked to be even, and as one affine."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from universal_model_hub.errors import GeometryError, VolumeError
from universal_model_hub.volume.grid import LPS_TO_RAS, checked_affine

SAME_PLACE_MM = 1e-3
GAP = 1.5  # times the smallest step between slices
UNEVEN = 0.05  # of a step by which a slice may be out of place; positions are rounded in files


@dataclass(frozen=True, eq=False)
class Slice:
    """One file of a series; places are in DICOM's own LPS+ mm.

    Attributes:
        path: The file.
        columns: X.
        rows: Y.
        position: (3,) center of the first pixel.
        orientation: (6,) unit vectors along which the column and the row index grow.
        pixel_spacing: (2,) distance between rows (y), then between columns (x).
        thickness: Spacing between slices by the header, in mm, or None.
        frame_of_reference: UID of the coordinate system.
        stored: Data type of the pixels.
        bits_stored: How many low bits of a pixel count.
        slope: Factor to the scan's unit.
        intercept: Added after the factor.
        own_scale: Whether slope and intercept may differ from slice to slice.
        transfer_syntax: UID of the pixels' encoding.
    """

    path: Path
    columns: int
    rows: int
    position: np.ndarray
    orientation: np.ndarray
    pixel_spacing: np.ndarray
    thickness: float | None
    frame_of_reference: str
    stored: np.dtype
    bits_stored: int
    slope: float
    intercept: float
    own_scale: bool
    transfer_syntax: str

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the slice."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def sorted_slices(slices: list[Slice]) -> list[Slice]:
    """Return the slices of a series by their position along the normal.

    Raises:
        GeometryError: If an orientation is no pair of perpendicular unit vectors.
        VolumeError: If slices are missing between others, double, or unevenly spaced.
    """
    first = slices[0]
    along, down = first.orientation[:3], first.orientation[3:]
    products = [along @ along, down @ down, along @ down]
    if not np.allclose(products, [1, 1, 0], atol=1e-3):
        raise GeometryError(
            f"Expected perpendicular unit vectors as ImageOrientationPatient, got others in "
            f"{first.path.name}. Export the series again."
        )
    slices = sorted(slices, key=lambda part: float(part.position @ first.normal))
    places = np.array([part.position @ first.normal for part in slices])  # mm
    steps = np.diff(places)
    for index, step in enumerate(steps):
        before, after = slices[index].path.name, slices[index + 1].path.name
        if step < SAME_PLACE_MM:
            raise VolumeError(
                f"Expected one slice at each position, got two at {places[index]:.2f} mm: {before} "
                f"and {after}. Take one out; split series of several times or echoes first."
            )
        if step > GAP * steps.min() and steps.min() >= SAME_PLACE_MM:
            raise VolumeError(
                f"Expected slices {steps.min():.2f} mm apart, got a gap of {step:.2f} mm between "
                f"{before} and {after}: slices are missing. Export the series again."
            )
    _check_even(slices)
    return slices


def _check_even(slices: list[Slice]) -> None:
    if len(slices) < 2:
        return
    positions = np.array([part.position for part in slices])  # (Z, 3)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    even = positions[0] + np.arange(len(slices))[:, None] * step
    shifts = np.linalg.norm(positions - even, axis=1)
    worst = int(shifts.argmax())
    if shifts[worst] > UNEVEN * np.linalg.norm(step):
        raise VolumeError(
            f"Expected evenly spaced slices, got {slices[worst].path.name} {shifts[worst]:.2f} mm "
            f"away from its place. Resample the series to even slices first."
        )


def series_affine(slices: list[Slice]) -> np.ndarray:
    """Return the (4, 4) affine to RAS+ mm of sorted slices: (column, row, slice) indices.

    Raises:
        GeometryError: If a single slice states no thickness, or the affine is unusable.
    """
    first, last = slices[0], slices[-1]
    if len(slices) > 1:
        step = (last.position - first.position) / (len(slices) - 1)
    elif first.thickness:
        step = first.normal * first.thickness
    else:
        raise GeometryError(
            f"Expected a SliceThickness in the only slice, got none in {first.path.name}. "
            f"Pass a folder with the whole series."
        )
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.pixel_spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.pixel_spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    try:
        return checked_affine(LPS_TO_RAS @ affine)
    except GeometryError as error:
        raise GeometryError(f"{first.path.name}: {error}") from None
