"""ADNI: brain MR of Alzheimer's patients (AD) and normal controls (NC), labelled by volume.

Layout (LONI download): ``ADNI/<subject>/<description>/<date>/<image id>/*.nii`` and a search table
``*.csv`` with at least ``Image Data ID``, ``Subject`` and ``Group``. A subject with several scans
counts once: the earliest that is spatially normalized (the paper's kind), if any is. Reports name
subjects and files as the folder does and nothing else of the table: age and sex stay out of them.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

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
from universal_model_hub.errors import ConfigError
from universal_model_hub.volume import Volume, load_volume

NAME = "adni"
CLASSES = ("AD", "NC")
# The study says CN where the paper says NC.
GROUPS = {"AD": "AD", "CN": "NC", "NC": "NC", "NORMAL": "NC"}
COLUMNS = ("Image Data ID", "Subject", "Group")
_SUBJECT = re.compile(r"\d{3}_S_\d+")
_IMAGE_ID = re.compile(r"I\d+")


def survey(folder: Path) -> Survey:
    """List one volume a subject of the groups AD and NC.

    Raises:
        ConfigError: If there is no ADNI folder, or no usable table.
    """
    root = folder_with(folder, ".", ["ADNI"], "the LONI layout ADNI/<subject>/...") / "ADNI"
    table = _read_table(folder)
    findings: list[Finding] = []
    scans: defaultdict[str, list[Case]] = defaultdict(list)
    seen: dict[str, Path] = {}
    for path in [*visible(root, "*/*/*/*/*.nii"), *visible(root, "*/*/*/*/*.nii.gz")]:
        subject, image = path.relative_to(root).parts[0], path.parent.name
        found = _case(path, subject, image, table)
        if image in seen:
            what = f"The image {image} is there twice, the first in {seen[image].parent.name}."
            found = error("duplicate_image", what, "Delete one copy.", file=path)
        seen.setdefault(image, path)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            scans[subject].append(found)
    cases = []
    for subject in sorted(scans):
        ordered = sorted(scans[subject], key=_preference)
        findings += _several(ordered)
        cases.append(ordered[0])
    facts = {"subjects": _counted(cases), "scans": str(len(seen))}
    return Survey(tuple(cases), tuple(findings), facts)


def load(case: Case) -> Volume:
    """Load a volume."""
    return load_volume(case.volume)


def load_labels(case: Case) -> Volume:
    """ADNI labels the whole volume, not its voxels.

    Raises:
        ConfigError: Always; the label is ``case.label_class``.
    """
    raise ConfigError(
        f"Expected a corpus with label volumes, got {case.corpus}. Use case.label_class."
    )


def check_case(case: Case, volume: Volume) -> list[Finding]:
    """Nothing beyond the checks that every MR volume gets; NaNs are among them."""
    return []


def check_corpus(folder: Path, listing: Survey) -> Survey:
    """Nothing beyond single volumes: the table is checked while listing."""
    return listing


def _case(
    path: Path, subject: str, image: str, table: Mapping[str, tuple[str, str]]
) -> Case | Finding:
    """The case of one file, or why it is none."""
    if image not in table:
        what = f"Expected the image {image} in the search table, got no such row."
        return error("not_in_table", what, "Download the table of this collection.", file=path)
    owner, group = table[image]
    if owner != subject:
        what = "The table gives the image to another subject than the folder does."
        return error("subject_mismatch", what, "Download both again.", file=path)
    label = GROUPS.get(group.upper())
    return Case(
        corpus=NAME,
        subject=subject,
        id=f"{subject}_{image}",
        modality="MR",
        sequence="t1",
        volume=path,
        label_class=label,
        group=label or "",
        left_out="" if label else f"group {group or 'empty'}",
        extra={"date": path.parts[-3], "description": path.parts[-4]},
    )


def _preference(case: Case) -> tuple[bool, str, str]:
    """The paper's kind of image first, then the earliest visit."""
    normalized = "spatially_normalized" in case.extra["description"].lower().replace(" ", "_")
    return not normalized, case.extra["date"], case.id


def _several(scans: list[Case]) -> list[Finding]:
    """What is worth saying of one subject's scans, preferred first."""
    first, findings = scans[0], []
    if len(scans) > 1:
        what = f"The subject has {len(scans)} scans; the earliest normalized one is used."
        fix = "Nothing to do: one scan a subject keeps the split clean."
        findings.append(warning("several_scans", what, fix, case=first))
    if len({scan.label_class for scan in scans}) > 1:
        what = "The subject's scans belong to different groups; that of the one used counts."
        findings.append(warning("group_changes", what, "Check the table.", case=first))
    if first.left_out:
        what = f"Expected group AD or CN (NC), got {first.left_out}."
        findings.append(warning("other_group", what, "The subject is not used.", case=first))
    return findings


def _counted(cases: list[Case]) -> str:
    counts = Counter(case.label_class for case in cases)
    return ", ".join(f"{label or 'other'} {counts[label]}" for label in (*CLASSES, None))


def _read_table(folder: Path) -> dict[str, tuple[str, str]]:
    """Image ID to subject and group, from every CSV beside or in the ADNI folder."""
    rows: dict[str, tuple[str, str]] = {}
    tables = [*visible(folder, "*.csv"), *visible(folder, "ADNI/*.csv")]
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                continue
            for row in reader:
                image, subject, group = ((row[column] or "").strip() for column in COLUMNS)
                image = image if image.startswith("I") else f"I{image}"
                if not (_IMAGE_ID.fullmatch(image) and _SUBJECT.fullmatch(subject)):
                    raise ConfigError(
                        f"Expected an image ID such as I12345 and a subject such as 002_S_0413 in "
                        f"line {reader.line_num} of {path.name}, got something else. "
                        f"Download the table again."
                    )
                rows[image] = (subject, group)
    if not rows:
        raise ConfigError(
            f"Expected a search table (CSV) with columns {', '.join(COLUMNS)} in {folder}, "
            f"got {[path.name for path in tables] or 'none'}. Download it from LONI beside ADNI/."
        )
    return rows


CORPUS = Corpus(
    name=NAME,
    title="ADNI",
    modalities=("MR",),
    label_names={},
    access="application: https://adni.loni.usc.edu (Data Use Agreement, no redistribution)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=check_case,
    check_corpus=check_corpus,
    masked_by_nan=True,
)
