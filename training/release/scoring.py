"""Scores of a segmenter on prepared cases: Dice and IoU of each class and subject.

Voxels of one subject are counted together, whatever its cases; a class that a subject neither has
nor is given does not count. Scores are of the task's working grid.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from training.release.scans import NOT_ANNOTATED, GridCase
from universal_model_hub.predict import PredictWarning, predict
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.volume import Volume

MEMORY_LIMIT = 3 * 2**30  # bytes of one run: two fit beside each other on a small machine
# The working grid is what the network reads: nothing is resampled, clipped or scaled again.
AS_IT_IS = Preprocessing(spacing=None, mr_clip=(0.0, 1.0), mr_rescale="window")


def score(model: nn.Module, cases: Sequence[GridCase], num_classes: int) -> dict[str, Any]:
    """Segment cases and compare them with their labels.

    Args:
        model: Gives logits; left as it is but for its ``preprocessing``, which is the grid's.
        cases: With labels; -1 does not count.
        num_classes: With background.

    Returns:
        ``dice`` and ``iou``, the means over classes of the means over subjects; ``dice_by_class``,
        and ``dice_by_subject`` by subject; classes that no subject has are None.
    """
    counts: dict[str, np.ndarray] = {}
    for case in cases:
        table = confusion(segment(model, case.image), case.labels, num_classes)
        counts[case.subject] = counts.get(case.subject, 0) + table
    dice = np.array([overlap(table)[0] for table in counts.values()])  # (subjects, classes)
    iou = np.array([overlap(table)[1] for table in counts.values()])
    dice_by_class, iou_by_class = _column_means(dice), _column_means(iou)
    return {
        "dice": _mean(dice_by_class),
        "iou": _mean(iou_by_class),
        "dice_by_class": _or_none(dice_by_class),
        "dice_by_subject": {subject: _mean(row) for subject, row in zip(counts, dice, strict=True)},
    }


def segment(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the labels (X, Y, Z) that a model gives an image (X, Y, Z) of the working grid."""
    had = getattr(model, "preprocessing", None)
    vars(model)["preprocessing"] = AS_IT_IS
    try:
        with warnings.catch_warnings():
            # An untrained head may well give nothing but background.
            warnings.simplefilter("ignore", PredictWarning)
            volume = Volume(np.ascontiguousarray(image), np.eye(4))
            found = predict(model, volume, modality="MR", memory_limit=MEMORY_LIMIT)
    finally:
        vars(model)["preprocessing"] = had
    return np.asarray(found.array)


def confusion(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Count voxels by (truth, predicted), (K, K); where the truth is -1 nothing is counted."""
    counted = truth != NOT_ANNOTATED
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def overlap(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Dice and IoU of each class but background, (K - 1,) each; NaN where there is none.

    Source: Dice 1945, Jaccard 1912.

    Args:
        table: (K, K) counts by (truth, predicted).
    """
    hit = np.diag(table)[1:].astype(np.float64)
    both = (table.sum(axis=0) + table.sum(axis=1))[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * hit / both, hit / (both - hit)


def _column_means(rows: np.ndarray) -> np.ndarray:
    """Average over subjects, leaving out those without the class: (classes,), NaN for none."""
    known = np.isfinite(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, rows, 0).sum(axis=0) / known.sum(axis=0)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def _or_none(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
