"""Two folders with files of the same names, or a folder a class."""

from collections.abc import Collection, Mapping
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Case, CaseSet, Finding, Task
from universal_model_hub.fit.data.layouts.names import (
    LABEL_ENDING,
    by_channel,
    by_name,
    case_name,
    numbered_names,
    scans_in,
    stem,
    subject_of,
)


def read_folder_pair(images: Path, labels: Path) -> CaseSet:
    """Match scans and label maps by name.

    ``case1.nii.gz`` belongs to ``case1.nii.gz``, ``case1_seg.nrrd`` or ``case1-label.nii.gz``.
    ``case1_0000.nii.gz`` and ``case1_0001.nii.gz`` are two channels of it, unless there are label
    maps of these very names: then the number is part of the name. If both folders are the same,
    label maps are the files with such an ending.

    Raises:
        ConfigError: If one is no folder.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise ConfigError(f"Expected a folder, got {folder}.")
    scans, marked = scans_in(images), scans_in(labels)
    if images.samefile(labels):
        marked = [path for path in scans if LABEL_ENDING.search(stem(path))]
        scans = [path for path in scans if path not in marked]
    maps, findings = by_name(marked, case_name)
    found, repeated = by_channel(scans, whole=maps.keys())
    findings += repeated
    cases = []
    for name, channels in found.items():
        if name not in maps:
            text = f"Expected a label map named like it in {labels}, got none."
            findings += [Finding("error", str(path), text) for path in channels.values()]
            continue
        findings += _gaps(name, channels)
        paths = tuple(channels[number] for number in sorted(channels))
        cases.append(Case(id=name, subject=subject_of(name), images=paths, labels=maps[name]))
    findings += [
        Finding("warning", str(path), "Expected a scan of this name, got none: left out.")
        for name, path in maps.items()
        if name not in found
    ]
    for folder in dict.fromkeys((images, labels)):
        findings += _folders_passed_over(folder, {images, labels, *scans, *marked})
    return _case_set("segmentation", images, cases, findings)


def read_class_folders(images: Path) -> CaseSet:
    """Read a folder that holds a folder of scans for each class.

    ``NAME_0000`` and ``NAME_0001`` are channels if most names in all the folders have a 0000; else
    the number is part of the name. Visits of one subject may lie in folders of different classes:
    ``ill/p1_ses-2`` and ``well/p1_ses-1`` are of ``p1``.

    Raises:
        ConfigError: If there are not at least two classes.
    """
    if not images.is_dir():
        raise ConfigError(f"Expected a folder, got {images}.")
    folders = sorted(p for p in images.iterdir() if p.is_dir() and not p.name.startswith("."))
    scans = {folder: scans_in(folder) for folder in folders}
    if len(folders) < 2 or not any(scans.values()):
        raise ConfigError(
            f"Expected a folder of scans for each class in {images} (or label maps: pass labels), "
            f"got {len(folders)} folders."
        )
    cases: list[Case] = []
    findings: list[Finding] = []
    for path in scans_in(images):
        if path.is_file():
            text = "Expected scans in the folder of their class, this one lies beside: left out."
            findings.append(Finding("warning", str(path), text))
    # By the files of all classes together: one class may be small.
    whole = numbered_names(path for paths in scans.values() for path in paths)
    for folder, paths in scans.items():
        found, repeated = by_channel(paths, whole=whole)
        findings += [*repeated, *_folders_passed_over(folder, set(paths))]
        if not found:
            text = "Expected scans of this class, got none."
            findings.append(Finding("error", str(folder), text))
        for name, channels in found.items():
            identity = f"{folder.name}/{name}"
            findings += _gaps(identity, channels)
            subject = subject_of(name)
            case = Case(
                id=identity,
                subject=identity if subject == name else subject,
                images=tuple(channels[number] for number in sorted(channels)),
                target=folder.name,
            )
            cases.append(case)
    return _case_set("classification", images, cases, findings)


def _gaps(name: str, channels: Mapping[int, Path]) -> list[Finding]:
    missing = sorted(set(range(max(channels) + 1)) - set(channels))
    return [
        Finding("error", name, f"Expected channels from 0000 on, {number:04d} is missing.")
        for number in missing[:1]
    ]


def _folders_passed_over(folder: Path, known: Collection[Path]) -> list[Finding]:
    text = "Expected scans, got a folder that is no DICOM series: left out. Move its scans up."
    return [
        Finding("warning", str(path), text)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path not in known
    ]


def _case_set(task: Task, source: Path, cases: list[Case], findings: list[Finding]) -> CaseSet:
    return CaseSet(
        task=task,
        cases=tuple(cases),
        modalities=("auto",) * max((len(case.images) for case in cases), default=1),
        classes=None,
        layout="folders",
        source=source,
        findings=tuple(findings),
    )
