"""What the six layouts share: sizes, a subject's own random numbers, voxel orders, traps, files."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from training.corpora.phantom.subject import PhantomSubject, Vector, make_subject
from training.corpora.phantom.tissues import TISSUES
from universal_model_hub.volume import Volume, save_volume

# Factor on every length of a "toy" scan: a tiny scan of a body of about 12 cm, so that resampling
# it to 1 mm stays cheap. For smoke tests.
_TOY_SCALE = 0.3
SIZES = ("toy", "tiny", "small", "medium", "real")


class Frame(NamedTuple):
    """Field of view of a corpus, and its spacing at each size; "real" is the real set's."""

    field_mm: Vector
    tiny: Vector
    small: Vector
    medium: Vector
    real: Vector


FRAMES = {
    "luna16": Frame((380, 380, 300), (6, 6, 6), (3, 3, 3), (1.5, 1.5, 2), (0.74, 0.74, 1.25)),
    "lits2017": Frame((400, 400, 300), (6, 6, 6), (3, 3, 3), (1.6, 1.6, 2), (0.77, 0.77, 1.0)),
    "brats2018": Frame((240, 240, 155), (4, 4, 4), (2, 2, 2), (1.5, 1.5, 1.5), (1, 1, 1)),
    "msd_heart": Frame((360, 360, 150), (6, 6, 6), (3, 3, 3), (2, 2, 2), (1.25, 1.25, 1.37)),
    "mmwhs_ct": Frame((210, 210, 185), (4, 4, 4), (2, 2, 2), (1, 1, 1), (0.45, 0.45, 0.63)),
    "mmwhs_mr": Frame((300, 300, 180), (5, 5, 5), (2.5, 2.5, 2.5), (1.5, 1.5, 2), (1, 1, 1.6)),
    "adni": Frame((190, 220, 176), (4, 4, 4), (2.5, 2.5, 2.5), (2, 2, 2), (1.75, 2, 1.6)),
}


class Job(NamedTuple):
    """One subject to write."""

    folder: Path
    number: int  # from 0
    seed: int
    size: str
    traps: frozenset[str]  # those that hit this subject


class Written(NamedTuple):
    """What a subject adds to the corpus' tables, and the files that traps were planted in."""

    rows: dict[str, list[tuple]]  # by table
    planted: dict[str, str]  # trap -> file, relative to the corpus folder


def subject_rng(job: Job, corpus: str) -> np.random.Generator:
    """Random numbers of one subject: they do not depend on how many others there are."""
    key = sorted(FRAMES).index(corpus)
    return np.random.default_rng(np.random.SeedSequence([job.seed, key, job.number]))


def framed_subject(
    job: Job, corpus: str, kind: str, rng: np.random.Generator, *, spread: float = 0.0, **options
) -> PhantomSubject:
    """Make a subject with the corpus' field of view; ``spread`` varies spacing and height."""
    frame = FRAMES[corpus]
    spacing = frame.tiny if job.size == "toy" else getattr(frame, job.size)
    wide, high = np.exp(rng.uniform(-spread, spread, 2))
    drawn = (spacing[0] * wide, spacing[1] * wide, spacing[2])
    field = (frame.field_mm[0] * wide, frame.field_mm[1] * wide, frame.field_mm[2] * high)
    return make_subject(kind, rng, drawn, field_mm=field, **options)


def world_scale(job: Job) -> float:
    """Factor on world coordinates: below 1 for toys."""
    return _TOY_SCALE if job.size == "toy" else 1.0


def filed(volume: Volume, job: Job, order: str) -> Volume:
    """Return a volume as its file holds it: voxel axes in the given order, toys scaled down."""
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(order)))
    array = np.ascontiguousarray(apply_orientation(volume.array, turn))
    affine = volume.affine @ inv_ornt_aff(turn, volume.shape)
    affine[:3] *= world_scale(job)
    return Volume(array, affine)


def label_volume(subject: PhantomSubject, values: dict[str, int], dtype: type) -> Volume:
    """Translate tissues to a corpus' label values; all else is 0."""
    table: np.ndarray = np.zeros(len(TISSUES), dtype=dtype)
    for name, value in values.items():
        table[TISSUES[name]] = value
    return Volume(table[subject.labels], subject.affine)


def trapped_labels(labels: Volume, job: Job, *, foreign: int) -> Volume:
    """Return labels with the traps of this job: empty, a foreign value, another grid."""
    array, affine = labels.array.copy(), labels.affine.copy()
    if "empty_label" in job.traps:
        array[:] = 0
    if "label_out_of_range" in job.traps:
        array[tuple(side // 2 for side in array.shape)] = foreign
    if "stray_421" in job.traps:
        atrium = np.argwhere(array == 420)
        array[tuple(atrium[: max(1, len(atrium) // 200)].T)] = 421
    if "geometry_mismatch" in job.traps:
        affine[:3, 2] *= 1.5
    return Volume(array, affine)


def save_scan(volume: Volume, path: Path, job: Job) -> None:
    """Write a scan; with the trap ``nan_voxels``, as float32 with NaN in a few voxels."""
    if "nan_voxels" not in job.traps:
        save_volume(volume, path)
        return
    array = volume.array.astype(np.float32)
    X, Y, Z = array.shape
    array[X // 3 : X // 3 + 3, Y // 2, Z // 2] = np.nan
    nib.save(nib.Nifti1Image(array, volume.affine), path)


def planted(job: Job, traps: tuple[str, ...], path: Path) -> dict[str, str]:
    """Name the file in which each of these traps lies, if this job has them."""
    name = path.relative_to(job.folder).as_posix()
    return {trap: name for trap in traps if trap in job.traps}
