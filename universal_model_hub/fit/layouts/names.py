"""What files are called: which are scans, which belong together, whose they are."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
# What a label map's name may have beyond the scan's.
LABEL_WORDS = ("label", "labels", "seg", "mask", "segmentation", "dseg", "gt")
LABEL_ENDING = re.compile(rf"[-_.]({'|'.join(LABEL_WORDS)})$", re.IGNORECASE)
IMAGE_ENDING = re.compile(r"[-_.](image|img|scan)$", re.IGNORECASE)
CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # nnU-Net's
VISIT = re.compile(r"^(?P<subject>.+?)[-_](ses|session|visit|tp|timepoint)[-_]?\w+$", re.IGNORECASE)


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


def by_channel(paths: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Group scans into cases: ``NAME_0000``, ``NAME_0001`` are channels of NAME.

    A scan without such an ending is channel 0 of a case of its own.
    """
    cases: dict[str, dict[int, Path]] = {}
    for path in paths:
        name, number = case_name(path), 0
        if match := CHANNEL.match(stem(path)):
            name, number = match["case"], int(match["channel"])
        cases.setdefault(name, {})[number] = path
    return cases


def subject_of(name: str) -> str:
    """Return whose a case is, where its name says that it is one of several visits."""
    match = VISIT.match(name)
    return match["subject"] if match else name


def inside(path: Path, folder: Path) -> bool:
    """Whether a path, links left as they are, lies below a folder."""
    return os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)  # noqa: PTH100
