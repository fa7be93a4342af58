"""From the inputs and the output on the command line to jobs, checked before any work begins.

What an input is:

- a file: one scan;
- a folder that holds scan files (.nii, .nii.gz, .hdr, .nrrd, .nhdr, .mha, .mhd) at its top: these
  scans, whatever else it holds;
- else a folder that holds DICOM files at its top: one scan, the DICOM series;
- else a folder whose subfolders hold DICOM files: these series, a scan each.

Hidden entries are passed over. One scan is written to a file; several scans, or a folder of scans
even if it holds only one, are written into a folder under their own names.
"""

import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import check_output

SCAN_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd")
CHANNEL = re.compile(r"^(.+)_\d{4}$")  # nnU-Net's way of naming channels
LEAST_SPACE = 1 << 20  # bytes


@dataclass(frozen=True)
class Job:
    """One scan, or the channels of one examination, and the file that is made from it."""

    source: Path
    output: Path
    others: tuple[Path, ...] = ()  # further channels; source is the first

    @property
    def scans(self) -> tuple[Path, ...]:
        """Every channel, in order."""
        return (self.source, *self.others)


@dataclass(frozen=True)
class Plan:
    """All jobs of a command."""

    jobs: tuple[Job, ...]
    done: tuple[Job, ...]  # of a batch: their outputs exist
    folder: Path | None  # the output folder of a batch; None: one scan, one file


def make_plan(
    inputs: Sequence[Path],
    output: Path,
    *,
    suffixes: tuple[str, ...],
    force: bool,
    channels: int = 1,
) -> Plan:
    """Decide what is made from what.

    For a model of several channels, as many files and an output file are one examination in that
    order; else files ``NAME_0000``, ``NAME_0001``, ... are the channels of ``NAME``.

    Args:
        inputs: As given on the command line.
        output: A file for one scan, else a folder.
        suffixes: What an output file may be named; the last one is used in a folder.
        force: Make again what exists.
        channels: Scans of one examination.

    Raises:
        ConfigError: If an input is missing, two scans would be written to one file, or the output
            cannot be written or would replace an input.
    """
    found = [scans_of(path) for path in inputs]
    scans = list(dict.fromkeys(scan for some, _ in found for scan in some))
    if channels > 1 and output.name.lower().endswith(suffixes) and len(scans) == channels:
        _plan_file(scans[0], output, suffixes, force=force)
        check_output(output, scans, force=force)
        return Plan((Job(scans[0], output, tuple(scans[1:])),), (), None)
    if channels > 1:
        return _plan_folder(scans, inputs, output, suffixes, force=force, channels=channels)
    if len(inputs) == 1 and found[0][1]:
        return _plan_file(scans[0], output, suffixes, force=force)
    return _plan_folder(scans, inputs, output, suffixes, force=force)


def scans_of(path: Path) -> tuple[list[Path], bool]:
    """Return the scans that an input stands for, and whether it is a scan itself.

    Raises:
        ConfigError: If it is a folder that holds no scan or cannot be read.
    """
    if not path.is_dir():
        return [path], True
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        files = [entry for entry in entries if _is_scan_file(entry)]
        if files:
            return files, False
        if _holds_dicom(path):
            return [path], True
        series = [entry for entry in entries if entry.is_dir() and _holds_dicom(entry)]
    except OSError as error:
        raise ConfigError(
            f"Expected a folder that can be read, got {error.strerror} for {error.filename}."
        ) from error
    if not series:
        raise ConfigError(
            f"Expected scans in the folder {path}: files ({', '.join(SCAN_SUFFIXES)}), a DICOM "
            "series, or folders with one series each. Got none; name the folder that holds them."
        )
    return series, False


def stem_of(scan: Path) -> str:
    """Return a scan's name without its suffix: ``a/b.c.nii.gz`` becomes ``b.c``."""
    name = scan.resolve().name if scan.is_dir() else scan.name
    suffix = "" if scan.is_dir() else next(filter(name.lower().endswith, SCAN_SUFFIXES), "")
    return name[: len(name) - len(suffix)] or name


def _plan_file(source: Path, output: Path, suffixes: tuple[str, ...], *, force: bool) -> Plan:
    if not source.exists():
        raise ConfigError(f"The input {source} does not exist. Check its name.")
    if not os.access(source, os.R_OK):
        raise ConfigError(f"The input {source} may not be read. Change its rights.")
    if not output.is_dir() and not output.name.lower().endswith(suffixes):
        raise ConfigError(f"Expected an output named {' or '.join(suffixes)}, got {output.name}.")
    check_output(output, [source], force=force)
    if source.is_dir():
        _check_apart(output.parent, [source])
    _check_space(output.parent, [source])
    return Plan((Job(source, output),), (), None)


def _plan_folder(
    scans: list[Path],
    inputs: Sequence[Path],
    output: Path,
    suffixes: tuple[str, ...],
    *,
    force: bool,
    channels: int = 1,
) -> Plan:
    if not output.is_dir():
        if output.exists() or output.name.lower().endswith(suffixes):
            raise ConfigError(
                f"Expected a folder as output, since there may be several scans, got {output}. "
                "Name a folder."
            )
        # Also refuses a parent folder that is missing or not writable.
        check_output(output, [], force=force)
    _check_apart(output, [path for path in inputs if path.is_dir()])
    jobs = [
        Job(first, output / (name + suffixes[-1]), tuple(others))
        for name, (first, *others) in _examinations(scans, channels)
    ]
    _check_distinct(jobs)
    for job in jobs:
        if output.is_dir():
            check_output(job.output, scans, force=True)
    done = [job for job in jobs if job.output.exists() and not force]
    left = [job for job in jobs if job not in done]
    _check_space(output if output.is_dir() else output.parent, [job.source for job in left])
    return Plan(tuple(left), tuple(done), output)


def _examinations(scans: list[Path], channels: int) -> list[tuple[str, list[Path]]]:
    """Return name and scans of each examination, channels in order."""
    if channels == 1:
        return [(stem_of(scan), [scan]) for scan in scans]
    groups: dict[str, list[Path]] = {}
    for scan in sorted(scans, key=stem_of):
        match = CHANNEL.match(stem_of(scan))
        groups.setdefault(match[1] if match else stem_of(scan), []).append(scan)
    return list(groups.items())


def _check_distinct(jobs: list[Job]) -> None:
    """Refuse two scans of one name; by a name that a case-insensitive disk would tell apart."""
    first: dict[str, Path] = {}
    for job in jobs:
        key = unicodedata.normalize("NFC", job.output.name).casefold()
        if key in first:
            raise ConfigError(
                f"Expected scans of different names, {first[key]} and {job.source} would both "
                f"become {job.output.name}. Rename one, or run them into separate folders."
            )
        first[key] = job.source


def _check_apart(output: Path, folders: list[Path]) -> None:
    """Refuse to write into an input folder: a second run would take the outputs for scans."""
    for folder in folders:
        if output.exists() and output.samefile(folder):
            raise ConfigError(
                f"Expected an output outside the input folder {folder}. Choose another folder."
            )


def _check_space(folder: Path, sources: list[Path]) -> None:
    """Refuse a disk that is as good as full: an output needs at most about its scan's size."""
    sizes = [source.stat().st_size for source in sources if source.is_file()]
    needed, free = max(LEAST_SPACE, *sizes, 0), shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"Expected {needed:,} bytes free in {folder}, got {free:,}. Free some, or choose "
            "another output."
        )


def _is_scan_file(path: Path) -> bool:
    # An .img is read through its .hdr, and one file must not count twice.
    name = path.name.lower()
    return name.endswith(SCAN_SUFFIXES) and not name.endswith(".img") and path.is_file()


def _holds_dicom(folder: Path) -> bool:
    from universal_model_hub.volume.dicom import is_dicom

    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        with path.open("rb") as file:
            if is_dicom(file.read(132)):
                return True
    return False
