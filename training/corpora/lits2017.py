"""LiTS2017: abdominal CT with liver and tumor labels.

Layout: ``volume-{0..130}.nii`` and ``segmentation-{0..130}.nii``; the test volumes have no labels
and are not used. Volumes 28 to 47 carry an identity affine and a false spacing of 1 x 1 x 1 mm
(LITS-CHALLENGE issue 14): resampling them to 1 mm would be wrong, and so would leaving them as they
are among volumes that were resampled. They are left out, unless a table ``spacing.csv``
(columns ``volume,x,y,z``, mm) beside them states the true spacing.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.corpora.case import (
    Case,
    Corpus,
    Finding,
    Survey,
    error,
    folder_with,
    visible,
    warning,
)
from training.corpora.checks import Grid, raise_to_air, read_grid
from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.volume import Volume, load_volume

NAME = "lits2017"
FALSE_SPACING = range(28, 48)  # LITS-CHALLENGE issue 14, AbdomenCT-1K issue 27
SPACING_TABLE = "spacing.csv"
LABELS = {0: "background", 1: "liver", 2: "tumor"}
_NAME = re.compile(r"(volume|segmentation)-(\d+)\.nii(\.gz)?")


def survey(folder: Path) -> Survey:
    """List the volumes that have a segmentation.

    Raises:
        ConfigError: If there is no volume, or ``spacing.csv`` is damaged.
    """
    files, findings = _numbered(folder)
    if not files["volume"]:
        folder_with(folder, "LiTS2017", ["volume-0.nii"], "the LiTS layout volume-<number>.nii")
    table = read_spacings(folder / SPACING_TABLE)
    cases = []
    for number in sorted(files["volume"]):
        path = files["volume"][number]
        case = Case(
            corpus=NAME, subject=str(number), id=f"volume-{number}", modality="CT", volume=path
        )
        labels = files["segmentation"].get(number)
        if labels is None:
            what = f"Expected segmentation-{number}.nii beside the volume, got none."
            findings.append(error("missing_label", what, "Fetch it.", case=case))
            continue
        case = replace(case, labels=labels)
        if number in table:
            case = replace(case, extra={"spacing": table[number]})
        elif has_false_spacing(path, number):
            what = (
                "Got an identity affine with a spacing of 1 x 1 x 1 mm, which is known to be false."
            )
            fix = f"Left out; state the true spacing in {SPACING_TABLE} (volume,x,y,z) to use it."
            findings.append(warning("false_spacing", what, fix, case=case))
            case = replace(case, left_out="false spacing")
        cases.append(case)
    for number in sorted(set(files["segmentation"]) - set(files["volume"])):
        what = f"Expected volume-{number}.nii beside the segmentation, got none."
        file = files["segmentation"][number]
        findings.append(error("missing_volume", what, "Fetch it.", file=file))
    return Survey(tuple(cases), tuple(findings), {"volumes with labels": str(len(cases))})


def has_false_spacing(path: Path, number: int) -> bool:
    """Tell whether a header claims 1 mm voxels that nobody measured.

    An affine that is the identity, origin included, was never written by a scanner; spacing 1 alone
    is suspect only for the volumes known for it.
    """
    try:
        grid = read_grid(path)
    except VolumeError:
        return False  # reported as unreadable when the volume is checked
    identity = np.array_equal(np.abs(grid.affine), np.eye(4))
    return identity or (number in FALSE_SPACING and np.array_equal(grid.spacing, np.ones(3)))


def read_spacings(path: Path) -> dict[int, tuple[float, float, float]]:
    """Read the table of true spacings, if there is one: volume number to (x, y, z) in mm.

    Raises:
        ConfigError: If a row is not a volume number and three positive numbers.
    """
    if not path.is_file():
        return {}
    table = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            try:
                x, y, z = (float(row[axis]) for axis in "xyz")
                table[int(row["volume"])] = (x, y, z)
            except (KeyError, TypeError, ValueError) as cause:
                raise ConfigError(
                    f"Expected columns volume,x,y,z with numbers in line {number} of {path.name}, "
                    f"got {dict(row)}. Correct the line."
                ) from cause
            if not (min(x, y, z) > 0 and np.isfinite([x, y, z]).all()):
                raise ConfigError(
                    f"Expected positive spacings in mm in line {number} of {path.name}, "
                    f"got {(x, y, z)}. Correct the line."
                )
    return table


def load(case: Case) -> Volume:
    """Load a volume in HU, with its true spacing where a table states it.

    Raises:
        GeometryError: If its spacing is known to be false and no table corrects it.
    """
    return raise_to_air(_with_spacing(load_volume(case.volume), case))


def load_labels(case: Case) -> Volume:
    """Load the labels: 0 background, 1 liver, 2 tumor."""
    if case.labels is None:
        raise ConfigError(f"Expected a case with labels, got {case.id}. Choose another.")
    return _with_spacing(load_volume(case.labels), case)


def check_case(case: Case, volume: Volume) -> list[Finding]:
    """Nothing beyond the checks that every CT gets."""
    return []


def check_corpus(folder: Path, listing: Survey) -> Survey:
    """Say what is left out, and the orientations, which differ from file to file."""
    orientations: dict[str, int] = {}
    for case in listing.cases:
        try:
            key = _orientation(read_grid(case.volume))
        except VolumeError:
            key = "unreadable"
        orientations[key] = orientations.get(key, 0) + 1
    left_out = [case.subject for case in listing.cases if case.left_out]
    facts = dict(listing.facts)
    facts["orientations"] = ", ".join(f"{k} {n}" for k, n in sorted(orientations.items()))
    facts["false spacing, left out"] = " ".join(left_out) or "none"
    return replace(listing, facts=facts)


def _with_spacing(volume: Volume, case: Case) -> Volume:
    if case.left_out:
        raise GeometryError(
            f"Expected a volume with its true spacing, got {case.id}: {case.left_out}. "
            f"Add a line to {SPACING_TABLE} in the corpus folder, or leave the case out."
        )
    if "spacing" not in case.extra:
        return volume
    scale = np.asarray(case.extra["spacing"]) / np.asarray(volume.spacing)
    affine = volume.affine.copy()
    affine[:3, :3] *= scale
    return replace(volume, affine=affine)


def _orientation(grid: Grid) -> str:
    from nibabel.orientations import aff2axcodes

    return "".join(str(code) for code in aff2axcodes(grid.affine))


def _numbered(folder: Path) -> tuple[Mapping[str, dict[int, Path]], list[Finding]]:
    """Files by kind and number, wherever they lie below the folder (it comes in two batches)."""
    files: dict[str, dict[int, Path]] = {"volume": {}, "segmentation": {}}
    findings = []
    for path in [*visible(folder, "**/*.nii"), *visible(folder, "**/*.nii.gz")]:
        if not (match := _NAME.fullmatch(path.name)):
            continue
        kind, number = match[1], int(match[2])
        if number in files[kind]:
            what = f"{kind}-{number} is there twice; the first is used."
            findings.append(error("duplicate_subject", what, "Delete one of them.", file=path))
        else:
            files[kind][number] = path
    return files, findings


CORPUS = Corpus(
    name=NAME,
    title="LiTS2017",
    modalities=("CT",),
    label_names=LABELS,
    access="registration: https://competitions.codalab.org/competitions/17094 (CC BY-NC-ND 4.0)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=check_case,
    check_corpus=check_corpus,
)
