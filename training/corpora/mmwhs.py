"""MMWHS: cardiac CT and MR, unpaired, with seven structures labelled.

Layout: ``{ct,mr}_train/{ct,mr}_train_{1001..1020}_{image,label}.nii.gz``. The numbers repeat
between the modalities but the patients do not. The test volumes' labels are not public and the
test folders are not used. One MR label volume holds a stray 421, which is 420, the left atrium.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.corpora.case import (
    Case,
    Corpus,
    Finding,
    Modality,
    Survey,
    error,
    folder_with,
    visible,
    warning,
)
from training.corpora.checks import raise_to_air
from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.volume import Volume, load_volume

NAME = "mmwhs"
LEFT_ATRIUM = 420
STRAY = 421  # several public loaders map it to 420
LABELS = {
    0: "background",
    205: "myocardium",
    LEFT_ATRIUM: "left atrium",
    500: "left ventricle",
    550: "right atrium",
    600: "right ventricle",
    820: "aorta",
    850: "pulmonary artery",
}
FOLDERS: dict[str, Modality] = {"ct_train": "CT", "mr_train": "MR"}


def survey(folder: Path) -> Survey:
    """List the volumes of both modalities that have labels.

    Raises:
        ConfigError: If neither training folder is there.
    """
    root = folder_with(folder, "MMWHS", list(FOLDERS), "the MMWHS layout ct_train and mr_train")
    findings: list[Finding] = []
    cases = []
    for name, modality in FOLDERS.items():
        paths = visible(root / name, f"{name}_*_image.nii*")
        if not paths:
            what = f"Expected volumes in {name}, got none."
            findings.append(warning("missing_modality", what, "Fetch it.", file=root / name))
        for path in paths:
            number = re.sub(r"_image\.nii(\.gz)?$", "", path.name)
            case = Case(
                corpus=NAME,
                subject=number,
                id=number,
                modality=modality,
                volume=path,
                labels=path.with_name(path.name.replace("_image.", "_label.")),
                group=modality,
            )
            if case.labels and case.labels.is_file():
                cases.append(case)
                continue
            what = f"Expected {number}_label beside the volume, got none."
            findings.append(error("missing_label", what, "Fetch it.", case=case))
    counts = Counter(case.modality for case in cases)
    facts = {"volumes": f"CT {counts['CT']}, MR {counts['MR']}"}
    return Survey(tuple(sorted(cases, key=lambda case: case.id)), tuple(findings), facts)


def load(case: Case) -> Volume:
    """Load a volume: CT in HU with padding raised to -1024, MR as it is."""
    volume = load_volume(case.volume)
    return raise_to_air(volume) if case.modality == "CT" else volume


def load_labels(case: Case) -> Volume:
    """Load the labels, the stray 421 taken for 420."""
    if case.labels is None:
        raise ConfigError(f"Expected a case with labels, got {case.id}. Choose another.")
    labels = load_volume(case.labels)
    if not np.any(labels.array == STRAY):
        return labels
    return replace(labels, array=np.where(labels.array == STRAY, LEFT_ATRIUM, labels.array))


def check_case(case: Case, volume: Volume) -> list[Finding]:
    """Report the stray 421; every other foreign label is an error of the common checks."""
    if case.labels is None:
        return []
    try:
        stray = int((load_volume(case.labels).array == STRAY).sum())
    except UniversalModelError:
        return []  # reported when the labels are checked
    if not stray:
        return []
    what = f"Got label {STRAY} in {stray} voxel(s)."
    fix = f"It is read as {LEFT_ATRIUM}, the left atrium."
    return [warning("stray_421", what, fix, case=case, file=case.labels)]


def check_corpus(folder: Path, listing: Survey) -> Survey:
    """Nothing beyond single volumes."""
    return listing


CORPUS = Corpus(
    name=NAME,
    title="MMWHS",
    modalities=("CT", "MR"),
    label_names=LABELS,
    access="registration: https://zmiclab.github.io/zxh/0/mmwhs/ (research use)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=check_case,
    check_corpus=check_corpus,
)
