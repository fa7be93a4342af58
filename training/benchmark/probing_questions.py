"""What classifiers tell from frozen features: modality, anatomy, foreground, diagnosis.

Classifiers learn on half of the subjects and are scored on the others. P counts samples, F
features, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.benchmark.probing_cubes import CubeSet, ProbeSettings
from training.benchmark.tasks import TASKS
from training.corpora.case import Case
from universal_model_hub.probe.classifiers import (
    Lesson,
    area_under_curve,
    balanced_accuracy,
    folds_of,
    linear,
    nearest_neighbors,
)

CLASSIFIERS = {"linear": linear, "knn": nearest_neighbors}
METRICS = ("auc", "balanced_accuracy")
REGIONS = {
    "luna16": "chest",
    "lits2017": "abdomen",
    "brats2018": "brain",
    "msd_heart": "heart",
    "mmwhs": "heart",
    "adni": "brain",
}
LEAST_SUBJECTS = 2  # of each class: one to learn from, one to be asked about


@dataclass(frozen=True, eq=False)
class Question:
    """Samples with the classes that are asked for."""

    features: np.ndarray  # (P, F) float32
    classes: np.ndarray  # (P,) class numbers
    subjects: np.ndarray  # (P,) str, corpus/subject
    names: tuple[str, ...]  # of the K classes
    cubes: np.ndarray  # (P,) int64, how many cubes each sample is of


def questions(
    features: np.ndarray, cubes: CubeSet, tasks: Iterable[str]
) -> tuple[dict[str, Question], dict[str, str]]:
    """Return all questions that the data allow, and of the others why not.

    ``modality`` is CT or MR, of all corpora; ``modality_same_anatomy`` of the corpora of both, so
    that the region does not tell it; ``anatomy`` the region that a corpus shows; a question for
    each segmentation task whether a cube's center is foreground; ``adc`` the diagnosis, by the
    mean features of a scan.

    Args:
        features: (P, F) of the cubes.
        cubes: P cubes.
        tasks: The plan's.
    """
    cases, anywhere = cubes.cases, np.flatnonzero(cubes.task == "")
    of_cube = [cases[number] for number in cubes.scan]
    both = {c.corpus for c in cases if c.modality == "CT"} & {
        c.corpus for c in cases if c.modality == "MR"
    }
    shared = np.array([row for row in anywhere if of_cube[row].corpus in both], np.int64)

    def about(rows: np.ndarray, truth: Sequence[str]) -> Question:
        names, classes = np.unique(np.array(truth, dtype=str), return_inverse=True)
        subjects = np.array([_subject(of_cube[row]) for row in rows], dtype=str)
        return Question(
            features[rows], classes, subjects, tuple(names.tolist()), np.ones_like(rows)
        )

    found = {
        "modality": about(anywhere, [of_cube[row].modality for row in anywhere]),
        "modality_same_anatomy": about(shared, [of_cube[row].modality for row in shared]),
        "anatomy": about(anywhere, [REGIONS[of_cube[row].corpus] for row in anywhere]),
    }
    for name in tasks:
        task = TASKS[name]
        if task.unit == "cubes":
            rows = np.flatnonzero(cubes.task == name)
            found[f"foreground_{name}"] = about(
                rows, [str(task.classes[t]) for t in cubes.target[rows]]
            )
        elif task.unit == "scans":
            own = np.array([of_cube[row].corpus == task.corpus for row in anywhere], bool)
            found[name] = _of_scans(features, cubes, anywhere[own], task.classes)
    asked, skipped = {}, {}
    for name, question in found.items():
        left = with_enough_subjects(question)
        if len(left.names) > 1:
            asked[name] = left
        else:
            skipped[name] = (
                f"fewer than two classes of {LEAST_SUBJECTS} test subjects each: "
                f"{', '.join(f'{n} {count}' for n, count in num_subjects(question).items())}"
            )
    return asked, skipped


def num_subjects(question: Question) -> dict[str, int]:
    """Return the number of subjects of each class, by its name."""
    return {
        name: len(np.unique(question.subjects[question.classes == number]))
        for number, name in enumerate(question.names)
    }


def with_enough_subjects(question: Question) -> Question:
    """Leave out the classes of too few subjects to learn from some and to ask about others."""
    counts = num_subjects(question)
    names = tuple(name for name in question.names if counts[name] >= LEAST_SUBJECTS)
    truth = np.array(question.names, dtype=str)[question.classes]
    kept = np.isin(truth, names)
    return Question(
        question.features[kept],
        np.array([names.index(name) for name in truth[kept]], np.int64),
        question.subjects[kept],
        names,
        question.cubes[kept],
    )


def ask(question: Question, settings: ProbeSettings) -> dict[str, Any]:
    """Fit every classifier on half of the subjects of every split, and score it on the others.

    The standard deviation is over splits, which share subjects: it says how much the choice of
    subjects matters, and is no standard error.
    """
    values: dict[str, dict[str, list[float]]] = {
        name: {metric: [] for metric in METRICS} for name in CLASSIFIERS
    }
    for number in range(settings.splits):
        rng = np.random.default_rng([settings.seed, number])
        fitted, scored = halves(question, rng)
        classes = question.classes[fitted]
        folds = folds_of(classes, question.subjects[fitted], rng)
        lesson = Lesson(question.features[fitted], classes, folds, len(question.names))
        truth, asked = question.classes[scored], question.features[scored]
        for name, classify in CLASSIFIERS.items():
            answer = classify(lesson, asked)
            values[name]["auc"].append(area_under_curve(truth, answer.scores))
            values[name]["balanced_accuracy"].append(balanced_accuracy(truth, answer.predicted))
    return {
        "n_cubes": int(question.cubes.sum()),
        "n_subjects": len(np.unique(question.subjects)),
        "classes": list(question.names),
        "classifiers": {
            name: {metric: spread(some) for metric, some in metrics.items()}
            for name, metrics in values.items()
        },
    }


def halves(question: Question, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples by subject: rows to fit on and rows to score on.

    Subjects are dealt in turn, class by class and within it corpus by corpus, so that both sides
    have every class.
    """
    names, owner = np.unique(question.subjects, return_inverse=True)
    has = np.zeros((len(names), len(question.names)), bool)
    has[owner, question.classes] = True
    kinds = np.unique(has, axis=0, return_inverse=True)[1].reshape(-1)  # by the classes they have
    corpora = np.array([name.partition("/")[0] for name in names])
    side = np.empty(len(names), np.int64)
    for kind in np.unique(kinds):
        mine = np.flatnonzero(kinds == kind)
        order = mine[np.lexsort((rng.random(len(mine)), corpora[mine]))]
        side[order] = (np.arange(len(order)) + rng.integers(2)) % 2
    return np.flatnonzero(side[owner] == 0), np.flatnonzero(side[owner] == 1)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation over the splits and the value of each."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": [float(v) for v in values]}


def _of_scans(
    features: np.ndarray, cubes: CubeSet, rows: np.ndarray, classes: Sequence[str]
) -> Question:
    """Return the question for the class of whole scans, by the mean features of their cubes."""
    scans = [n for n in np.unique(cubes.scan[rows]) if cubes.cases[n].label_class in classes]
    means = [features[rows[cubes.scan[rows] == number]].mean(axis=0) for number in scans]
    truth = [list(classes).index(cubes.cases[number].label_class or "") for number in scans]
    present = sorted(set(truth))
    return Question(
        np.array(means, np.float32).reshape(len(scans), features.shape[1]),
        np.array([present.index(t) for t in truth], np.int64),
        np.array([_subject(cubes.cases[number]) for number in scans], dtype=str),
        tuple(classes[t] for t in present),
        np.array([(cubes.scan[rows] == number).sum() for number in scans], np.int64),
    )


def _subject(case: Case) -> str:
    return f"{case.corpus}/{case.subject}"
