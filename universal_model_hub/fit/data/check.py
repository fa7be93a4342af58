"""Everything that is wrong with a data set, at once and before anything is written; and what it is.

Each file is read once, one case at a time.
"""

import hashlib
import math
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.fit.data.cases import NOT_ANNOTATED, Case, CaseSet, Finding
from universal_model_hub.fit.data.comparison import compare_cases
from universal_model_hub.fit.data.data_report import PERCENTILES, CaseFacts, DataReport
from universal_model_hub.fit.data.layouts.names import leads_somewhere
from universal_model_hub.preprocess import Preprocessing, model_shape
from universal_model_hub.preprocess.channels import check_same_grid
from universal_model_hub.preprocess.modality import choose, sample_of
from universal_model_hub.volume import Volume, load_volume

LISTED = 20  # errors in one message
MOST_LABELS = 1000  # values of a label map; a scan has more
IMAGE_BYTES, LABEL_BYTES = 4, 2  # of a voxel in the cache, see ``prepare``


def check_cases(
    data: CaseSet, *, preprocessing: Preprocessing, progress: bool = False
) -> DataReport:
    """Read every file of a data set and tell what is wrong and what there is; write nothing.

    Args:
        data: As ``read_cases`` found it.
        preprocessing: Of the weights: on its grid sides are judged.
        progress: Show a bar on stderr.
    """
    findings = list(data.findings)
    facts: list[CaseFacts] = []
    contents: dict[str, list[tuple[Case, Path]]] = {}
    # The layout told of files that are not there; it is said once.
    missing = {f.where for f in data.findings if not leads_somewhere(f.where)}
    for case in tqdm(data.cases, desc="checking", unit="case", disable=not progress):
        found, hashes, told = _read_case(case, data, preprocessing)
        findings += [finding for finding in told if finding.where not in missing]
        if found is not None:
            facts.append(found)
        for path, digest in hashes.items():
            contents.setdefault(digest, []).append((case, path))
    voxels: Counter[int] = Counter()
    for one in facts:
        voxels.update(one.label_voxels)
    findings += compare_cases(data, facts, voxels, contents)
    shapes = [one.model_shape for one in facts] or [(1, 1, 1)]
    spacings = [one.spacing_mm for one in facts] or [(1.0, 1.0, 1.0)]
    x, y, z = (int(side) for side in np.median(shapes, axis=0))
    sx, sy, sz = (float(side) for side in np.median(spacings, axis=0))
    return DataReport(
        findings=tuple(findings),
        cases=tuple(facts),
        label_voxels=dict(sorted(voxels.items())),
        classes=dict(data.classes or {}),
        targets=dict(sorted(Counter(c.target for c in data.cases if c.target).items())),
        splits=dict(Counter(case.split or "to be drawn" for case in data.cases)),
        median_spacing_mm=(sx, sy, sz),
        median_shape=(x, y, z),
    )


def raise_if_bad(report: DataReport) -> None:
    """Stop at data that cannot be used.

    Raises:
        ConfigError: With every error, the first twenty in full.
    """
    errors = report.errors()
    if not errors:
        return
    told = [f"{finding.where}: {finding.text}" for finding in errors[:LISTED]]
    if len(errors) > LISTED:
        told.append(f"and {len(errors) - LISTED} more (--check lists all)")
    number = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    raise ConfigError(f"Expected data without errors, got {number}. " + " | ".join(told))


def cache_bytes(report: DataReport, preprocessing: Preprocessing) -> int:
    """Return about how much disk space the cases take on the model grid."""
    total = 0.0
    for one in report.cases:
        voxels = float(math.prod(one.shape))
        if preprocessing.spacing is not None:
            voxels *= math.prod(one.spacing_mm) / math.prod(preprocessing.spacing)
        labels = LABEL_BYTES if one.label_voxels else 0
        total += voxels * (IMAGE_BYTES * len(one.modalities) + labels)
    return math.ceil(total)


def check_space(report: DataReport, preprocessing: Preprocessing, folder: Path) -> None:
    """Refuse to begin where the cases on the model grid do not fit.

    Args:
        report: Of the data.
        preprocessing: Whose grid it is.
        folder: That will hold the cache, or that will be made for it.

    Raises:
        ConfigError: If the disk has too little space.
    """
    needed = cache_bytes(report, preprocessing)
    there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"Expected {needed / 1e9:.3g} GB of free space in {folder} for the prepared scans, got "
            f"{free / 1e9:.3g} GB. Choose another folder, or a coarser --spacing."
        )


def _read_case(
    case: Case, data: CaseSet, preprocessing: Preprocessing
) -> tuple[CaseFacts | None, dict[Path, str], list[Finding]]:
    """Read a case; return its facts, None if it has errors, hashes of its scans, and findings."""
    findings: list[Finding] = []
    loaded = [(path, _load(path, findings)) for path in case.images]
    scans = [(path, volume) for path, volume in loaded if volume is not None]
    labels = None if case.labels is None else _load(case.labels, findings, labels=True)
    hashes: dict[Path, str] = {}
    intensities, modalities = [], []
    for (path, volume), asked in zip(loaded, data.modalities, strict=False):
        if volume is None:
            continue
        sample = sample_of(volume.array)
        if not np.ptp(sample) and not np.ptp(volume.array):
            text = f"Expected a scan with contrast, all voxels are {float(sample[0]):g}."
            findings.append(Finding("error", str(path), text))
            continue
        intensities.append(tuple(float(p) for p in np.percentile(sample, PERCENTILES)))
        modalities.append(_modality(path, asked, sample, findings))
        hashes[path] = _hash(volume)
    for path, volume in scans[1:]:
        findings += _off_grid(path, volume, *scans[0])
    counts: dict[int, int] = {}
    if labels is not None and case.labels is not None:
        counts, told = _label_counts(case.labels, labels, data)
        findings += told
        findings += _off_grid(case.labels, labels, *scans[0]) if scans else []
    if any(finding.level == "error" for finding in findings) or not scans:
        return None, hashes, findings
    first = scans[0][1]
    voxel_ml = math.prod(first.spacing) / 1000
    facts = CaseFacts(
        id=case.id,
        shape=first.shape,
        spacing_mm=tuple(round(side, 4) for side in first.spacing),
        extent_mm=tuple(
            round(side * number, 2) for side, number in zip(first.spacing, first.shape, strict=True)
        ),
        model_shape=model_shape(first, preprocessing),
        modalities=tuple(modalities),
        intensities=tuple(intensities),
        label_voxels=counts,
        label_ml={value: round(count * voxel_ml, 3) for value, count in counts.items()},
    )
    return facts, hashes, findings


def _load(path: Path, findings: list[Finding], *, labels: bool = False) -> Volume | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            volume = load_volume(path)
        except (UniversalModelError, OSError) as error:
            findings.append(Finding("error", str(path), str(error)))
            return None
    for text in _own(caught):
        # A scan is filled with its lowest value, as outside the field of view; a label map would
        # get a label that nobody drew.
        wrong = labels and "NaN or Inf" in text
        told = text.removeprefix(f"{path.name}: ")
        told += " Correct the label map." if wrong else ""
        findings.append(Finding("error" if wrong else "warning", str(path), told))
    return volume


def _modality(path: Path, asked: str, sample: np.ndarray, findings: list[Finding]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choice = choose(asked, sample)
    findings += [Finding("warning", str(path), text) for text in _own(caught)]
    return choice.modality


def _own(caught: list[warnings.WarningMessage]) -> Iterator[str]:
    """Return what this package warned of, each text once."""
    package = __name__.partition(".")[0]
    yield from dict.fromkeys(
        str(w.message) for w in caught if w.category.__module__.partition(".")[0] == package
    )


def _hash(volume: Volume) -> str:
    """Return a hash of the voxels that is the same in whichever type they are stored."""
    digest = hashlib.sha256(str(volume.shape).encode())
    for z in range(volume.shape[2]):  # one slice is copied at a time
        digest.update(np.ascontiguousarray(volume.array[..., z], np.float32).data)
    return digest.hexdigest()


def _off_grid(path: Path, volume: Volume, first: Path, scan: Volume) -> list[Finding]:
    """Tell if a file does not lie voxel on voxel with the first scan of its case."""
    try:
        check_same_grid([scan, volume])
    except UniversalModelError as error:
        text = str(error).replace("channel 2", "it").replace("channel 1", str(first))
        return [Finding("error", str(path), text)]
    return []


def _label_counts(
    path: Path, labels: Volume, data: CaseSet
) -> tuple[dict[int, int], list[Finding]]:
    """Count the voxels of each value of a label map, and tell what is wrong with the values."""
    values, counts = np.unique(labels.array, return_counts=True)
    whole = values == np.rint(values)
    negative = [int(v) for v in values[whole] if v < 0 and v != NOT_ANNOTATED]
    unknown = [int(v) for v in values[whole] if data.classes and v > 0 and v not in data.classes]
    wrong = []
    if len(values) > MOST_LABELS:
        wrong = [f"Expected a label map, got {len(values)} different values: is it a scan?"]
    else:
        if not whole.all():
            odd = [float(v) for v in values[~whole][:3]]
            wrong.append(f"Expected whole numbers as labels, got values such as {odd}.")
        if negative:
            wrong.append(f"Expected labels from 0 (-1: not annotated), got {negative[:3]}.")
        if unknown:
            wrong.append(f"Expected the labels {sorted(data.classes or {})}, got {unknown[:8]}.")
    if wrong:
        return {}, [Finding("error", str(path), text) for text in wrong]
    found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    if not any(value > 0 for value in found):
        text = "No voxel has a label other than 0: an empty label map."
        return found, [Finding("warning", str(path), text)]
    return found, []
