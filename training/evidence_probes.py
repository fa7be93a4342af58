"""What frozen features give away: linear probes for modality, region and scale.

A probe is a fresh logistic regression on mean-pooled encoder maps: those of the deepest level,
which are what ``Encoder.embed`` gives, and those of each other level and of all. Folds are cut by
subject, so that both scans of one body are on the same side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from training.cubes import CubeStore
from training.objective import UniversalModel

FOLDS = 4
BATCH = 64


@torch.inference_mode()
def pooled_features(encoder: nn.Module, store: CubeStore) -> list[np.ndarray]:
    """Return the means of each level's map over each clean cube, finest first.

    Level k: (cubes, channels of the level) float32.
    """
    rows: list[list[torch.Tensor]] = []
    for start in range(0, len(store), BATCH):
        maps = encoder.pyramid(cube_batch(store, start))  # type: ignore[operator]
        rows.append([m.mean(dim=(2, 3, 4)) for m in maps])
    return [torch.cat(level).numpy() for level in zip(*rows, strict=True)]


def probe_rows(levels: Sequence[np.ndarray], store: CubeStore) -> list[dict[str, Any]]:
    """Probe each level's features, and those of all levels together (``level`` None)."""
    parts = [*enumerate(levels), (None, np.concatenate(levels, axis=1))]
    return [
        {
            "level": level,
            "modality_auc": modality_auc(features, store),
            "region_accuracy": region_accuracy(features, store),
        }
        for level, features in parts
    ]


@torch.inference_mode()
def scale_accuracy(model: UniversalModel, store: CubeStore) -> float:
    """Return the trained scale classifier's accuracy on clean cubes, averaged over the scales."""
    predicted: list[int] = []
    for start in range(0, len(store), BATCH):
        deepest = model.unet.encoder.pyramid(cube_batch(store, start))[-1]
        predicted += model.scale_classifier(deepest).argmax(dim=1).tolist()
    truth = [record.scale_id for record in store.records]
    return float(balanced_accuracy_score(truth, predicted))


def cube_batch(store: CubeStore, start: int) -> torch.Tensor:
    """Return up to ``BATCH`` cubes of a store, (N, 1, X, Y, Z)."""
    numbers = range(start, min(start + BATCH, len(store)))
    return torch.from_numpy(np.stack([store.cube(n) for n in numbers]))[:, None]


def modality_auc(features: np.ndarray, store: CubeStore) -> float:
    """Return the AUC of a linear probe for CT against MR; 0.5 is chance."""
    truth = np.array([record.modality == "CT" for record in store.records])
    scores = out_of_fold(features, truth, subjects_of(store), "decision_function")
    return float(roc_auc_score(truth, scores))


def region_accuracy(features: np.ndarray, store: CubeStore) -> float:
    """Return the balanced accuracy of a linear probe for the region that a cube was cut from."""
    truth = np.array([record.corpus for record in store.records])
    predicted = out_of_fold(features, truth, subjects_of(store), "predict")
    return float(balanced_accuracy_score(truth, predicted))


def subjects_of(store: CubeStore) -> list[str]:
    """Return whose cube each one is."""
    return [record.subject for record in store.records]


def out_of_fold(
    features: np.ndarray, truth: np.ndarray, subjects: Sequence[str], method: str
) -> np.ndarray:
    """Return for every cube the answer of a probe that was fitted on other subjects."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    answers: np.ndarray = cross_val_predict(
        new_probe(), features, truth, groups=subjects, cv=folds, method=method
    )
    return answers


def new_probe() -> Pipeline:
    """Return an unfitted probe: standardized features, logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
