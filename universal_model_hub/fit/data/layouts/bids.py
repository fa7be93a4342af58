"""A BIDS-like tree: ``sub-01/ses-1/anat/*_T1w.nii.gz`` and label maps in ``derivatives/``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Case, CaseSet, Finding, Task
from universal_model_hub.fit.data.layouts.names import SUFFIXES, scans_in, stem
from universal_model_hub.fit.data.layouts.table import read_rows

CLASS_COLUMNS = ("class", "group", "diagnosis")
LABEL_ENDS = ("dseg", "label", "seg", "mask")  # the first of them that a session has is taken
NOT_AVAILABLE = "n/a"  # an empty field of participants.tsv
MR_ENDS = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT1", "inplaneT2")


def is_bids(root: Path) -> bool:
    """Whether a folder holds subjects."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def read_bids(root: Path, task: Task | None) -> CaseSet:
    """Read the anatomical scans of all subjects and sessions, a case each.

    Channels are the sequences (``T1w``, ``FLAIR``: how a name ends) that more than half of the
    sessions have, in the order of their names; other scans are left out. A label map is
    ``derivatives/*/sub-*/.../*_dseg``, or ``_label``, ``_seg``, ``_mask`` where there is none.
    Without any, the classes are a column ``class``, ``group`` or ``diagnosis`` of
    ``participants.tsv``.

    Raises:
        ConfigError: If there are neither label maps nor classes, or no sequence is common.
    """
    sessions = _sessions(root)
    maps = _label_maps(root)
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
    sequences = _common_sequences(root, sessions)
    cases: list[Case] = []
    findings: list[Finding] = []
    for name, scans in sessions.items():
        subject = name.split("_")[0]
        channels, told = _channels(name, scans, sequences)
        findings += told
        labels, target = None, None
        if task == "segmentation":
            labels, told = _label_map(root, name, maps.get(name, ()))
            findings += told
        else:
            target = targets.get(subject)
            if target is None:
                text = f"Expected a class of {subject} in participants.tsv, got none."
                findings.append(Finding("error", str(root / subject), text))
        if channels and (labels or target):
            cases.append(
                Case(id=name, subject=subject, images=channels, labels=labels, target=target)
            )
    findings += [
        Finding("warning", str(path), f"Expected a scan of {name}, got none: left out.")
        for name, paths in maps.items()
        if task == "segmentation" and name not in sessions
        for path in paths
    ]
    return CaseSet(
        task=task,
        cases=tuple(cases),
        modalities=tuple("MR" if name in MR_ENDS else "auto" for name in sequences),
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
                    if _sequence(path) not in LABEL_ENDS:
                        found.setdefault(_session(path, root), []).append(path)
    return found


def _common_sequences(root: Path, sessions: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the sequences that more than half of the sessions have."""
    counts = Counter(s for scans in sessions.values() for s in {_sequence(path) for path in scans})
    common = sorted(name for name, count in counts.items() if 2 * count > len(sessions))
    if not common:
        raise ConfigError(
            f"Expected a sequence (such as T1w) that most sessions in {root} have in anat/, got "
            f"{', '.join(f'{name} in {count}' for name, count in sorted(counts.items())) or 'none'}"
            f" of {len(sessions)} sessions."
        )
    return common


def _channels(
    name: str, scans: Sequence[Path], sequences: Sequence[str]
) -> tuple[tuple[Path, ...], list[Finding]]:
    """Return a scan for each sequence, none if one is missing; and what was odd."""
    by_sequence: dict[str, list[Path]] = {}
    for path in scans:
        by_sequence.setdefault(_sequence(path), []).append(path)
    findings = []
    for sequence, paths in by_sequence.items():
        if sequence not in sequences:
            text = f"Most sessions have no {sequence}: left out."
            findings += [Finding("warning", str(path), text) for path in paths]
        for path in paths[1:] if sequence in sequences else ():
            text = f"Expected one {sequence} of {name}, got {paths[0].name} too: this is left out."
            findings.append(Finding("warning", str(path), text))
    missing = [sequence for sequence in sequences if sequence not in by_sequence]
    if missing:
        text = f"Expected {', '.join(missing)} of {name} as most sessions have, got none."
        findings.append(Finding("error", str(scans[0].parent), text))
        return (), findings
    return tuple(by_sequence[sequence][0] for sequence in sequences), findings


def _label_maps(root: Path) -> dict[str, list[Path]]:
    """Return the label maps of each subject and session."""
    beside = {*root.glob("derivatives/*/sub-*/**/*"), *root.glob("derivatives/sub-*/**/*")}
    found: dict[str, list[Path]] = {}
    for path in sorted(beside):
        hidden = path.name.startswith(".")
        if path.name.lower().endswith(SUFFIXES) and _sequence(path) in LABEL_ENDS and not hidden:
            found.setdefault(_session(path, root), []).append(path)
    return found


def _label_map(root: Path, name: str, paths: Sequence[Path]) -> tuple[Path | None, list[Finding]]:
    """Choose the label map of a session by its ending."""
    if not paths:
        where = str(root / name.replace("_", "/"))
        return None, [Finding("error", where, f"Expected a label map of {name}, got none.")]
    best = min(LABEL_ENDS.index(_sequence(path)) for path in paths)
    first, *others = [path for path in paths if _sequence(path) == LABEL_ENDS[best]]
    text = f"Expected one label map of {name}, got {first} too. Keep one."
    return first, [Finding("error", str(path), text) for path in others]


def _sequence(path: Path) -> str:
    """Return how a name ends: ``T1w`` of a scan, ``dseg`` of a label map."""
    return stem(path).rpartition("_")[2]


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
    classes = {row.values["participant_id"]: row.values[column] for row in rows}
    return {name: value for name, value in classes.items() if value not in ("", NOT_AVAILABLE)}
