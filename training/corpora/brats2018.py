"""BraTS2018: four MR sequences a patient, skull-stripped, with brain tumor labels.

Layout: ``MICCAI_BraTS_2018_Data_Training/{HGG,LGG}/<id>/<id>_{t1,t1ce,t2,flair,seg}.nii.gz``.
Every sequence is a case of its own (Table I counts 190 patients as 760 volumes); the four share
their labels and their subject, so that a split never tears a patient apart.
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
    Survey,
    error,
    folder_with,
    visible,
    warning,
)
from training.corpora.checks import read_grid, same_grid
from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.volume import Volume, load_volume

NAME = "brats2018"
FOLDER = "MICCAI_BraTS_2018_Data_Training"
GRADES = ("HGG", "LGG")
SEQUENCES = ("t1", "t1ce", "t2", "flair")
# There is no label 3. The task bts joins 1, 2 and 4 to the whole tumor.
LABELS = {0: "background", 1: "necrosis", 2: "edema", 4: "enhancing tumor"}


def survey(folder: Path) -> Survey:
    """List the four volumes of every complete patient.

    Raises:
        ConfigError: If there is no grade folder.
    """
    root = folder_with(folder, FOLDER, GRADES, f"the BraTS layout {FOLDER}/HGG and LGG")
    findings: list[Finding] = []
    cases: list[Case] = []
    patients: dict[str, str] = {}
    for grade in GRADES:
        folders = sorted(p for p in (root / grade).glob("[!.]*") if p.is_dir())
        if not folders:
            what = f"Expected patients in {grade}, got none."
            findings.append(warning("missing_grade", what, "Fetch it.", file=root / grade))
        for path in folders:
            subject = subject_of(path.name)
            if subject in patients and path.name in patients[subject]:
                what = f"The patient is in {patients[subject]} and again in {grade}."
                findings.append(error("duplicate_subject", what, "Delete one copy.", file=path))
                continue
            patients[subject] = f"{patients.get(subject, '')} {grade}/{path.name}".strip()
            found = _patient(path, subject, grade)
            if isinstance(found, Finding):
                findings.append(found)
            else:
                cases += found
    counts = Counter(case.group for case in cases if case.sequence == "flair")
    facts = {"patients": " ".join(f"{grade} {counts[grade]}" for grade in GRADES)}
    return Survey(tuple(sorted(cases, key=lambda case: case.id)), tuple(findings), facts)


def subject_of(identifier: str) -> str:
    """Return the patient of an id such as ``Brats18_TCIA10_330_1``, whose end numbers the visit."""
    return re.sub(r"_\d+$", "", identifier)


def load(case: Case) -> Volume:
    """Load one sequence; its background is exactly 0."""
    return load_volume(case.volume)


def load_labels(case: Case) -> Volume:
    """Load the labels: 0 background, 1 necrosis, 2 edema, 4 enhancing tumor."""
    if case.labels is None:
        raise ConfigError(f"Expected a case with labels, got {case.id}. Choose another.")
    return load_volume(case.labels)


def check_case(case: Case, volume: Volume) -> list[Finding]:
    """Check that the skull was stripped to exactly 0: all corners are background."""
    corners = volume.array[:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1]
    if np.any(corners):
        what = f"Expected a background of exactly 0, got corners from {corners.min():g} "
        what += f"to {corners.max():g}."
        fix = "Fetch the file again; it was processed after its release."
        return [error("background_not_zero", what, fix, case=case)]
    return []


def check_corpus(folder: Path, listing: Survey) -> Survey:
    """Check that the four sequences of a patient lie on one grid."""
    findings = list(listing.findings)
    first: dict[Path, Case] = {}
    for case in listing.cases:
        reference = first.setdefault(case.volume.parent, case)
        try:
            grid, other = read_grid(case.volume), read_grid(reference.volume)
            found = same_grid(case, grid, other, case.volume, f"sequence {reference.sequence}")
        except VolumeError:
            continue  # reported as unreadable when the volume is checked
        findings += found
    return replace(listing, findings=tuple(findings))


def _patient(path: Path, subject: str, grade: str) -> list[Case] | Finding:
    """The four cases of a patient's folder, or why there are none."""
    files = {
        kind: next(iter(visible(path, f"{path.name}_{kind}.nii*")), None)
        for kind in (*SEQUENCES, "seg")
    }
    missing = [kind for kind, file in files.items() if file is None]
    if missing:
        what = f"Expected {', '.join((*SEQUENCES, 'seg'))}, got no {', '.join(missing)}."
        return error("missing_modality", what, "Fetch the patient again.", file=path)
    return [
        Case(
            corpus=NAME,
            subject=subject,
            id=f"{path.name}_{sequence}",
            modality="MR",
            sequence=sequence,
            volume=file,
            labels=files["seg"],
            group=grade,
        )
        for sequence in SEQUENCES
        if (file := files[sequence])
    ]


CORPUS = Corpus(
    name=NAME,
    title="BraTS2018",
    modalities=("MR",),
    label_names=LABELS,
    access="registration: https://www.med.upenn.edu/sbia/brats2018/registration.html "
    "(no redistribution)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=check_case,
    check_corpus=check_corpus,
)
