"""MSD Task02_Heart: cardiac MR with the left atrium labelled.

Layout: ``dataset.json``, ``imagesTr/la_*.nii.gz``, ``labelsTr/`` and ``imagesTs/``. The list in
dataset.json counts; the archive also holds ``._*`` files of macOS, which are not volumes.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.corpora.case import Case, Corpus, Finding, Survey, error, folder_with, warning
from universal_model_hub.errors import ConfigError
from universal_model_hub.volume import Volume, load_volume

NAME = "msd_heart"
FOLDER = "Task02_Heart"
LABELS = {0: "background", 1: "left atrium"}
MAX_JSON_BYTES = 1 << 20


def survey(folder: Path) -> Survey:
    """List what dataset.json names, training volumes with labels and test volumes without.

    Raises:
        ConfigError: If dataset.json is missing or damaged.
    """
    root = root_of(folder)
    listing = _read_list(root / "dataset.json")
    findings: list[Finding] = []
    cases: list[Case] = []
    for entry in listing["training"]:
        files = [_inside(root, entry.get(key), key, findings) for key in ("image", "label")]
        if files[0] and files[1]:
            cases.append(_case(files[0], files[1], "train"))
    for name in listing["test"]:
        file = _inside(root, name, "test image", findings)
        if file:
            cases.append(_case(file, None, "test"))
    cases.sort(key=lambda case: case.id)
    counts = [sum(case.group == group for case in cases) for group in ("train", "test")]
    facts = {"volumes": f"{counts[0]} with labels, {counts[1]} test"}
    return Survey(tuple(cases), tuple(findings), facts)


def root_of(folder: Path) -> Path:
    """Return the folder that holds dataset.json.

    Raises:
        ConfigError: If there is none.
    """
    return folder_with(folder, FOLDER, ["dataset.json"], f"the MSD layout {FOLDER}/dataset.json")


def load(case: Case) -> Volume:
    """Load a volume."""
    return load_volume(case.volume)


def load_labels(case: Case) -> Volume:
    """Load the labels: 0 background, 1 left atrium.

    Raises:
        ConfigError: If it is a test volume, which has none.
    """
    if case.labels is None:
        raise ConfigError(
            f"Expected a case with labels, got the test volume {case.id}. "
            f"Choose a case whose group is 'train'."
        )
    return load_volume(case.labels)


def check_case(case: Case, volume: Volume) -> list[Finding]:
    """Nothing beyond the checks that every MR volume gets."""
    return []


def check_corpus(folder: Path, listing: Survey) -> Survey:
    """Compare dataset.json with the files: strays, AppleDouble files, labels of test volumes."""
    root = root_of(folder)
    findings = list(listing.findings)
    listed = {case.volume for case in listing.cases} | {case.labels for case in listing.cases}
    apple = 0
    for path in sorted(root.glob("*/*.nii.gz")):
        if path.name.startswith("._"):
            apple += 1
        elif path not in listed and path.parent.name in ("imagesTr", "labelsTr", "imagesTs"):
            what = "The file is not in dataset.json."
            findings.append(warning("not_listed", what, "It is not used.", file=path))
    if apple:
        what = f"Got {apple} file(s) named ._*, which macOS made; they are not volumes."
        findings.append(warning("apple_double", what, "They are skipped; delete them."))
    for case in listing.cases:
        label = root / "labelsTr" / case.volume.name
        if case.group == "test" and label.exists():
            what = "Expected no labels for a test volume, got some."
            fix = "They are not used; find out where they come from."
            findings.append(warning("test_label", what, fix, case=case, file=label))
    facts = {**listing.facts, "files named ._*, skipped": str(apple)}
    return replace(listing, findings=tuple(findings), facts=facts)


def _case(volume: Path, labels: Path | None, group: str) -> Case:
    name = volume.name.split(".")[0]
    return Case(
        corpus=NAME, subject=name, id=name, modality="MR", volume=volume, labels=labels, group=group
    )


def _read_list(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            listing = json.loads(stream.read(MAX_JSON_BYTES).decode("utf-8-sig"))
        training, test = listing["training"], listing["test"]
        if not all(isinstance(entry, dict) for entry in training):
            raise TypeError("an entry of 'training' is not an object")
        # Some MSD copies list test images as objects instead of plain paths.
        names = [entry["image"] if isinstance(entry, dict) else entry for entry in test]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ConfigError(
            f"Expected 'training' (objects with image and label) and 'test' in {path.name}, "
            f"got: {cause}. Fetch the archive again."
        ) from cause
    return {"training": training, "test": names}


def _inside(root: Path, name: Any, what: str, findings: list[Finding]) -> Path | None:
    """The file that dataset.json names, if it exists within the corpus folder."""
    path = root / str(name)
    if path.name.startswith("._"):
        return None
    if not isinstance(name, str) or not path.resolve().is_relative_to(root.resolve()):
        text = f"Expected {what} inside the corpus folder, got {str(name)[:80]!r}."
        findings.append(
            error("path_outside", text, "Fetch the archive again.", file="dataset.json")
        )
        return None
    path = root / path.resolve().relative_to(root.resolve())
    if not path.is_file():
        text = f"Expected the {what} {name} that dataset.json lists, got no such file."
        findings.append(error("missing_file", text, "Fetch the archive again.", file=path))
        return None
    return path


CORPUS = Corpus(
    name=NAME,
    title="MSD Task02_Heart",
    modalities=("MR",),
    label_names=LABELS,
    access="CC BY-SA 4.0; http://medicaldecathlon.com "
    "(python -m training.corpora download msd_heart)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=check_case,
    check_corpus=check_corpus,
)
