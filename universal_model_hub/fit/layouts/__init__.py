"""A user's data on disk to a ``CaseSet``, in five layouts: one small module each.

What is wrong with single files or rows becomes a ``Finding``, so that all is told at once; only a
set that cannot be read at all raises.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import CaseSet, Finding, Task
from universal_model_hub.fit.layouts.bids import is_bids, read_bids
from universal_model_hub.fit.layouts.decathlon import is_nnunet, read_msd, read_nnunet
from universal_model_hub.fit.layouts.folders import read_class_folders, read_folder_pair
from universal_model_hub.fit.layouts.table import read_table

TABLES = (".csv", ".tsv", ".txt")
MODALITIES = ("CT", "MR", "auto")


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
    if not found.cases and not found.findings:
        raise ConfigError(f"Expected cases in {found.source}, got none.")
    known = dict(found.classes or {}) | dict(label_names or {})
    modalities = _modalities(found, modality)
    repeated = _repeated(found)
    return replace(
        found,
        modalities=modalities,
        classes=known or None,
        findings=(*found.findings, *repeated),
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
        return read_nnunet(described) if is_nnunet(described) else read_msd(described)
    if data.is_dir() and is_bids(data):
        return read_bids(data, task)
    raise ConfigError(
        f"Expected a CSV, a dataset.json (Decathlon), an nnU-Net raw folder or a BIDS-like tree "
        f"(sub-*/), got {data}. For two folders of files pass images and labels."
    )


def _modalities(found: CaseSet, modality: str | Sequence[str]) -> tuple[str, ...]:
    channels = Counter(len(case.images) for case in found.cases)
    number = channels.most_common(1)[0][0] if channels else max(1, found.num_channels)
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


def _repeated(found: CaseSet) -> list[Finding]:
    ids = Counter(case.id for case in found.cases)
    files = Counter(path.resolve() for case in found.cases for path in case.images)
    findings = [
        Finding("error", name, f"Expected each case once, got {count} of this name. Rename them.")
        for name, count in ids.items()
        if count > 1
    ]
    findings += [
        Finding("error", str(path), f"Expected each scan in one case, got it in {count}.")
        for path, count in files.items()
        if count > 1
    ]
    odd = Counter(len(case.images) for case in found.cases)
    usual = odd.most_common(1)[0][0] if odd else 0
    findings += [
        Finding(
            "error",
            case.id,
            f"Expected {usual} channels as in the other cases, got {len(case.images)}.",
        )
        for case in found.cases
        if len(case.images) != usual
    ]
    return findings
