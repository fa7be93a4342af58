"""A user's scans as labeled samples: feature vectors of all arms, classes, subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.inference import Precision, progress_bar
from universal_model_hub.job import Job, make_job
from universal_model_hub.probe.arms import ARMS, SideBySide, settle_statistics
from universal_model_hub.probe.encoding import center_cube, scan_features, voxel_features
from universal_model_hub.probe.voxels import Voxels, draw_voxels
from universal_model_hub.volume import Volume, load_volume
from universal_model_hub.volume.grid import require_same_grid

Scan = Volume | Path | str
MOST_SAMPLES = 10_000  # voxels of all scans; more would take long and change little
LEAST_VOXELS = 5  # of a class and scan, however many there are
SETTLING_SCANS = 4  # that networks take the statistics of batch norm from
SAME_GRID = 0.1  # voxels that the labels may lie off their scan
HELD_OUT_PARTS = 4  # of a lone subject's scans one part in so many is held out


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One case: its channels, whose it is, on which side, and what is true of it."""

    images: tuple[Scan, ...]  # one a channel
    subject: str
    held_out: bool
    labels: Scan | None = None  # label map
    target: str | None = None  # class


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Voxels or scans; those of a scan lie together, in the order of their planes."""

    features: Mapping[str, np.ndarray]  # of each arm (P, F) float32
    classes: np.ndarray  # (P,) class numbers
    subjects: np.ndarray  # (P,) int64
    planes: np.ndarray  # (P,) int64, place along the scan's longest axis; of scans 0
    held_out: np.ndarray  # (P,) bool
    names: tuple[str, ...]  # of the classes

    @property
    def train(self) -> np.ndarray:
        """Rows that may be learned from."""
        return np.flatnonzero(~self.held_out)

    @property
    def test(self) -> np.ndarray:
        """Rows that are asked about."""
        return np.flatnonzero(self.held_out)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How scans are run; see ``predict``."""

    model: nn.Module  # carries the preprocessing
    network: SideBySide
    modalities: tuple[str, ...]  # one a channel
    device: str | torch.device | None
    precision: Precision
    memory_limit: int | None
    progress: bool

    def jobs(self, case: Examination) -> list[Job]:
        """Return a job for each channel: every channel runs alone, features are joined."""
        return [
            make_job(
                self.model,
                self.network,
                image,
                modality=modality,
                device=self.device,
                precision=self.precision,
                memory_limit=self.memory_limit,
                tile_batch=1,
                progress=False,
            )
            for image, modality in zip(case.images, self.modalities, strict=True)
        ]


def voxel_samples(
    cases: Sequence[Examination],
    encoding: Encoding,
    label_names: Mapping[int, str],
    points: int,
    rng: np.random.Generator,
) -> Samples:
    """Draw voxels of every class from every scan and encode them.

    Of a lone subject a slab is held out.

    Args:
        cases: With label maps.
        encoding: How scans are run.
        label_names: Label value to name, of those that have one.
        points: Voxels of a class and scan at most; fewer if there would be too many in all.
        rng: Draws the voxels.

    Raises:
        ConfigError: If there are fewer than two classes on a side.
    """
    drawn = [_drawn(case, points, stream) for case, stream in _streams(cases, rng)]
    present = sorted({int(value) for voxels in drawn for value in np.unique(voxels.values)})
    names = tuple(label_names.get(v, "background" if v == 0 else str(v)) for v in present)
    name_of = dict(zip(present, names, strict=True))
    require_two_classes(
        [
            (name_of[int(value)], case.held_out)
            for case, voxels in zip(cases, drawn, strict=True)
            for value in np.unique(voxels.values)
        ],
        by_side=not is_alone(cases),
    )
    limit = min(points, max(LEAST_VOXELS, MOST_SAMPLES // max(1, len(cases) * len(present))))
    _settle(cases, encoding)
    rows: list[dict[str, np.ndarray]] = []
    kept: list[Voxels] = []
    planes = []
    with progress_bar(len(cases), "scan", encoding.progress) as bar:
        for case, voxels in zip(cases, drawn, strict=True):
            jobs = encoding.jobs(case)
            axis = int(np.argmax(np.multiply(jobs[0].scan.spacing, jobs[0].scan.shape)))
            kept.append(voxels.at_most(limit).along(axis))
            planes.append(kept[-1].index[:, axis])
            rows.append(_joined([voxel_features(job, kept[-1].index) for job in jobs], axis=1))
            bar.update()
    samples = Samples(
        features={arm: np.concatenate([row[arm] for row in rows]) for arm in ARMS},
        classes=np.searchsorted(present, np.concatenate([v.values for v in kept])),
        subjects=np.repeat(_subject_numbers(cases), [len(v.values) for v in kept]),
        planes=np.concatenate(planes),
        held_out=np.repeat([case.held_out for case in cases], [len(v.values) for v in kept]),
        names=names,
    )
    return hold_out_slab(samples) if is_alone(cases) else samples


def scan_samples(cases: Sequence[Examination], encoding: Encoding) -> Samples:
    """Encode whole scans, each a sample of its class.

    Args:
        cases: With a target.
        encoding: How scans are run.
    """
    _settle(cases, encoding)
    names, classes = np.unique([str(case.target) for case in cases], return_inverse=True)
    rows = []
    with progress_bar(len(cases), "scan", encoding.progress) as bar:
        for case in cases:
            rows.append(_joined([scan_features(job) for job in encoding.jobs(case)], axis=0))
            bar.update()
    return Samples(
        features={arm: np.stack([row[arm] for row in rows]) for arm in ARMS},
        classes=classes,
        subjects=_subject_numbers(cases),
        planes=np.zeros(len(cases), np.int64),
        held_out=np.array([case.held_out for case in cases]),
        names=tuple(str(name) for name in names),
    )


def hold_out_slab(samples: Samples) -> Samples:
    """Hold out one slab of a lone subject's scans: of all, the one that splits the classes best.

    Neighbors of what is asked about were learned from, so that the score is optimistic.

    Raises:
        ConfigError: If no slab leaves two classes on both sides.
    """
    planes = samples.planes
    low, high = int(planes.min()), int(planes.max()) + 1
    thick = max(1, (high - low) // HELD_OUT_PARTS)
    best: tuple[tuple[int, int], np.ndarray] | None = None
    for start in range(low, high - thick + 1, max(1, thick // HELD_OUT_PARTS)):
        inside = (planes >= start) & (planes < start + thick)
        counts = [
            np.bincount(samples.classes[side], minlength=len(samples.names))
            for side in (inside, ~inside)
        ]
        fewer = np.minimum(*counts)
        merit = (int((fewer > 0).sum()), int(fewer.sum()))
        if best is None or merit > best[0]:
            best = merit, inside
    if best is None or best[0][0] < 2:
        raise ConfigError(
            "Expected two classes on both sides of a slab of the only subject, got none such. "
            "Bring a second subject."
        )
    return replace(samples, held_out=best[1])


def is_alone(cases: Sequence[Examination]) -> bool:
    """Whether all cases are of one subject."""
    return len({case.subject for case in cases}) == 1


def require_two_classes(found: Sequence[tuple[str, bool]], *, by_side: bool = True) -> None:
    """Refuse a question that has one answer.

    Args:
        found: Classes that occur, each with whether it was held out there.
        by_side: Ask both sides, and not only all of them together.

    Raises:
        ConfigError: If there is one class only.
    """
    sides = {"the data": {name for name, _ in found}}
    if by_side:
        sides["the training subjects"] = {name for name, held_out in found if not held_out}
        sides["the held-out subjects"] = {name for name, held_out in found if held_out}
    for where, names in sides.items():
        if len(names) < 2:
            raise ConfigError(
                f"Expected at least two classes in {where}, got {', '.join(names) or 'none'}. "
                "Bring scans of another class, or split them otherwise."
            )


def volume_of(scan: Scan) -> Volume:
    """Return a scan, read if it is a path."""
    return scan if isinstance(scan, Volume) else load_volume(scan)


def _drawn(case: Examination, points: int, rng: np.random.Generator) -> Voxels:
    assert case.labels is not None
    labels = volume_of(case.labels)
    for image in case.images:
        where = "a scan" if isinstance(image, Volume) else Path(image).name
        require_same_grid(volume_of(image), labels, where, SAME_GRID)
    return draw_voxels(labels.array, points, rng)


def _streams(
    cases: Sequence[Examination], rng: np.random.Generator
) -> list[tuple[Examination, np.random.Generator]]:
    return list(zip(cases, rng.spawn(len(cases)), strict=True))


def _settle(cases: Sequence[Examination], encoding: Encoding) -> None:
    """Give the copies of the encoder the statistics of some scans that may be learned from."""
    learned = [case for case in cases if not case.held_out] or list(cases)
    some = learned[:: max(1, len(learned) // SETTLING_SCANS)][:SETTLING_SCANS]
    cubes = [center_cube(job) for case in some for job in encoding.jobs(case)]
    for network in (encoding.network.settled, encoding.network.random):
        settle_statistics(network, cubes)


def _joined(parts: Sequence[Mapping[str, np.ndarray]], *, axis: int) -> dict[str, np.ndarray]:
    return {arm: np.concatenate([part[arm] for part in parts], axis=axis) for arm in ARMS}


def _subject_numbers(cases: Sequence[Examination]) -> np.ndarray:
    return np.unique([case.subject for case in cases], return_inverse=True)[1]
