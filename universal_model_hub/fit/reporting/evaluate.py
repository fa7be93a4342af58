"""How well a label map agrees with the truth, case by case.

Pure functions on arrays in the scan's own grid. What is not defined is None, never a number.
Needs the ``[finetune]`` extra.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.extras import needed
from universal_model_hub.fit.data.cases import NOT_ANNOTATED

PERCENTILE = 95  # of the surface distances
MISSED = "in the truth, not predicted"
EXTRA = "predicted, not in the truth"
ABSENT = "neither in the truth nor predicted: does not count"


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class of one case was found."""

    label: int
    name: str
    dice: float | None  # None: neither in the truth nor predicted
    iou: float | None
    hd95_mm: float | None  # None: in only one of the two, or in none
    sensitivity: float | None  # None: not in the truth
    precision: float | None  # None: not predicted
    truth_ml: float
    predicted_ml: float
    truth_voxels: int
    predicted_voxels: int
    flag: str | None = None  # why something is None


def segmentation_scores(
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Mapping[int, str],
) -> list[ClassScore]:
    """Score a predicted label map, each class on its own.

    Voxels of the truth that are -1 (not annotated) count nowhere: both masks end there, and where
    they do, the cut is part of their surfaces.

    Args:
        predicted: (X, Y, Z), integer labels.
        truth: (X, Y, Z), integer labels; -1 is not annotated.
        spacing_mm: Voxel size (x, y, z).
        classes: Label to name of what is scored; leave the background out.

    Raises:
        GeometryError: If the two do not lie on one grid.
        VolumeError: If they are not 3D arrays of integers.
        ConfigError: If a class is negative, or MONAI or SciPy is not installed.
    """
    _check_maps(predicted, truth, spacing_mm)
    if any(label < 0 for label in classes):
        raise ConfigError(
            f"Expected classes of 0 and above, got {min(classes)}. Leave out what is not annotated."
        )
    labels = sorted(classes)
    boxes = [_boxes(array, labels) for array in (truth, predicted)]
    milliliters = math.prod(spacing_mm) / 1000
    scores = []
    for label in labels:
        box = _around([found[label] for found in boxes if label in found], truth.shape)
        known = truth[box] != NOT_ANNOTATED
        there, answered = truth[box] == label, (predicted[box] == label) & known
        scores.append(_class_score(label, classes[label], there, answered, spacing_mm, milliliters))
    return scores


def hd95_mm(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Return the 95th percentile of the distances between two surfaces, the larger direction.

    Source: ``monai.metrics.compute_hausdorff_distance``.

    Args:
        predicted: (X, Y, Z) mask, not empty.
        truth: (X, Y, Z) mask, not empty.
        spacing_mm: Voxel size (x, y, z).
    """
    compute = needed("monai.metrics", "monai").compute_hausdorff_distance
    with warnings.catch_warnings():  # MONAI warns of an argument that it passes on itself
        warnings.simplefilter("ignore", FutureWarning)
        distance = compute(
            predicted[None, None],
            truth[None, None],
            include_background=True,
            percentile=PERCENTILE,
            spacing=[float(side) for side in spacing_mm],
        )
    return float(distance)


def _class_score(
    label: int,
    name: str,
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    milliliters: float,
) -> ClassScore:
    hits = int(np.count_nonzero(truth & predicted))
    num_truth, num_predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(predicted))
    total = num_truth + num_predicted
    both = num_truth > 0 and num_predicted > 0
    flag = None if both else MISSED if num_truth else EXTRA if num_predicted else ABSENT
    return ClassScore(
        label=label,
        name=name,
        dice=2 * hits / total if total else None,
        iou=hits / (total - hits) if total else None,
        hd95_mm=hd95_mm(predicted, truth, spacing_mm) if both else None,
        sensitivity=hits / num_truth if num_truth else None,
        precision=hits / num_predicted if num_predicted else None,
        truth_ml=num_truth * milliliters,
        predicted_ml=num_predicted * milliliters,
        truth_voxels=num_truth,
        predicted_voxels=num_predicted,
        flag=flag,
    )


def _boxes(array: np.ndarray, labels: Sequence[int]) -> dict[int, tuple[slice, ...]]:
    """Return the bounding box of each label that is there: one pass for all of them."""
    if not labels:
        return {}
    ndimage = needed("scipy.ndimage", "scipy")
    # One higher: find_objects knows positive labels only, and 0 may be a class.
    wide = np.int32 if array.dtype.itemsize < 4 else np.int64
    shifted = np.add(array, 1, dtype=wide, casting="unsafe")
    found = ndimage.find_objects(shifted, max_label=max(labels) + 1)
    boxes = {label: found[label] for label in labels if label < len(found)}
    return {label: box for label, box in boxes.items() if box is not None}


def _around(boxes: Sequence[tuple[slice, ...]], shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the box around boxes, a voxel wider where the scan goes on; of none an empty one."""
    if not boxes:
        return (slice(0, 0),) * len(shape)
    return tuple(
        slice(max(0, min(p.start for p in parts) - 1), min(side, max(p.stop for p in parts) + 1))
        for parts, side in zip(zip(*boxes, strict=True), shape, strict=True)
    )


def _check_maps(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> None:
    if predicted.shape != truth.shape:
        raise GeometryError(
            f"Expected a prediction on the truth's grid {truth.shape}, got {predicted.shape}. "
            "Predict on the scan's own grid."
        )
    for name, array in (("prediction", predicted), ("truth", truth)):
        if array.ndim != 3 or array.dtype.kind not in "biu":
            raise VolumeError(
                f"Expected a 3D {name} of integer labels, got shape {array.shape}, {array.dtype}. "
                "Take the label of each voxel, as integers."
            )
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise GeometryError(
            f"Expected three positive sides of a voxel in mm, got {tuple(spacing_mm)}. "
            "Repair the header."
        )
