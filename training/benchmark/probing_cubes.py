"""The cubes that frozen encoders are asked about: cut from test scans, which no pre-training saw.

Every corpus is brought to one spacing, so that none is told by its voxel size. P counts cubes.
"""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.benchmark.bench import Bench
from training.benchmark.tasks import TASKS, TargetTask, cases_of
from training.benchmark.tasks_data import task_labels
from training.corpora import get_corpus
from training.corpora.case import Case
from training.cubes import AIR_LEVEL, MAX_TRIES
from universal_model_hub.errors import CheckpointError
from universal_model_hub.files import atomic_path
from universal_model_hub.preprocess import Preprocessing, preprocess
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.resample import resample

VERSION = 1  # of how cubes are cut


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How encoders are asked. Source: ours."""

    preprocessing: Preprocessing  # of all corpora alike
    cube: tuple[int, int, int]  # voxels
    cubes: int = 8  # of a scan, where it is not mostly air
    centered: int = 8  # of a scan with labels: half centered on the foreground, half elsewhere
    air_share: float = 0.8  # of a cube's voxels at most, where a scan allows
    subjects: int = 40  # of a corpus, modality and class at most
    splits: int = 5  # of the subjects, into those that fit classifiers and those that score them
    seed: int = 2020

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "preprocessing": self.preprocessing.to_json(), "cube": list(self.cube)}


@dataclass(frozen=True)
class Cut:
    """One scan to cut cubes from, and the file that keeps them."""

    case: Case
    tasks: tuple[TargetTask, ...]  # whose foreground it has labels of
    settings: ProbeSettings
    file: Path

    def __hash__(self) -> int:
        return hash(self.file)

    def __str__(self) -> str:
        return f"cubes of {self.case.corpus} {self.case.id}"


@dataclass(frozen=True, eq=False)
class CubeSet:
    """All cubes, those of a scan together."""

    cubes: np.ndarray  # (P, X, Y, Z) float16 in [0, 1]
    scan: np.ndarray  # (P,) int64, number of the scan
    task: np.ndarray  # (P,) str, whose foreground was looked for; "" of a cube at any place
    target: np.ndarray  # (P,) int64, 1 where the center is foreground
    cases: tuple[Case, ...]  # the scans


def probe_settings(bench: Bench) -> ProbeSettings:
    """Return the settings of a plan: its spacing, and the cube of its first segmentation task."""
    plan = bench.plan
    names = [name for name in plan.tasks if TASKS[name].unit == "cubes"] or list(plan.tasks)
    cube = plan.tasks[names[0]].settings.cube
    return ProbeSettings(preprocessing=plan.preprocessing, cube=(cube[0], cube[1], cube[2]))


def cuts(bench: Bench) -> list[Cut]:
    """Return the test scans of all data sets of the plan, at most some of each kind."""
    settings, tasks = probe_settings(bench), segmentation_tasks(bench)
    folder = bench.work / "probes" / cubes_key(bench)[:16]
    found = []
    for name, source in bench.sources.items():
        # Of several sequences, the one that a target task reads.
        read = {task.sequence for task in TASKS.values() if task.corpus == name and task.sequence}
        tested = source.parts.of(source.cases, "test")
        tested = tuple(case for case in tested if not read or case.sequence in read)
        for case in chosen_cases(tested, settings):
            own = [t for t in tasks if t.corpus == name and cases_of(t, [case])]
            file = folder / f"{name}-{case.id}.npz"
            found.append(Cut(case, tuple(own) if case.labels else (), settings, file))
    return found


def segmentation_tasks(bench: Bench) -> list[TargetTask]:
    """Return the tasks of the plan whose foreground is asked for."""
    return [TASKS[name] for name in bench.plan.tasks if TASKS[name].kind == "segmentation"]


def cubes_key(bench: Bench) -> str:
    """Return the hash of what decides the cubes: data and their splits, settings, foreground."""
    made = {
        "version": VERSION,
        "settings": probe_settings(bench).to_json(),
        "data": {
            name: [source.sha256, source.parts.sha256]
            for name, source in sorted(bench.sources.items())
        },
        "tasks": [task.to_json() for task in segmentation_tasks(bench)],
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def chosen_cases(cases: Sequence[Case], settings: ProbeSettings) -> list[Case]:
    """Keep at most ``settings.subjects`` subjects of a modality and class, drawn by the seed."""
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        group = groups[case.modality, case.label_class or ""]
        if case.subject not in group:
            group.append(case.subject)
    kept = set()
    for subjects in groups.values():
        order = np.random.default_rng(settings.seed).permutation(len(subjects))
        kept |= {subjects[number] for number in order[: settings.subjects]}
    return [case for case in cases if case.subject in kept]


def cut_case(job: Cut, device: str) -> None:
    """Cut and write the cubes of a scan, unless they are there; in a worker.

    Raises:
        VolumeError: If the scan or its labels cannot be read.
    """
    del device  # resampling runs on a core
    if job.file.is_file():
        return
    corpus, settings = get_corpus(job.case.corpus), job.settings
    rng = np.random.default_rng([settings.seed, *job.case.id.encode()])
    volume = corpus.load(job.case)
    grid, record = preprocess(volume, settings.preprocessing, job.case.modality)
    image, air = roomy(grid[0, 0].numpy(), settings.cube), AIR_LEVEL[job.case.modality]
    cubes = [
        drawn_cube(image, np.zeros(image.shape, bool), settings, air, rng)
        for _ in range(settings.cubes)
    ]
    tasks, targets = [""] * len(cubes), [0] * len(cubes)
    for task in job.tasks:
        own = task_labels(task, corpus.load_labels(job.case), volume, job.case)
        oriented = np.ascontiguousarray(orient(own, record.axes, record.flips))
        labels = resample(oriented, record.model_shape, record.scale, record.offset, 0)
        foreground = roomy(labels.numpy(), settings.cube) > 0
        for target, some in enumerate(centered_cubes(image, foreground, settings, air, rng)):
            cubes += some
            tasks += [task.name] * len(some)
            targets += [target] * len(some)
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(job.file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            cubes=np.stack(cubes).astype(np.float16),
            task=np.array(tasks, dtype=str),
            target=np.array(targets, np.int64),
        )


def roomy(array: np.ndarray, cube: Sequence[int]) -> np.ndarray:
    """Pad (X, Y, Z) with 0 on both ends of each axis that is shorter than a cube."""
    lacking = [max(0, side - n) for side, n in zip(cube, array.shape, strict=True)]
    return np.pad(array, [(n // 2, n - n // 2) for n in lacking])


def drawn_cube(
    image: np.ndarray,
    refused: np.ndarray,
    settings: ProbeSettings,
    air_level: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cut a cube at a random place: the first that is not mostly air, or the fullest of some.

    Args:
        image: (X, Y, Z) in [0, 1], no side shorter than a cube's.
        refused: (X, Y, Z) bool, where no center may lie unless every draw hits it.
        settings: Cube and share of air.
        air_level: Intensity up to which a voxel is air, in [0, 1].
        rng: Draws the places.
    """
    spans = [n - side + 1 for n, side in zip(image.shape, settings.cube, strict=True)]
    best: tuple[float, np.ndarray] | None = None
    for _ in range(MAX_TRIES):
        start = [int(rng.integers(span)) for span in spans]
        found = cube_at(image, start, settings.cube)
        center = tuple(a + side // 2 for a, side in zip(start, settings.cube, strict=True))
        share = float(np.mean(found <= air_level)) + float(refused[center])  # of air
        if best is None or share < best[0]:
            best = share, found
        if share <= settings.air_share:
            break
    assert best is not None
    return best[1]


def centered_cubes(
    image: np.ndarray,
    foreground: np.ndarray,
    settings: ProbeSettings,
    air_level: float,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cut cubes with their centers elsewhere, and as many with their centers on the foreground.

    Arguments are those of ``drawn_cube``. All lie within the scan, so that no border tells them
    apart; both lists are empty where no center can be foreground, or half of them are.
    """
    spans = [n - side + 1 for n, side in zip(image.shape, settings.cube, strict=True)]
    centers = tuple(
        slice(side // 2, side // 2 + span) for side, span in zip(settings.cube, spans, strict=True)
    )
    starts = np.argwhere(foreground[centers])  # a cube's start is its center's place in the slice
    if not 0 < len(starts) < np.prod(spans) / 2:  # draws elsewhere must not fail
        return [], []
    half = settings.centered // 2
    rows = rng.choice(len(starts), half, replace=len(starts) < half)
    inside = [cube_at(image, starts[row], settings.cube) for row in rows]
    return [drawn_cube(image, foreground, settings, air_level, rng) for _ in range(half)], inside


def cube_at(image: np.ndarray, start: Sequence[int], cube: Sequence[int]) -> np.ndarray:
    """Return the cube that starts at a voxel."""
    return image[tuple(slice(a, a + side) for a, side in zip(start, cube, strict=True))]


def read_cubes(scans: Sequence[Cut]) -> CubeSet:
    """Read the cubes of all scans.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    cubes, tasks, targets = [], [], []
    for scan in scans:
        try:
            with np.load(scan.file, allow_pickle=False) as found:
                cubes.append(found["cubes"])
                tasks.append(found["task"])
                targets.append(found["target"])
        except (OSError, ValueError, KeyError) as cause:
            raise CheckpointError(
                f"Expected {scan} in {scan.file}, got: {cause}. Delete that folder and start the "
                "same command again."
            ) from cause
    numbers = [np.full(len(some), number) for number, some in enumerate(cubes)]
    return CubeSet(
        np.concatenate(cubes),
        np.concatenate(numbers),
        np.concatenate(tasks),
        np.concatenate(targets),
        tuple(scan.case for scan in scans),
    )
