"""What a corpus reader returns: cases, and what was noticed while listing them.

A case is one volume with what is known about it. Readers are plain functions in one module a
corpus; `Corpus` names them, so that every stage after this one treats all corpora alike.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from universal_model_hub.errors import ConfigError
from universal_model_hub.volume import Volume

Modality = Literal["CT", "MR"]
Severity = Literal["error", "warning"]


class CorpusWarning(UserWarning):
    """A corpus is read, but not all of it is used."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One volume of a corpus."""

    corpus: str
    subject: str  # whose it is; all cases of one subject stay on one side of a split
    id: str  # unique within the corpus
    modality: Modality
    volume: Path
    sequence: str = ""  # MR: "t1", "t1ce", "t2", "flair"; "" where the corpus has one only
    labels: Path | None = None  # label volume on the same grid
    label_class: str | None = None  # label of the whole volume: ADNI "AD" or "NC"
    group: str = ""  # what splits are stratified or fixed by: subset, grade, official part
    left_out: str = ""  # why this case is not used anywhere; "" when it is
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong (error: the case is not used) or worth knowing (warning) about a corpus."""

    severity: Severity
    code: str  # stable short name, such as "geometry_mismatch"
    what: str  # what was found, and what was expected
    fix: str  # what to do
    case: str = ""  # id; "" when it concerns the whole corpus
    file: str = ""  # relative to the corpus folder


@dataclass(frozen=True)
class Survey:
    """The listing of a corpus, before any voxel is read."""

    cases: tuple[Case, ...]
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # rows of the report: what is there


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus: its facts and the functions that read it."""

    name: str
    title: str
    modalities: tuple[Modality, ...]
    label_names: Mapping[int, str]  # every value a label volume may hold; empty without labels
    access: str  # where it comes from and under which terms
    survey: Callable[[Path], Survey]
    load: Callable[[Case], Volume]
    load_labels: Callable[[Case], Volume]
    check_case: Callable[[Case, Volume], list[Finding]]  # what only this corpus asks of a volume
    check_corpus: Callable[[Path, Survey], Survey]  # beyond single volumes: tables, lists
    masked_by_nan: bool = False  # NaN marks what was cut away, and is no damage

    def cases(self, folder: Path) -> tuple[Case, ...]:
        """List the cases of a folder, sorted by id; incomplete ones are warned about, not hidden.

        Raises:
            ConfigError: If the folder does not hold this corpus.
        """
        survey = self.survey(folder)
        errors = [finding for finding in survey.findings if finding.severity == "error"]
        if errors:
            warnings.warn(
                f"{self.title}: {len(errors)} problem(s) leave cases out, the first: "
                f"{errors[0].case or errors[0].file}: {errors[0].what} Run "
                f"'python -m training.corpora check {self.name} {folder}' for all of them.",
                CorpusWarning,
                stacklevel=2,
            )
        return survey.cases


def error(code: str, what: str, fix: str, *, case: Case | None = None, file: Any = "") -> Finding:
    """Return a finding that leaves the case's subject out."""
    return _finding("error", code, what, fix, case, file)


def warning(code: str, what: str, fix: str, *, case: Case | None = None, file: Any = "") -> Finding:
    """Return a finding worth knowing that leaves nothing out by itself."""
    return _finding("warning", code, what, fix, case, file)


def _finding(
    severity: Severity, code: str, what: str, fix: str, case: Case | None, file: Any
) -> Finding:
    path = str(file) or (str(case.volume) if case else "")
    return Finding(
        severity=severity, code=code, what=what, fix=fix, case=case.id if case else "", file=path
    )


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match, sorted, without hidden ones such as macOS's ``._*``."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def folder_with(folder: Path, inside: str, markers: Sequence[str], expected: str) -> Path:
    """Return ``folder`` or ``folder / inside``, whichever holds one of the marker paths.

    Raises:
        ConfigError: If neither does; ``expected`` says what the layout looks like.
    """
    for candidate in (folder, folder / inside):
        if any((candidate / marker).exists() for marker in markers):
            return candidate
    raise ConfigError(
        f"Expected {expected}, got the folder {folder} without it. "
        f"Point to the folder that holds {' or '.join(markers[:2])}."
    )
