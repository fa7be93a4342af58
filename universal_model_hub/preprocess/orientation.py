"""Axes in an anatomical order by permutation and flips only: an oblique scan keeps its tilt."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from universal_model_hub.errors import ConfigError

# Letter: (axis of the world, +1 if it points to the affine's positive side).
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
TIE = 1e-6  # orders of axes closer than this count as equally good

Array = TypeVar("Array", np.ndarray, Tensor)


def check_codes(codes: Any) -> None:
    """Refuse an orientation that does not name each direction once.

    Raises:
        ConfigError: If it is not like "RAS" or "LPS".
    """
    named = isinstance(codes, str) and len(codes) == 3 and all(c in DIRECTIONS for c in codes)
    if not named or len({DIRECTIONS[c][0] for c in codes}) < 3:
        raise ConfigError(
            f"Expected an orientation with one of R or L, A or P, S or I, such as 'RAS', got "
            f"{codes!r:.40}."
        )


def closest_axes(
    affine: np.ndarray, codes: str
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find the order and the flips of voxel axes that turn a scan least from an orientation.

    The same scan stored in another order or mirrored gives the same oriented array, even when it is
    tilted by exactly 45 degrees: the choice depends only on the directions in the world.

    Args:
        affine: (4, 4), maps voxel indices to RAS+ mm; invertible.
        codes: Where the oriented axes point to, such as "RAS".

    Returns:
        For each oriented axis the scan's axis, and whether it is flipped.
    """
    wanted = [DIRECTIONS[c] for c in codes]
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(columns)
    rotation = left @ right  # the nearest one: sheared axes are judged as a whole
    rows = np.array([rotation[axis] * sign for axis, sign in wanted])  # (oriented, scan's axes)
    candidates = []
    for order in permutations(range(3)):
        cosines = rows[range(3), order]
        turned = rows[:, order] * np.where(cosines < 0, -1.0, 1.0)
        closeness = float(np.abs(cosines).sum())  # the larger, the smaller the angle left
        candidates.append((closeness, tuple(turned.round(6).ravel()), order, cosines < 0))
    best = max(candidate[0] for candidate in candidates)
    _, _, (i, j, k), (a, b, c) = max(
        (candidate for candidate in candidates if candidate[0] > best - TIE),
        key=lambda candidate: candidate[1],
    )
    return (i, j, k), (bool(a), bool(b), bool(c))


def orient(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """Return a view of (X, Y, Z) with its axes reordered and flipped."""
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def unorient(array: Array, axes: Sequence[int], flips: Sequence[bool]) -> Array:
    """Undo ``orient`` on the last three axes of (..., X, Y, Z), bit by bit."""
    leading: int = array.ndim - 3
    back = [*range(leading), *(leading + axes.index(axis) for axis in range(3))]
    if isinstance(array, Tensor):
        flipped = [leading + axis for axis in range(3) if flips[axis]]
        return array.flip(flipped).permute(back).contiguous()
    whole = [slice(None)] * leading
    turned = [slice(None, None, -1 if flip else 1) for flip in flips]
    return array[tuple(whole + turned)].transpose(back)


def oriented_affine(
    affine: np.ndarray, shape: Sequence[int], axes: Sequence[int], flips: Sequence[bool]
) -> np.ndarray:
    """Return the (4, 4) affine of the oriented array.

    Args:
        affine: (4, 4) of the scan.
        shape: (X, Y, Z) of the scan.
        axes: See ``closest_axes``.
        flips: See ``closest_axes``.
    """
    to_source = np.zeros((4, 4))
    to_source[3, 3] = 1.0
    for oriented, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        to_source[axis, oriented] = -1.0 if flip else 1.0
        to_source[axis, 3] = shape[axis] - 1 if flip else 0
    return affine @ to_source
