"""A BIDS-like tree: ``sub-01/ses-1/anat/*_T1w.nii.gz`` and label maps in ``derivatives/``."""

from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import Case, CaseSet, Finding, Task
from universal_model_hub.fit.layouts.names import SUFFIXES, scans_in, stem
from universal_model_hub.fit.layouts.table import read_rows

CLASS_COLUMNS = ("class", "group", "diagnosis")
LABEL_ENDS = ("dseg", "mask", "label", "seg")


def is_bids(root: Path) -> bool:
    """Whether a folder holds subjects."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def read_bids(root: Path, task: Task | None) -> CaseSet:
    """Read the anatomical scans of all subjects and sessions.

    The scans of one session are channels of a case, in the order of their names. A label map is
    ``derivatives/*/sub-*/.../*_dseg`` (or ``_mask``). Without any, the classes are a column
    ``class``, ``group`` or ``diagnosis`` of ``participants.tsv``.

    Raises:
        ConfigError: If there are neither label maps nor classes.
    """
    sessions = _sessions(root)
    maps = {_session(path, root): path for path in _label_maps(root)}
    targets = {} if maps and task != "classification" else _targets(root)
    if task is None:
        task = "segmentation" if maps else "classification"
    if task == "segmentation" and not maps:
        raise ConfigError(
            f"Expected label maps as {root}/derivatives/*/sub-*/.../*_dseg.nii.gz, got none."
        )
    if task == "classification" and not targets:
        raise ConfigError(
            f"Expected participants.tsv in {root} with one of the columns "
            f"{', '.join(CLASS_COLUMNS)} (or label maps in derivatives/), got none."
        )
    cases, findings = [], []
    for name, paths in sessions.items():
        subject = name.split("_")[0]
        where = str(root / subject)
        if task == "segmentation" and name not in maps:
            findings.append(Finding("error", where, f"Expected a label map of {name}, got none."))
            continue
        if task == "classification" and subject not in targets:
            text = f"Expected {subject} in participants.tsv, got none."
            findings.append(Finding("error", where, text))
            continue
        cases.append(
            Case(
                id=name,
                subject=subject,
                images=tuple(paths),
                labels=maps[name] if task == "segmentation" else None,
                target=targets[subject] if task == "classification" else None,
            )
        )
    number = max([len(case.images) for case in cases], default=1)
    return CaseSet(
        task=task,
        cases=tuple(cases),
        modalities=("auto",) * number,
        classes=None,
        layout="bids",
        source=root,
        findings=tuple(findings),
    )


def _sessions(root: Path) -> dict[str, list[Path]]:
    """Return the scans of each subject and session."""
    found: dict[str, list[Path]] = {}
    for subject in sorted(root.glob("sub-*")):
        for folder in [subject / "anat", *sorted(subject.glob("ses-*/anat"))]:
            if folder.is_dir():
                for path in scans_in(folder):
                    if not stem(path).endswith(LABEL_ENDS):
                        found.setdefault(_session(path, root), []).append(path)
    return found


def _label_maps(root: Path) -> list[Path]:
    beside = [*root.glob("derivatives/*/sub-*/**/*"), *root.glob("derivatives/sub-*/**/*")]
    return sorted(
        path
        for path in beside
        if path.name.lower().endswith(SUFFIXES) and stem(path).endswith(LABEL_ENDS)
    )


def _session(path: Path, root: Path) -> str:
    """Return ``sub-01`` or ``sub-01_ses-1``."""
    parts = path.relative_to(root).parts
    return "_".join(part for part in parts[:-1] if part.startswith(("sub-", "ses-")))


def _targets(root: Path) -> dict[str, str]:
    table = root / "participants.tsv"
    if not table.is_file():
        return {}
    rows, columns = read_rows(table)
    column = next((name for name in CLASS_COLUMNS if name in columns), None)
    if column is None or "participant_id" not in columns:
        return {}
    return {row["participant_id"]: row[column] for row in rows if row.get(column)}
