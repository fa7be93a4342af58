"""Two folders with files of the same names, or a folder a class."""

from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import Case, CaseSet, Finding
from universal_model_hub.fit.layouts.names import by_channel, case_name, scans_in, subject_of


def read_folder_pair(images: Path, labels: Path) -> CaseSet:
    """Match scans and label maps by name.

    ``case1.nii.gz`` belongs to ``case1.nii.gz``, ``case1_seg.nrrd`` or ``case1-label.nii.gz``;
    ``case1_0000.nii.gz`` and ``case1_0001.nii.gz`` are two channels of it.

    Raises:
        ConfigError: If one is no folder, or no scan has a label map.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise ConfigError(f"Expected a folder, got {folder}.")
    scans = by_channel(scans_in(images))
    maps: dict[str, Path] = {}
    findings: list[Finding] = []
    for path in scans_in(labels):
        name = case_name(path)
        if name in maps:
            findings.append(
                Finding("error", str(path), f"Expected one label map of {name}, got two.")
            )
        maps.setdefault(name, path)
    cases = []
    for name, channels in scans.items():
        if sorted(channels) != list(range(len(channels))):
            missing = min(set(range(max(channels) + 1)) - set(channels))
            findings.append(
                Finding("error", name, f"Expected channels from 0000 on, {missing:04d} is missing.")
            )
        paths = tuple(channels[number] for number in sorted(channels))
        if name not in maps:
            text = f"Expected a label map named like {paths[0].name} in {labels}, got none."
            findings.append(Finding("error", str(paths[0]), text))
            continue
        cases.append(Case(id=name, subject=subject_of(name), images=paths, labels=maps[name]))
    findings += [
        Finding("warning", str(path), "Expected a scan of this name, got none: left out.")
        for name, path in maps.items()
        if name not in scans
    ]
    if not cases and not findings:
        raise ConfigError(f"Expected scans in {images}, got none.")
    return CaseSet(
        task="segmentation",
        cases=tuple(cases),
        modalities=("auto",) * max((len(case.images) for case in cases), default=1),
        classes=None,
        layout="folders",
        source=images,
        findings=tuple(findings),
    )


def read_class_folders(images: Path) -> CaseSet:
    """Read a folder that holds a folder of scans for each class.

    Raises:
        ConfigError: If there are not at least two classes.
    """
    if not images.is_dir():
        raise ConfigError(f"Expected a folder, got {images}.")
    folders = sorted(p for p in images.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2 or not any(scans_in(folder) for folder in folders):
        raise ConfigError(
            f"Expected a folder of scans for each class in {images} (or label maps: pass labels), "
            f"got {len(folders)} folders."
        )
    cases, findings = [], []
    for folder in folders:
        found = by_channel(scans_in(folder))
        if not found:
            findings.append(
                Finding("error", str(folder), "Expected scans of this class, got none.")
            )
        for name, channels in found.items():
            paths = tuple(channels[number] for number in sorted(channels))
            identity = f"{folder.name}/{name}"
            case = Case(id=identity, subject=subject_of(identity), images=paths, target=folder.name)
            cases.append(case)
    return CaseSet(
        task="classification",
        cases=tuple(cases),
        modalities=("auto",) * max((len(case.images) for case in cases), default=1),
        classes=None,
        layout="folders",
        source=images,
        findings=tuple(findings),
    )
