"""From the scans and phantoms of a task to arrays on its working grid.

A scan is preprocessed whole, as a user's would be, and cut afterwards. Labels come to the working
grid by their nearest voxel; -1 means that a voxel is not annotated, or counts neither way.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.corpora.packaged import label_names, load_packaged, load_packaged_labels
from training.corpora.packaged_table import get_scan
from training.corpora.phantom import (
    CT_SCANNERS,
    MR_SCANNERS,
    TISSUES,
    make_subject,
    render_ct,
    render_mr,
)
from training.release.tasks import AXES, Part, Task
from universal_model_hub.errors import ConfigError
from universal_model_hub.preprocess import Preprocessing, PreprocessRecord, preprocess
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.resample import resample
from universal_model_hub.volume import Volume

NOT_ANNOTATED = -1
MARGIN = 8  # voxels kept beyond what is annotated in a test scan
SAME_PLACE_MM = 0.1  # a label grid this close to the scan's is the scan's


@dataclass(frozen=True)
class GridCase:
    """A scan, or a piece of one, on the working grid of a task."""

    id: str
    subject: str
    image: np.ndarray  # (X, Y, Z) float32 in [0, 1]
    labels: np.ndarray  # (X, Y, Z) int16: 0 background, -1 not annotated


def training_cases(task: Task) -> list[GridCase]:
    """Return one case for each annotated slab, or the whole scan where nothing else is said."""
    if task.is_phantom:
        cases = []
        for index, slab in enumerate(task.train.slabs):
            whole = phantom_case(task, "train", task.train.first + index)
            cases.append(slab_case(whole, task, slab, whole.id))
        return cases
    whole = scan_case(task, "train")
    if not task.train.slabs:
        return [whole]
    return [
        slab_case(whole, task, slab, f"{whole.id}-slab{index}")
        for index, slab in enumerate(task.train.slabs)
    ]


def test_cases(task: Task) -> list[GridCase]:
    """Return the test subjects; what lies outside annotated slabs does not count."""
    part = task.test
    if part.region:
        numbers = range(part.first, part.first + part.subjects)
        return [phantom_case(task, "test", number) for number in numbers]
    whole = scan_case(task, "test")
    if not part.slabs:
        return [whole]
    axis = AXES.index(part.slab_axis)
    inside = np.zeros(whole.labels.shape[axis], bool)
    for slab in part.slabs:
        inside[slab_voxels(slab, task.spacing_mm, len(inside))] = True
    places = np.flatnonzero(inside)
    kept = slice(max(0, int(places[0]) - MARGIN), int(places[-1]) + 1 + MARGIN)
    return [cut(only_in(whole, axis, inside), axis, kept)]


test_cases.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def scan_case(task: Task, side: str) -> GridCase:
    """Load the packaged scan of one side of a task, whole or a half of the head."""
    part: Part = getattr(task, side)
    scan = get_scan(part.scan, task.purpose)
    volume = load_packaged(part.scan, purpose=task.purpose)
    labels = load_packaged_labels(part.scan, part.labels, purpose=task.purpose)
    classes = class_table(task, side, label_names(part.scan, part.labels))
    array = class_labels(on_grid_of(labels, volume), classes)
    if part.slice_mm:
        volume, array = thick_slices(volume, array, part.slice_mm)
    image, given, record = to_grid(task, volume, array)
    case = GridCase(part.scan + (f"-{part.half}" if part.half else ""), scan.subject, image, given)
    return half_of(case, record, part.half) if part.half else case


def thick_slices(volume: Volume, labels: np.ndarray, slice_mm: float) -> tuple[Volume, np.ndarray]:
    """Average a scan's thin slices to thick ones, as a scanner would; labels are the middle ones'.

    Args:
        volume: Its third axis counts slices.
        labels: (X, Y, Z) on the scan's grid.
        slice_mm: Thickness to come near to; slices that do not fill a last thick one are left out.
    """
    count = max(1, round(slice_mm / volume.spacing[2]))
    whole = volume.shape[2] // count
    array = np.asarray(volume.array, np.float32)[:, :, : whole * count]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (count - 1) / 2  # the center of the first thick slice
    affine[:3, 2] *= count
    averaged = array.reshape(*array.shape[:2], whole, count).mean(axis=3)
    return Volume(averaged, affine), labels[:, :, count // 2 :: count][:, :, :whole]


def phantom_case(task: Task, side: str, number: int) -> GridCase:
    """Make one synthetic subject of a task and scan it on a random scanner."""
    part: Part = getattr(task, side)
    body, scanner = np.random.default_rng([part.seed, number]).spawn(2)
    subject = make_subject(part.region, body, task.spacing_mm, field_mm=part.field_mm)
    if task.modality == "CT":
        name = str(scanner.choice(sorted(CT_SCANNERS)))
        volume = render_ct(subject, scanner, CT_SCANNERS[name], phase=part.phase)
    else:
        name = str(scanner.choice(sorted(MR_SCANNERS)))
        volume = render_mr(subject, scanner, part.sequence, MR_SCANNERS[name])
    classes = class_table(task, side, {value: name for name, value in TISSUES.items()})
    image, labels, _ = to_grid(task, volume, class_labels(subject.labels, classes))
    identity = f"{part.region}{number:03d}"
    return GridCase(identity, identity, image, labels)


def class_table(task: Task, side: str, names: Mapping[int, str]) -> dict[int, int]:
    """Return the class of each label value: its number, or -1 where it counts neither way.

    Raises:
        ConfigError: If a class finds no label; it would be trained on nothing.
    """
    part: Part = getattr(task, side)
    table = {value: NOT_ANNOTATED for value, name in names.items() if _fits(name, part.ignore)}
    for number, (label, patterns) in enumerate(task.classes.items(), start=1):
        values = [value for value, name in names.items() if _fits(name, patterns[side])]
        if not values:
            raise ConfigError(
                f"Expected labels named {', '.join(patterns[side])} for {label} of {task.name}, "
                f"got {', '.join(list(names.values())[:8])}. Correct the patterns."
            )
        table.update(dict.fromkeys(values, number))
    return table


def class_labels(labels: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Turn label values (X, Y, Z) into class numbers, int16; what has no class is background."""
    values = np.asarray(labels).astype(np.int64)
    table = np.zeros(max(int(values.max()), *classes) + 1, np.int16)
    for value, number in classes.items():
        table[value] = number
    return table[np.maximum(values, 0)]


def on_grid_of(labels: Volume, volume: Volume) -> np.ndarray:
    """Return labels voxel by voxel of a scan; what lies outside their own grid is 0."""
    same = labels.shape == volume.shape
    if same and np.abs(labels.affine - volume.affine).max() < SAME_PLACE_MM:
        return np.asarray(labels.array)
    index = np.indices(volume.shape, dtype=np.float32).reshape(3, -1)
    way = np.linalg.inv(labels.affine) @ volume.affine
    place = np.rint(way[:3, :3] @ index + way[:3, 3:]).astype(np.int64)
    inside = (place >= 0).all(axis=0) & (place < np.array(labels.shape)[:, None]).all(axis=0)
    found = np.zeros(place.shape[1], np.asarray(labels.array).dtype)
    found[inside] = np.asarray(labels.array)[tuple(place[:, inside])]
    return found.reshape(volume.shape)


def to_grid(
    task: Task, volume: Volume, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, PreprocessRecord]:
    """Bring a scan and its labels to the working grid: (X, Y, Z) each, and the record."""
    spacing = task.spacing_mm
    settings = replace(Preprocessing(), spacing=(spacing, spacing, spacing))
    image, record = preprocess(volume, settings, task.modality)
    oriented = np.ascontiguousarray(orient(labels, record.axes, record.flips))
    given = resample(oriented, record.model_shape, record.scale, record.offset, 0)
    return image[0, 0].numpy(), given.numpy().astype(np.int16), record


def half_of(case: GridCase, record: PreprocessRecord, half: str) -> GridCase:
    """Keep the voxels left or right of the midline (x = 0); the right half is mirrored."""
    x_mm = record.model_affine[0, 0] * np.arange(case.image.shape[0]) + record.model_affine[0, 3]
    kept = np.flatnonzero(x_mm < 0 if half == "left" else x_mm > 0)
    if half == "right":
        kept = kept[::-1]
    return replace(
        case,
        image=np.ascontiguousarray(case.image[kept]),
        labels=np.ascontiguousarray(case.labels[kept]),
    )


def slab_case(case: GridCase, task: Task, slab: Sequence[float], identity: str) -> GridCase:
    """Keep one annotated slab, with as much around it as a training cube needs."""
    axis = AXES.index(task.train.slab_axis)
    side = case.labels.shape[axis]
    voxels = slab_voxels(slab, task.spacing_mm, side)
    inside = np.zeros(side, bool)
    inside[voxels] = True
    thickness = max(task.cube[axis], voxels.stop - voxels.start)
    low = (voxels.start + voxels.stop - thickness) // 2
    low = min(max(0, low), max(0, side - thickness))
    kept = cut(only_in(case, axis, inside), axis, slice(low, low + thickness))
    return replace(kept, id=identity)


def slab_voxels(slab: Sequence[float], spacing_mm: float, side: int) -> slice:
    """Return the voxels whose centers lie in a slab, at least one.

    Raises:
        ConfigError: If the slab lies outside the field of view.
    """
    low, high = (int(np.ceil(mm / spacing_mm - 0.5)) for mm in slab)
    low, high = max(0, low), min(side, max(high, low + 1))
    if low >= high:
        raise ConfigError(
            f"Expected slabs within {side * spacing_mm:g} mm, got {list(slab)}. Correct them."
        )
    return slice(low, high)


def only_in(case: GridCase, axis: int, inside: np.ndarray) -> GridCase:
    """Take the labels outside some planes of an axis away."""
    shape = [1, 1, 1]
    shape[axis] = -1
    labels = np.where(inside.reshape(shape), case.labels, np.int16(NOT_ANNOTATED))
    return replace(case, labels=labels)


def cut(case: GridCase, axis: int, kept: slice) -> GridCase:
    """Keep the planes of a slice along an axis."""
    place = tuple(kept if a == axis else slice(None) for a in range(3))
    return replace(
        case,
        image=np.ascontiguousarray(case.image[place]),
        labels=np.ascontiguousarray(case.labels[place]),
    )


def split_labels(labels: np.ndarray, axis: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split annotated voxels by a plane that leaves a share of the foreground beyond it.

    Args:
        labels: (X, Y, Z) int16.
        axis: Across which the plane lies.
        share: Of the foreground voxels, kept back.

    Returns:
        Labels to train on and labels kept back; in each, the other side is not annotated.
    """
    places = np.nonzero(labels > 0)[axis]
    annotated = np.nonzero(labels != NOT_ANNOTATED)[axis]
    chosen = places if len(places) else annotated
    plane = int(np.quantile(chosen, 1 - share)) if len(chosen) else 0
    shape = [1, 1, 1]
    shape[axis] = -1
    beyond = (np.arange(labels.shape[axis]) > plane).reshape(shape)
    nothing = np.int16(NOT_ANNOTATED)
    return np.where(beyond, nothing, labels), np.where(beyond, labels, nothing)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
