"""The arrays of a task, prepared once and memory-mapped by every run.

What defines the data (task, packages, this module's version) names the folder, so that a changed
task is prepared anew; a folder without ``facts.json`` was cut short and is written again.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.corpora.packaged_table import read_table
from training.release.scans import GridCase, test_cases, training_cases
from training.release.tasks import Part, Task
from universal_model_hub.errors import CheckpointError
from universal_model_hub.files import parse_json, write_json

VERSION = 1  # of what the arrays hold: raise it when the way to them changes


@dataclass(frozen=True)
class TaskData:
    """The prepared cases of a task; their arrays are read from disk as they are used."""

    train: tuple[GridCase, ...]
    test: tuple[GridCase, ...]
    sha256: str  # of all arrays

    @property
    def test_subjects(self) -> int:
        """Number of test subjects."""
        return len({case.subject for case in self.test})


def data_folder(task: Task, root: Path) -> Path:
    """Return where a task's arrays are kept under ``root``."""
    return root / "data" / f"{task.name}-{fingerprint(data_definition(task))}"


def data_definition(task: Task) -> dict[str, Any]:
    """Return all that decides what the arrays hold."""
    keys = ("modality", "spacing_mm", "cube", "classes", "train", "test")
    return {
        "version": VERSION,
        **{key: task.to_json()[key] for key in keys},
        "packages": [_package_of(part) for part in (task.train, task.test)],
    }


def prepare_task(task: Task, root: Path) -> TaskData:
    """Prepare a task's arrays if they are not there, and open them.

    A test scan is read here, and only by tasks of the final mode.

    Raises:
        ConfigError: If a scan's role forbids its use, or labels do not fit the task.
        CheckpointError: If prepared arrays are damaged.
    """
    folder = data_folder(task, root)
    if not (folder / "facts.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        digest = hashlib.sha256()
        facts: dict[str, Any] = {"task": task.name}
        for side, cases in (("train", training_cases(task)), ("test", test_cases(task))):
            facts[side] = [_write(case, folder / f"{side}{i:03d}") for i, case in enumerate(cases)]
            for entry in facts[side]:
                digest.update(json.dumps(entry, sort_keys=True).encode())
        write_json(folder / "facts.json", {**facts, "sha256": digest.hexdigest()})
    return open_task(task, root)


def open_task(task: Task, root: Path) -> TaskData:
    """Open the prepared arrays of a task, memory-mapped.

    Raises:
        CheckpointError: If they are missing or damaged.
    """
    folder = data_folder(task, root)
    try:
        facts = parse_json((folder / "facts.json").read_bytes())
        sides = [
            tuple(_read(entry, folder / f"{side}{i:03d}") for i, entry in enumerate(facts[side]))
            for side in ("train", "test")
        ]
    except (OSError, ValueError, KeyError) as cause:
        raise CheckpointError(
            f"Expected the prepared arrays of {task.name} in {folder}, got: {cause}. Delete the "
            "folder and start the same command again."
        ) from cause
    return TaskData(sides[0], sides[1], facts["sha256"])


def fingerprint(values: Any) -> str:
    """Return a short name for JSON values: the start of their SHA-256."""
    text = json.dumps(values, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(case: GridCase, stem: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": case.id, "subject": case.subject}
    for name in ("image", "labels"):
        array = getattr(case, name)
        np.save(stem.with_name(f"{stem.name}-{name}.npy"), array, allow_pickle=False)
        entry[name] = hashlib.sha256(array.tobytes()).hexdigest()
    classes, counts = np.unique(case.labels, return_counts=True)
    entry["voxels"] = dict(zip(map(str, classes.tolist()), counts.tolist(), strict=True))
    return entry


def _read(entry: dict[str, Any], stem: Path) -> GridCase:
    arrays = [
        np.load(stem.with_name(f"{stem.name}-{name}.npy"), mmap_mode="r", allow_pickle=False)
        for name in ("image", "labels")
    ]
    return GridCase(entry["id"], entry["subject"], *arrays)


def _package_of(part: Part) -> Sequence[str]:
    if part.region:
        return ("phantom",)
    table = read_table()
    package = table.packages[table.scans[part.scan].package]
    return (package.name, package.version, package.sha256)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value)
