"""How well a network does a task: on the scans' own grids in the test, on the model grid before.

The test part of a task is read here and nowhere else, after the last step of a run. Validation only
draws the curves of Fig. 4; nothing is chosen by it.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from training.benchmark.noise import mask_dice
from training.benchmark.tasks import TargetTask, target_of
from training.benchmark.tasks_data import task_labels
from training.corpora import get_corpus
from training.corpora.case import Case
from universal_model_hub.extras import needed
from universal_model_hub.fit.reporting.evaluate import segmentation_scores
from universal_model_hub.fit.reporting.planes import in_ras, three_planes
from universal_model_hub.inference import Precision
from universal_model_hub.predict import PredictWarning, predict
from universal_model_hub.preprocess import Preprocessing, preprocess
from universal_model_hub.volume import Volume

# The model grid is what the network reads: nothing is resampled, clipped or scaled again.
AS_IT_IS = Preprocessing(spacing=None, mr_clip=(0.0, 1.0), mr_rescale="window")


@dataclass(frozen=True, eq=False)
class Example:
    """One test case with its answer, for a picture; arrays (X, Y, Z) on the scan's own grid."""

    volume: Volume
    truth: np.ndarray
    predicted: np.ndarray

    def draw(self) -> bytes:
        """Return a PNG file of three planes, of Figs. 3 and 6."""
        image, spacing = in_ras(self.volume)
        truth, predicted = (
            in_ras(Volume(labels.astype(np.int16), self.volume.affine))[0]
            for labels in (self.truth, self.predicted)
        )
        return few_colors(three_planes(image, truth, predicted, spacing))


def few_colors(png: bytes) -> bytes:
    """Return a picture in 256 colors: two fifths of the size, and a page holds nine of them."""
    images = needed("PIL.Image", "pillow")
    with images.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB").quantize(
            256, method=images.Quantize.MAXCOVERAGE, dither=images.Dither.NONE
        )
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return stream.getvalue()


@dataclass(frozen=True)
class Passes:
    """How whole scans go through a network."""

    memory: int  # bytes
    window: tuple[int, int, int]  # of the model grid: the training cube
    overlap: float  # of neighboring windows
    precision: Precision = "float32"
    stripped: bool = False  # whether what is exactly 0 lies outside the head


def segment(
    model: nn.Module, volume: Volume, modality: str, preprocessing: Preprocessing, passes: Passes
) -> np.ndarray:
    """Return the labels (X, Y, Z) that a trained network gives a whole scan, on its own grid."""
    vars(model)["preprocessing"] = preprocessing
    vars(model)["head_trained"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PredictWarning)  # nothing found is a score, too
        found = predict(
            model,
            volume,
            modality=modality,
            tiling="gaussian",
            window=passes.window,
            overlap=passes.overlap,
            memory_limit=passes.memory,
            precision=passes.precision,
        )
    labels = np.asarray(found.array)
    return np.where(np.asarray(volume.array) == 0, 0, labels) if passes.stripped else labels


def validation_dice(
    model: nn.Module, cases: Sequence[tuple[np.ndarray, np.ndarray]], passes: Passes
) -> float:
    """Return the mean Dice over (image, labels) pairs (X, Y, Z) of the model grid."""
    scores = []
    for image, labels in cases:
        volume = Volume(np.asarray(image, np.float32), np.eye(4))
        scores.append(mask_dice(segment(model, volume, "MR", AS_IT_IS, passes), labels))
    return float(np.mean(scores))


def test_segmentation(
    model: nn.Module,
    task: TargetTask,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    passes: Passes,
) -> tuple[list[dict[str, Any]], Example]:
    """Score a network on whole scans.

    Returns:
        For each case id, subject, IoU, Dice and HD95 in mm (None where one of the masks is empty);
        and the first case for a picture.
    """
    rows, example = [], None
    for case in cases:
        corpus = get_corpus(case.corpus)
        volume = corpus.load(case)
        truth = task_labels(task, corpus.load_labels(case), volume, case)
        predicted = segment(model, volume, case.modality, preprocessing, passes)
        (score,) = segmentation_scores(
            predicted.astype(np.int16), truth.astype(np.int16), volume.spacing, {1: task.classes[1]}
        )
        rows.append(
            {
                "id": case.id,
                "subject": case.subject,
                "iou": score.iou,
                "dice": score.dice,
                "hd95_mm": score.hd95_mm,
            }
        )
        if example is None:
            example = Example(volume, truth, predicted)
    assert example is not None
    return rows, example


test_segmentation.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def segmentation_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average over cases; HD95 over those in which both masks are there, whose number is given."""
    distances = [row["hd95_mm"] for row in rows if row["hd95_mm"] is not None]
    return {
        "iou": float(np.mean([row["iou"] or 0.0 for row in rows])),
        "dice": float(np.mean([row["dice"] or 0.0 for row in rows])),
        "hd95_mm": float(np.mean(distances)) if distances else None,
        "hd95_cases": len(distances),
    }


@torch.inference_mode()
def scan_score(model: nn.Module, image: np.ndarray, device: torch.device) -> float:
    """Return the probability of the second class of a whole scan (X, Y, Z) on the model grid."""
    x = torch.from_numpy(np.array(image, np.float32))[None, None].to(device)
    return float(model(x)[0].double().softmax(dim=0)[1])


def test_scans(
    model: nn.Module,
    task: TargetTask,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Score whole scans: for each case id, subject, class and probability of the second class."""
    rows = []
    for case in cases:
        volume = get_corpus(case.corpus).load(case)
        image, _ = preprocess(volume, preprocessing, case.modality)
        score = scan_score(model, image[0, 0].numpy(), device)
        target = target_of(task, case)
        rows.append({"id": case.id, "subject": case.subject, "target": target, "score": score})
    return rows


test_scans.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def auc(targets: Sequence[int], scores: Sequence[float]) -> float | None:
    """Return the area under the ROC curve; None where a class is not there."""
    if len(set(targets)) < 2:
        return None
    return float(needed("sklearn.metrics").roc_auc_score(targets, scores))


def classification_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return AUC, and accuracy and sensitivity where a probability above one half says yes."""
    targets = np.array([row["target"] for row in rows])
    scores = np.array([row["score"] for row in rows])
    said = scores > 0.5
    positive = targets == 1
    return {
        "auc": auc(targets.tolist(), scores.tolist()),
        "accuracy": float((said == positive).mean()),
        "sensitivity": float(said[positive].mean()) if positive.any() else None,
    }
