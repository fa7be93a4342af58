"""What files are called: which are scans, which belong together, whose they are."""

import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from universal_model_hub.fit.data.cases import Finding

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
# What a label map's name may have beyond the scan's.
LABEL_WORDS = ("label", "labels", "seg", "mask", "segmentation", "dseg", "gt")
LABEL_ENDING = re.compile(rf"[-_.]({'|'.join(LABEL_WORDS)})$", re.IGNORECASE)
IMAGE_ENDING = re.compile(r"[-_.](image|img|scan)$", re.IGNORECASE)
CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # nnU-Net's
# ``_ses-2``, ``-visit_b``, ``_visit2``; what follows without a mark is a number: not ``_visitor``.
VISIT = re.compile(
    r"^(?P<subject>.+?)[-_](ses|session|visit|tp|timepoint)([-_]\w+|\d+([-_]\w+)*)$",
    re.IGNORECASE,
)
BIDS_SUBJECT = re.compile(r"^(?P<subject>sub-[A-Za-z0-9]+)_")


def scans_in(folder: Path) -> list[Path]:
    """Return the scans at the top of a folder: files by suffix, folders with a DICOM series.

    Hidden entries, ``._*`` among them, are passed over.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in entries if is_scan(path)]


def is_scan(path: Path) -> bool:
    """Whether a path is a scan's by its name, or a folder that holds files only."""
    if path.is_dir():
        files = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        return bool(files) and all(
            entry.is_file() and not entry.name.lower().endswith(SUFFIXES) for entry in files
        )
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """Return a scan's name without its suffix."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def case_name(path: Path) -> str:
    """Return the case that a label map or a scan belongs to, by its name.

    Endings such as ``_label``, ``-seg`` or ``_image`` are left out.
    """
    name = stem(path)
    shorter = LABEL_ENDING.sub("", name)
    return IMAGE_ENDING.sub("", shorter) if shorter == name else shorter


def by_channel(
    paths: Iterable[Path], whole: Collection[str] = ()
) -> tuple[dict[str, dict[int, Path]], list[Finding]]:
    """Group scans into cases: ``NAME_0000``, ``NAME_0001`` are channels of NAME.

    A scan without such an ending is channel 0 of a case of its own. Where two files would be the
    same channel, the first counts and a finding tells of the other.

    Args:
        paths: Scans.
        whole: Names of cases whose number is part of the name, such as ``patient_0012``.
    """
    cases: dict[str, dict[int, Path]] = {}
    findings = []
    for path in paths:
        name, number = case_name(path), 0
        match = CHANNEL.match(stem(path))
        if match and stem(path) not in whole:
            name, number = match["case"], int(match["channel"])
        first = cases.setdefault(name, {}).setdefault(number, path)
        if first != path:
            text = f"Expected one scan of this name, got {first.name} too. Keep one."
            findings.append(Finding("error", str(path), text))
    return cases, findings


def numbered_names(paths: Iterable[Path]) -> set[str]:
    """Return the names that end in a number which is no channel's.

    All of them, unless most names have a channel 0000: channels are counted from there.
    """
    matches = {stem(path): match for path in paths if (match := CHANNEL.match(stem(path)))}
    names = {match["case"] for match in matches.values()}
    with_first = {match["case"] for match in matches.values() if int(match["channel"]) == 0}
    return set() if 2 * len(with_first) > len(names) else set(matches)


def by_name(
    paths: Iterable[Path], name_of: Callable[[Path], str]
) -> tuple[dict[str, Path], list[Finding]]:
    """Return label maps by the case they belong to; a finding tells of a second one."""
    maps: dict[str, Path] = {}
    findings = []
    for path in paths:
        first = maps.setdefault(name_of(path), path)
        if first != path:
            text = f"Expected one label map of {name_of(path)}, got two: {first.name} too."
            findings.append(Finding("error", str(path), f"{text} Keep one."))
    return maps, findings


def subject_of(name: str) -> str:
    """Return whose a case is, where its name says so; else the name itself.

    ``sub-01_...`` is of ``sub-01``. An ending such as ``_ses-2``, ``_visit2`` or ``-tp_1`` is one
    of several visits of what stands before it.
    """
    match = BIDS_SUBJECT.match(name) or VISIT.match(name)
    return match["subject"] if match else name


def inside(path: Path, folder: Path) -> bool:
    """Whether a path, links left as they are, lies below a folder."""
    return os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)  # noqa: PTH100


def leads_somewhere(path: str | Path) -> bool:
    """Whether there is something at a path; false of what can be no path, such as a long text."""
    return os.path.exists(path)  # noqa: PTH110  (Path.exists raises for names that are too long)
