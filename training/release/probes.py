"""What frozen features know: linear and nearest-neighbor probes for modality, region, structure.

Modality and region are asked of cubes from synthetic bodies, each scanned as CT and as MR: in the
packaged scans brains are MR and chests are CT, so that either answer would give the other away.
Structures are asked of single voxels of the real tasks. Folds and tests are by subject.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from training.corpora.phantom import KINDS, make_subject
from training.evidence_probes import new_probe
from training.release.frozen import draw_points
from training.release.prepare import MODALITIES, scanned
from training.release.scans import GridCase
from universal_model_hub.files import atomic_path
from universal_model_hub.preprocess import Preprocessing, preprocess

FOLDS = 4
NEIGHBORS = 20  # of the kNN probe
SPACING_MM = 3.0
SIDE = 32  # voxels of a probe's cube
CUBES = 4  # of each scan
BODY_SHARE = 0.3  # of a cube's voxels that are body
STRUCTURE_POINTS = 600  # voxels of each class


Row = tuple[np.ndarray, str, str, str]  # cube, modality, region, subject


class ProbeCubes(NamedTuple):
    """Cubes of synthetic scans, (n, X, Y, Z) float32, and what they are cut from."""

    cubes: np.ndarray
    modality: np.ndarray  # (n,) str
    region: np.ndarray
    subject: np.ndarray


def probe_cubes(path: Path, *, seed: int, subjects: int) -> ProbeCubes:
    """Make the cubes of the modality and region probes, or load them from ``path`` (.npz)."""
    if not path.is_file():
        rows: list[Row] = []
        for region in KINDS:
            for number in range(subjects):
                rows += subject_cubes(region, np.random.default_rng([seed, number]), number)
        names = ("cubes", "modality", "region", "subject")
        columns = {n: np.stack([row[i] for row in rows]) for i, n in enumerate(names)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **columns)  # type: ignore[arg-type]  # numpy's stub
    with np.load(path, allow_pickle=False) as found:
        return ProbeCubes(*(found[name] for name in ProbeCubes._fields))


def subject_cubes(region: str, rng: np.random.Generator, number: int) -> list[Row]:
    """Make one body, scan it in both modalities, and cut the same cubes from both scans."""
    body, *scanners = rng.spawn(1 + len(MODALITIES))
    subject = make_subject(region, body, SPACING_MM)
    boxes = _boxes(subject.labels > 0, body)
    rows: list[Row] = []
    for modality, scanner in zip(MODALITIES, scanners, strict=True):
        settings = Preprocessing(spacing=None)
        image = preprocess(scanned(subject, modality, scanner), settings, modality)[0][0, 0].numpy()
        name: str = f"{region}{number}"
        rows += [(image[box], str(modality), region, name) for box in boxes]
    return rows


def pooled(features: nn.Module, cubes: np.ndarray) -> np.ndarray:
    """Return the means of all maps over each cube, (n, F) float32."""
    rows = []
    with torch.inference_mode():
        for cube in cubes:
            maps = features(torch.from_numpy(cube)[None, None])
            rows.append(torch.cat([found.mean(dim=(2, 3, 4)) for found in maps], dim=1))
    return torch.cat(rows).numpy()


def cube_accuracy(features: nn.Module, found: ProbeCubes) -> dict[str, float]:
    """Return balanced accuracies out of fold for modality and region, by both probes."""
    rows = pooled(features, found.cubes)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    result = {}
    for target in ("modality", "region"):
        truth = getattr(found, target)
        for name, make in PROBES.items():
            guess = cross_val_predict(make(), rows, truth, groups=found.subject, cv=folds)
            result[f"{target}, {name}"] = float(balanced_accuracy_score(truth, guess))
    return result


def structure_accuracy(
    features: nn.Module,
    train: Sequence[GridCase],
    test: Sequence[GridCase],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return balanced accuracies for the class of a voxel, fitted on training, asked of test cases.

    Background is a class too. The test voxels do not depend on the features.
    """
    parts = [
        draw_points(
            features, cases, [case.labels for case in cases], stream, limit=STRUCTURE_POINTS
        )
        for cases, stream in zip((train, test), rng.spawn(2), strict=True)
    ]
    result = {}
    for name, make in PROBES.items():
        probe = make().fit(parts[0].features, parts[0].labels)
        guess = probe.predict(parts[1].features)
        result[f"structure, {name}"] = float(balanced_accuracy_score(parts[1].labels, guess))
    return result


def nearest() -> Pipeline:
    """Return an unfitted kNN probe on standardized features."""
    return make_pipeline(StandardScaler(), KNeighborsClassifier(NEIGHBORS))


PROBES: dict[str, Callable[[], Pipeline]] = {"linear": new_probe, "kNN": nearest}


def _boxes(body: np.ndarray, rng: np.random.Generator) -> list[tuple[slice, ...]]:
    """Draw boxes that hold enough body; after many tries the last one is taken."""
    boxes: list[tuple[slice, ...]] = []
    while len(boxes) < CUBES:
        for _ in range(100):
            start = [int(rng.integers(0, max(1, n - SIDE + 1))) for n in body.shape]
            box = tuple(slice(a, a + SIDE) for a in start)
            if float(body[box].mean()) >= BODY_SHARE:
                break
        boxes.append(box)
    return boxes
