"""The grid of a segmentation: as coarse as its labels bear, where a cube sees too little otherwise.

A network that sees 40 mm of a body cannot tell the heart from the aorta; one that sees 120 mm can,
but gray matter is lost between voxels of 3 mm. Both are asked of the label maps. Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from universal_model_hub.fit.data.cases import Case
from universal_model_hub.volume import Volume, load_volume

COARSER = (3.0, 2.0, 1.5)  # factors of the spacing, the coarsest first
FIELD_SHARE = 1 / 3  # of a scan's longest side that a cube should see
LABELS_KEPT = 0.9  # Dice, in the mean over classes, of labels that went to the grid and back
ASKED_CASES = 3  # whose labels are asked


@dataclass(frozen=True)
class Grid:
    """A spacing, and what the labels lose on it."""

    spacing: tuple[float, float, float]  # mm
    labels_kept: float | None = None  # Dice; None: it is the spacing of the weights, nobody asked


def segmentation_grid(
    cases: Sequence[Case],
    spacing: tuple[float, float, float],
    shape: Sequence[int],
    cube_side: int,
) -> Grid:
    """Choose the coarsest of a few spacings that the labels bear and a cube's view asks for.

    Args:
        cases: With label maps; the first ones are asked.
        spacing: (x, y, z) mm that the weights were trained at; it is not made finer.
        shape: (X, Y, Z) of a usual scan at that spacing.
        cube_side: Voxels that a cube may have along each axis.
    """
    wanted = FIELD_SHARE * max(shape) / cube_side
    factors = [factor for factor in COARSER if factor <= max(wanted, 1.0)]
    if not factors:
        return Grid(spacing)
    paths = [case.labels for case in cases if case.labels is not None][:ASKED_CASES]
    maps = [load_volume(path) for path in paths]
    for factor in factors:
        x, y, z = (round(factor * side, 4) for side in spacing)
        kept = float(np.mean([labels_kept(labels, (x, y, z)) for labels in maps])) if maps else 0.0
        if kept >= LABELS_KEPT:
            return Grid((x, y, z), kept)
    return Grid(spacing)


def labels_kept(labels: Volume, spacing: Sequence[float]) -> float:
    """Return the Dice of a label map and itself after a coarser grid, in the mean over classes.

    By the nearest voxel both ways; axes that are coarser than the grid lose nothing. What the
    network's smooth answer loses is less. The grid's axes are taken in the label map's own order.

    Args:
        labels: (X, Y, Z) label values; 0 and -1 are no class.
        spacing: Of the grid, mm along the label map's axes.
    """
    array = np.asarray(labels.array)
    index = [
        _there_and_back(size, max(1.0, coarse / own))
        for size, own, coarse in zip(array.shape, labels.spacing, spacing, strict=True)
    ]
    back = array[np.ix_(*index)]
    scores = []
    for value in np.unique(array[array > 0]):
        before, after = array == value, back == value
        scores.append(2 * (before & after).sum() / (before.sum() + after.sum()))
    return float(np.mean(scores)) if scores else 0.0


def _there_and_back(size: int, scale: float) -> np.ndarray:
    """Return for each voxel of an axis the one whose value it has after a grid ``scale`` times."""
    coarse = max(1, round(size / scale))
    voxel = np.minimum((np.arange(size) + 0.5) / scale, coarse - 0.5).astype(int)
    return np.clip(np.rint((voxel + 0.5) * scale - 0.5), 0, size - 1).astype(int)
