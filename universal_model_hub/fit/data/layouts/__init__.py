"""A user's data on disk to a ``CaseSet``, in five layouts: one small module each.

What is wrong with single files or rows becomes a ``Finding``, so that all is told at once; only a
set that cannot be read at all raises.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Case, CaseSet, Finding, Task
from universal_model_hub.fit.data.layouts.bids import is_bids, read_bids
from universal_model_hub.fit.data.layouts.decathlon import is_nnunet, read_msd, read_nnunet
from universal_model_hub.fit.data.layouts.folders import read_class_folders, read_folder_pair
from universal_model_hub.fit.data.layouts.names import leads_somewhere
from universal_model_hub.fit.data.layouts.table import read_table

TABLES = (".csv", ".tsv", ".txt")
MODALITIES = ("CT", "MR", "auto")
LISTED = 20  # findings in one message


def read_cases(
    *,
    images: Path | None = None,
    labels: Path | None = None,
    data: Path | None = None,
    task: Task | None = None,
    modality: str | Sequence[str] = "auto",
    label_names: Mapping[int, str] | None = None,
) -> CaseSet:
    """Find out what the data are, and read their layout; no scan is opened.

    Args:
        images: Folder of scans; for classification with a folder a class in it.
        labels: Folder of label maps, named like the scans.
        data: Instead: a CSV, a Decathlon ``dataset.json``, an nnU-Net raw folder, a BIDS-like tree.
        task: None: segmentation where there are label maps, else classification.
        modality: CT, MR or auto; one for all channels, or one a channel.
        label_names: Names of label values; they go before those that the data set gives.

    Raises:
        ConfigError: If the set as a whole cannot be read.
    """
    for path in (images, labels, data):
        if path is not None and not path.exists():
            raise ConfigError(f"Expected data at {path}, got no such file or folder.")
    found = _read(images, labels, data, task)
    if not found.cases:
        told = [f" {finding.where}: {finding.text}" for finding in found.findings[:LISTED]]
        more = len(found.findings) - LISTED
        told += [f" And {more} more."] if more > 0 else []
        raise ConfigError(f"Expected cases in {found.source}, got none.{''.join(told)}")
    known = dict(found.classes or {}) | dict(label_names or {})
    return replace(
        found,
        modalities=_modalities(found, modality),
        classes=known or None,
        findings=(*found.findings, *_missing(found), *_repeated(found), *_odd_channels(found)),
    )


def _read(
    images: Path | None, labels: Path | None, data: Path | None, task: Task | None
) -> CaseSet:
    if (images is None) == (data is None):
        raise ConfigError("Expected images (and labels), or data: one of the two ways.")
    if images is not None:
        if labels is not None and task == "classification":
            raise ConfigError("Expected no label maps for classification: leave labels out.")
        if labels is None and task == "segmentation":
            raise ConfigError("Expected a folder of label maps for segmentation: pass labels.")
        return read_class_folders(images) if labels is None else read_folder_pair(images, labels)
    assert data is not None
    if labels is not None:
        raise ConfigError("Expected labels only together with images, got them with data.")
    if data.is_file() and data.suffix.lower() in TABLES:
        return read_table(data, task)
    if data.is_file() and data.suffix.lower() == ".json":
        data, described = data.parent, data
    else:
        described = data / "dataset.json"
    if data.is_dir() and described.is_file():
        if task == "classification":
            raise ConfigError(
                f"Expected segmentation for {described}, got classification. Write a CSV with the "
                "columns image and class."
            )
        return read_nnunet(described) if is_nnunet(described) else read_msd(described)
    if data.is_dir() and is_bids(data):
        return read_bids(data, task)
    raise ConfigError(
        f"Expected a CSV, a dataset.json (Decathlon), an nnU-Net raw folder or a BIDS-like tree "
        f"(sub-*/), got {data}. For two folders of files pass images and labels."
    )


def _modalities(found: CaseSet, modality: str | Sequence[str]) -> tuple[str, ...]:
    number = Counter(len(case.images) for case in found.cases).most_common(1)[0][0]
    if not isinstance(modality, str):
        given = tuple(modality)
    elif modality == "auto" and len(found.modalities) == number:
        given = found.modalities  # as the data set says
    else:
        given = (modality,) * number
    unknown = [word for word in given if word not in MODALITIES]
    if unknown:
        raise ConfigError(f"Expected modality {', '.join(MODALITIES)}, got {unknown[0]!r:.40}.")
    if len(given) != number:
        raise ConfigError(
            f"Expected a modality for each of {number} channels, got {len(given)}. Give one for "
            "all, or one a channel."
        )
    return given


def _missing(found: CaseSet) -> list[Finding]:
    findings = []
    for path in dict.fromkeys(path for case in found.cases for path in _files(case)):
        if not leads_somewhere(path):
            text = "Expected a scan, got no such file."
            if os.path.islink(path):  # noqa: PTH114  (as above)
                text = "Expected a scan, got a link that leads nowhere or in a circle."
            findings.append(Finding("error", str(path), text))
    return findings


def _repeated(found: CaseSet) -> list[Finding]:
    """Tell of names and files that are in the set more than once, links followed."""
    ids = Counter(case.id for case in found.cases)
    findings = [
        Finding("error", name, f"Expected each case once, got {count} of this name. Rename them.")
        for name, count in ids.items()
        if count > 1
    ]
    scans = Counter(_real(path) for case in found.cases for path in case.images)
    within = {_real(path) for case in found.cases for path in _twice_within(case)}
    for path, count in scans.items():
        if path in within:
            text = "Expected each channel in a file of its own, got this one for several."
            findings.append(Finding("error", path, text))
        elif count > 1:
            text = f"Expected each scan in one case, got it in {count}."
            findings.append(Finding("error", path, text))
    maps = Counter(_real(case.labels) for case in found.cases if case.labels is not None)
    for path, count in maps.items():
        if path in scans:
            text = "Expected a scan or a label map, got this file as both."
            findings.append(Finding("error", path, text))
        elif count > 1:
            text = f"This label map is in {count} cases. Give them one subject if that is right."
            findings.append(Finding("warning", path, text))
    return findings


def _odd_channels(found: CaseSet) -> list[Finding]:
    usual = Counter(len(case.images) for case in found.cases).most_common(1)[0][0]
    return [
        Finding(
            "error",
            case.id,
            f"Expected {usual} channels as in the other cases, got {len(case.images)}.",
        )
        for case in found.cases
        if len(case.images) != usual
    ]


def _files(case: Case) -> tuple[Path, ...]:
    return case.images if case.labels is None else (*case.images, case.labels)


def _twice_within(case: Case) -> list[Path]:
    counts = Counter(_real(path) for path in case.images)
    return [path for path in case.images if counts[_real(path)] > 1]


def _real(path: Path) -> str:
    """Return where a path leads; one that leads in a circle stays as it is, and nothing raises."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a zero byte
        return str(path)
