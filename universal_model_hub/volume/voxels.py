"""Voxels on their way in: the memory budget, scaling to float32, and values that are not finite."""

import numpy as np

from universal_model_hub.errors import ConfigError, TooLargeError, VolumeError


def held_dtype(stored: np.dtype, *, scaled: bool) -> np.dtype:
    """Return how voxels are held: integers without scaling as they are, all else float32."""
    if stored.kind in "iu" and not scaled:
        return stored.newbyteorder("=")
    return np.dtype(np.float32)


def three_sides(shape: tuple[int, ...], frame: int | None, name: str) -> tuple[int, int, int]:
    """Return (X, Y, Z) of a file's shape: trailing sides of 1 dropped, one frame of a 4D series.

    Raises:
        VolumeError: If a side is below 1, the shape is not 3D, or the frame does not exist.
    """
    if any(side < 1 for side in shape):
        raise VolumeError(f"Expected sides of at least 1 in {name}, got shape {shape}. Repair it.")
    sides = list(shape)
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if len(sides) < 3:
        raise VolumeError(
            f"Expected a 3D scan, got shape {shape} in {name}. Stack 2D slices to a volume first."
        )
    frames = sides[3] if len(sides) == 4 else 1
    if len(sides) > 4 or (len(sides) == 4 and frame is None):
        advice = f"or name one frame of 0 to {frames - 1} with frame=" if len(sides) == 4 else ""
        raise VolumeError(
            f"Expected a 3D scan, got shape {shape} in {name}. Split the series first {advice}."
        )
    if frame is not None and not 0 <= frame < frames:
        raise VolumeError(
            f"Expected a frame of 0 to {frames - 1}, got {frame} for {name}. Choose another."
        )
    return sides[0], sides[1], sides[2]


def check_budget(shape: tuple[int, ...], dtype: np.dtype, max_bytes: int, name: str) -> None:
    """Refuse a scan whose voxels would not fit, before anything is allocated.

    A voxel counts with its size in memory but at least four bytes, for whatever is done with a
    scan is done in float32.

    Raises:
        TooLargeError: If the voxels need more than ``max_bytes``.
        ConfigError: If ``max_bytes`` is not a positive number.
    """
    if not max_bytes > 0:
        raise ConfigError(f"Expected max_bytes above 0, got {max_bytes}. Leave it out for 2 GiB.")
    needed = max(4, dtype.itemsize)
    for side in shape:
        needed *= int(side)  # Python integers: a product of NumPy's would wrap around
    if needed > max_bytes:
        raise TooLargeError(
            f"Expected at most {max_bytes / 2**30:.3g} GiB of voxels, got shape {tuple(shape)} "
            f"in {name}, which needs {needed / 2**30:.3g} GiB as {dtype}. "
            f"Pass a larger max_bytes if the scan is right and the memory is there."
        )


def scaled_to_float32(
    stored: np.ndarray, slope: float, intercept: float, name: str, out: np.ndarray
) -> None:
    """Write ``stored * slope + intercept`` to ``out``, float32 of the same shape.

    Raises:
        VolumeError: If a finite value leaves the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(np.float64)
        if (slope, intercept) != (1.0, 0.0):
            values = values * slope + intercept
        out[...] = values
    overflown = ~np.isfinite(out)
    if stored.dtype.kind == "f":
        overflown &= np.isfinite(stored)
    if overflown.any():
        raise VolumeError(
            f"Expected voxels within the range of float32, got larger ones in {name} "
            f"(slope {slope:g}, intercept {intercept:g}). Repair the header's scaling."
        )


def fill_nonfinite(array: np.ndarray, name: str) -> list[str]:
    """Replace NaN and Inf in place by the smallest finite value; return a note if there were any.

    The smallest, and not 0, because such voxels mark what lies outside the field of view: that
    is air in CT (0 HU would be water) and background in MR.

    Args:
        array: (X, Y, Z), any dtype; integers are left alone.
        name: The file's name, for the error.

    Raises:
        VolumeError: If more than half of the voxels are not finite.
    """
    if array.dtype.kind != "f":
        return []
    slices = [array[..., z] for z in range(array.shape[-1])]  # views: one slice at a time is held
    num_bad = sum(plane.size - int(np.count_nonzero(np.isfinite(plane))) for plane in slices)
    if num_bad == 0:
        return []
    if num_bad > array.size / 2:
        raise VolumeError(
            f"Expected finite voxels in {name}, got NaN or Inf in {num_bad} of {array.size}. "
            f"Repair the scan: too little of it is left."
        )
    lowest = min(plane[finite].min() for plane in slices if (finite := np.isfinite(plane)).any())
    for plane in slices:
        plane[~np.isfinite(plane)] = lowest
    return [
        f"{num_bad} of {array.size} voxels are NaN or Inf; "
        f"they were filled with the smallest finite value, {lowest:g}"
    ]
