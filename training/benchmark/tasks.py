"""The five target tasks: their scans, labels and metrics, and who trains, validates and tests.

Source: Zhang et al., Sec. IV-A and IV-C. Sides go by subject, from the corpus's stored split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.corpora.case import Case, Modality
from training.corpora.splits import Split, refuse_leak
from universal_model_hub.errors import ConfigError

# Sec. IV-A names no validation part; a tenth of the training subjects draws the curves of Fig. 4.
VALIDATION_SHARE = 0.1
# Of the order in which subjects validate, and then train when few labels do. Source: ours.
ORDER_SEED = 2020

Unit = Literal["cubes", "candidates", "scans"]


@dataclass(frozen=True, kw_only=True)
class TargetTask:
    """One target task; two classes each, of which the second is asked for."""

    name: str
    title: str
    corpus: str
    modality: Modality
    unit: Unit  # what a training example is: a cube with labels, one around a candidate, a scan
    metric: Literal["iou", "auc"]
    classes: tuple[str, str]
    sequence: str = ""  # of MR where the corpus has several
    foreground: tuple[int, ...] = ()  # label values of the second class
    stripped: bool = False  # what is exactly 0 lies outside the head: it neither trains nor counts

    @property
    def kind(self) -> Literal["segmentation", "classification"]:
        """What the network answers: labels of voxels, or a class."""
        return "segmentation" if self.unit == "cubes" else "classification"

    def to_json(self) -> dict[str, Any]:
        """Return what defines the task, titles left out."""
        values = {key: value for key, value in asdict(self).items() if key != "title"}
        if not self.stripped:
            del values["stripped"]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


# Source: Zhang et al., Sec. IV-C.1. The whole tumor joins BraTS' labels 1, 2 and 4.
TASKS = {
    task.name: task
    for task in (
        TargetTask(
            name="bts",
            title="Brain tumor, BraTS2018 FLAIR",
            corpus="brats2018",
            modality="MR",
            sequence="flair",
            unit="cubes",
            metric="iou",
            classes=("background", "whole tumor"),
            foreground=(1, 2, 4),
            stripped=True,  # source: ours, as nnU-Net crops to what is not 0
        ),
        TargetTask(
            name="lnc",
            title="Lung nodule candidates, LUNA16",
            corpus="luna16",
            modality="CT",
            unit="candidates",
            metric="auc",
            classes=("no nodule", "nodule"),
        ),
        TargetTask(
            name="las_ct",
            title="Left atrium in CT, MMWHS",
            corpus="mmwhs",
            modality="CT",
            unit="cubes",
            metric="iou",
            classes=("background", "left atrium"),
            foreground=(420,),
        ),
        TargetTask(
            name="las_mr",
            title="Left atrium in MR, MMWHS",
            corpus="mmwhs",
            modality="MR",
            unit="cubes",
            metric="iou",
            classes=("background", "left atrium"),
            foreground=(420,),
        ),
        TargetTask(
            name="adc",
            title="Alzheimer's disease, ADNI",
            corpus="adni",
            modality="MR",
            unit="scans",
            metric="auc",
            classes=("NC", "AD"),
        ),
    )
}


@dataclass(frozen=True)
class Sides:
    """The cases of a task by what they are for."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


def get_task(name: str) -> TargetTask:
    """Return a task by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in TASKS:
        raise ConfigError(f"Expected a task of {', '.join(TASKS)}, got {name!r}.")
    return TASKS[name]


def cases_of(task: TargetTask, cases: Iterable[Case]) -> tuple[Case, ...]:
    """Return the cases of a corpus that the task uses."""
    return tuple(
        case
        for case in cases
        if case.modality == task.modality
        and (not task.sequence or case.sequence == task.sequence)
        and not case.left_out
    )


def sides_of(task: TargetTask, cases: Sequence[Case], parts: Split, *, share: float = 1.0) -> Sides:
    """Divide a task's cases: the split's test side, and a tenth of the training subjects.

    Validation subjects are the same whatever the share. Of the others the first ones of a fixed
    order train, so that smaller shares are part of larger ones; grades and diagnoses are kept in
    proportion, each with one subject at least.

    Args:
        task: The target task.
        cases: All cases of its corpus.
        parts: The corpus's split.
        share: Of the subjects that train, above 0 to 1.

    Raises:
        ConfigError: If a side is empty, or a subject is on two.
    """
    own = cases_of(task, cases)
    training, test = parts.of(own, "train"), parts.of(own, "test")
    refuse_leak(training, test)
    strata: defaultdict[str, list[str]] = defaultdict(list)
    for case in training:
        group = "" if task.unit == "candidates" else case.group  # LUNA16's subsets mean nothing
        if case.subject not in strata[group]:
            strata[group].append(case.subject)
    validating: set[str] = set()
    learning: set[str] = set()
    for subjects in strata.values():
        ordered = sorted(subjects, key=lambda subject: _rank(task, subject))
        num = max(1, round(VALIDATION_SHARE * len(ordered)))
        rest = ordered[num:]
        validating |= set(ordered[:num])
        learning |= set(rest[: max(1, round(share * len(rest)))])
    sides = Sides(
        tuple(case for case in training if case.subject in learning),
        tuple(case for case in training if case.subject in validating),
        test,
    )
    for name in ("train", "validation", "test"):
        if not getattr(sides, name):
            raise ConfigError(
                f"Expected subjects to {name} on for {task.name} in {task.corpus}, got none of "
                f"{len({case.subject for case in own})}. Add scans."
            )
    return sides


def target_of(task: TargetTask, case: Case) -> int:
    """Return the class number of a whole scan.

    Raises:
        ConfigError: If the case has another class than the task's.
    """
    if case.label_class not in task.classes:
        raise ConfigError(
            f"Expected a class of {', '.join(task.classes)} for {case.volume.name}, got "
            f"{case.label_class}. Correct the table of {case.corpus}."
        )
    return task.classes.index(case.label_class)


def _rank(task: TargetTask, subject: str) -> str:
    return hashlib.sha256(f"{ORDER_SEED}:{task.corpus}:{subject}".encode()).hexdigest()
