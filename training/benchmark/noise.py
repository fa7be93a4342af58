"""Noisy labels: masks eroded or dilated at random (Table V).

The paper says no more than "We randomly erode and dilate the masks to imitate the errors in the
annotation process" (Sec. V-E). Source of what follows: ours. A coin decides for each training case
whether its mask is eroded or dilated; the border moves by a distance drawn uniformly from half the
amplitude to the amplitude, in mm, the same all around. A mask that erosion would leave with less
than a quarter of its voxels keeps its innermost quarter. Draws depend on trial and case alone, so
that all rows of a trial learn from the same labels. How severe it is is measured, as the Dice of
noisy against clean labels. Only labels that train are touched: validation and test stay clean.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

KEPT_SHARE = 0.25  # of the voxels, at least, whatever the erosion
NOISE_STREAM = 5


def noisy_labels(
    labels: np.ndarray, spacing_mm: Sequence[float], amplitude_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Erode or dilate a mask.

    Args:
        labels: (X, Y, Z), 0 and 1; anything else counts as background.
        spacing_mm: Voxel size (x, y, z).
        amplitude_mm: The farthest that the border moves.
        rng: Decides direction and distance.

    Returns:
        (X, Y, Z) of the same dtype, 0 and 1; an empty mask stays empty.
    """
    from scipy.ndimage import distance_transform_edt

    erode = bool(rng.random() < 0.5)
    distance = float(rng.uniform(0.5, 1.0)) * amplitude_mm
    mask = labels == 1
    if not mask.any():
        return mask.astype(labels.dtype)
    if not erode:
        outside = distance_transform_edt(~mask, sampling=spacing_mm)
        return (outside <= distance).astype(labels.dtype)
    inside = distance_transform_edt(mask, sampling=spacing_mm)
    deepest = float(np.quantile(inside[mask], 1 - KEPT_SHARE))
    # A voxel of the border is one voxel deep, so that an erosion of 0 mm takes nothing.
    return (mask & ((inside > distance) | (inside >= deepest))).astype(labels.dtype)


def case_rng(trial: int, case_id: str) -> np.random.Generator:
    """Return the generator of a case's label noise in a trial."""
    number = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "big")
    return np.random.default_rng([trial, NOISE_STREAM, number])


def mask_dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks (X, Y, Z), where 1 is the foreground; of two empty ones 1."""
    first, second = one == 1, other == 1
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0
