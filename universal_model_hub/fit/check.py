"""Everything that is wrong with a data set, at once and before anything is written; and what it is.

Each file is read once, one case at a time.
"""

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.fit.cases import Case, CaseSet, Finding
from universal_model_hub.fit.sampling import NOT_ANNOTATED
from universal_model_hub.preprocess import Preprocessing, model_shape
from universal_model_hub.preprocess.channels import check_same_grid
from universal_model_hub.preprocess.modality import choose, sample_of
from universal_model_hub.volume import Volume, load_volume

LISTED = 20  # errors in one message
SMALLEST_SIDE = 8  # voxels on the model grid
THICK = 8.0  # times as thick as wide
SPREAD = 3.0  # times as coarse as another case
PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What a case is."""

    id: str
    shape: tuple[int, ...]  # (X, Y, Z)
    spacing_mm: tuple[float, ...]
    model_shape: tuple[int, ...]  # on the grid of the weights
    modalities: tuple[str, ...]  # as recognized or given, one a channel
    intensities: tuple[tuple[float, ...], ...]  # percentiles of each channel
    label_voxels: Mapping[int, int] = field(default_factory=dict)
    label_ml: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The state of a data set."""

    findings: tuple[Finding, ...]
    cases: tuple[CaseFacts, ...]
    label_voxels: Mapping[int, int]  # over all cases
    targets: Mapping[str, int]  # cases of each class
    splits: Mapping[str, int]  # cases of each side; "to be drawn" for those without one
    median_spacing_mm: tuple[float, float, float]
    median_shape: tuple[int, int, int]  # on the grid of the weights

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def errors(self) -> list[Finding]:
        """Return what stops before training."""
        return [finding for finding in self.findings if finding.level == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "ok": self.ok}

    def text(self) -> str:
        """Return the report for a terminal: what there is, and everything that is wrong."""
        return "\n".join(_lines(self))


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
    contents: dict[str, list[Case]] = {}
    for case in tqdm(data.cases, desc="checking", unit="case", disable=not progress):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = _read_case(case, data, preprocessing, findings)
        findings += _once(case, caught)
        if found is not None:
            facts.append(found[0])
            contents.setdefault(found[1], []).append(case)
    findings += [f for same in contents.values() for f in _twice(same)]
    voxels: Counter[int] = Counter()
    for one in facts:
        voxels.update(one.label_voxels)
    findings += [*_splits(data), *_labels(data, facts, voxels), *_targets(data), *_likeness(facts)]
    shapes = [one.model_shape for one in facts] or [(1, 1, 1)]
    spacings = [one.spacing_mm for one in facts] or [(1.0, 1.0, 1.0)]
    x, y, z = (int(side) for side in np.median(shapes, axis=0))
    sx, sy, sz = (float(side) for side in np.median(spacings, axis=0))
    return DataReport(
        findings=tuple(findings),
        cases=tuple(facts),
        label_voxels=dict(sorted(voxels.items())),
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


def _read_case(
    case: Case, data: CaseSet, preprocessing: Preprocessing, findings: list[Finding]
) -> tuple[CaseFacts, str] | None:
    """Read a case; return its facts and a hash of its voxels, None if it cannot be used."""
    before = len(findings)
    volumes = [v for path in case.images if (v := _load(path, findings)) is not None]
    labels = None if case.labels is None else _load(case.labels, findings)
    if len(volumes) < len(case.images) or (case.labels is not None and labels is None):
        return None
    try:
        check_same_grid(volumes)
    except UniversalModelError as error:
        findings.append(Finding("error", case.id, str(error)))
    digest = hashlib.sha256()
    intensities, modalities = [], []
    for path, volume, asked in zip(case.images, volumes, data.modalities, strict=False):
        sample = sample_of(volume.array)
        if float(sample.min()) == float(sample.max()) and not np.ptp(volume.array):
            text = f"Expected a scan with contrast, all voxels are {float(sample.min()):g}."
            findings.append(Finding("error", str(path), text))
        intensities.append(tuple(float(p) for p in np.percentile(sample, PERCENTILES)))
        modalities.append(choose(asked, sample).modality)
        digest.update(np.ascontiguousarray(volume.array).data)
    counts: dict[int, int] = {}
    if labels is not None and case.labels is not None:
        counts = _label_counts(case.labels, labels, volumes[0], data, findings)
    if any(finding.level == "error" for finding in findings[before:]):
        return None
    shape = model_shape(volumes[0], preprocessing)
    voxel_ml = math.prod(volumes[0].spacing) / 1000
    facts = CaseFacts(
        id=case.id,
        shape=volumes[0].shape,
        spacing_mm=tuple(round(float(s), 4) for s in volumes[0].spacing),
        model_shape=shape,
        modalities=tuple(modalities),
        intensities=tuple(intensities),
        label_voxels=counts,
        label_ml={value: round(count * voxel_ml, 3) for value, count in counts.items()},
    )
    return facts, digest.hexdigest()


def _load(path: Path, findings: list[Finding]) -> Volume | None:
    try:
        return load_volume(path)
    except (UniversalModelError, OSError) as error:
        findings.append(Finding("error", str(path), str(error)))
        return None


def _label_counts(
    path: Path, labels: Volume, scan: Volume, data: CaseSet, findings: list[Finding]
) -> dict[int, int]:
    """Compare a label map with its scan and count the voxels of each value."""

    def wrong(text: str) -> dict[int, int]:
        findings.append(Finding("error", str(path), text))
        return {}

    try:
        check_same_grid([scan, labels])
    except UniversalModelError as error:
        text = str(error).replace("channel 2", "the label map").replace("channel 1", "its scan")
        wrong(text)
    values, counts = np.unique(labels.array, return_counts=True)
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        odd = [float(v) for v in values if v != np.rint(v)][:3]
        return wrong(f"Expected whole numbers as labels, got values such as {odd}.")
    found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    negative = [value for value in found if value < 0 and value != NOT_ANNOTATED]
    if negative:
        return wrong(f"Expected labels from 0 (-1: not annotated), got {negative[:3]}.")
    if len(found) > 1000:
        return wrong(f"Expected a label map, got {len(found)} different values: is it a scan?")
    unknown = [v for v in found if data.classes and v > 0 and v not in data.classes]
    if unknown:
        return wrong(f"Expected the labels {sorted(data.classes or {})}, got {unknown[:8]}.")
    if not any(value > 0 for value in found):
        text = "No voxel has a label other than 0: an empty label map."
        findings.append(Finding("warning", str(path), text))
    return found


def _once(case: Case, caught: Sequence[warnings.WarningMessage]) -> list[Finding]:
    """Turn what reading warned of into findings, each text once."""
    texts = dict.fromkeys(
        str(w.message) for w in caught if w.category.__module__.startswith("universal_model_hub")
    )
    return [Finding("warning", case.id, text) for text in texts]


def _twice(same: Sequence[Case]) -> Iterator[Finding]:
    if len(same) < 2:
        return
    names = ", ".join(case.id for case in same)
    sides = {case.split for case in same}
    subjects = {case.subject for case in same}
    across = len(sides) > 1 or (None in sides and len(subjects) > 1)
    yield Finding(
        "error" if across else "warning",
        same[0].id,
        f"The same voxels are in {names}"
        + (": a scan would train and judge. Keep one." if across else ". Keep one."),
    )


def _splits(data: CaseSet) -> Iterator[Finding]:
    sides: dict[str, set[str]] = {}
    for case in data.cases:
        if case.split is not None:
            sides.setdefault(case.subject, set()).add(case.split)
    for subject, found in sorted(sides.items()):
        if len(found) > 1:
            text = f"Expected a subject on one side of the split, got {', '.join(sorted(found))}."
            yield Finding("error", subject, text)
    if data.cases and all(case.split in ("validation", "test") for case in data.cases):
        yield Finding("error", str(data.source), "Expected cases to train on, got none.")


def _labels(
    data: CaseSet, facts: Sequence[CaseFacts], voxels: Mapping[int, int]
) -> Iterator[Finding]:
    if data.task != "segmentation" or not facts:
        return
    if not any(value > 0 and count for value, count in voxels.items()):
        yield Finding("error", str(data.source), "Expected labeled voxels, got none in any case.")
    for value, name in (data.classes or {}).items():
        if value > 0 and not voxels.get(value):
            text = f"No case has a voxel of label {value} ({name}): it is left out."
            yield Finding("warning", str(data.source), text)
    if len(facts) > 1:
        for value in (v for v in voxels if v > 0):
            holders = [one.id for one in facts if one.label_voxels.get(value)]
            if len(holders) == 1:
                text = f"Label {value} is in this case only: it can be learned or judged, not both."
                yield Finding("warning", holders[0], text)


def _targets(data: CaseSet) -> Iterator[Finding]:
    if data.task != "classification":
        return
    subjects: dict[str, set[str]] = {}
    for case in data.cases:
        subjects.setdefault(case.target or "", set()).add(case.subject)
    if len(subjects) < 2:
        text = f"Expected at least two classes, got {', '.join(subjects) or 'none'}."
        yield Finding("error", str(data.source), text)
    for target, found in sorted(subjects.items()):
        if len(found) < 2:
            text = f"Expected two subjects of class {target}, to train and to judge, got one."
            yield Finding("error", str(data.source), text)


def _likeness(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Tell which cases are unlike the others."""
    if not facts:
        return
    usual = Counter(one.modalities for one in facts).most_common(1)[0][0]
    volume = np.median([math.prod(one.spacing_mm) for one in facts])
    for one in facts:
        if one.modalities != usual:
            text = f"Taken as {', '.join(one.modalities)}, most others as {', '.join(usual)}."
            yield Finding("error", one.id, f"{text} Pass the modality if that is wrong.")
        if max(one.spacing_mm) > THICK * min(one.spacing_mm):
            text = f"Voxels of {' x '.join(f'{s:g}' for s in one.spacing_mm)} mm are very uneven."
            yield Finding("warning", one.id, text)
        ratio = (math.prod(one.spacing_mm) / volume) ** (1 / 3)
        if max(ratio, 1 / ratio) > SPREAD:
            text = "Its voxels differ threefold in size from those of most others."
            yield Finding("warning", one.id, text)
        if min(one.model_shape) < SMALLEST_SIDE:
            sides = " x ".join(map(str, one.model_shape))
            text = f"Only {sides} voxels on the network's grid: there is little to see."
            yield Finding("warning", one.id, text)


def _lines(report: DataReport) -> Iterator[str]:
    yield f"{'case':<28}{'voxels':>16}{'spacing, mm':>22}{'network':>16}  modality  labels, ml"
    for one in report.cases:
        spacing = " x ".join(f"{s:.3g}" for s in one.spacing_mm)
        labels = ", ".join(f"{v}: {ml:g}" for v, ml in one.label_ml.items() if v > 0)
        yield (
            f"{one.id[:27]:<28}{'x'.join(map(str, one.shape)):>16}{spacing:>22}"
            f"{'x'.join(map(str, one.model_shape)):>16}  {','.join(one.modalities):<9} {labels}"
        )
    for kind, counts in (("cases", report.splits), ("classes", report.targets)):
        if counts:
            yield f"{kind}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    for level in ("error", "warning"):
        for finding in report.findings:
            if finding.level == level:
                yield f"{level}: {finding.where}: {finding.text}"
    number = len(report.errors())
    yield "the data can be used" if not number else f"{number} errors: the data cannot be used"
