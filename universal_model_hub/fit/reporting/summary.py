"""From the scores of single cases to means, intervals and paired differences, and to files."""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import write_bytes, write_json
from universal_model_hub.fit.reporting.classification import CaseAnswer
from universal_model_hub.fit.reporting.evaluate import ClassScore
from universal_model_hub.fit.reporting.intervals import Estimate, mean_estimate

METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95, mm",
    "sensitivity": "Sensitivity",
    "precision": "Precision",
}


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """The scores of one case, a class each."""

    case: str
    subject: str
    classes: tuple[ClassScore, ...]

    def mean(self, metric: str, labels: Sequence[int] | None = None) -> float | None:
        """Return the mean over the classes that count, or over some of them; None if none does."""
        values = [
            getattr(score, metric)
            for score in self.classes
            if labels is None or score.label in labels
        ]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class over all cases, or all classes: the mean over the classes of a case first."""

    label: int | None  # None: all classes
    name: str
    metrics: Mapping[str, Estimate]  # a key of ``METRICS`` each
    missed: int  # times it was in the truth and not predicted: these have no HD95
    extra: int  # times it was predicted and not in the truth


def summarize(cases: Sequence[CaseScores], *, seed: int = 0) -> tuple[ClassSummary, ...]:
    """Return each class over all cases, and at last all classes together.

    Raises:
        ConfigError: If a case is there twice.
    """
    _check_once(cases)
    names = {score.label: score.name for case in cases for score in case.classes}
    return (
        *(_summary(cases, (label,), label, names[label], seed) for label in sorted(names)),
        _summary(cases, tuple(names), None, "all classes", seed),
    )


def paired_difference(
    ours: Sequence[CaseScores],
    theirs: Sequence[CaseScores],
    metric: str = "dice",
    *,
    label: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Return our scores minus theirs, case by case, with an interval over cases.

    Args:
        ours: Scores of one arm.
        theirs: Scores of the other, of the same cases; what only one of them has does not count.
        metric: A key of ``METRICS``.
        label: Of one class; None: the mean over the classes that count in both arms.
        seed: Of the bootstrap.
    """
    _check_once(ours)
    _check_once(theirs)
    other = {case.case: case for case in theirs}
    pairs = [(case, other[case.case]) for case in ours if case.case in other]
    values: list[float | None] = []
    for mine, its in pairs:
        labels = _counting(mine, metric) & _counting(its, metric)
        if label is not None:
            labels &= {label}
        left, right = (case.mean(metric, tuple(labels)) for case in (mine, its))
        values.append(None if left is None or right is None else left - right)
    return mean_estimate(values, [mine.subject for mine, _ in pairs], seed=seed)


def case_rows(arm: str, cases: Sequence[CaseScores]) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.csv`` for label maps: one a case and class."""
    return [
        {"arm": arm, "case": case.case, "subject": case.subject, **asdict(score)}
        for case in cases
        for score in case.classes
    ]


def answer_rows(
    arm: str, answers: Sequence[CaseAnswer], classes: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.csv`` for classified cases: one a case and class."""
    return [
        {
            "arm": arm,
            "case": answer.case,
            "subject": answer.subject,
            "label": label,
            "name": name,
            "probability": answer.probabilities[label],
            "truth": int(answer.truth == label),
            "predicted": int(answer.predicted == label),
        }
        for answer in answers
        for label, name in sorted(classes.items())
    ]


def write_metrics(
    folder: Path, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``metrics.json`` and ``metrics.csv``, each whole or not at all.

    Args:
        folder: Where to.
        metrics: What the JSON file holds; results may be the dataclasses of this stage.
        rows: Of the CSV, all with the same columns.

    Raises:
        ConfigError: If a value has no place in JSON, or rows differ in their columns.
    """
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            if list(row) != list(rows[0]):
                raise ConfigError(
                    f"Expected the columns {', '.join(rows[0])} in each row, got "
                    f"{', '.join(row)}. Write one table a task."
                )
            writer.writerow(row)
    values = plain(metrics)
    write_bytes(folder / "metrics.csv", text.getvalue().encode())
    write_json(folder / "metrics.json", values)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: dataclasses as objects, NumPy's numbers as numbers.

    Raises:
        ConfigError: If it is not finite, or of a type that JSON does not know.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(
        f"Expected finite numbers, text, lists and objects as metrics, got {value!r:.80}. "
        "Leave out what is not defined: None."
    )


def _summary(
    cases: Sequence[CaseScores], labels: tuple[int, ...], label: int | None, name: str, seed: int
) -> ClassSummary:
    subjects = [case.subject for case in cases]
    own = [score for case in cases for score in case.classes if score.label in labels]
    return ClassSummary(
        label=label,
        name=name,
        metrics={
            metric: mean_estimate(
                [case.mean(metric, labels) for case in cases], subjects, seed=seed
            )
            for metric in METRICS
        },
        missed=sum(score.truth_voxels > 0 and score.predicted_voxels == 0 for score in own),
        extra=sum(score.truth_voxels == 0 and score.predicted_voxels > 0 for score in own),
    )


def _counting(case: CaseScores, metric: str) -> set[int]:
    return {score.label for score in case.classes if getattr(score, metric) is not None}


def _check_once(cases: Sequence[CaseScores]) -> None:
    counts = Counter(case.case for case in cases)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ConfigError(
            f"Expected each case once, got {', '.join(twice[:5])} several times. "
            "Score each case once an arm."
        )
