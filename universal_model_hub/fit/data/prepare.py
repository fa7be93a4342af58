"""Cases on the model grid, written once and read by memory mapping.

What a network is trained on is what ``predict`` would show it: the same preprocessing, channel by
channel. Labels come to the model grid by their nearest voxel, numbered 0, 1, 2, ... as the head's
classes; -1 is not annotated.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import atomic_path, parse_json, write_json
from universal_model_hub.fit.data.cases import NOT_ANNOTATED, Case, CaseSet, LoadedCase, LoadedScan
from universal_model_hub.preprocess import Preprocessing, PreprocessRecord, preprocess_channels
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.resample import resample
from universal_model_hub.volume import Volume, load_volume
from universal_model_hub.volume.content import scan_sha256

Part = Literal["all", "trained", "kept_back"]
SLAB_MM = 12.0  # of a scan whose own slabs are trained on and kept back
EVERY = 4  # one slab in so many is kept back


@dataclass(frozen=True)
class Prepared:
    """Where a case lies on the model grid."""

    case: Case
    image: Path  # .npy: (C, X, Y, Z) float32 in [0, 1]
    labels: Path | None  # .npy: (X, Y, Z) int16; of classification None

    def loaded(self) -> LoadedCase:
        """Return the case for a ``CubeSampler``, memory-mapped."""
        assert self.labels is not None
        return LoadedCase(
            self.case.id, np.load(self.image, mmap_mode="r"), np.load(self.labels, mmap_mode="r")
        )

    def scan(self, target: int) -> LoadedScan:
        """Return the case for a ``ScanSampler``, memory-mapped."""
        return LoadedScan(self.case.id, np.load(self.image, mmap_mode="r"), target)


def prepare_cases(
    cases: Sequence[Case],
    data: CaseSet,
    preprocessing: Preprocessing,
    numbers: Mapping[int, int],
    folder: Path,
    *,
    part: Part = "all",
    progress: bool = False,
) -> list[Prepared]:
    """Bring cases to the model grid, or find them there.

    Args:
        cases: Of ``data``, or some of them.
        data: Says task and modalities.
        preprocessing: Of the weights.
        numbers: Label value to class number; of classification empty.
        folder: The cache; made if it is missing. A file in it is whole or not there.
        part: Which slabs of the scan keep their labels, see ``slabs_kept_back``.
        progress: Show a bar on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for case in tqdm(cases, desc="preparing", unit="case", disable=not progress):
        image_key, key = _keys(case, data, preprocessing, numbers, part)
        image = folder / f"image-{image_key}.npy"
        record_file = image.with_suffix(".json")
        if not (image.is_file() and record_file.is_file()):
            _write_image(case, data, preprocessing, image, record_file)
        labels = None
        if case.labels is not None:
            labels = folder / f"labels-{key}.npy"
            if not labels.is_file():
                record = PreprocessRecord.from_json(parse_json(record_file.read_bytes()))
                _write_labels(case, numbers, record, part, labels)
        found.append(Prepared(case, image, labels))
    return found


def class_labels(labels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Turn label values (X, Y, Z) into class numbers, int16; -1 stays.

    Raises:
        ConfigError: If a value has no class.
    """
    values, places = np.unique(np.asarray(labels), return_inverse=True)
    known = {0: 0, NOT_ANNOTATED: NOT_ANNOTATED, **numbers}
    unknown = [f"{float(value):g}" for value in values if float(value) not in known]
    if unknown:
        raise ConfigError(
            f"Expected the label values {sorted(known)}, got {', '.join(unknown[:8])}. Correct the "
            "label map."
        )
    table = np.array([known[int(value)] for value in values], np.int16)
    return table[places].reshape(np.shape(labels))


def slabs_kept_back(labels: Volume) -> np.ndarray:
    """Say which voxels of the only scan there is are scored on and not trained on.

    Every fourth slab of 12 mm (two voxels at the least) across the axis with the thickest voxels;
    of equal ones across the longest. Such a score is optimistic: neighbors of what is scored were
    trained on, and it says nothing about another subject.

    Returns:
        Boolean, to be multiplied with (X, Y, Z): one axis has its length, the others 1.
    """
    spacing, shape = np.array(labels.spacing), np.array(labels.shape)
    thick = np.isclose(spacing, spacing.max(), rtol=1e-2)
    axis = int(np.argmax(np.where(thick, spacing * shape, 0)))
    planes = max(2, round(SLAB_MM / spacing[axis]))
    kept = (np.arange(shape[axis]) // planes) % EVERY == 1
    wanted = [1, 1, 1]
    wanted[axis] = -1
    return kept.reshape(wanted)


def only_part(array: np.ndarray, labels: Volume, part: Part) -> np.ndarray:
    """Take the labels (X, Y, Z) of the other part away: -1."""
    if part == "all":
        return array
    kept = slabs_kept_back(labels)
    return np.where(kept == (part == "kept_back"), array, np.int16(NOT_ANNOTATED))


def data_sha256(data: CaseSet, preprocessing: Preprocessing, numbers: Mapping[int, int]) -> str:
    """Return one hash of the files of all cases and all that is done to them, whatever their order.

    Nothing is prepared for it.
    """
    keys = [
        f"{_keys(case, data, preprocessing, numbers, 'all')[1]} {case.target or ''}"
        for case in data.cases
    ]
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def _write_image(
    case: Case, data: CaseSet, preprocessing: Preprocessing, path: Path, record_file: Path
) -> None:
    volumes = [load_volume(image) for image in case.images]
    image, record = preprocess_channels(volumes, preprocessing, data.modalities)
    _save(path, image[0].numpy())
    write_json(record_file, record.to_json())


def _write_labels(
    case: Case, numbers: Mapping[int, int], record: PreprocessRecord, part: Part, path: Path
) -> None:
    assert case.labels is not None
    volume = load_volume(case.labels)
    own = only_part(class_labels(volume.array, numbers), volume, part)
    oriented = np.ascontiguousarray(orient(own, record.axes, record.flips))
    grid = resample(oriented, record.model_shape, record.scale, record.offset, 0)
    _save(path, grid.numpy().astype(np.int16))


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def _keys(
    case: Case,
    data: CaseSet,
    preprocessing: Preprocessing,
    numbers: Mapping[int, int],
    part: Part,
) -> tuple[str, str]:
    """Return the hashes that name a case's prepared image, and image and labels together."""
    made: dict[str, Any] = {
        "images": [scan_sha256(path) for path in case.images],
        "modalities": list(data.modalities),
        "preprocessing": preprocessing.to_json(),
    }
    image = _key(made)
    if case.labels is not None:
        made |= {"labels": scan_sha256(case.labels), "numbers": sorted(numbers.items())}
        made["part"] = part
    return image, _key(made)


def _key(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]
