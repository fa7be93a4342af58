"""A task's training cases on the grid that the network reads, prepared once, memory-mapped.

Labels come to the grid by their nearest voxel: 1 is what the task asks for. Images are stored as
float16, which keeps CT to a Hounsfield unit.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.benchmark.tasks import TargetTask
from training.corpora import get_corpus
from training.corpora.case import Case
from universal_model_hub.errors import CheckpointError, ConfigError, VolumeError
from universal_model_hub.files import atomic_path, parse_json, write_json
from universal_model_hub.preprocess import Preprocessing, PreprocessRecord, preprocess
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.resample import resample
from universal_model_hub.volume import Volume

VERSION = 1  # of what the arrays hold


@dataclass(frozen=True)
class GridCase:
    """A case on the model grid."""

    case: Case
    image: np.ndarray  # (X, Y, Z) float16 in [0, 1], memory-mapped
    labels: np.ndarray | None  # (X, Y, Z) uint8, memory-mapped; None without label volume
    record: PreprocessRecord


def prepared_folder(
    task: TargetTask, preprocessing: Preprocessing, data_sha256: str, work: Path
) -> Path:
    """Return where a task's arrays are kept: what decides them names the folder."""
    made = {
        "version": VERSION,
        "task": task.to_json(),
        "preprocessing": preprocessing.to_json(),
        "data": data_sha256,
    }
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    return work / "prepared" / f"{task.name}-{key}"


def prepare_case(task: TargetTask, case: Case, preprocessing: Preprocessing, folder: Path) -> None:
    """Write a case's arrays, unless they are there.

    Raises:
        VolumeError: If the case cannot be read or its labels lie on another grid.
    """
    stem = folder / case.id
    record_file = folder / f"{case.id}.json"
    if record_file.is_file():
        return
    corpus = get_corpus(case.corpus)
    volume = corpus.load(case)
    image, record = preprocess(volume, preprocessing, case.modality)
    if task.kind == "segmentation":
        truth = task_labels(task, corpus.load_labels(case), volume, case)
        oriented = np.ascontiguousarray(orient(truth, record.axes, record.flips))
        grid = resample(oriented, record.model_shape, record.scale, record.offset, 0)
        _save(_array(stem, "labels"), grid.numpy().astype(np.uint8))
    _save(_array(stem, "image"), image[0, 0].numpy().astype(np.float16))
    write_json(record_file, record.to_json())


def task_labels(task: TargetTask, labels: Volume, volume: Volume, case: Case) -> np.ndarray:
    """Return a case's labels (X, Y, Z) uint8 on its own grid: 1 is the task's foreground.

    Raises:
        VolumeError: If they are not of the scan's shape.
    """
    if labels.shape != volume.shape:
        raise VolumeError(
            f"Expected labels of shape {volume.shape} in {case.labels}, got {labels.shape}. "
            "Fetch both files again."
        )
    return np.isin(np.asarray(labels.array), task.foreground).astype(np.uint8)


def open_cases(cases: Sequence[Case], folder: Path) -> list[GridCase]:
    """Open prepared cases, memory-mapped.

    Raises:
        CheckpointError: If one is missing or damaged.
    """
    return [_open(case, folder) for case in cases]


def _open(case: Case, folder: Path) -> GridCase:
    try:
        record: Any = parse_json((folder / f"{case.id}.json").read_bytes())
        labels = _array(folder / case.id, "labels")
        return GridCase(
            case,
            np.load(_array(folder / case.id, "image"), mmap_mode="r", allow_pickle=False),
            np.load(labels, mmap_mode="r", allow_pickle=False) if labels.is_file() else None,
            PreprocessRecord.from_json(record),
        )
    except (OSError, ValueError, ConfigError) as cause:
        raise CheckpointError(
            f"Expected the prepared case {case.id} in {folder}, got: {cause}. Delete the folder "
            "and start again without --only, or with --only data first."
        ) from cause


def _array(stem: Path, what: str) -> Path:
    return stem.with_name(f"{stem.name}-{what}.npy")


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
